//! How far a load is, on a terminal, while it is waited for.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::client::Server;
use super::table::{Row, printable, progress};

/// Between two questions.
const POLL: Duration = Duration::from_millis(250);

/// A line with a spinner on standard error; nothing where that is no terminal. It goes when this is dropped.
pub(super) struct Waiting {
    bar: ProgressBar,
    name: String,
}

impl Waiting {
    pub(super) fn begin(name: &str) -> Self {
        let bar = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        Self { bar, name: printable(name) }
    }

    /// Shows what the server says of the model, until this is dropped.
    pub(super) async fn follow(&self, server: &Server, name: &str) -> Infallible {
        if self.bar.is_hidden() {
            return std::future::pending().await;
        }
        loop {
            // What cannot be asked is not shown; the load itself says what is wrong.
            let row = super::row(server, name).await.ok().and_then(|row| serde_json::from_slice::<Row>(&row).ok());
            self.bar.set_message(self.text(row.as_ref()));
            self.bar.tick();
            tokio::time::sleep(POLL).await;
        }
    }

    fn text(&self, row: Option<&Row>) -> String {
        let step = match row {
            Some(Row { fetch: Some(fetch), .. }) => progress(fetch),
            Some(row) => printable(&row.state).to_lowercase(),
            None => "waiting".to_owned(),
        };
        format!("{}: {step}", self.name)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_line_says_the_fetch_then_the_state_then_nothing_known() {
        let waiting = Waiting { bar: ProgressBar::hidden(), name: "m".to_owned() };
        let mut document = json!({"name": "m", "tier": "remote", "state": "LOADING", "device": null, "device_bytes": 0,
            "disk_bytes": 0, "last_use": null, "loads": 0, "evictions": 0, "fetch": null});
        let row = |document: &serde_json::Value| serde_json::from_value::<Row>(document.clone()).unwrap();
        assert_eq!(waiting.text(None), "m: waiting");
        assert_eq!(waiting.text(Some(&row(&document))), "m: loading");
        document["fetch"] = json!({"done_bytes": 1, "total_bytes": 4, "bytes_per_second": 2e6, "eta_seconds": 9.7});
        assert_eq!(waiting.text(Some(&row(&document))), "m: downloading 25 % 2.0 MB/s 9 s left");
    }
}
