//! Memory of a GPU that is the double's, as a runtime would hold it.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::slice;

use roundhouse_abi::plugin::{DeviceHost, Failure};

use crate::HOST;

/// A block of a device's memory, freed when dropped.
struct Block {
    host: DeviceHost,
    at: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the server's functions may be called from any thread, and the block is nobody else's.
unsafe impl Send for Block {}
// SAFETY: it is only read through a shared reference.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the server gave it, and it is freed once.
        unsafe { (self.host.free)(self.at.as_ptr()) };
    }
}

impl Block {
    /// Takes memory and fills it.
    fn take(host: DeviceHost, id: u32, bytes: usize, stream: *mut c_void, with: u8) -> Result<Self, Failure> {
        // SAFETY: a function of the server's, with a stream of its own or none.
        let at = unsafe { (host.allocate)(bytes, id, stream, 0) };
        let at = NonNull::new(at).ok_or_else(|| Failure::out_of_device_memory("the server gives no memory"))?;
        // SAFETY: so many bytes, which the double maps to the host's memory and which are nobody else's.
        unsafe { at.cast::<u8>().write_bytes(with, bytes) };
        Ok(Self { host, at, bytes })
    }

    fn check(&self, with: u8) -> Result<(), Failure> {
        // SAFETY: as in `take`; they were written there.
        let bytes = unsafe { slice::from_raw_parts(self.at.cast::<u8>().as_ptr(), self.bytes) };
        let is_whole = bytes.iter().all(|byte| *byte == with);
        is_whole.then_some(()).ok_or_else(|| Failure::failed("memory of the device is not what was written there"))
    }
}

/// What a model holds.
pub struct Held {
    weights: Block,
    id: u32,
}

/// A stream of the server's.
pub struct Stream(*mut c_void);

// SAFETY: a name that the server gave, which is not followed here.
unsafe impl Send for Stream {}

const WEIGHTS: u8 = 0x5a;
const SCRATCH: u8 = 0xc3;

impl Held {
    pub fn take(id: u32, bytes: usize) -> Result<Self, Failure> {
        let host = HOST.get().and_then(|host| host.device());
        let host = host.ok_or_else(|| Failure::not_ready("the server hands out no memory"))?;
        Ok(Self { weights: Block::take(host, id, bytes, std::ptr::null_mut(), WEIGHTS)?, id })
    }

    pub fn bytes(&self) -> usize {
        self.weights.bytes
    }

    pub fn stream(&self) -> Result<Stream, Failure> {
        // SAFETY: a function of the server's.
        let stream = unsafe { (self.weights.host.stream)(self.id) };
        if stream.is_null() { Err(Failure::failed("the server gives no stream")) } else { Ok(Stream(stream)) }
    }

    /// What a run does: scratch of its own, and a look at everything.
    pub fn run(&self, stream: &Stream) -> Result<(), Failure> {
        let scratch = Block::take(self.weights.host, self.id, self.weights.bytes, stream.0, SCRATCH)?;
        self.weights.check(WEIGHTS)?;
        scratch.check(SCRATCH)
    }
}
