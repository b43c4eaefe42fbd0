//! The threads of a device. They take turns with whichever queues have work, one batch a turn, so that a model with many
//! requests waits behind a model with one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::queue::ModelQueue;
use crate::device::priority::hasten_this_thread;
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// What a queue of requests is to the device's threads.
#[derive(Default)]
struct Ready {
    queues: VecDeque<Arc<ModelQueue>>,
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
        let shared = Arc::new(Shared {
            ready: Mutex::new(Ready::default()),
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

    /// Puts a queue with work at the end of the line.
    pub(super) fn submit(&self, queue: Arc<ModelQueue>) {
        self.0.ready.lock().queues.push_back(queue);
        self.0.work.notify_one();
    }
}

fn take_turns(shared: &Shared) {
    let mut again = None;
    loop {
        let queue = {
            let mut ready = shared.ready.lock();
            if let Some(queue) = again.take() {
                ready.queues.push_back(queue);
            }
            loop {
                if ready.stopping {
                    return;
                }
                if let Some(queue) = ready.queues.pop_front() {
                    break queue;
                }
                shared.work.wait(&mut ready);
            }
        };
        if queue.turn() {
            again = Some(queue);
        }
    }
}
