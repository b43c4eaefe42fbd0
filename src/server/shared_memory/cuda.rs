//! Shared memory of GPUs, by handles of CUDA's interprocess communication.

use compact_str::CompactString;

use crate::error::{Error, Result};

/// The bytes of a `cudaIpcMemHandle_t`.
pub const HANDLE_BYTES: usize = 64;

/// A registered CUDA region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaRegion {
    /// Its name.
    pub name: CompactString,
    /// The GPU that holds it.
    pub device_id: i64,
    /// Its bytes.
    pub byte_size: u64,
}

/// Who can open the handles of other processes.
pub trait CudaMemory: Send + Sync {
    /// Opens the memory behind a handle and keeps it under a name.
    ///
    /// # Errors
    /// `InvalidArgument` for what the driver does not take, `Unsupported` without a driver.
    fn register(&self, name: &str, handle: &[u8; HANDLE_BYTES], device_id: i64, byte_size: u64) -> Result<()>;

    /// What is registered, by name.
    fn status(&self) -> Vec<CudaRegion>;

    /// Forgets the region of this name, or all.
    fn unregister(&self, name: Option<&str>);
}

/// No CUDA driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCuda;

impl CudaMemory for NoCuda {
    fn register(&self, name: &str, _handle: &[u8; HANDLE_BYTES], device_id: i64, _byte_size: u64) -> Result<()> {
        Err(Error::unsupported(format!(
            "failed to register CUDA shared memory region '{name}' of device {device_id}: this version has no CUDA driver; \
             use system shared memory"
        )))
    }

    fn status(&self) -> Vec<CudaRegion> {
        Vec::new()
    }

    fn unregister(&self, _name: Option<&str>) {}
}
