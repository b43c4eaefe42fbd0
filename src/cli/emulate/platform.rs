//! `Platform`: does what the [`Book`] decides. Models are loaded when they are called, once however many call, in a task
//! that goes on when its callers have left; where the container has no room, others are unloaded.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::book::{Book, Caps, Found, Promise, Room, Seat, Signal, Victim};
use super::container::{Answer, Container, Invocation, Silence};
use super::files::{Placed, Store};
use crate::artifact::Space;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::sagemaker::failure::{Code, Original, ServiceError};

/// How long unloading may take when the emulator ends.
const LAST_UNLOAD: Duration = Duration::from_secs(30);

/// How long unloading a model may take whose load was stopped by the emulator's end.
const SHORT_UNLOAD: Duration = Duration::from_secs(5);

/// Models that are unloaded at the same time at the end.
const UNLOADS: usize = 16;

/// When a caller that was told to wait may come again.
const COME_AGAIN_S: u64 = 5;

const NO_ROOM: u16 = 507;

/// What the platform is set to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// How long an invocation waits for its model.
    pub(super) load_wait: Duration,
    /// How long a load may take, the fetch included.
    pub(super) load_limit: Duration,
    /// How long an answer of the container may take, calls anew for want of room included.
    pub(super) invocation: Duration,
    /// How long an unload may take.
    pub(super) unload_limit: Duration,
    /// Whether models stay between invocations.
    pub(super) keeps: bool,
    /// Loads at a time.
    pub(super) loads: usize,
    pub(super) caps: Caps,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Platform(Arc<Inner>);

struct Inner {
    container: Container,
    store: Store,
    book: Mutex<Book>,
    settings: Settings,
    loads: Semaphore,
    /// Loads and unloads, which outlive who asked for them.
    tasks: TaskTracker,
    stop: CancellationToken,
    runtime: Handle,
}

/// A seat that gives itself back.
struct Lease {
    platform: Platform,
    seat: Seat,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let inner = &self.platform.0;
        let victim = inner.book.lock().release(&self.seat, !inner.settings.keeps, Instant::now());
        if let Some(victim) = victim {
            let platform = self.platform.clone();
            inner.tasks.spawn_on(async move { platform.unload(victim).await }, &inner.runtime);
        }
    }
}

/// Room on the disk for a load, as it unpacks.
struct Purse {
    platform: Platform,
    seat: Seat,
    cancel: CancellationToken,
}

impl Space for Purse {
    fn take(&mut self, bytes: u64) -> Result<()> {
        let inner = &self.platform.0;
        let granted = self.platform.room(|book| book.take(&self.seat, bytes, Instant::now()));
        let granted = inner.runtime.block_on(self.cancel.run_until_cancelled(granted));
        match granted {
            None => Err(Error::not_ready("the load was given up")),
            Some(Granted::Yes) => Ok(()),
            Some(Granted::Nobody) => Err(Error::new(
                ErrorKind::OutOfDisk,
                "InsufficientCapacity: --disk-capacity is used up, and no idle model is left to delete",
            )),
            Some(Granted::Never) => {
                Err(Error::too_large("the model is larger than --disk-capacity: give the endpoint a larger one"))
            }
        }
    }
}

/// How asking for room ended.
enum Granted {
    Yes,
    Nobody,
    Never,
}

/// A load that failed; `unsure` if the container may have the model all the same.
struct Failed {
    error: ServiceError,
    unsure: bool,
}

impl From<ServiceError> for Failed {
    fn from(error: ServiceError) -> Self {
        Self { error, unsure: false }
    }
}

