//! Reports to CloudWatch: one a period, of everything that was observed in it. They wait in a bounded buffer and are sent by a
//! task of their own, so that a request never waits for CloudWatch: what cannot be sent now is sent with the next, and where
//! nothing can be sent for an hour the oldest go.
//!
//! [`Sink`] says what a report is sent to: CloudWatch's own `PutMetricData` (`put`), or lines on standard output that the log
//! agents of ECS, EKS and Lambda turn into metrics (`embedded`).

mod embedded;
mod put;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::embedded::Embedded;
pub use self::put::{Put, PutOptions};
use super::observations::{Observations, Observed, StatisticSet};
use crate::error::Error;

/// The most reports that wait to be sent: an hour's, with one a minute.
const MOST_REPORTS: usize = 60;

/// How often levels are looked at that nobody reports: so many observations make the mean of a period.
const TICK: Duration = Duration::from_secs(1);

/// How long the last report may take when the server stops.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// Whose metrics they are: the same for all instances of an endpoint, which CloudWatch adds up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The namespace. `AWS/` is AWS's own, and refused there.
    pub namespace: String,
    /// The dimension `EndpointName`.
    pub endpoint: String,
    /// The dimension `VariantName`.
    pub variant: String,
}

impl Identity {
    /// The dimensions by name.
    fn dimensions(&self) -> [(&'static str, &str); 2] {
        [("EndpointName", &self.endpoint), ("VariantName", &self.variant)]
    }
}

/// What was observed in one period.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The period's end.
    pub at: SystemTime,
    /// Each metric once.
    pub sets: Vec<(Observed, StatisticSet)>,
}

/// Why a report was not taken.
#[derive(Debug)]
pub enum Refusal {
    /// It may be taken later: nobody answered, too much was asked, the credentials have expired.
    ForNow(Error),
    /// It never will be.
    ForGood(Error),
}

/// What reports are sent to.
pub trait Sink: Send + Sync {
    /// Sends one report.
    ///
    /// # Errors
    /// A refusal says whether it is worth another try.
    fn send<'a>(&'a self, report: &'a Report) -> BoxFuture<'a, Result<(), Refusal>>;
}

/// Reports that wait, the oldest first.
#[derive(Debug, Default)]
struct Buffer {
    reports: VecDeque<(u64, Arc<Report>)>,
    number: u64,
}

impl Buffer {
    /// Puts a report at the end; says whether the oldest had to go for it.
    fn push(&mut self, report: Report) -> bool {
        let is_full = self.reports.len() == MOST_REPORTS;
        if is_full {
            self.reports.pop_front();
        }
        self.number += 1;
        self.reports.push_back((self.number, Arc::new(report)));
        is_full
    }

    fn oldest(&self) -> Option<(u64, Arc<Report>)> {
        self.reports.front().cloned()
    }

    /// Takes out the report of that number, unless it went meanwhile.
    fn done(&mut self, number: u64) {
        if self.reports.front().is_some_and(|(oldest, _)| *oldest == number) {
            self.reports.pop_front();
        }
    }
}

/// Makes reports and sends them.
pub struct Reporter {
    observations: Arc<Observations>,
    sink: Box<dyn Sink>,
    period: Duration,
    /// How long the last report may take.
    last_wait: Duration,
    buffer: Mutex<Buffer>,
    more: Notify,
}

impl Reporter {
    /// Reports what `observations` hold, once a `period`.
    #[must_use]
    pub fn new(observations: Arc<Observations>, sink: Box<dyn Sink>, period: Duration) -> Self {
        observations.want();
        Self {
            observations,
            sink,
            period: period.max(TICK),
            last_wait: LAST_WAIT,
            buffer: Mutex::default(),
            more: Notify::new(),
        }
    }

    /// Reports until `stop`, and then once more. `look` is called once a second, to observe what nobody reports.
    pub async fn run(self, look: impl Fn() + Send, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.gather(look) => {}
            () = self.send_all_the_time() => {}
        }
        self.close_period();
        if tokio::time::timeout(self.last_wait, self.send_what_waits()).await.is_err() {
            tracing::warn!("CloudWatch did not take the last report in time");
        }
    }

    async fn gather(&self, look: impl Fn() + Send) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut end = tokio::time::Instant::now() + self.period;
        loop {
            tick.tick().await;
            look();
            if tokio::time::Instant::now() >= end {
                end += self.period;
                self.close_period();
            }
        }
    }

    fn close_period(&self) {
        let report = Report { at: SystemTime::now(), sets: self.observations.take() };
        if report.sets.is_empty() {
            return;
        }
        if self.buffer.lock().push(report) {
            tracing::warn!("CloudWatch has taken no report for long: the oldest is dropped");
        }
        self.more.notify_one();
    }

    async fn send_all_the_time(&self) {
        loop {
            self.more.notified().await;
            self.send_what_waits().await;
        }
    }

    /// Sends what waits, the oldest first, until there is nothing or something is refused for now: then the end of the next
    /// period is time enough for another try.
    async fn send_what_waits(&self) {
        loop {
            let Some((number, report)) = self.buffer.lock().oldest() else { return };
            match self.sink.send(&report).await {
                Ok(()) => {}
                Err(Refusal::ForNow(error)) => {
                    tracing::warn!(error = %error.report(), "CloudWatch takes no reports now: they wait");
                    return;
                }
                Err(Refusal::ForGood(error)) => {
                    tracing::error!(error = %error.report(), "CloudWatch refuses a report: it is dropped");
                }
            }
            self.buffer.lock().done(number);
        }
    }
}

#[cfg(test)]
mod tests;
