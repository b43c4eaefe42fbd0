//! Log lines: text on a terminal, JSON elsewhere, both on standard error; and the settings that change them while the
//! server runs (docs/protocol/extension_logging.md of triton-inference-server/server).
//!
//! A process has one subscriber, whatever number of servers, so the settings are the process's too.

use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::LogFormat;
use crate::error::{Error, Result};

/// Whether times have whole seconds, as Triton's `ISO8601` has them.
static WHOLE_SECONDS: AtomicBool = AtomicBool::new(false);

static CONTROL: Mutex<Option<Control>> = Mutex::new(None);

/// The hand on the subscriber.
struct Control {
    /// The filter of the start, which has more to say than a level.
    start: String,
    settings: LogSettings,
    filter: reload::Handle<EnvFilter, Registry>,
    shown: reload::Handle<Shown, Filtered>,
}

type Filtered = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;

/// Starts logging for the process. A second call changes nothing (tests start several servers).
///
/// # Errors
/// `InvalidArgument` if the filter cannot be read.
pub fn init(filter: &str, format: LogFormat) -> Result<()> {
    // ONNX Runtime writes some sixty info lines for every session it makes.
    let start = if filter.contains("ort=") { filter.to_owned() } else { format!("{filter},ort=warn") };
    let own = read(&start).map_err(|error| error.wrap(format!("cannot read --log {filter}")))?;
    let settings = LogSettings::of(own.max_level_hint().unwrap_or(LevelFilter::TRACE));
    let text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    let (filter, filter_handle) = reload::Layer::new(own);
    let (shown, shown_handle) = reload::Layer::new(settings.shown());
    let subscriber = tracing_subscriber::registry().with(filter).with(shown);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_timer(Timer);
    let set = if text {
        subscriber.with(lines.with_target(false).with_ansi(std::io::stderr().is_terminal())).try_init()
    } else {
        subscriber.with(lines.json().flatten_event(true).with_current_span(false)).try_init()
    };
    // An error here means that a subscriber is set already.
    if set.is_ok() {
        *CONTROL.lock() = Some(Control { start, settings, filter: filter_handle, shown: shown_handle });
    }
    Ok(())
}

fn read(directives: &str) -> Result<EnvFilter> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|error| Error::invalid("the filter has no such directive").with_source(error))
}

/// The settings in force.
#[must_use]
pub fn settings() -> LogSettings {
    CONTROL.lock().as_ref().map_or_else(LogSettings::default, |control| control.settings)
}

/// Changes the settings and gives them.
///
/// # Errors
/// `Internal` where there is nothing to change: logging was not started, or its subscriber is gone.
pub fn update(update: &LogUpdate) -> Result<LogSettings> {
    let mut control = CONTROL.lock();
    let gone = || Error::internal("the process's log is not the server's to change");
    let control = control.as_mut().ok_or_else(gone)?;
    let settings = update.applied(control.settings);
    let directives = settings.directives(&control.start)?;
    let filter = read(&directives)?;
    control.filter.reload(filter).map_err(|error| gone().with_source(error))?;
    control.shown.reload(settings.shown()).map_err(|error| gone().with_source(error))?;
    WHOLE_SECONDS.store(settings.format == TimeFormat::Iso8601, Ordering::Relaxed);
    control.settings = settings;
    Ok(settings)
}

/// How times are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeFormat {
    /// RFC 3339 in UTC with microseconds.
    #[default]
    Default,
    /// The same with whole seconds.
    Iso8601,
}

impl TimeFormat {
    /// Its name in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Iso8601 => "ISO8601",
        }
    }
}

/// What is logged. There is no log file: `log_file` is empty for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Lines of what happens.
    pub info: bool,
    /// Lines of what may be wrong.
    pub warning: bool,
    /// Lines of what is wrong.
    pub error: bool,
    /// 0 for none of the lines for developers, 1 for those of level debug, more for those of level trace too.
    pub verbose_level: u32,
    /// How times are written.
    pub format: TimeFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self::of(LevelFilter::INFO)
    }
}

