//! One fetch of a model's content at a time, however many wait for it. It runs in a task of its own and ends when the
//! last who waits is gone.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fetch::{Fetch, Stop};
use super::handle::DiskHandle;
use super::{ChooseVersions, DiskEntryView, EnsureError, FetchEnd, FetchProgress, Inner};
use crate::cache::table::Stage;
use crate::error::Error;
use crate::repository::download::Meter;
use crate::repository::manifest::{Fingerprint, ModelManifest};

/// Between two log lines of one fetch.
const TICK: Duration = Duration::from_secs(5);

/// A model's name and content.
pub(super) type FlightKey = (Arc<str>, Fingerprint);

/// How a fetch ended.
#[derive(Clone)]
pub(super) enum Outcome {
    Done(DiskHandle),
    Failed(EnsureError),
    /// Nobody waited any more. Who joined too late looks again.
    Cancelled,
}

/// A fetch under way.
pub(super) struct Flight {
    waiters: Mutex<usize>,
    cancel: CancellationToken,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Default)]
struct Progress {
    /// Once it is known how many bytes will come.
    meter: Option<Arc<Meter>>,
    outcome: Option<Outcome>,
}

impl Flight {
    fn new() -> Arc<Self> {
        let (cancel, progress) = (CancellationToken::new(), watch::Sender::default());
        Arc::new(Self { waiters: Mutex::new(0), cancel, progress })
    }

    fn join(self: &Arc<Self>) -> Waiter {
        *self.waiters.lock() += 1;
        Waiter { progress: self.progress.subscribe(), flight: Arc::clone(self) }
    }

    /// Says how many bytes will come.
    pub(super) fn begin(&self, meter: &Arc<Meter>) {
        self.progress.send_modify(|progress| progress.meter = Some(Arc::clone(meter)));
    }

    /// Told when nobody waits any more.
    pub(super) fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    fn meter(&self) -> Option<Arc<Meter>> {
        self.progress.borrow().meter.clone()
    }

    /// As one of the cache's entries.
    pub(super) fn view(&self, (name, fingerprint): &FlightKey) -> DiskEntryView {
        let progress =
            self.meter().map(|meter| FetchProgress { done: meter.done(), total: meter.total(), rate: meter.rate() });
        DiskEntryView {
            name: name.as_ref().to_owned(),
            bytes: 0,
            fingerprint: *fingerprint,
            versions: Vec::new(),
            in_use: false,
            last_use: None,
            stage: Stage::Reserved,
            progress,
        }
    }
}

/// Somebody who waits for a fetch.
pub(super) struct Waiter {
    flight: Arc<Flight>,
    progress: watch::Receiver<Progress>,
}

impl Waiter {
    /// Waits for the end; `began` is told the meter as soon as there is one.
    pub(super) async fn outcome(mut self, began: &(dyn Fn(&Arc<Meter>) + Sync)) -> Outcome {
        let mut told = false;
        loop {
            let Progress { meter, outcome } = self.progress.borrow_and_update().clone();
            if let Some(meter) = meter
                && !std::mem::replace(&mut told, true)
            {
                began(&meter);
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
            if self.progress.changed().await.is_err() {
                return Outcome::Cancelled;
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiters = self.flight.waiters.lock();
        *waiters -= 1;
        if *waiters == 0 {
            self.flight.cancel.cancel();
        }
    }
}

/// Ends a flight, also when its task panics: nobody waits for ever.
struct Landing {
    inner: Arc<Inner>,
    key: FlightKey,
    flight: Arc<Flight>,
}

impl Landing {
    fn land(&self, outcome: Outcome) {
        // First gone, then over: who hears of the end and looks again does not find it again.
        self.inner.flights.lock().remove(&self.key);
        self.flight.progress.send_modify(|progress| {
            progress.outcome.get_or_insert(outcome);
        });
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.flight.progress.borrow().outcome.is_none() {
            self.land(Outcome::Failed(EnsureError::Failed(Error::internal("a fetch ended without a word"))));
        }
    }
}

impl Inner {
    /// Joins the fetch of this content, or begins it; the flag says which. `None` where an entry of this content has come
    /// since the book was of generation `seen`.
    pub(super) fn join(
        self: &Arc<Self>,
        manifest: &Arc<ModelManifest>,
        fingerprint: Fingerprint,
        choose: &Arc<ChooseVersions>,
        seen: u64,
    ) -> Option<(Waiter, bool)> {
        let key: FlightKey = (manifest.name.as_str().into(), fingerprint);
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&key) {
            return Some((flight.join(), false));
        }
        if self.book.generation(&manifest.name, fingerprint) > seen {
            return None;
        }
        let flight = Flight::new();
        let waiter = flight.join();
        flights.insert(key.clone(), Arc::clone(&flight));
        drop(flights);
        let fetch = Fetch {
            inner: Arc::clone(self),
            manifest: Arc::clone(manifest),
            choose: Arc::clone(choose),
            flight: Arc::clone(&flight),
            began: Instant::now(),
        };
        let landing = Landing { inner: Arc::clone(self), key, flight };
        self.runtime.spawn(async move { landing.land(landing.fly(fetch).await) });
        Some((waiter, true))
    }
}

impl Landing {
    async fn fly(&self, fetch: Fetch) -> Outcome {
        let (name, began) = (Arc::clone(&self.key.0), fetch.began);
        let ended = self.watched(Box::pin(fetch.run())).await;
        let (bytes, seconds) = (self.flight.meter().map_or(0, |meter| meter.done()), began.elapsed().as_secs_f64());
        let (end, outcome) = match ended {
            Ok(handle) => {
                tracing::info!(model = %name, bytes, seconds, "fetched to the disk");
                (FetchEnd::Done, Outcome::Done(handle))
            }
            Err(Stop::Failed(error)) => {
                tracing::warn!(model = %name, error = %error.report(), "cannot fetch");
                (FetchEnd::Failed, Outcome::Failed(EnsureError::Failed(error)))
            }
            Err(Stop::Changed) => (FetchEnd::Failed, Outcome::Failed(EnsureError::Changed)),
            Err(Stop::Cancelled) => {
                tracing::info!(model = %name, bytes, "nobody waits for a fetch any more: given up");
                (FetchEnd::Cancelled, Outcome::Cancelled)
            }
        };
        self.inner.events.fetched(end, bytes, seconds);
        outcome
    }

    /// Does the work with a log line every few seconds.
    async fn watched<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut ticks = tokio::time::interval(TICK);
        // The first is at once.
        ticks.tick().await;
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => self.report(),
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "shown in tenths")]
    fn report(&self) {
        let Some(meter) = self.flight.meter() else { return };
        let (done, total, rate) = (meter.done() as f64, meter.total().max(1) as f64, meter.rate());
        let (percent, rate_mb) = (done * 100.0 / total, rate / 1e6);
        let left = (total - done).max(0.0) / rate.max(1.0);
        tracing::info!(model = %self.key.0, "fetching: {percent:.1} %, {rate_mb:.1} MB/s, {left:.0} s left");
    }
}