impl Platform {
    pub(super) fn new(container: Container, store: Store, settings: Settings, runtime: Handle) -> Self {
        Self(Arc::new(Inner {
            container,
            store,
            book: Mutex::new(Book::new(settings.caps)),
            settings,
            loads: Semaphore::new(settings.loads.clamp(1, Semaphore::MAX_PERMITS)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            runtime,
        }))
    }

    /// The container it plays with.
    pub(super) fn container(&self) -> &Container {
        &self.0.container
    }

    /// Calls a model, loading it first if it must be. The container's answer is a success.
    ///
    /// # Errors
    /// As the runtime API has them.
    pub(super) async fn invoke(&self, target: &str, call: &Invocation) -> Result<Answer, ServiceError> {
        let (inner, limit) = (&self.0, self.0.settings.invocation);
        let until = Instant::now() + inner.settings.load_wait;
        let (mut lease, mut placed) = self.acquire(&target.into(), until).await?;
        let (mut was_lost, mut last) = (false, None);
        let mut end = Instant::now() + limit;
        loop {
            let answer = timeout_at(end, inner.container.invoke(&placed.hash, target, call, limit)).await;
            let Ok(answer) = answer else {
                return Err(last.as_ref().map_or_else(|| Silence::Late(limit).error(), model_error));
            };
            let answer = answer.map_err(|silence| silence.error())?;
            match answer.status.as_u16() {
                status if (200..300).contains(&status) => return Ok(answer),
                404 if !was_lost => {
                    was_lost = true;
                    tracing::warn!(target_model = target, hash = %placed.hash, "the container has forgotten the model");
                    (lease, placed) = self.again(lease, until).await?;
                    end = Instant::now() + limit;
                }
                NO_ROOM if timeout_at(end, self.evict_one()).await.unwrap_or(false) => last = Some(answer),
                _ => return Err(model_error(&answer)),
            }
        }
    }

    /// Ends: no load goes on, everything is out of the container and off the disk.
    pub(super) async fn shut_down(&self) {
        let inner = &self.0;
        inner.stop.cancel();
        inner.tasks.close();
        if tokio::time::timeout(LAST_UNLOAD, inner.tasks.wait()).await.is_err() {
            tracing::warn!("loads and unloads do not end: leaving them");
        }
        let victims = inner.book.lock().clear();
        let gone = stream::iter(victims).for_each_concurrent(UNLOADS, |victim| async move {
            let (hash, target) = (&victim.placed.hash, &victim.seat.target);
            let limit = inner.settings.unload_limit.min(LAST_UNLOAD);
            if let Err(text) = self.remove_from_container(hash, target, limit).await {
                tracing::warn!(target_model = &**target, %hash, error = text, "cannot unload at the end");
            }
            inner.store.delete(&victim.placed.folder).await;
        });
        gone.await;
    }

    /// A seat at a model that is in the container.
    async fn acquire(&self, target: &Arc<str>, until: Instant) -> Result<(Lease, Placed), ServiceError> {
        loop {
            let found = self.0.book.lock().ask(target);
            let lease = |seat| Lease { platform: self.clone(), seat };
            let lease = match found {
                Found::Ready(seat) => lease(seat),
                Found::Loading(seat, signal) => {
                    let lease = lease(seat);
                    self.loaded(&lease.seat, signal, until).await?;
                    lease
                }
                Found::Absent(seat, promise, signal) => {
                    let lease = lease(seat);
                    self.begin(lease.seat.clone(), promise);
                    self.loaded(&lease.seat, signal, until).await?;
                    lease
                }
                Found::Leaving(mut signal) => {
                    let gone = timeout_at(until, signal.wait_for(Option::is_some)).await;
                    let gone = gone.map_err(|_late| not_ready(target))?;
                    drop(gone.map_err(|_closed| ServiceError::new(Code::Internal, "an unload ended without a word"))?);
                    continue;
                }
            };
            if let Some(found) = self.seated(lease) {
                return Ok(found);
            }
        }
    }

    /// Loads a model again that the container has forgotten.
    async fn again(&self, lease: Lease, until: Instant) -> Result<(Lease, Placed), ServiceError> {
        let found = self.0.book.lock().lost(&lease.seat);
        match found {
            None | Some(Found::Leaving(_)) => {
                let target = Arc::clone(&lease.seat.target);
                drop(lease);
                return self.acquire(&target, until).await;
            }
            Some(Found::Ready(_)) => {}
            Some(Found::Loading(_, signal)) => self.loaded(&lease.seat, signal, until).await?,
            Some(Found::Absent(seat, promise, signal)) => {
                self.begin(seat, promise);
                self.loaded(&lease.seat, signal, until).await?;
            }
        }
        let target = Arc::clone(&lease.seat.target);
        match self.seated(lease) {
            Some(found) => Ok(found),
            None => self.acquire(&target, until).await,
        }
    }

    /// The lease with what is now known of its model; `None` if that is gone.
    fn seated(&self, mut lease: Lease) -> Option<(Lease, Placed)> {
        let (seat, placed) = self.0.book.lock().placed(&lease.seat)?;
        lease.seat = seat;
        Some((lease, placed))
    }

    /// Waits for the end of a load.
    async fn loaded(&self, seat: &Seat, mut signal: Signal, until: Instant) -> Result<(), ServiceError> {
        match timeout_at(until, signal.wait_for(Option::is_some)).await {
            Err(_late) => Err(not_ready(&seat.target)),
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
            Ok(Err(_closed)) => {
                self.0.book.lock().remove(seat);
                Err(ServiceError::new(Code::Internal, "a load ended without a word"))
            }
        }
    }

    fn begin(&self, seat: Seat, promise: Promise) {
        let platform = self.clone();
        self.0.tasks.spawn(async move {
            let ended = platform.load(&seat).await;
            let inner = &platform.0;
            let outcome = match ended {
                Ok(()) => {
                    inner.book.lock().loaded(&seat);
                    Ok(())
                }
                Err(Failed { error, unsure }) => {
                    tracing::warn!(target_model = &*seat.target, error = error.message, "cannot load");
                    let placed = inner.book.lock().placed(&seat);
                    if let Some((_, placed)) = placed {
                        if unsure {
                            let limit = inner.settings.unload_limit;
                            let limit = if inner.stop.is_cancelled() { limit.min(SHORT_UNLOAD) } else { limit };
                            let _unknown = platform.remove_from_container(&placed.hash, &seat.target, limit).await;
                        }
                        inner.store.delete(&placed.folder).await;
                    }
                    // Out of the book before anybody hears of it: who comes again begins anew.
                    inner.book.lock().remove(&seat);
                    Err(error)
                }
            };
            promise.send_replace(Some(outcome));
        });
    }

    /// Fetches, unpacks and loads, within the limit.
    async fn load(&self, seat: &Seat) -> Result<(), Failed> {
        let inner = &self.0;
        let stopped = || ServiceError::new(Code::Unavailable, "the emulator is shutting down");
        let permit = inner.stop.run_until_cancelled(inner.loads.acquire()).await;
        let _permit = permit.ok_or_else(stopped)?;
        let cancel = inner.stop.child_token();
        let limit = inner.settings.load_limit;
        let work = self.load_within(seat, &cancel);
        tokio::pin!(work);
        let ended = tokio::select! {
            ended = work.as_mut() => ended,
            () = tokio::time::sleep(limit) => {
                cancel.cancel();
                // What it has begun it clears up itself.
                work.await
            }
        };
        match ended {
            Err(failed) if inner.stop.is_cancelled() => Err(Failed { error: stopped(), ..failed }),
            Err(failed) if cancel.is_cancelled() => Err(Failed { error: Silence::Late(limit).error(), ..failed }),
            other => other,
        }
    }

    async fn load_within(&self, seat: &Seat, cancel: &CancellationToken) -> Result<(), Failed> {
        let inner = &self.0;
        let cancelled = || ServiceError::new(Code::Unavailable, "the load was given up");
        let begun = Instant::now();
        let known = inner.book.lock().placed(seat);
        let placed = match known {
            // The files are still there where the container has forgotten a model.
            Some((_, placed)) => placed,
            None => {
                let admitted = self.room(|book| book.admit(seat, Instant::now()));
                match cancel.run_until_cancelled(admitted).await.ok_or_else(cancelled)? {
                    Granted::Yes => {}
                    Granted::Nobody | Granted::Never => return Err(no_room(&seat.target, "--max-models").into()),
                }
                let purse = Purse { platform: self.clone(), seat: seat.clone(), cancel: cancel.clone() };
                let placed = inner.store.fetch(&seat.target, Box::new(purse), cancel).await.map_err(refusal)?;
                inner.book.lock().unpacked(seat, placed.clone());
                placed
            }
        };
        let (fetched, url) = (begun.elapsed(), inner.store.url(&placed));
        loop {
            let load = inner.container.load(&placed.hash, &seat.target, &url, inner.settings.load_limit);
            let unsure = |error| Failed { error, unsure: true };
            let answer = cancel.run_until_cancelled(load).await.ok_or_else(|| unsure(cancelled()))?;
            let answer = answer.map_err(|silence| unsure(silence.error()))?;
            match answer.status.as_u16() {
                200..300 | 409 => break,
                NO_ROOM => {
                    let made = cancel.run_until_cancelled(self.evict_one()).await.ok_or_else(cancelled)?;
                    if !made {
                        return Err(no_room(&seat.target, &original(&answer).message).into());
                    }
                }
                _ => return Err(model_error(&answer).into()),
            }
        }
        let (hash, fetch_ms) = (&placed.hash, fetched.as_millis());
        let load_ms = (begun.elapsed() - fetched).as_millis();
        tracing::info!(target_model = &*seat.target, %hash, bytes = placed.bytes, fetch_ms, load_ms, "loaded");
        Ok(())
    }

    /// Unloads others until the book grants what is asked.
    async fn room(&self, ask: impl Fn(&mut Book) -> Room) -> Granted {
        loop {
            let room = ask(&mut self.0.book.lock());
            match room {
                Room::Granted => return Granted::Yes,
                Room::TooLarge => return Granted::Never,
                Room::Nobody => return Granted::Nobody,
                other => {
                    self.follow(other).await;
                }
            }
        }
    }

    /// Unloads the least recently used model that nobody uses, or waits for one that is on its way out; whether one went.
    async fn evict_one(&self) -> bool {
        loop {
            let room = self.0.book.lock().make_room(Instant::now());
            match room {
                Room::Unload(_) | Room::Wait(_) => {
                    if self.follow(room).await {
                        return true;
                    }
                }
                Room::Granted | Room::Nobody | Room::TooLarge => return false,
            }
        }
    }

    /// Does what there is to do for room; whether somebody went.
    async fn follow(&self, room: Room) -> bool {
        let mut gone = match room {
            Room::Unload(victim) => {
                tracing::info!(target_model = &*victim.seat.target, hash = %victim.placed.hash, "evicting: least recently used");
                let signal = victim.gone.subscribe();
                let platform = self.clone();
                // In a task of its own: whoever needs the room may leave.
                self.0.tasks.spawn(async move { platform.unload(victim).await });
                signal
            }
            Room::Wait(signal) => signal,
            Room::Granted | Room::Nobody | Room::TooLarge => return true,
        };
        gone.wait_for(Option::is_some).await.is_ok_and(|outcome| matches!(&*outcome, Some(Ok(()))))
    }

    /// Unloads a model and deletes its files; one that does not go stays.
    async fn unload(&self, victim: Victim) {
        let inner = &self.0;
        let Victim { seat, placed, gone } = victim;
        let (begun, hash) = (Instant::now(), &placed.hash);
        let removed = self.remove_from_container(hash, &seat.target, inner.settings.unload_limit).await;
        let outcome = match removed {
            Ok(()) => {
                inner.store.delete(&placed.folder).await;
                tracing::info!(target_model = &*seat.target, %hash, ms = begun.elapsed().as_millis(), "unloaded");
                inner.book.lock().remove(&seat);
                Ok(())
            }
            Err(text) => {
                tracing::warn!(target_model = &*seat.target, %hash, error = text, "the container does not unload");
                inner.book.lock().stays(&seat, Instant::now());
                Err(ServiceError::new(Code::Internal, text))
            }
        };
        gone.send_replace(Some(outcome));
    }

    /// `DELETE`, and what went wrong. What the container does not know is gone.
    pub(super) async fn remove_from_container(&self, hash: &str, target: &str, limit: Duration) -> Result<(), String> {
        let (container, begun) = (&self.0.container, Instant::now());
        let mut answer = container.unload(hash, target, limit).await;
        if let Err(Silence::Broken(_) | Silence::Unreachable(_)) = answer {
            // Asked twice it does no harm, and a connection from before a restart says nothing of the container.
            container.hang_up();
            answer = container.unload(hash, target, limit.saturating_sub(begun.elapsed())).await;
        }
        match answer {
            Ok(answer) if answer.status.is_success() || answer.status.as_u16() == 404 => Ok(()),
            Ok(answer) => Err(model_error(&answer).message),
            Err(Silence::Refused) => Ok(()),
            Err(silence) => Err(silence.error().message),
        }
    }
}

/// The longest text of the container's that is told again, in bytes.
const TEXT_BYTES: usize = 4096;

/// What the container answered, as far as it is told to callers.
fn original(answer: &Answer) -> Original {
    let text = String::from_utf8_lossy(answer.body.get(..TEXT_BYTES).unwrap_or(&answer.body)).into_owned();
    Original { status: answer.status.as_u16(), message: text }
}

fn model_error(answer: &Answer) -> ServiceError {
    let Original { status, message } = original(answer);
    ServiceError::model("primary", status, message)
}

fn no_room(target: &str, why: &str) -> ServiceError {
    let text = format!(
        "InsufficientCapacity: there is no room for model '{target}', and no idle model is left to unload: {why}"
    );
    ServiceError::new(Code::Unavailable, text).retry_after(1)
}

fn not_ready(target: &str) -> ServiceError {
    let text = format!("model '{target}' is not ready to serve invocations: its load goes on, call again later");
    ServiceError::new(Code::ModelNotReady, text).retry_after(COME_AGAIN_S)
}

/// Why a model could not be brought: what it is itself to blame for is the caller's to mend.
fn refusal(error: Error) -> Failed {
    let error = match error.kind() {
        ErrorKind::NotFound | ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::Unsupported => {
            ServiceError::validation(error.report())
        }
        _ => ServiceError::of(&error),
    };
    error.into()
}