impl LogSettings {
    fn of(most: LevelFilter) -> Self {
        Self {
            info: most >= LevelFilter::INFO,
            warning: most >= LevelFilter::WARN,
            error: most >= LevelFilter::ERROR,
            verbose_level: u32::from(most >= LevelFilter::DEBUG) + u32::from(most >= LevelFilter::TRACE),
            format: TimeFormat::Default,
        }
    }

    /// The highest level that is shown.
    fn most(self) -> LevelFilter {
        match self.verbose_level {
            2.. => LevelFilter::TRACE,
            1 => LevelFilter::DEBUG,
            0 if self.info => LevelFilter::INFO,
            0 if self.warning => LevelFilter::WARN,
            0 if self.error => LevelFilter::ERROR,
            0 => LevelFilter::OFF,
        }
    }

    /// The filter: the one of the start where that goes as far, which knows single modules; else a level for all.
    fn directives(self, start: &str) -> Result<String> {
        let most = self.most();
        let same = read(start)?.max_level_hint() == Some(most);
        Ok(if same { start.to_owned() } else { format!("{most},ort=warn") })
    }

    const fn shown(self) -> Shown {
        Shown { info: self.info, warning: self.warning, error: self.error }
    }
}

/// A change of settings; `None` where one stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogUpdate {
    /// Lines of what happens.
    pub info: Option<bool>,
    /// Lines of what may be wrong.
    pub warning: Option<bool>,
    /// Lines of what is wrong.
    pub error: Option<bool>,
    /// Lines for developers.
    pub verbose_level: Option<u32>,
    /// How times are written.
    pub format: Option<TimeFormat>,
}

/// A value of a setting, whatever protocol it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogValue<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// A number that is not negative.
    Number(u64),
    /// A text.
    Text(&'a str),
    /// None of those.
    Other,
}

impl LogUpdate {
    /// Takes one setting by its name.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name or a wrong value, `Unsupported` for the log file.
    pub fn take(&mut self, name: &str, value: LogValue<'_>) -> Result<()> {
        let wrong =
            |kind: &str| Err(Error::invalid(format!("attempt to access JSON non-{kind} as {kind} in '{name}'")));
        match (name, value) {
            ("log_file", _) => {
                return Err(Error::unsupported("log file location can not be updated through network protocol"));
            }
            ("log_info", LogValue::Bool(shown)) => self.info = Some(shown),
            ("log_warning", LogValue::Bool(shown)) => self.warning = Some(shown),
            ("log_error", LogValue::Bool(shown)) => self.error = Some(shown),
            ("log_info" | "log_warning" | "log_error", _) => return wrong("boolean"),
            ("log_verbose_level", LogValue::Number(level)) => {
                let most = format!("'log_verbose_level' is out of range [ 0, {} ], got: {level}", u32::MAX);
                self.verbose_level = Some(u32::try_from(level).map_err(|_| Error::invalid(most))?);
            }
            ("log_verbose_level", _) => return wrong("unsigned-integer"),
            ("log_format", LogValue::Text("default")) => self.format = Some(TimeFormat::Default),
            ("log_format", LogValue::Text("ISO8601")) => self.format = Some(TimeFormat::Iso8601),
            ("log_format", LogValue::Text(other)) => {
                let shown: String = other.chars().take(32).collect();
                return Err(Error::invalid(format!("invalid argument for --log_format, got: {shown}")));
            }
            ("log_format", _) => return wrong("string"),
            (other, _) => {
                let shown: String = other.chars().take(64).collect();
                return Err(Error::invalid(format!(
                    "unknown log setting '{shown}', there are log_info, log_warning, log_error, log_verbose_level and \
                     log_format"
                )));
            }
        }
        Ok(())
    }

    fn applied(self, to: LogSettings) -> LogSettings {
        LogSettings {
            info: self.info.unwrap_or(to.info),
            warning: self.warning.unwrap_or(to.warning),
            error: self.error.unwrap_or(to.error),
            verbose_level: self.verbose_level.unwrap_or(to.verbose_level),
            format: self.format.unwrap_or(to.format),
        }
    }
}

