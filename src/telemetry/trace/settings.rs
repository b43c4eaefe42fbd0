//! Trace settings and changes to them, in Triton's words (docs/protocol/extension_trace.md of
//! triton-inference-server/server). HTTP and gRPC both read and write them here.

use crate::config::trace::{TraceConfig, TraceLevels, TraceMode};
use crate::error::{Error, Result};

/// What is set, for the server or for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSettings {
    /// What a trace holds.
    pub levels: TraceLevels,
    /// One request in so many.
    pub rate: u32,
    /// Traces that are still to be made; -1 for no limit.
    pub count: i32,
    /// Traces a file.
    pub log_frequency: u32,
    /// What is set for good, by the name of its setting.
    pub(super) fixed: Vec<(String, String)>,
    pub(super) mode: TraceMode,
}

impl TraceSettings {
    pub(super) fn of(config: &TraceConfig) -> Self {
        let fixed = match config.mode {
            TraceMode::Triton => {
                let file = config.file.as_ref().map_or_else(String::new, |file| file.display().to_string());
                vec![("trace_file".to_owned(), file)]
            }
            TraceMode::OpenTelemetry => {
                let resource: Vec<_> = config.resource.iter().map(|(key, value)| format!("{key}={value}")).collect();
                vec![
                    ("url".to_owned(), config.url.clone()),
                    ("resource".to_owned(), resource.join(",")),
                    ("bsp_schedule_delay".to_owned(), config.delay.as_millis().to_string()),
                    ("bsp_max_export_batch_size".to_owned(), config.batch.to_string()),
                    ("bsp_max_queue_size".to_owned(), config.queue.to_string()),
                ]
            }
        };
        let TraceConfig { levels, rate, count, log_frequency, mode, .. } = *config;
        Self { levels, rate, count, log_frequency, fixed, mode }
    }

    /// Every setting by its name, in Triton's order: `trace_level` has one value or more, the others have one.
    #[must_use]
    pub fn rows(&self) -> Vec<(&str, Vec<String>)> {
        let mut rows = vec![
            ("trace_level", self.levels.names().into_iter().map(str::to_owned).collect()),
            ("trace_rate", vec![self.rate.to_string()]),
            ("trace_count", vec![self.count.to_string()]),
        ];
        let mode = ("trace_mode", vec![self.mode.name().to_owned()]);
        let fixed = self.fixed.iter().map(|(name, value)| (name.as_str(), vec![value.clone()]));
        if self.mode == TraceMode::Triton {
            rows.push(("log_frequency", vec![self.log_frequency.to_string()]));
            rows.extend(fixed);
            rows.push(mode);
        } else {
            rows.push(mode);
            rows.extend(fixed);
        }
        rows
    }

    /// Whether traces can be made so.
    ///
    /// # Errors
    /// `InvalidArgument` where they are wanted and cannot be.
    pub(super) fn check(&self) -> Result<()> {
        if self.levels.is_off() {
            return Ok(());
        }
        let has_file = self.fixed.iter().any(|(name, value)| name == "trace_file" && !value.is_empty());
        let reason = if self.rate == 0 {
            "sample rate must be non-zero"
        } else if self.count == 0 {
            "trace_count is used up: set another, or -1 for no limit"
        } else if self.mode == TraceMode::Triton && !has_file {
            "trace file name is not given"
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("Attempting to set invalid trace setting :{reason}")))
    }
}

/// What becomes of one setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// It stays.
    #[default]
    Keep,
    /// It is as the server's again; the server's own is as at the start.
    Clear,
    /// It is this.
    Set(T),
}

/// A change of settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceUpdate {
    pub(super) levels: Change<TraceLevels>,
    pub(super) rate: Change<u32>,
    pub(super) count: Change<i32>,
    pub(super) log_frequency: Change<u32>,
}

