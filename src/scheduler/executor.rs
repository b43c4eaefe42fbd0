//! The threads of a device. They take turns with whichever queues have work, one batch a turn; whose turn it is, is
//! `turns`' to say.
//!
//! A decoupled model may stream for minutes, and for most of them it waits: for its reader, or for what it streams. So a
//! stream takes no thread from the others: while it runs a stand-in takes turns, and one of them ends when it does. There
//! are never more of these than instances of decoupled models that run.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::queue::{ModelQueue, Turn};
use super::turns::{Held, Next, Resources, Turns};
use crate::device::priority::hasten_this_thread;
use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::metrics::meter::DeviceMeter;

/// Work for a device: a queue, and which of its groups of instances is to take it.
type Entry = (Arc<ModelQueue>, usize);

/// Who is to be looked at again later, if it still exists then.
type Later = (Weak<ModelQueue>, usize);

struct Ready {
    turns: Turns<Entry, Later>,
    stopping: bool,
    /// Threads that have not ended.
    alive: usize,
    /// Those of them that do not run a stream.
    taking_turns: usize,
}

struct Shared {
    /// What its threads are called, before their number.
    name: String,
    /// How many take turns.
    threads: usize,
    ready: Mutex<Ready>,
    work: Condvar,
    /// A thread ended.
    ended: Condvar,
    /// Places on the short way, where a quick model is run by the thread that decoded the request.
    short_ways: Semaphore,
    meter: Arc<DeviceMeter>,
}

/// A device's threads; dropping it stops them after the turns they are in.
pub struct Executor {
    shared: Arc<Shared>,
}

/// A way to hand queues to an executor's threads.
#[derive(Clone)]
pub struct ExecutorHandle(Arc<Shared>);

impl Executor {
    /// Starts `threads` threads for `device`. At most `short_ways` runs at a time go past them, on the threads that serve
    /// connections: fewer than there are of those, or a quick model that turns slow holds them all.
    ///
    /// # Errors
    /// `Internal` if the system refuses a thread.
    pub fn start(device: DeviceId, threads: usize, short_ways: usize) -> Result<Self> {
        Self::start_with(device, threads, short_ways, Arc::default())
    }

    /// The same, where instances take of `resources` while they run.
    ///
    /// # Errors
    /// `Internal` if the system refuses a thread.
    pub fn start_with(device: DeviceId, threads: usize, short_ways: usize, resources: Arc<Resources>) -> Result<Self> {
        let shared = Arc::new(Shared {
            name: format!("exec-{device}"),
            threads,
            ready: Mutex::new(Ready { turns: Turns::new(resources), stopping: false, alive: 0, taking_turns: 0 }),
            work: Condvar::new(),
            ended: Condvar::new(),
            short_ways: Semaphore::new(short_ways.min(Semaphore::MAX_PERMITS)),
            meter: Arc::default(),
        });
        let executor = Self { shared };
        for _ in 0..threads {
            start_thread(&executor.shared)
                .map_err(|error| Error::internal("cannot start an executor thread").with_source(error))?;
        }
        Ok(executor)
    }

    /// A handle for the queues of this device's models.
    #[must_use]
    pub fn handle(&self) -> ExecutorHandle {
        ExecutorHandle(Arc::clone(&self.shared))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let mut ready = self.shared.ready.lock();
        ready.stopping = true;
        self.shared.work.notify_all();
        while ready.alive > 0 {
            self.shared.ended.wait(&mut ready);
        }
    }
}

/// A place on the short way; the time that it is held is time of the device.
pub(super) struct ShortWay<'a> {
    _permit: SemaphorePermit<'a>,
    meter: &'a DeviceMeter,
    began: Instant,
}

impl Drop for ShortWay<'_> {
    fn drop(&mut self) {
        self.meter.busy.add(self.began.elapsed());
    }
}

impl ExecutorHandle {
    /// Tells these threads from those of others.
    pub(super) fn line(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// A place on the short way, if one is free.
    pub(super) fn short_way(&self) -> Option<ShortWay<'_>> {
        let permit = self.0.short_ways.try_acquire().ok()?;
        Some(ShortWay { _permit: permit, meter: &self.0.meter, began: Instant::now() })
    }

    /// What the device has done.
    #[must_use]
    pub fn meter(&self) -> Arc<DeviceMeter> {
        Arc::clone(&self.0.meter)
    }

