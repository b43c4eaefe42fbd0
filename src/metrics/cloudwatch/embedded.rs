//! Reports as lines of the embedded metric format: JSON that CloudWatch Logs makes metrics of, wherever it comes from. A set is
//! written as `Max`, `Min`, `Count` and `Sum`, as AWS's own exporter of OpenTelemetry writes it.

use std::io::Write;
use std::time::UNIX_EPOCH;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::{Identity, Refusal, Report, Sink};
use crate::error::Error;

/// Writes reports to standard output, which the server writes nothing else to.
#[derive(Debug)]
pub struct Embedded {
    identity: Identity,
}

impl Embedded {
    /// Reports of the metrics of `identity`.
    #[must_use]
    pub const fn new(identity: Identity) -> Self {
        Self { identity }
    }

    fn line(&self, report: &Report) -> String {
        let milliseconds = report.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let dimensions = self.identity.dimensions();
        let metrics: Vec<_> = report
            .sets
            .iter()
            .map(|(metric, _)| json!({"Name": metric.name(), "Unit": metric.unit().name()}))
            .collect();
        let about = json!({
            "Timestamp": u64::try_from(milliseconds).unwrap_or(u64::MAX),
            "CloudWatchMetrics": [{
                "Namespace": self.identity.namespace,
                "Dimensions": [dimensions.map(|(name, _)| name)],
                "Metrics": metrics,
            }],
        });
        let mut line = Map::new();
        line.insert("_aws".to_owned(), about);
        line.extend(dimensions.map(|(name, value)| (name.to_owned(), Value::from(value))));
        line.extend(report.sets.iter().map(|(metric, set)| {
            let set = json!({"Max": set.greatest, "Min": set.least, "Count": set.count, "Sum": set.sum});
            (metric.name().to_owned(), set)
        }));
        format!("{}\n", Value::Object(line))
    }
}

impl Sink for Embedded {
    fn send<'a>(&'a self, report: &'a Report) -> BoxFuture<'a, Result<(), Refusal>> {
        let line = self.line(report);
        Box::pin(async move {
            // On a thread that may wait: whoever reads standard output may be slow.
            let written = tokio::task::spawn_blocking(move || {
                let mut output = std::io::stdout().lock();
                output.write_all(line.as_bytes()).and_then(|()| output.flush())
            });
            match written.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => {
                    Err(Refusal::ForGood(Error::internal("cannot write to standard output").with_source(error)))
                }
                Err(error) => Err(Refusal::ForNow(Error::internal("writing a report was stopped").with_source(error))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::observations::{Observed, StatisticSet};
    use super::*;

    #[test]
    fn a_line_names_its_dimensions_and_its_metrics_with_their_units() {
        let identity = Identity { namespace: "N".to_owned(), endpoint: "e\"1".to_owned(), variant: "v".to_owned() };
        let set = StatisticSet { count: 2, sum: 40.0, least: 10.0, greatest: 30.0 };
        let sets = vec![(Observed::ModelLatency, set)];
        let line = Embedded::new(identity).line(&Report { at: UNIX_EPOCH + Duration::from_millis(1_234), sets });
        assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line}");
        let line: Value = serde_json::from_str(&line).unwrap();
        let expected = json!({
            "_aws": {
                "Timestamp": 1234,
                "CloudWatchMetrics": [{
                    "Namespace": "N",
                    "Dimensions": [["EndpointName", "VariantName"]],
                    "Metrics": [{"Name": "ModelLatency", "Unit": "Microseconds"}],
                }],
            },
            "EndpointName": "e\"1",
            "VariantName": "v",
            "ModelLatency": {"Max": 30.0, "Min": 10.0, "Count": 2, "Sum": 40.0},
        });
        assert_eq!(line, expected);
    }
}
