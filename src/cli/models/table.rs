//! What is where, as a table for people.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::frontend::time;

/// Names longer than this are cut in their middle where a person reads.
const NAME_WIDTH: usize = 48;

/// What a table shows of the server's page.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Page {
    pub(super) books: Vec<Book>,
    pub(super) models: Vec<Row>,
}

/// A tier's book.
#[derive(Debug, Deserialize)]
pub(super) struct Book {
    tier: String,
    device: Option<String>,
    limit_bytes: u64,
    booked_bytes: u64,
}

/// A model.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    tier: String,
    pub(super) state: String,
    #[serde(default)]
    reason: String,
    device: Option<String>,
    device_bytes: u64,
    #[serde(default)]
    copies: Vec<DeviceCopy>,
    #[serde(default)]
    host_bytes: u64,
    disk_bytes: u64,
    #[serde(default)]
    retention: String,
    last_use: Option<String>,
    loads: u64,
    evictions: u64,
    pub(super) fetch: Option<Fetch>,
}

/// A model's copy on one device.
#[derive(Debug, Deserialize)]
struct DeviceCopy {
    device: String,
}

impl Row {
    /// Its devices: `gpu:0,gpu:1`. A server that does not tell copies apart has one.
    fn devices(&self) -> Option<String> {
        if self.copies.len() < 2 {
            return self.device.as_deref().map(printable);
        }
        let each: Vec<_> = self.copies.iter().map(|copy| printable(&copy.device)).collect();
        Some(each.join(","))
    }
}

/// A fetch under way.
#[derive(Debug, Deserialize)]
pub(super) struct Fetch {
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    bytes_per_second: Option<f64>,
    eta_seconds: Option<f64>,
}

/// Why a model is where it is.
#[derive(Debug, Deserialize)]
pub(super) struct Explained {
    model: Row,
    reasons: Vec<String>,
    expected_bytes: Option<u64>,
    expected_from: Option<String>,
    expected_seconds: Option<f64>,
    place_in_line: Option<Place>,
}

#[derive(Debug, Deserialize)]
struct Place {
    before: u64,
    of: u64,
}

const HEAD: [&str; 9] = ["NAME", "TIER", "STATE", "DEVICE MB", "DISK MB", "LAST USE", "LOADS", "EVICTIONS", ""];

/// Columns of numbers stand to the right.
const RIGHT: [bool; 9] = [false, false, false, true, true, true, true, true, false];

/// The books and a line a model. `whole_names` for programs that read columns.
pub(super) fn page(page: &Page, now: SystemTime, whole_names: bool) -> String {
    let mut text = books(&page.books);
    if page.models.is_empty() {
        text.push_str("no model is on this machine or being brought to it\n");
        return text;
    }
    let rows: Vec<[String; 9]> = page.models.iter().map(|row| cells(row, now, whole_names)).collect();
    let mut widths = HEAD.map(|title| title.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    line(&mut text, &HEAD.map(str::to_owned), &widths);
    for row in &rows {
        line(&mut text, row, &widths);
    }
    text
}

fn line(text: &mut String, cells: &[String; 9], widths: &[usize; 9]) {
    let begin = text.len();
    for ((cell, &width), right) in cells.iter().zip(widths).zip(RIGHT) {
        // Writing into a String cannot fail.
        let _ = if right { write!(text, "{cell:>width$}  ") } else { write!(text, "{cell:<width$}  ") };
    }
    text.truncate(begin + text[begin..].trim_end().len());
    text.push('\n');
}

fn cells(row: &Row, now: SystemTime, whole_names: bool) -> [String; 9] {
    let name = printable(&row.name);
    let tier = match (row.devices(), row.tier.as_str()) {
        (Some(devices), "device") => devices,
        (_, tier) => printable(tier),
    };
    let last_use = row.last_use.as_deref().and_then(time::parse).map(|at| ago(at, now));
    [
        if whole_names { name } else { cut(&name, NAME_WIDTH) },
        tier,
        printable(&row.state),
        megabytes(row.device_bytes),
        megabytes(row.disk_bytes),
        last_use.unwrap_or_else(|| "-".to_owned()),
        row.loads.to_string(),
        row.evictions.to_string(),
        note(row),
    ]
}

/// What is going on with a model, or wrong with it.
fn note(row: &Row) -> String {
    let mut notes = Vec::new();
    if let Some(fetch) = &row.fetch {
        notes.push(progress(fetch));
    }
    if row.tier == "host" {
        notes.push(format!("asleep, {} MB in host memory", megabytes(row.host_bytes)));
    }
    if row.retention == "pinned" || row.retention == "transient" {
        notes.push(row.retention.clone());
    }
    if !row.reason.is_empty() {
        notes.push(printable(&row.reason));
    }
    notes.join(", ")
}

/// `downloading 43 % 120 MB/s 5 s left`.
pub(super) fn progress(fetch: &Fetch) -> String {
    let percent = u128::from(fetch.done_bytes.min(fetch.total_bytes)) * 100 / u128::from(fetch.total_bytes.max(1));
    let mut text = format!("downloading {percent} %");
    if let Some(rate) = fetch.bytes_per_second.filter(|rate| *rate > 0.0) {
        let _ = write!(text, " {:.*} MB/s", usize::from(rate < 1e7), rate / 1e6);
    }
    if let Some(seconds) = fetch.eta_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        let _ = write!(text, " {} left", span(seconds));
    }
    text
}

