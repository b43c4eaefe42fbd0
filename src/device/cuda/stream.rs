//! Streams: work for the device, done in order; events, which mark a place in it.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult, CUstream, CUstream_flags};

use super::context::Context;
use super::pinned::PinnedPart;
use crate::error::Result;

/// A line of work. Its drop waits for nothing: the driver ends it when its work is done.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: the pointer names a stream, which any number of threads may use at once, as the driver's interface says.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default one. `priority`: 0 as others, below it sooner.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(context: &Arc<Context>, priority: i32) -> Result<Self> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the place lives through the call.
        let code = unsafe { sys::cuStreamCreateWithPriority(&raw mut raw, flags, priority) };
        context.check("cuStreamCreate", code)?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// The driver's name for it, which the CUDA runtime (`cudaStream_t`) takes too.
    #[must_use]
    pub fn handle(&self) -> usize {
        self.raw as usize
    }

    /// The device.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all work in it is done. Blocking.
    ///
    /// # Errors
    /// As the driver says; what went wrong in that work comes out here.
    pub fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream is ours.
        self.context.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Has what is asked for from now on wait for what an event marks.
    ///
    /// # Errors
    /// As the driver says.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both are ours; the driver remembers what the event marks now.
        self.context.check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) })
    }

    /// Asks for a copy from locked host memory to the device.
    ///
    /// # Safety
    /// `from.len` bytes are mapped at the address `to`, and both sides stay as they are until the stream has come so far.
    ///
    /// # Errors
    /// As the driver says.
    pub unsafe fn copy_to_device(&self, to: u64, from: PinnedPart) -> Result<()> {
        self.context.enter()?;
        // SAFETY: as the caller promises.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.at.cast_const().cast(), from.len, self.raw) };
        self.context.check("cuMemcpyHtoDAsync", code)
    }

    /// Asks for a copy from the device to locked host memory.
    ///
    /// # Safety
    /// As for [`Stream::copy_to_device`], and nobody else touches `to` meanwhile.
    ///
    /// # Errors
    /// As the driver says.
    pub unsafe fn copy_to_host(&self, to: PinnedPart, from: u64) -> Result<()> {
        self.context.enter()?;
        // SAFETY: as the caller promises.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.at.cast(), from, to.len, self.raw) };
        self.context.check("cuMemcpyDtoHAsync", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let code = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        self.context.dropped("cuStreamDestroy", code);
    }
}

/// The streams of a device, given out in turn. Any number of users may share one.
#[derive(Debug)]
pub struct Streams {
    all: Vec<Arc<Stream>>,
    next: AtomicUsize,
}

impl Streams {
    /// So many streams, one at least.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(context: &Arc<Context>, count: usize) -> Result<Self> {
        let all = (0..count.max(1)).map(|_| Stream::new(context, 0).map(Arc::new)).collect::<Result<_>>()?;
        Ok(Self { all, next: AtomicUsize::new(0) })
    }

    /// The next in turn.
    #[must_use]
    pub fn next(&self) -> Arc<Stream> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.all.len();
        Arc::clone(&self.all[turn])
    }
}

/// A place in the work of a stream.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: the pointer names an event, which any number of threads may use at once, as the driver's interface says.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that marks nothing yet, and keeps no time.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the place lives through the call.
        context.check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, flags) })?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Marks what a stream was asked for until now.
    ///
    /// # Errors
    /// As the driver says.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both are ours.
        self.context.check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw, stream.raw) })
    }

    /// Whether what it marks is done.
    ///
    /// # Errors
    /// As the driver says.
    pub fn is_done(&self) -> Result<bool> {
        self.context.enter()?;
        // SAFETY: the event is ours.
        match unsafe { sys::cuEventQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => self.context.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Waits until what it marks is done. Blocking.
    ///
    /// # Errors
    /// As the driver says.
    pub fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event is ours.
        self.context.check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let code = unsafe { sys::cuEventDestroy_v2(self.raw) };
        self.context.dropped("cuEventDestroy", code);
    }
}
