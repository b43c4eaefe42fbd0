//! Memory of a device that another process shares: opened by its handle, read and written by position.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use cudarc::driver::sys::{self, CUipcMemHandle};

use super::context::Context;
use crate::error::{Error, Result};

/// The bytes of a `cudaIpcMemHandle_t`, which is a `CUipcMemHandle`.
pub const HANDLE_BYTES: usize = 64;

/// `cudaIpcMemLazyEnablePeerAccess`, without which no handle is opened.
const LAZY_PEER_ACCESS: u32 = 1;

/// Memory of another process. Closed by the drop, which waits for the device; it stays that process's.
///
/// Read and written through the default stream, one copy each, and done when the call returns: what the other process
/// has asked of the device by then is its own to wait for.
pub struct SharedRange {
    context: Arc<Context>,
    address: u64,
    byte_size: u64,
}

impl fmt::Debug for SharedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRange").field("device", &self.context.id()).field("byte_size", &self.byte_size).finish()
    }
}

impl SharedRange {
    /// Opens the first `byte_size` bytes of what is behind a handle. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for a handle that the driver does not take (of this very process, of another device, or of memory
    /// that is gone) and for more bytes than there are; else as the driver says.
    pub fn open(context: &Arc<Context>, handle: &[u8; HANDLE_BYTES], byte_size: u64) -> Result<Self> {
        context.enter()?;
        let handle = CUipcMemHandle { reserved: handle.map(|byte| byte as _) };
        let mut address = 0;
        // SAFETY: the place lives through the call; any bytes may be a handle, the driver looks at them.
        let code = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut address, handle, LAZY_PEER_ACCESS) };
        context.check("cuIpcOpenMemHandle", code).map_err(|error| {
            if context.is_lost() {
                return error;
            }
            let text = format!(
                "the driver does not open this handle on {}: it must be of another process on this machine, of that device, \
                 and its memory must still be there",
                context.id()
            );
            Error::invalid(text).with_source(error)
        })?;
        let range = Self { context: Arc::clone(context), address, byte_size };
        let there = range.bytes_there()?;
        if byte_size == 0 || byte_size > there {
            return Err(Error::invalid(format!("byte_size {byte_size} does not fit: the memory has {there} bytes")));
        }
        Ok(range)
    }

    /// The bytes from our address to the end of what was allocated.
    fn bytes_there(&self) -> Result<u64> {
        let (mut base, mut whole) = (0, 0);
        // SAFETY: the places live through the call.
        let code = unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut whole, self.address) };
        self.context.check("cuMemGetAddressRange", code)?;
        Ok((base + whole as u64).saturating_sub(self.address))
    }

    /// Its bytes.
    #[must_use]
    pub const fn byte_size(&self) -> u64 {
        self.byte_size
    }

    /// A copy of `length` bytes from `offset`. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for bytes outside of it, `TooLarge` where there is no memory for the copy; else as the driver says.
    pub fn read(&self, offset: u64, length: u64) -> Result<Bytes> {
        let from = self.place(offset, length)?;
        let no_memory = || Error::too_large(format!("no memory for {length} bytes"));
        let length = usize::try_from(length).map_err(|_| no_memory())?;
        let mut data: Vec<u8> = Vec::new();
        data.try_reserve_exact(length).map_err(|_| no_memory())?;
        self.context.enter()?;
        // SAFETY: the buffer has room for so many bytes, which the device has at the address, as was looked at; the call
        // returns when they are copied, and then they are set.
        unsafe {
            let code = sys::cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), from, length);
            self.context.check("cuMemcpyDtoH", code)?;
            data.set_len(length);
        }
        Ok(data.into())
    }

    /// Writes to `offset`. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for bytes outside of it; else as the driver says.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let to = self.place(offset, data.len() as u64)?;
        self.context.enter()?;
        // SAFETY: the device has so many bytes at the address, as was looked at; the call returns when they are read.
        let code = unsafe { sys::cuMemcpyHtoD_v2(to, data.as_ptr().cast(), data.len()) };
        self.context.check("cuMemcpyHtoD", code)
    }

    fn place(&self, offset: u64, length: u64) -> Result<u64> {
        match offset.checked_add(length) {
            Some(end) if end <= self.byte_size => Ok(self.address + offset),
            _ => Err(Error::invalid(format!("{length} bytes from {offset} are not in {} bytes", self.byte_size))),
        }
    }
}

impl Drop for SharedRange {
    fn drop(&mut self) {
        if let Err(error) = self.context.enter() {
            tracing::debug!(error = %error.report(), "shared memory of a device cannot be closed");
            return;
        }
        // SAFETY: opened once, closed once; all copies are done.
        let code = unsafe { sys::cuIpcCloseMemHandle(self.address) };
        self.context.dropped("cuIpcCloseMemHandle", code);
    }
}