/// `cpu 1.2 of 18.0 GB booked, disk 3.4 of 90.0 GB`.
fn books(books: &[Book]) -> String {
    let mut text = String::new();
    for (at, book) in books.iter().enumerate() {
        let place = printable(book.device.as_deref().unwrap_or(&book.tier));
        let (scale, unit) = if book.limit_bytes < 1_000_000_000 { (1e6, "MB") } else { (1e9, "GB") };
        let begin = if at == 0 { "" } else { ", " };
        let (booked, limit) = (bytes(book.booked_bytes) / scale, bytes(book.limit_bytes) / scale);
        let end = if book.tier == "device" { " booked" } else { "" };
        let _ = write!(text, "{begin}{place} {booked:.1} of {limit:.1} {unit}{end}");
    }
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    text
}

/// An explanation: the row in words, the reasons, what a load would cost.
pub(super) fn explained(explained: &Explained, now: SystemTime) -> String {
    let row = &explained.model;
    let place = row.devices().unwrap_or_else(|| row.tier.clone());
    let mut text = format!("{}: {} on {place}", printable(&row.name), row.state);
    if let Some(at) = row.last_use.as_deref().and_then(time::parse) {
        let _ = write!(text, ", last asked for {}", ago(at, now));
    }
    text.push('\n');
    for reason in &explained.reasons {
        let _ = writeln!(text, "  {}", printable(reason));
    }
    if let Some(fetch) = &row.fetch {
        let _ = writeln!(text, "  {:<15} {}", "now", progress(fetch));
    }
    if let Some(needed) = explained.expected_bytes {
        let from = explained.expected_from.as_deref().map(|from| format!(", {}", printable(from))).unwrap_or_default();
        let _ = writeln!(text, "  {:<15} {} MB{from}", "needs", megabytes(needed));
    }
    if let Some(seconds) = explained.expected_seconds {
        let _ = writeln!(text, "  {:<15} about {seconds:.1} s", "next load");
    }
    if let Some(place) = &explained.place_in_line {
        let _ = writeln!(text, "  {:<15} {} of {} would go before it", "eviction", place.before, place.of);
    }
    text
}

/// `12.3` below a hundred, `1234` above; `-` for nothing.
fn megabytes(count: u64) -> String {
    match count {
        0 => "-".to_owned(),
        count if count < 100_000_000 => format!("{:.1}", bytes(count) / 1e6),
        count => format!("{:.0}", bytes(count) / 1e6),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn bytes(count: u64) -> f64 {
    count as f64
}

/// `3 s ago`. The server's clock may be ahead of ours: that is now.
fn ago(at: SystemTime, now: SystemTime) -> String {
    match now.duration_since(at) {
        Ok(since) if since >= Duration::from_secs(1) => format!("{} ago", span(since)),
        _ => "now".to_owned(),
    }
}

/// The largest unit that fits, down to seconds.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Begin and end of a name that is too long: the end tells versions of a model apart.
fn cut(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let (begin, end) = ((width - 3).div_ceil(2), (width - 3) / 2);
    name.chars().take(begin).chain("...".chars()).chain(name.chars().skip(length - end)).collect()
}

/// The text without anything that moves a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests;
