//! What is traced, as `--trace-config` says it in Triton's words (docs/user_guide/trace.md of
//! triton-inference-server/server).

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// What a trace holds; nothing is traced where it holds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceLevels {
    /// When what happened.
    pub timestamps: bool,
    /// What went in and came out.
    pub tensors: bool,
}

impl TraceLevels {
    /// Whether nothing is traced.
    #[must_use]
    pub const fn is_off(self) -> bool {
        !self.timestamps && !self.tensors
    }

    /// Reads level names; none of them is `OFF` unless it stands alone.
    ///
    /// # Errors
    /// `InvalidArgument` naming the level that is none.
    pub fn read<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let (mut levels, mut count, mut off) = (Self::default(), 0_usize, false);
        for name in names {
            count += 1;
            match name {
                "OFF" => off = true,
                "TIMESTAMPS" => levels.timestamps = true,
                "TENSORS" => levels.tensors = true,
                other => {
                    let shown: String = other.chars().take(32).collect();
                    return Err(Error::invalid(format!(
                        "unknown trace_level '{shown}', expected OFF, TIMESTAMPS or TENSORS"
                    )));
                }
            }
        }
        if off && count > 1 {
            return Err(Error::invalid("Expect only one trace level 'OFF' is specified"));
        }
        Ok(levels)
    }

    /// Their names.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let names = [("TIMESTAMPS", self.timestamps), ("TENSORS", self.tensors), ("OFF", self.is_off())];
        names.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
    }
}

/// Where traces go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceMode {
    /// To a JSON file in Triton's form.
    #[default]
    Triton,
    /// To an OpenTelemetry collector.
    OpenTelemetry,
}

impl TraceMode {
    /// Its name in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Triton => "triton",
            Self::OpenTelemetry => "opentelemetry",
        }
    }
}

/// What is traced at the start, and where traces go for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// What a trace holds.
    pub levels: TraceLevels,
    /// One request in so many; 0 for those alone whose caller traces (mode opentelemetry).
    pub rate: u32,
    /// How many traces are made; -1 for no limit.
    pub count: i32,
    /// Where traces go.
    pub mode: TraceMode,
    /// The file of mode triton.
    pub file: Option<PathBuf>,
    /// Traces a file, each with a number behind its name; 0 for one file.
    pub log_frequency: u32,
    /// The collector of mode opentelemetry, as given.
    pub url: String,
    /// What spans say of this server: `service.name` and the like.
    pub resource: Vec<(String, String)>,
    /// Spans that may wait for the collector.
    pub queue: usize,
    /// How long spans are gathered.
    pub delay: Duration,
    /// Spans in one message to the collector.
    pub batch: usize,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            levels: TraceLevels::default(),
            rate: 1000,
            count: -1,
            mode: TraceMode::Triton,
            file: None,
            log_frequency: 0,
            url: "http://localhost:4318/v1/traces".to_owned(),
            resource: Vec::new(),
            queue: 2048,
            delay: Duration::from_secs(5),
            batch: 512,
        }
    }
}

/// The most that `opentelemetry,bsp_max_queue_size` may be.
const MOST_WAITING: usize = 1 << 20;

impl TraceConfig {
    /// Reads the values of `--trace-config`: `KEY=VALUE`, `triton,KEY=VALUE` or `opentelemetry,KEY=VALUE`. A later one
    /// wins; levels and resources add up.
    ///
    /// # Errors
    /// `InvalidArgument` naming the value that is wrong.
    pub fn read<S: AsRef<str>>(values: &[S]) -> Result<Self> {
        let mut config = Self::default();
        let mut levels: Vec<&str> = Vec::new();
        for value in values.iter().map(AsRef::as_ref) {
            config.take(value, &mut levels).map_err(|error| error.wrap(format!("--trace-config {value}")))?;
        }
        config.levels = TraceLevels::read(levels).map_err(|error| error.wrap("--trace-config level"))?;
        let is_on = !config.levels.is_off();
        match config.mode {
            TraceMode::Triton if is_on && config.file.is_none() => Err(Error::invalid(
                "--trace-config level is on without a file: add --trace-config triton,file=PATH, or mode=opentelemetry",
            )),
            TraceMode::Triton if is_on && config.rate == 0 => {
                Err(Error::invalid("--trace-config rate=0 is for mode=opentelemetry: give at least 1"))
            }
            _ => Ok(config),
        }
    }

