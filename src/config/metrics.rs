//! What is told of the server's work, and to whom.

use std::time::Duration;

use serde::Deserialize;

use super::ServeOptions;
use crate::error::{Error, Result};

/// How CloudWatch is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CloudWatch {
    /// Not at all.
    #[default]
    Off,
    /// By its API, with the credentials that AWS's tools find.
    Put,
    /// In lines of its embedded metric format on standard output.
    Embedded,
}

/// What CloudWatch is told, where it is told anything.
#[derive(Clone, Debug)]
pub struct CloudWatchConfig {
    /// How.
    pub mode: CloudWatch,
    /// The namespace of the metrics.
    pub namespace: String,
    /// The dimension `VariantName`.
    pub variant: String,
    /// How often.
    pub period: Duration,
    /// Instead of the region of environment, profile or instance.
    pub region: Option<String>,
    /// Another address than AWS's.
    pub endpoint: Option<String>,
}

/// Metrics beside the port that they are served on.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// How many models have series of their own; the others share one.
    pub models: usize,
    /// What CloudWatch is told.
    pub cloudwatch: CloudWatchConfig,
}

impl MetricsConfig {
    /// The part of the options that concerns metrics.
    ///
    /// # Errors
    /// `InvalidArgument` naming the option that is wrong.
    pub(super) fn of(options: &mut ServeOptions) -> Result<Self> {
        let namespace = options.cloudwatch_namespace.take().unwrap_or_else(|| "Roundhouse".to_owned());
        if namespace.is_empty() || namespace.len() > 255 || namespace.starts_with("AWS/") {
            return Err(Error::invalid(format!(
                "--cloudwatch-namespace '{namespace}': 1 to 255 characters, and not AWS/..., which is AWS's own"
            )));
        }
        let seconds = options.cloudwatch_period_s.unwrap_or(60);
        if !(1..=3600).contains(&seconds) {
            return Err(Error::invalid(format!("--cloudwatch-period-s {seconds}: 1 to 3600 seconds")));
        }
        let endpoint = options.cloudwatch_endpoint.take();
        if let Some(endpoint) = &endpoint
            && !endpoint.starts_with("http://")
            && !endpoint.starts_with("https://")
        {
            return Err(Error::invalid(format!(
                "--cloudwatch-endpoint '{endpoint}': write http://HOST:PORT or https://HOST"
            )));
        }
        Ok(Self {
            models: options.metrics_models.unwrap_or(100),
            cloudwatch: CloudWatchConfig {
                mode: options.cloudwatch.unwrap_or_default(),
                namespace,
                variant: options.cloudwatch_variant.take().unwrap_or_else(|| "AllTraffic".to_owned()),
                period: Duration::from_secs(seconds),
                region: options.cloudwatch_region.take(),
                endpoint,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloudwatch_is_told_nothing_unless_it_is_asked_for() {
        let config = MetricsConfig::of(&mut ServeOptions::default()).unwrap();
        assert_eq!((config.models, config.cloudwatch.mode), (100, CloudWatch::Off));
        assert_eq!((&*config.cloudwatch.namespace, &*config.cloudwatch.variant), ("Roundhouse", "AllTraffic"));
        assert_eq!(config.cloudwatch.period, Duration::from_secs(60));
    }

    #[test]
    fn what_cloudwatch_would_refuse_is_refused_at_the_start() {
        let text = |change: fn(&mut ServeOptions)| {
            let mut options = ServeOptions::default();
            change(&mut options);
            MetricsConfig::of(&mut options).unwrap_err().report()
        };
        assert!(text(|options| options.cloudwatch_namespace = Some("AWS/SageMaker".to_owned())).contains("namespace"));
        assert!(text(|options| options.cloudwatch_period_s = Some(0)).contains("--cloudwatch-period-s 0"));
        assert!(text(|options| options.cloudwatch_endpoint = Some("host:1".to_owned())).contains("http://"));
    }
}
