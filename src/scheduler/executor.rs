//! The threads of a device. They take turns with whichever queues have work, one batch a turn; whose turn it is, is
//! `turns`' to say.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::queue::{ModelQueue, Turn};
use super::turns::{Next, Resources, Share, Turns};
use crate::device::priority::hasten_this_thread;
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// Work for a device: a queue, and which of its groups of instances is to take it.
type Entry = (Arc<ModelQueue>, usize);

/// Who is to be looked at again later, if it still exists then.
type Later = (Weak<ModelQueue>, usize);

struct Ready {
    turns: Turns<Entry, Later>,
    stopping: bool,
}

struct Shared {
    ready: Mutex<Ready>,
    work: Condvar,
    /// Places on the short way, where a quick model is run by the thread that decoded the request.
    short_ways: Semaphore,
}

/// A device's threads; dropping it stops them after the turns they are in.
pub struct Executor {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
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
            ready: Mutex::new(Ready { turns: Turns::new(resources), stopping: false }),
            work: Condvar::new(),
            short_ways: Semaphore::new(short_ways.min(Semaphore::MAX_PERMITS)),
        });
        let mut executor = Self { shared: Arc::clone(&shared), threads: Vec::with_capacity(threads) };
        for index in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("exec-{device}-{index}"))
                .spawn(move || {
                    hasten_this_thread();
                    take_turns(&shared);
                })
                .map_err(|error| Error::internal("cannot start an executor thread").with_source(error))?;
            executor.threads.push(thread);
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
        self.shared.ready.lock().stopping = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported when it happened.
            let _panicked = thread.join();
        }
    }
}

impl ExecutorHandle {
    /// A place on the short way, if one is free.
    pub(super) fn short_way(&self) -> Option<SemaphorePermit<'_>> {
        self.0.short_ways.try_acquire().ok()
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

/// A turn that is over.
struct Ended {
    entry: Entry,
    share: Arc<Share>,
    ran: Duration,
    /// Whether the same is asked for again.
    again: bool,
}

fn take_turns(shared: &Shared) {
    let mut after: Option<Ended> = None;
    loop {
        let (entry, share) = {
            let mut ready = shared.ready.lock();
            if let Some(Ended { entry, share, ran, again }) = after.take() {
                let freed = ready.turns.leave(&share, ran);
                if again {
                    ready.turns.enter(entry, &share);
                }
                if freed {
                    // Others may have waited for what this turn held.
                    shared.work.notify_all();
                }
            }
            loop {
                if ready.stopping {
                    return;
                }
                match ready.turns.next(Instant::now()) {
                    Next::Turn(entry, share) => break ((entry, Turn::Asked), share),
                    Next::Reminder((queue, group)) => {
                        if let Some(queue) = queue.upgrade() {
                            let share = queue.share(group);
                            if ready.turns.hold(&share) {
                                break (((queue, group), Turn::Reminded), share);
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
        let ((queue, group), turn) = entry;
        let start = Instant::now();
        let again = queue.turn(group, turn);
        after = Some(Ended { entry: (queue, group), share, ran: start.elapsed(), again });
    }
}