    fn take<'a>(&mut self, value: &'a str, levels: &mut Vec<&'a str>) -> Result<()> {
        let (setting, text) = value
            .split_once('=')
            .ok_or_else(|| Error::invalid("expected KEY=VALUE, triton,KEY=VALUE or opentelemetry,KEY=VALUE"))?;
        match setting {
            "level" => levels.push(text),
            "rate" => self.rate = number(text)?,
            "count" => {
                self.count = number(text)?;
                if self.count < -1 {
                    return Err(Error::invalid("expected a number of traces, or -1 for no limit"));
                }
            }
            "mode" => {
                self.mode = match text {
                    "triton" => TraceMode::Triton,
                    "opentelemetry" => TraceMode::OpenTelemetry,
                    _ => return Err(Error::invalid("expected triton or opentelemetry")),
                }
            }
            "triton,file" => self.file = (!text.is_empty()).then(|| text.into()),
            "triton,log-frequency" => self.log_frequency = number(text)?,
            "opentelemetry,url" => text.clone_into(&mut self.url),
            "opentelemetry,resource" => {
                let (key, value) = text
                    .split_once('=')
                    .filter(|(key, _)| !key.is_empty())
                    .ok_or_else(|| Error::invalid("expected opentelemetry,resource=KEY=VALUE"))?;
                self.resource.push((key.to_owned(), value.to_owned()));
            }
            "opentelemetry,bsp_max_queue_size" => self.queue = within(text, MOST_WAITING)?,
            "opentelemetry,bsp_max_export_batch_size" => self.batch = within(text, MOST_WAITING)?,
            "opentelemetry,bsp_schedule_delay" => self.delay = Duration::from_millis(number(text)?),
            _ => {
                return Err(Error::invalid(
                    "unknown setting: there are level, rate, count, mode, triton,file, triton,log-frequency, \
                     opentelemetry,url, opentelemetry,resource, opentelemetry,bsp_max_queue_size, \
                     opentelemetry,bsp_schedule_delay and opentelemetry,bsp_max_export_batch_size",
                ));
            }
        }
        Ok(())
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N>
where
    N::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|error| Error::invalid("expected a whole number").with_source(error))
}

fn within(text: &str, most: usize) -> Result<usize> {
    let number: usize = number(text)?;
    if (1..=most).contains(&number) { Ok(number) } else { Err(Error::invalid(format!("expected 1 to {most}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tritons_options_are_read_as_they_are_written_there() {
        let config = TraceConfig::read(&[
            "rate=7",
            "level=TIMESTAMPS",
            "level=TENSORS",
            "count=9",
            "mode=opentelemetry",
            "triton,file=t.json",
            "triton,log-frequency=3",
            "opentelemetry,url=http://c:1/v1/traces",
            "opentelemetry,resource=service.name=a=b",
            "opentelemetry,bsp_max_queue_size=10",
            "opentelemetry,bsp_schedule_delay=20",
            "opentelemetry,bsp_max_export_batch_size=5",
        ])
        .unwrap();
        assert_eq!(config.levels, TraceLevels { timestamps: true, tensors: true });
        assert_eq!((config.rate, config.count, config.log_frequency), (7, 9, 3));
        assert_eq!(config.resource, [("service.name".to_owned(), "a=b".to_owned())]);
        assert_eq!((config.queue, config.batch, config.delay), (10, 5, Duration::from_millis(20)));
        assert_eq!((config.mode, config.url.as_str()), (TraceMode::OpenTelemetry, "http://c:1/v1/traces"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (values, expected) in [
            (vec!["rate"], "expected KEY=VALUE"),
            (vec!["rate=x"], "--trace-config rate=x: expected a whole number"),
            (vec!["count=-2"], "-1 for no limit"),
            (vec!["mode=jaeger"], "expected triton or opentelemetry"),
            (vec!["triton,rate=1"], "unknown setting"),
            (vec!["opentelemetry,resource=x"], "resource=KEY=VALUE"),
            (vec!["opentelemetry,bsp_max_queue_size=0"], "expected 1 to"),
            (vec!["level=MAX"], "unknown trace_level 'MAX'"),
            (vec!["level=OFF", "level=TENSORS"], "only one trace level 'OFF'"),
            (vec!["level=TENSORS"], "triton,file=PATH"),
            (vec!["level=TENSORS", "triton,file=f", "rate=0"], "rate=0 is for mode=opentelemetry"),
        ] {
            let text = TraceConfig::read(&values).unwrap_err().report();
            assert!(text.contains(expected), "{values:?}: {text}");
        }
    }
}
