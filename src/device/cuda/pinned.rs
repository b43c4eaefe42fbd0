//! Locked host memory, which the device copies from and to by itself: a bounded pool, in slabs that are kept.
//!
//! Locking is slow (the system touches every page), so slabs stay until `trim`. A copy of a model lies in as many parts as
//! fit where there is room: nothing is lost to scattered holes. *Lifetime:* parts belong to a [`HostCopy`], which holds the
//! pool; a slab is given back only when no part of it is taken.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::sys;
use parking_lot::Mutex;

use super::context::Context;
use super::ranges::Ranges;
use crate::error::{Error, ErrorKind, Result};

/// What parts are multiples of, in bytes: a page of the host.
const UNIT: u64 = 4096;

/// Holes below this many bytes are used when nothing else is left: each is a copy of its own.
const SMALL: u64 = 1 << 20;

/// Locked memory by its address. Valid as long as the [`HostCopy`] or [`PinnedBuffer`] that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedPart {
    pub(super) at: *mut u8,
    pub(super) len: usize,
}

impl PinnedPart {
    /// The first `len` bytes of it, or all of it where it is shorter.
    #[must_use]
    pub const fn start(self, len: usize) -> Self {
        Self { at: self.at, len: if len < self.len { len } else { self.len } }
    }

    /// A part of this part. The bounds are the caller's, and looked at.
    #[must_use]
    pub(super) fn sub(self, offset: usize, len: usize) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "{offset} + {len} of {}", self.len);
        Self { at: self.at.wrapping_add(offset), len }
    }
}

/// One piece of locked memory.
#[derive(Debug)]
struct Slab {
    context: Arc<Context>,
    at: *mut u8,
    len: u64,
}

// SAFETY: the memory is the slab's own; who may touch which part of it is settled by the pool.
unsafe impl Send for Slab {}

impl Slab {
    fn new(context: &Arc<Context>, len: u64) -> Result<Self> {
        context.enter()?;
        let mut at = std::ptr::null_mut();
        // SAFETY: the place lives through the call.
        let code = unsafe { sys::cuMemHostAlloc(&raw mut at, len as usize, sys::CU_MEMHOSTALLOC_PORTABLE) };
        context.check("cuMemHostAlloc", code).map_err(|error| match error.kind() {
            ErrorKind::OutOfDeviceMemory => no_room(format!(
                "the system locks no further {len} bytes of host memory; lower the pool of pinned memory or raise the \
                 memory of this host or container"
            )),
            _ => error,
        })?;
        Ok(Self { context: Arc::clone(context), at: at.cast(), len })
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let entered = self.context.enter();
        // SAFETY: allocated once, freed once; no part of it is taken any more.
        let code = unsafe { sys::cuMemFreeHost(self.at.cast()) };
        if entered.is_ok() {
            self.context.dropped("cuMemFreeHost", code);
        }
    }
}

#[derive(Debug)]
struct Kept {
    slab: Slab,
    ranges: Ranges,
}

#[derive(Debug, Default)]
struct State {
    slabs: BTreeMap<u64, Kept>,
    /// Bytes of all slabs, and of those that are about to be.
    locked: u64,
    last: u64,
}

/// What the pool holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinnedUsage {
    /// What it may lock.
    pub limit: u64,
    /// What it has locked.
    pub locked: u64,
    /// Of that, what is taken.
    pub taken: u64,
}

/// Locked host memory of all devices, bounded.
#[derive(Debug)]
pub struct PinnedPool {
    context: Arc<Context>,
    limit: u64,
    slab: u64,
    state: Mutex<State>,
}

impl PinnedPool {
    /// An empty pool that locks `limit` bytes at most, in slabs of `slab` bytes, rounded up to pages.
    #[must_use]
    pub fn new(context: &Arc<Context>, limit: u64, slab: u64) -> Arc<Self> {
        let slab = slab.clamp(UNIT, u64::MAX / 2).next_multiple_of(UNIT);
        Arc::new(Self { context: Arc::clone(context), limit, slab, state: Mutex::default() })
    }

    /// What it holds.
    #[must_use]
    pub fn usage(&self) -> PinnedUsage {
        let state = self.state.lock();
        let taken = state.slabs.values().map(|kept| kept.ranges.taken_bytes()).sum();
        PinnedUsage { limit: self.limit, locked: state.locked, taken }
    }