impl TraceUpdate {
    /// Takes one setting by its name. No values clear it (`null` in JSON, an empty list over gRPC).
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name or a value that is none, `Unsupported` for what is set for good.
    pub fn take<S: AsRef<str>>(&mut self, name: &str, values: Option<&[S]>) -> Result<()> {
        match name {
            "trace_file" => {
                return Err(Error::unsupported("trace file location can not be updated through network protocol"));
            }
            "trace_mode" => {
                return Err(Error::unsupported("trace mode can not be updated through network protocol"));
            }
            "trace_level" | "trace_rate" | "trace_count" | "log_frequency" => {}
            other => {
                let shown: String = other.chars().take(64).collect();
                return Err(Error::invalid(format!(
                    "unknown trace setting '{shown}', there are trace_level, trace_rate, trace_count and log_frequency"
                )));
            }
        }
        let Some(values) = values else {
            match name {
                "trace_level" => self.levels = Change::Clear,
                "trace_rate" => self.rate = Change::Clear,
                "trace_count" => self.count = Change::Clear,
                _ => self.log_frequency = Change::Clear,
            }
            return Ok(());
        };
        if name == "trace_level" {
            if !values.is_empty() {
                self.levels = Change::Set(TraceLevels::read(values.iter().map(AsRef::as_ref))?);
            }
            return Ok(());
        }
        let [value] = values else { return Err(Error::invalid(format!("expect only 1 value for '{name}'"))) };
        let value = value.as_ref();
        match name {
            "trace_rate" => self.rate = Change::Set(number(name, value, 0, i64::from(u32::MAX))?),
            "trace_count" => {
                if value.trim().parse::<i64>().is_ok_and(|count| count < -1) {
                    return Err(Error::invalid(format!(
                        "Unable to parse 'trace_count'. Expecting value >= -1, got:{value}"
                    )));
                }
                self.count = Change::Set(number(name, value, -1, i64::from(i32::MAX))?);
            }
            _ => self.log_frequency = Change::Set(number(name, value, 0, i64::from(u32::MAX))?),
        }
        Ok(())
    }
}

fn number<N: TryFrom<i64>>(name: &str, text: &str, least: i64, most: i64) -> Result<N> {
    let shown: String = text.chars().take(32).collect();
    let digits = text.trim();
    let digits = digits.strip_prefix('-').unwrap_or(digits);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::invalid(format!("Unable to parse '{name}', got: {shown}")));
    }
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.and_then(|number| N::try_from(number).ok()).ok_or_else(|| {
        Error::invalid(format!("Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {shown}"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    fn taken(name: &str, values: &[&str]) -> Result<TraceUpdate> {
        let mut update = TraceUpdate::default();
        update.take(name, Some(values)).map(|()| update)
    }

    #[test]
    fn settings_are_listed_in_tritons_order() {
        let config = TraceConfig::read(&["level=TIMESTAMPS", "triton,file=t.json"]).unwrap();
        let settings = TraceSettings::of(&config);
        let rows: Vec<_> = settings.rows().into_iter().map(|(name, values)| format!("{name}={}", values[0])).collect();
        assert_eq!(
            rows.join(" "),
            "trace_level=TIMESTAMPS trace_rate=1000 trace_count=-1 log_frequency=0 trace_file=t.json trace_mode=triton"
        );
        let config = TraceConfig::read(&["mode=opentelemetry", "opentelemetry,resource=a=b"]).unwrap();
        let settings = TraceSettings::of(&config);
        let names: Vec<_> = settings.rows().into_iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(
            names.join(" "),
            "trace_level trace_rate trace_count trace_mode url resource bsp_schedule_delay \
             bsp_max_export_batch_size bsp_max_queue_size"
        );
    }

    #[test]
    fn wrong_values_get_tritons_texts() {
        for (name, values, expected) in [
            ("trace_rate", &["abc"][..], "Unable to parse 'trace_rate', got: abc"),
            ("trace_rate", &[""], "Unable to parse 'trace_rate', got: "),
            ("trace_rate", &["5x"], "Unable to parse 'trace_rate', got: 5x"),
            (
                "trace_rate",
                &["4294967296"],
                "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 4294967296",
            ),
            ("trace_rate", &["-1"], "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: -1"),
            ("trace_rate", &["1", "2"], "expect only 1 value for 'trace_rate'"),
            ("trace_count", &["-2"], "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
            (
                "trace_count",
                &["2147483648"],
                "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], got: 2147483648",
            ),
            ("log_frequency", &["x"], "Unable to parse 'log_frequency', got: x"),
            ("trace_level", &["OFF", "TENSORS"], "Expect only one trace level 'OFF' is specified"),
            ("trace_level", &["MAX"], "unknown trace_level 'MAX', expected OFF, TIMESTAMPS or TENSORS"),
        ] {
            let error = taken(name, values).unwrap_err();
            assert_eq!((error.kind(), error.report().as_str()), (ErrorKind::InvalidArgument, expected));
        }
        assert_eq!(taken("trace_file", &["x"]).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(taken("trace_mode", &["x"]).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(taken("tracerate", &["1"]).unwrap_err().report().contains("'tracerate'"));
    }

    proptest! {
        #[test]
        fn every_number_in_range_is_taken_and_no_text_panics(rate: u32, count in -1_i32.., name: String, text: String) {
            prop_assert_eq!(taken("trace_rate", &[&rate.to_string()]).unwrap().rate, Change::Set(rate));
            prop_assert_eq!(taken("trace_count", &[&count.to_string()]).unwrap().count, Change::Set(count));
            let _ = taken(&name, &[&text]);
            for name in ["trace_rate", "trace_count", "log_frequency", "trace_level"] {
                let _ = taken(name, &[&text]);
            }
        }
    }
}
