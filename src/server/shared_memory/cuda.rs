//! Shared memory of GPUs, by handles of CUDA's interprocess communication.

use compact_str::CompactString;

use crate::device::cuda::driver::Driver;
use crate::device::cuda::shared::SharedRange;
use crate::error::{Error, Result};

pub use crate::device::cuda::shared::HANDLE_BYTES;

/// A registered CUDA region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaRegion {
    /// Its name.
    pub name: CompactString,
    /// The GPU that holds it, by the driver's number.
    pub device_id: i64,
    /// Its bytes.
    pub byte_size: u64,
}

/// One region: memory of another process on a GPU, open.
#[derive(Debug)]
pub(super) struct CudaMemory {
    device_id: i64,
    range: SharedRange,
}

impl CudaMemory {
    /// Opens the memory behind a handle. Blocking: the first one on a GPU makes a context there.
    pub(super) fn open(name: &str, handle: &[u8; HANDLE_BYTES], device_id: i64, byte_size: u64) -> Result<Self> {
        let failed = |text: String| format!("failed to register CUDA shared memory region '{name}': {text}");
        let driver = Driver::open()
            .map_err(|reason| Error::unsupported(failed(format!("{reason} (without a GPU: system shared memory)"))))?;
        let index = u32::try_from(device_id).ok().filter(|index| *index < driver.devices()).ok_or_else(|| {
            let last = driver.devices().saturating_sub(1);
            Error::invalid(failed(format!("device_id must be from 0 to {last}, got {device_id}")))
        })?;
        let range = driver
            .context(index)
            .and_then(|context| SharedRange::open(&context, handle, byte_size))
            .map_err(|error| Error::new(error.kind(), failed(error.to_string())).with_source(error))?;
        Ok(Self { device_id, range })
    }

    pub(super) const fn range(&self) -> &SharedRange {
        &self.range
    }

    pub(super) fn status(&self, name: &str) -> CudaRegion {
        CudaRegion { name: name.into(), device_id: self.device_id, byte_size: self.range.byte_size() }
    }
}
