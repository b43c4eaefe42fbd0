//! A block of a device's memory, taken as runtimes take it, to be written and read through the host.
#![expect(unsafe_code, reason = "asks for copies, whose two sides stay until they are done")]

use std::ffi::c_void;
use std::sync::Arc;

use super::hooks::{OwnerScope, onnxruntime_alloc, onnxruntime_free, take_refusal};
use super::owner::{Kind, Owner};
use super::pinned::PinnedBuffer;
use super::stream::Stream;
use crate::error::{Error, Result};

/// Memory of an owner. Freed when dropped, before the owner can end.
#[derive(Debug)]
pub struct Block {
    _owner: Arc<Owner>,
    address: u64,
    len: u64,
}

impl Block {
    /// Takes `len` bytes for an owner.
    ///
    /// # Errors
    /// As [`Owner::allocate`].
    pub fn take(owner: &Arc<Owner>, kind: Kind, len: u64) -> Result<Self> {
        let address = {
            let _scope = OwnerScope::enter(owner, kind);
            onnxruntime_alloc(usize::try_from(len).unwrap_or(usize::MAX)) as u64
        };
        if address == 0 {
            return Err(take_refusal().unwrap_or_else(|| Error::internal("memory was refused without a reason")));
        }
        Ok(Self { _owner: Arc::clone(owner), address, len })
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Where it is on the device.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the first `len` bytes of `from` to `offset`, and waits until they are there. Its owner is awake, and stays so.
    ///
    /// # Errors
    /// `InvalidArgument` beyond the end; else as the driver says.
    pub fn write(&self, stream: &Stream, offset: u64, from: &PinnedBuffer, len: usize) -> Result<()> {
        self.within(offset, len)?;
        // SAFETY: the block is mapped for as long as its owner is awake, and lives; the buffer is borrowed until the stream
        // was waited for. Where that fails the device is lost, and with it whatever might still be copied.
        unsafe { stream.copy_to_device(self.address + offset, from.part().start(len))? };
        stream.synchronize()
    }

    /// Copies `len` bytes from `offset` to the beginning of `to`, and waits until they are there. Its owner is awake, and
    /// stays so.
    ///
    /// # Errors
    /// As [`Block::write`].
    pub fn read(&self, stream: &Stream, offset: u64, to: &mut PinnedBuffer, len: usize) -> Result<()> {
        self.within(offset, len)?;
        // SAFETY: as above; nobody else has the buffer.
        unsafe { stream.copy_to_host(to.part().start(len), self.address + offset)? };
        stream.synchronize()
    }

    fn within(&self, offset: u64, len: usize) -> Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::invalid(format!("{len} bytes at {offset} of a block of {}", self.len))),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        onnxruntime_free(self.address as *mut c_void);
    }
}
