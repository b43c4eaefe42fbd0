//! Log lines: text on a terminal, JSON elsewhere, both on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::LogFormat;
use crate::error::{Error, Result};

/// Starts logging for the process. A second call changes nothing (tests start several servers).
///
/// # Errors
/// `InvalidArgument` if the filter cannot be read.
pub fn init(filter: &str, format: LogFormat) -> Result<()> {
    // ONNX Runtime writes some sixty info lines for every session it makes.
    let directives = format!("{filter},ort=warn");
    let filter = EnvFilter::builder()
        .parse(if filter.contains("ort=") { filter } else { &directives })
        .map_err(|error| Error::invalid(format!("cannot read --log {filter}")).with_source(error))?;
    let text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_span_events(FmtSpan::NONE);
    // An error here means that a subscriber is set already.
    let _already_set = if text {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
    Ok(())
}