    /// Puts a queue with work into the line, for its group of instances `group`.
    pub(super) fn submit(&self, queue: Arc<ModelQueue>, group: usize) {
        let share = queue.share(group);
        self.0.ready.lock().turns.enter((queue, group), &share);
        self.0.work.notify_one();
    }

    /// Looks at a queue again at `at`: what waits there will have waited long enough.
    pub(super) fn submit_at(&self, queue: &Arc<ModelQueue>, group: usize, at: Instant) {
        let sooner = self.0.ready.lock().turns.remind((Arc::downgrade(queue), group), at);
        if sooner {
            // One that sleeps has to sleep less.
            self.0.work.notify_one();
        }
    }
}

/// A thread that lives; its end is told.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.ready.lock().alive -= 1;
        self.0.ended.notify_all();
    }
}

/// Starts a thread that takes turns.
fn start_thread(shared: &Arc<Shared>) -> std::io::Result<()> {
    let number = {
        let mut ready = shared.ready.lock();
        ready.alive += 1;
        ready.taking_turns += 1;
        ready.alive - 1
    };
    let alive = Alive(Arc::clone(shared));
    let started = std::thread::Builder::new().name(format!("{}-{number}", shared.name)).spawn(move || {
        hasten_this_thread();
        take_turns(&alive.0);
    });
    if started.is_err() {
        shared.ready.lock().taking_turns -= 1;
    }
    started.map(drop)
}

/// A turn that ended.
struct Ended {
    queue: Arc<ModelQueue>,
    group: usize,
    held: Held,
    ran: Duration,
    /// Whether the same group wants another.
    again: bool,
    /// Whether somebody stood in meanwhile.
    replaced: bool,
}

impl Ready {
    /// Books a turn that ended; says whether others may go on now, and whether this thread is one too many.
    fn settle(&mut self, ended: Ended, threads: usize) -> (bool, bool) {
        let Ended { queue, group, held, ran, again, replaced } = ended;
        let freed = self.turns.leave(&held, ran);
        if again {
            self.turns.enter((queue, group), &held);
        }
        if replaced {
            self.taking_turns += 1;
        }
        let surplus = self.taking_turns > threads;
        if surplus {
            self.taking_turns -= 1;
        }
        (freed || (again && surplus), surplus)
    }
}

fn take_turns(shared: &Arc<Shared>) {
    let mut after: Option<Ended> = None;
    loop {
        let ((queue, group), turn, held) = {
            let mut ready = shared.ready.lock();
            if let Some(ended) = after.take() {
                let (others, surplus) = ready.settle(ended, shared.threads);
                if others {
                    // They may have waited for what this turn held.
                    shared.work.notify_all();
                }
                if surplus {
                    return;
                }
            }
            loop {
                if ready.stopping {
                    return;
                }
                match ready.turns.next(Instant::now()) {
                    Next::Turn(entry, held) => break (entry, Turn::Asked, held),
                    Next::Reminder((queue, group)) => {
                        if let Some(queue) = queue.upgrade() {
                            let share = queue.share(group);
                            if let Some(held) = ready.turns.hold(&share) {
                                break ((queue, group), Turn::Reminded, held);
                            }
                            // What it needs is taken; it stands in line like any other.
                            queue.reminded(group);
                            ready.turns.enter((queue, group), &share);
                        }
                    }
                    Next::Wait(Some(until)) => {
                        let _timed_out = shared.work.wait_until(&mut ready, until);
                    }
                    Next::Wait(None) => shared.work.wait(&mut ready),
                }
            }
        };
        let replaced = queue.is_decoupled() && stand_in(shared);
        let start = Instant::now();
        let again = queue.turn(group, turn);
        // What took nobody's turn costs none.
        let ran = if replaced { Duration::ZERO } else { start.elapsed() };
        shared.meter.busy.add(ran);
        after = Some(Ended { queue, group, held, ran, again, replaced });
    }
}

/// Has another thread take turns in place of this one; whether there is one.
fn stand_in(shared: &Arc<Shared>) -> bool {
    // First, or another thread would think itself one too many.
    shared.ready.lock().taking_turns -= 1;
    match start_thread(shared) {
        Ok(()) => true,
        Err(error) => {
            shared.ready.lock().taking_turns += 1;
            tracing::warn!(%error, "no thread stands in for a stream: it holds one of the device's");
            false
        }
    }
}
