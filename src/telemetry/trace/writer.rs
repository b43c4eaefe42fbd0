//! The one task that writes traces: gathers what came, hands it to the file or to the collector, and counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Sink;
use super::collector::Collector;
use super::file::TraceFiles;
use super::otlp;
use super::record::Record;
use crate::config::trace::TraceConfig;
use crate::error::Result;

/// The most traces that are written at once.
const AT_ONCE: usize = 512;

/// How often a failure is logged at most.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Writes the traces of a [`Tracer`](super::Tracer) until that is stopped.
#[derive(Debug)]
pub struct Writer {
    receiver: mpsc::Receiver<Record>,
    sink: Arc<Sink>,
    stop: CancellationToken,
    target: Target,
    complained: Option<Instant>,
}

#[derive(Debug)]
enum Target {
    /// Taken out while it is being written.
    File(Option<TraceFiles>),
    Collector {
        collector: Collector,
        resource: Vec<(String, String)>,
        delay: Duration,
        most: usize,
    },
}

impl Writer {
    pub(super) fn new(
        config: &TraceConfig,
        receiver: mpsc::Receiver<Record>,
        sink: Arc<Sink>,
        collector: Option<Collector>,
        stop: CancellationToken,
    ) -> Self {
        let target = match collector {
            None => Target::File(config.file.as_ref().map(|file| TraceFiles::at(file.clone()))),
            Some(collector) => Target::Collector {
                collector,
                resource: config.resource.clone(),
                delay: config.delay,
                most: config.batch,
            },
        };
        Self { receiver, sink, stop, target, complained: None }
    }

    #[cfg(test)]
    pub(super) const fn receiver_for_tests(&mut self) -> &mut mpsc::Receiver<Record> {
        &mut self.receiver
    }

    /// Writes what comes until the tracer is stopped and what was there is written.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            let records = std::mem::take(&mut batch);
            let (count, bytes) = (records.len() as u64, records.iter().map(Record::bytes).sum::<usize>());
            let written = self.write(records).await;
            self.sink.buffered.fetch_sub(bytes, Ordering::Relaxed);
            let counts = &self.sink.counts;
            match written {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    counts.written.fetch_add(count - rejected, Ordering::Relaxed);
                    counts.failed.fetch_add(rejected, Ordering::Relaxed);
                }
                Err(error) => {
                    counts.failed.fetch_add(count, Ordering::Relaxed);
                    if self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN) {
                        self.complained = Some(Instant::now());
                        tracing::warn!(error = %error.report(), traces = count, "traces cannot be written and are lost");
                    }
                }
            }
        }
    }

    /// Waits for traces, and for more of them where they are sent together. `false` at the end.
    async fn gather(&mut self, batch: &mut Vec<Record>) -> bool {
        let (delay, most) = match &self.target {
            Target::File(_) => (Duration::ZERO, AT_ONCE),
            // A trace is at least three spans.
            Target::Collector { delay, most, .. } => (*delay, most.div_ceil(3).min(AT_ONCE)),
        };
        if self.more(batch, most).await == 0 {
            return false;
        }
        let until = Instant::now() + delay;
        while batch.len() < most && !self.receiver.is_closed() {
            let left = most - batch.len();
            match tokio::time::timeout_at(until, self.more(batch, left)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        true
    }

    /// Waits for at least one trace; none come after the stop but those that are there.
    async fn more(&mut self, batch: &mut Vec<Record>, most: usize) -> usize {
        let stop = self.stop.clone();
        if !self.receiver.is_closed() {
            tokio::select! {
                biased;
                () = stop.cancelled() => self.receiver.close(),
                got = self.receiver.recv_many(batch, most) => return got,
            }
        }
        self.receiver.recv_many(batch, most).await
    }

    /// Writes traces; how many of them were rejected.
    async fn write(&mut self, records: Vec<Record>) -> Result<u64> {
        match &mut self.target {
            Target::File(files) => {
                let Some(mut own) = files.take() else { return Ok(records.len() as u64) };
                let clock = self.sink.clock;
                let done = tokio::task::spawn_blocking(move || {
                    let written = own.write(&records, &clock);
                    (own, written)
                });
                match done.await {
                    Ok((own, written)) => {
                        *files = Some(own);
                        written.map(|()| 0)
                    }
                    Err(_stopping) => Ok(records_lost()),
                }
            }
            Target::Collector { collector, resource, most, .. } => {
                let (mut rejected, mut failed) = (0, None);
                for message in otlp::messages(&records, resource, *most, &self.sink.clock) {
                    match collector.send(message, &self.stop).await {
                        Ok(spans) => rejected += spans,
                        Err(error) => failed = Some(error),
                    }
                }
                failed.map_or(Ok(rejected), Err)
            }
        }
    }
}

/// The runtime is ending: whatever was in the batch is lost.
const fn records_lost() -> u64 {
    u64::MAX
}
