//! How far something long is.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal, a line a step elsewhere; both on standard error, since the answer goes to standard output.
pub(super) struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = "{msg}  [{bar:30}]  {bytes} of {total_bytes}, {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, is_terminal }
    }

    pub(super) fn step(&self, what: &str, bytes: u64) {
        self.bar.reset();
        self.bar.set_length(bytes);
        self.bar.set_message(what.to_owned());
        if !self.is_terminal {
            let size = if bytes == 0 { String::new() } else { format!(" ({} MB)", bytes.div_ceil(1_000_000)) };
            let _ = writeln!(io::stderr(), "{what}{size}");
        }
    }

    pub(super) fn reach(&self, bytes: u64) {
        self.bar.set_position(bytes.min(self.bar.length().unwrap_or(bytes)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