    /// Takes `bytes`, in as many parts as it takes. Locks more memory where there is none. Blocking.
    ///
    /// # Errors
    /// `OutOfDeviceMemory` where the pool has no such room or the system locks no more; what was taken is given back.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Result<HostCopy> {
        let mut copy = HostCopy { pool: Arc::clone(self), parts: Vec::new(), len: 0 };
        while copy.len < bytes {
            let rest = bytes - copy.len;
            if !self.take_some(rest, rest.min(SMALL), &mut copy)
                && let Err(error) = self.grow(rest, self.slab, UNIT)
                && !self.take_some(rest, 1, &mut copy)
            {
                return Err(error);
            }
        }
        Ok(copy)
    }

    /// Takes `bytes` in one part, to be written and read by the host: for what goes to the device and comes back by itself.
    /// Blocking where memory has to be locked.
    ///
    /// # Errors
    /// As for `take`.
    pub fn buffer(self: &Arc<Self>, bytes: u64) -> Result<PinnedBuffer> {
        let bytes = bytes.max(1);
        let mut copy = HostCopy { pool: Arc::clone(self), parts: Vec::new(), len: 0 };
        while !self.take_some(bytes, bytes, &mut copy) {
            self.grow(bytes, self.slab.max(bytes.next_multiple_of(UNIT)), bytes)?;
        }
        Ok(PinnedBuffer(copy))
    }

    /// Gives slabs back of which nothing is taken. Blocking.
    pub fn trim(&self) {
        let idle: Vec<Kept> = {
            let mut state = self.state.lock();
            let is_idle = |_: &u64, kept: &mut Kept| kept.ranges.taken_bytes() == 0;
            state.slabs.extract_if(.., is_idle).map(|(_, kept)| kept).collect()
        };
        let bytes: u64 = idle.iter().map(|kept| kept.slab.len).sum();
        drop(idle);
        self.state.lock().locked -= bytes;
    }

    /// Takes a part of `bytes`, or of what the largest hole has where that is `least` at least.
    fn take_some(&self, bytes: u64, least: u64, copy: &mut HostCopy) -> bool {
        let mut state = self.state.lock();
        let whole = state.slabs.iter().find_map(|(id, kept)| Some((*id, kept.ranges.candidates(bytes).next()?, bytes)));
        let holes = || {
            let largest = |(id, kept): (&u64, &Kept)| {
                let start = kept.ranges.largest()?;
                Some((*id, start, kept.ranges.free_at(start)?))
            };
            state.slabs.iter().filter_map(largest).max_by_key(|(_, _, room)| *room)
        };
        let Some((id, start, room)) = whole.or_else(holes).filter(|(_, _, room)| *room >= least) else { return false };
        let wanted = bytes.min(room);
        if let Some(kept) = state.slabs.get_mut(&id)
            && kept.ranges.take_at(start, wanted).is_some()
        {
            let at = kept.slab.at.wrapping_add(start as usize);
            copy.parts.push(Part { slab: id, start, memory: PinnedPart { at, len: wanted as usize } });
            copy.len += wanted;
            return true;
        }
        false
    }

    /// Locks one more slab, a smaller one where that is all there is room for and it is `least` at least.
    fn grow(&self, bytes: u64, slab: u64, least: u64) -> Result<()> {
        let len = {
            let mut state = self.state.lock();
            let free = self.limit.saturating_sub(state.locked) & !(UNIT - 1);
            if free < least {
                return Err(no_room(format!(
                    "the pool of pinned host memory has no room: {bytes} bytes are lacking, and {} of its {} are locked",
                    state.locked, self.limit
                )));
            }
            let len = slab.min(free);
            state.locked += len;
            len
        };
        // Not under the lock: it takes milliseconds.
        let slab = Slab::new(&self.context, len).inspect_err(|_error| self.state.lock().locked -= len)?;
        let mut state = self.state.lock();
        state.last += 1;
        let id = state.last;
        state.slabs.insert(id, Kept { slab, ranges: Ranges::new(len, UNIT) });
        Ok(())
    }
}

fn no_room(text: String) -> Error {
    Error::new(ErrorKind::OutOfDeviceMemory, text)
}

#[derive(Debug)]
struct Part {
    slab: u64,
    start: u64,
    memory: PinnedPart,
}

/// Locked memory in parts, given back to its pool when dropped: by then, no copy from or to it may be on its way.
#[derive(Debug)]
pub struct HostCopy {
    pool: Arc<PinnedPool>,
    parts: Vec<Part>,
    len: u64,
}

// SAFETY: the parts are this copy's own until it is dropped.
unsafe impl Send for HostCopy {}
// SAFETY: nothing is read or written through a shared reference but by the device, in order.
unsafe impl Sync for HostCopy {}

impl HostCopy {
    /// How many bytes in all.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its parts, in order.
    pub(super) fn parts(&self) -> impl Iterator<Item = PinnedPart> + '_ {
        self.parts.iter().map(|part| part.memory)
    }
}

impl Drop for HostCopy {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        for part in &self.parts {
            if let Some(kept) = state.slabs.get_mut(&part.slab) {
                kept.ranges.give_back(part.start);
            }
        }
    }
}

/// Locked memory in one part.
#[derive(Debug)]
pub struct PinnedBuffer(HostCopy);

impl PinnedBuffer {
    /// The part, for copies to and from the device.
    #[must_use]
    pub fn part(&self) -> PinnedPart {
        self.0.parts[0].memory
    }

    /// What it holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let PinnedPart { at, len } = self.part();
        // SAFETY: the part is this buffer's own, `len` bytes, which the driver gave cleared. Who asked for a copy into it
        // promised to leave it alone until that is done.
        unsafe { std::slice::from_raw_parts(at, len) }
    }

    /// What it holds, to be changed.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let PinnedPart { at, len } = self.part();
        // SAFETY: as above, and nobody else borrows it.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }
}