/// Hides levels below the highest that is shown: Triton switches each by itself.
struct Shown {
    info: bool,
    warning: bool,
    error: bool,
}

impl Shown {
    fn is_shown(&self, metadata: &Metadata<'_>) -> bool {
        match *metadata.level() {
            Level::ERROR => self.error,
            Level::WARN => self.warning,
            Level::INFO => self.info,
            _ => true,
        }
    }
}

impl<S: Subscriber> Layer<S> for Shown {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.is_shown(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.is_shown(metadata)
    }
}

/// The time of a line.
struct Timer;

impl FormatTime for Timer {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        if !WHOLE_SECONDS.load(Ordering::Relaxed) {
            return SystemTime.format_time(writer);
        }
        let mut time = String::with_capacity(32);
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        writer.write_str(time.split_once('.').map_or(&time, |(seconds, _)| seconds))?;
        writer.write_char('Z')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn taken(name: &str, value: LogValue<'_>) -> Result<LogUpdate> {
        let mut update = LogUpdate::default();
        update.take(name, value).map(|()| update)
    }

    #[test]
    fn the_filter_of_the_start_stands_while_it_goes_as_far() {
        let start = "info,roundhouse::cache=warn,ort=warn";
        let settings = LogSettings::of(read(start).unwrap().max_level_hint().unwrap());
        assert_eq!(settings, LogSettings::default());
        assert_eq!(settings.directives(start).unwrap(), start);
        let verbose = taken("log_verbose_level", LogValue::Number(1)).unwrap().applied(settings);
        assert_eq!(verbose.directives(start).unwrap(), "debug,ort=warn");
        assert_eq!(LogSettings { verbose_level: 7, ..settings }.directives(start).unwrap(), "trace,ort=warn");
        let quiet = taken("log_info", LogValue::Bool(false)).unwrap().applied(settings);
        assert_eq!(quiet.directives(start).unwrap(), "warn,ort=warn");
        let none = LogSettings { info: false, warning: false, error: false, ..settings };
        assert_eq!(none.directives(start).unwrap(), "off,ort=warn");
    }

    #[test]
    fn a_level_between_shown_ones_is_hidden_by_itself() {
        let settings = taken("log_warning", LogValue::Bool(false)).unwrap().applied(LogSettings::default());
        assert_eq!(settings.most(), LevelFilter::INFO);
        assert!(!settings.shown().warning && settings.shown().error && settings.shown().info);
    }

    #[test]
    fn wrong_values_get_tritons_texts() {
        for (name, value, expected) in [
            ("log_info", LogValue::Number(1), "attempt to access JSON non-boolean as boolean in 'log_info'"),
            ("log_error", LogValue::Text("x"), "attempt to access JSON non-boolean as boolean in 'log_error'"),
            (
                "log_verbose_level",
                LogValue::Other,
                "attempt to access JSON non-unsigned-integer as unsigned-integer in 'log_verbose_level'",
            ),
            ("log_format", LogValue::Bool(true), "attempt to access JSON non-string as string in 'log_format'"),
            ("log_format", LogValue::Text("iso8601"), "invalid argument for --log_format, got: iso8601"),
        ] {
            let error = taken(name, value).unwrap_err();
            assert_eq!((error.kind(), error.report().as_str()), (ErrorKind::InvalidArgument, expected));
        }
        assert_eq!(taken("log_file", LogValue::Text("x")).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(taken("log_verbose_level", LogValue::Number(1 << 40)).unwrap_err().report().contains("out of range"));
        assert!(taken("log_level", LogValue::Other).unwrap_err().report().contains("'log_level'"));
    }

    #[test]
    fn times_have_whole_seconds_where_that_is_asked_for() {
        let written = || {
            let mut time = String::new();
            Timer.format_time(&mut Writer::new(&mut time)).unwrap();
            time
        };
        assert!(written().contains('.'), "{}", written());
        WHOLE_SECONDS.store(true, Ordering::Relaxed);
        let whole = written();
        WHOLE_SECONDS.store(false, Ordering::Relaxed);
        assert!(whole.len() == "2026-01-01T00:00:00Z".len() && whole.ends_with('Z'), "{whole}");
    }
}
