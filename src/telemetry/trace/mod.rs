//! Traces of requests: which ones are traced (`settings`, `sampler`), by whom they were called (`context`), what happened
//! to them (`record`), and where that is written (`writer`: a `file` in Triton's form, or `otlp` to a `collector`).
//!
//! *Architecture invariant:* a request that is not traced costs one relaxed load. What is traced is gathered in memory and
//! written by one task; where that falls behind, traces are dropped and counted, and requests never wait.

pub mod activity;
mod collector;
pub mod context;
mod file;
mod otlp;
pub mod record;
mod sampler;
pub mod settings;
pub mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::collector::Collector;
use self::context::Caller;
use self::record::{Record, Trace};
use self::sampler::Table;
use self::settings::{TraceSettings, TraceUpdate};
use self::writer::Writer;
use crate::config::trace::{TraceConfig, TraceMode};
use crate::error::Result;

/// What traces may take together until they are written, in bytes.
const BUFFERED: usize = 64 << 20;

/// Decides which requests are traced, and takes their traces. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Whether anything may be traced: all that an untraced request looks at.
    on: AtomicBool,
    table: ArcSwap<Table>,
    /// Held while the table is changed.
    changing: Mutex<()>,
    mode: TraceMode,
    sink: Arc<Sink>,
    stop: CancellationToken,
}

/// Where finished traces go.
#[derive(Debug)]
pub(crate) struct Sink {
    sender: mpsc::Sender<Record>,
    /// Bytes of traces that are not written yet.
    buffered: AtomicUsize,
    /// The numbers of traces: the next one's.
    next: AtomicU64,
    counts: Counts,
    clock: Clock,
}

/// What became of traces.
#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

/// Tells the time of day from the steady clock, so that the moments of a trace keep their order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    steady: Instant,
    /// Nanoseconds since 1970 then.
    day: u64,
}

impl Clock {
    fn start() -> Self {
        let day = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Self { steady: Instant::now(), day: u64::try_from(day).unwrap_or(u64::MAX) }
    }

    /// Nanoseconds since 1970.
    pub(crate) fn nanoseconds(&self, at: Instant) -> u64 {
        let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        match at.checked_duration_since(self.steady) {
            Some(after) => self.day.saturating_add(nanoseconds(after)),
            None => self.day.saturating_sub(nanoseconds(self.steady.duration_since(at))),
        }
    }
}

impl Sink {
    fn take(&self, record: Record) {
        let bytes = record.bytes();
        let before = self.buffered.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > BUFFERED || self.sender.try_send(record).is_err() {
            self.buffered.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What became of traces since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCounts {
    /// In the file, or taken by the collector.
    pub written: u64,
    /// Dropped, since more were made than could be written.
    pub dropped: u64,
    /// Lost, since the file could not be written or the collector did not take them.
    pub failed: u64,
}

impl Tracer {
    /// A tracer, and the task that writes its traces, to be run by the caller.
    ///
    /// # Errors
    /// `InvalidArgument` where the collector's URL is none.
    pub fn new(config: &TraceConfig) -> Result<(Self, Writer)> {
        let (sender, receiver) = mpsc::channel(config.queue.clamp(1, 1 << 20));
        let table = Table::new(TraceSettings::of(config));
        let sink = Arc::new(Sink {
            sender,
            buffered: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            counts: Counts::default(),
            clock: Clock::start(),
        });
        let stop = CancellationToken::new();
        let collector = match config.mode {
            TraceMode::Triton => None,
            TraceMode::OpenTelemetry => Some(Collector::at(&config.url)?),
        };
        let writer = Writer::new(config, receiver, Arc::clone(&sink), collector, stop.clone());
        let tracer = Self(Arc::new(Inner {
            on: AtomicBool::new(table.is_on()),
            table: ArcSwap::from_pointee(table),
            changing: Mutex::new(()),
            mode: config.mode,
            sink,
            stop,
        }));
        Ok((tracer, writer))
    }

    /// A trace for a request to `model` that arrived at `arrived`, if it is to be traced. `caller` is asked only where it
    /// matters: in mode opentelemetry a caller that says whether it records its trace is followed, whatever rate and count.
    #[must_use]
    pub fn sample(&self, model: &str, caller: impl FnOnce() -> Option<Caller>, arrived: Instant) -> Option<Arc<Trace>> {
        if !self.0.on.load(Ordering::Relaxed) {
            return None;
        }
        let table = self.0.table.load();
        let sampler = table.sampler(Some(model));
        if sampler.settings().levels.is_off() {
            return None;
        }
        let caller = if self.0.mode == TraceMode::OpenTelemetry { caller() } else { None };
        let wanted = caller.as_ref().map_or_else(|| sampler.hits(), |caller| caller.sampled);
        wanted.then(|| Trace::begin(&self.0.sink, sampler.settings(), caller, arrived))
    }

    /// The settings of a model, or of the server; the count is what is left of it.
    #[must_use]
    pub fn settings(&self, model: Option<&str>) -> TraceSettings {
        self.0.table.load().sampler(model).now()
    }

    /// Changes the settings of a model, or of the server, as a whole or not at all, and gives them.
    ///
    /// # Errors
    /// `InvalidArgument` where traces are wanted and cannot be made so.
    pub fn update(&self, model: Option<&str>, update: &TraceUpdate) -> Result<TraceSettings> {
        let _alone = self.0.changing.lock();
        let table = self.0.table.load().updated(model, update)?;
        let (on, settings) = (table.is_on(), table.sampler(model).now());
        self.0.table.store(Arc::new(table));
        self.0.on.store(on, Ordering::Relaxed);
        Ok(settings)
    }

    /// What became of traces.
    #[must_use]
    pub fn counts(&self) -> TraceCounts {
        let Counts { written, dropped, failed } = &self.0.sink.counts;
        let [written, dropped, failed] = [written, dropped, failed].map(|count| count.load(Ordering::Relaxed));
        TraceCounts { written, dropped, failed }
    }

    /// Has the writer write what is there and end. Traces that come later are dropped.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
