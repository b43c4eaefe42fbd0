//! What runtimes call for memory: plain C functions, so whose memory it is stands in the calling thread.
//!
//! ONNX Runtime asks through an allocator that is registered with its environment ([`onnxruntime_alloc`], [`onnxruntime_free`]) and
//! has no arena of its own then: every tensor of a run comes through here. Plugins take [`stream_allocate`] and [`stream_free`] in
//! their table, which name device and stream: libtorch's hands them to its `CUDAPluggableAllocator`.
//! A panic ends at this border, and so does an error: the answer is null, and why is kept for the thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::context::Context;
use super::owner::{Kind, Owner};
use super::pool::VramPool;
use super::stream::Streams;
use crate::error::{Error, Result};

/// A pool that runtimes are served from, and who pays for memory that no model has asked for.
struct Served {
    pool: Arc<VramPool>,
    others: Arc<Owner>,
    streams: Option<Arc<Streams>>,
}

/// By the driver's index of the device.
static SERVED: RwLock<BTreeMap<u32, Arc<Served>>> = RwLock::new(BTreeMap::new());

/// Frees that named no memory of ours.
static STRAY_FREES: AtomicU64 = AtomicU64::new(0);

/// Whose memory the thread asks for.
#[derive(Clone)]
struct Current {
    owner: Arc<Owner>,
    kind: Kind,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
    static REFUSED: Cell<Option<Error>> = const { Cell::new(None) };
}

/// While this lives, what the thread's runtime asks for is an owner's. Put one around each call into a runtime.
#[derive(Debug)]
pub struct OwnerScope {
    before: Option<Option<Current>>,
    /// It belongs to its thread.
    _here: PhantomData<*const ()>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("owner", &self.owner.name()).field("kind", &self.kind).finish()
    }
}

impl OwnerScope {
    /// Scopes may be nested; the inner one counts.
    #[must_use]
    pub fn enter(owner: &Arc<Owner>, kind: Kind) -> Self {
        let current = Current { owner: Arc::clone(owner), kind };
        Self { before: Some(CURRENT.replace(Some(current))), _here: PhantomData }
    }
}

impl Drop for OwnerScope {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            CURRENT.replace(before);
        }
    }
}

/// Serves runtimes from a pool from now on. Memory that is asked for outside of any [`OwnerScope`] (by a runtime's own
/// threads) is counted for an owner of its own, which may hold `others` bytes. `streams` are those that plugins ask for.
///
/// # Errors
/// As the driver says.
pub fn serve(pool: &Arc<VramPool>, others: u64, streams: Option<&Arc<Streams>>) -> Result<Arc<Owner>> {
    let others = pool.owner("(no model)", others)?;
    let served = Arc::new(Served { pool: Arc::clone(pool), others: Arc::clone(&others), streams: streams.cloned() });
    SERVED.write().insert(pool.context().ordinal(), served);
    Ok(others)
}

/// Ends what [`serve`] began for this pool, if it is the one that serves: after every session over it is dropped.
pub fn end(pool: &Arc<VramPool>) {
    let mut all = SERVED.write();
    let is_it = all.get(&pool.context().ordinal()).is_some_and(|served| Arc::ptr_eq(&served.pool, pool));
    let served = if is_it { all.remove(&pool.context().ordinal()) } else { None };
    drop(all);
    drop(served);
}

/// Ends what [`serve`] began, for all devices: before the driver goes, and after every session is dropped.
pub fn serve_no_more() {
    let served = std::mem::take(&mut *SERVED.write());
    drop(served);
}

/// Why the last allocation of this thread was refused, once: a runtime that gets null says no more than that.
#[must_use]
pub fn take_refusal() -> Option<Error> {
    REFUSED.take()
}

/// How many frees named no memory of ours.
#[must_use]
pub fn stray_frees() -> u64 {
    STRAY_FREES.load(Ordering::Relaxed)
}

/// Memory for ONNX Runtime, on the device of the thread's scope, else of its context; null where there is none.
pub extern "C" fn onnxruntime_alloc(bytes: usize) -> *mut c_void {
    guarded(|| {
        let current = CURRENT.with_borrow(Clone::clone);
        match current {
            Some(current) => current.owner.allocate(current.kind, bytes as u64),
            None => for_nobody(Context::current(), bytes),
        }
    })
}

/// Frees what [`onnxruntime_alloc`] gave, on any thread; nothing for null.
pub extern "C" fn onnxruntime_free(at: *mut c_void) {
    free(at);
}

/// Memory of a device, by the driver's index, for runtimes that name the stream of a run: whose it is, and whether it is for a
/// run, is told by the thread's scope; `shared` memory is no model's. Null where there is none.
pub fn stream_allocate(bytes: usize, device: u32, stream: usize, shared: bool) -> *mut c_void {
    guarded(|| {
        let current = if shared { None } else { CURRENT.with_borrow(Clone::clone) };
        match current {
            Some(Current { owner, .. }) if owner.pool().context().ordinal() != device => {
                let text =
                    format!("model '{}' asks for memory of device {device}, where it is not placed", owner.name());
                Err(Error::internal(text))
            }
            Some(Current { owner, kind: Kind::Activations { .. } }) => {
                owner.allocate(Kind::Activations { stream }, bytes as u64)
            }
            Some(Current { owner, kind }) => owner.allocate(kind, bytes as u64),
            None => for_nobody(Some(device), bytes),
        }
    })
}

/// Frees what [`stream_allocate`] gave, on any thread; nothing for null.
pub fn stream_free(at: *mut c_void) {
    free(at);
}

/// The name of a stream of a device, the next in turn; 0 where the device is not served.
#[must_use]
pub fn next_stream(device: u32) -> usize {
    let served = SERVED.read().get(&device).cloned();
    served.and_then(|served| Some(served.streams.as_ref()?.next().handle())).unwrap_or_default()
}

fn guarded(allocate: impl FnOnce() -> Result<u64>) -> *mut c_void {
    let outcome = catch_unwind(std::panic::AssertUnwindSafe(allocate));
    let refused = match outcome {
        Ok(Ok(address)) => return address as *mut c_void,
        Ok(Err(error)) => error,
        Err(_panic) => Error::internal("the allocator of device memory panicked"),
    };
    tracing::warn!(error = refused.report(), "a runtime gets no device memory");
    REFUSED.set(Some(refused));
    std::ptr::null_mut()
}

fn for_nobody(device: Option<u32>, bytes: usize) -> Result<u64> {
    let served = device.and_then(|device| SERVED.read().get(&device).cloned());
    let served = served.ok_or_else(|| Error::internal("a runtime asks for memory of a device that is not served"))?;
    served.others.allocate(Kind::Weights, bytes as u64)
}

fn free(at: *mut c_void) {
    if at.is_null() {
        return;
    }
    let freed = catch_unwind(|| {
        // Written to at the start and the end of the server alone.
        SERVED.read().values().any(|served| {
            if served.others.holds(at as u64) {
                // Who asked is not known, and so is not on which stream it is still in use: as cudaFree, wait for all.
                let _lost = served.pool.context().synchronize();
            }
            served.pool.free(at as u64)
        })
    });
    if !freed.unwrap_or(false) {
        STRAY_FREES.fetch_add(1, Ordering::Relaxed);
    }
}
