//! A device: its primary context, which the CUDA runtime of ONNX Runtime and libtorch uses too.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::ffi::{CStr, c_char};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUresult, CUuuid};

use super::driver::Fault;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::DeviceId;

/// A device, open. The primary context is held until the last handle to anything on it is dropped.
pub struct Context {
    device: CUdevice,
    ordinal: u32,
    known_as: DeviceId,
    raw: CUcontext,
    name: String,
    uuid: String,
    granularity: u64,
    lost: AtomicBool,
    failed_drops: AtomicU64,
}

// SAFETY: the pointer names a context, which any number of threads may use at once, as the driver's interface says.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("ordinal", &self.ordinal)
            .field("known_as", &self.known_as)
            .field("uuid", &self.uuid)
            .finish_non_exhaustive()
    }
}

impl Context {
    pub(super) fn open(index: u32, known_as: DeviceId) -> Result<Arc<Self>> {
        let failed = |call: &'static str| move |code: CUresult| translate(known_as, &Fault::new(call, code));
        let ask = |call: &'static str, code: CUresult| match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(failed(call)(code)),
        };
        let ordinal =
            i32::try_from(index).map_err(|_large| Error::not_found(format!("there is no CUDA device {index}")))?;
        let (mut device, mut raw): (CUdevice, CUcontext) = (0, std::ptr::null_mut());
        let (mut uuid, mut name) = (CUuuid { bytes: [0; 16] }, [0 as c_char; 256]);
        let mut granularity = 0;
        let properties = super::virtual_memory::properties(ordinal);
        let minimum = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let mut can_map = 0;
        let mapping = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
        // SAFETY: the driver has begun; every place that is written to lives through its call and is as large as is said.
        unsafe {
            ask("cuDeviceGet", sys::cuDeviceGet(&raw mut device, ordinal))?;
            ask("cuDeviceGetUuid", sys::cuDeviceGetUuid_v2(&raw mut uuid, device))?;
            ask("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), 255, device))?;
            ask("cuDeviceGetAttribute", sys::cuDeviceGetAttribute(&raw mut can_map, mapping, device))?;
            if can_map == 0 {
                return Err(Error::unsupported(format!(
                    "{known_as} cannot be used: its driver offers no virtual memory to this process (a vGPU or WSL?)"
                )));
            }
            let rounding = sys::cuMemGetAllocationGranularity(&raw mut granularity, &raw const properties, minimum);
            ask("cuMemGetAllocationGranularity", rounding)?;
            ask("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&raw mut raw, device))?;
        }
        // SAFETY: the last byte was never written, so the text ends.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Arc::new(Self {
            device,
            ordinal: index,
            known_as,
            raw,
            name,
            uuid: uuid_text(&uuid.bytes.map(|byte| byte as u8)),
            granularity: granularity as u64,
            lost: AtomicBool::new(false),
            failed_drops: AtomicU64::new(0),
        }))
    }

    /// Makes this the calling thread's context, as every call for the device needs.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is held by us.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// The driver's index of the device, for one that is in use by this thread.
    pub(super) fn current() -> Option<u32> {
        let mut device = 0;
        // SAFETY: the place lives through the call. A context exists, so the driver has begun.
        let code = unsafe { sys::cuCtxGetDevice(&raw mut device) };
        (code == CUresult::CUDA_SUCCESS).then(|| u32::try_from(device).ok()).flatten()
    }

    /// The driver's answer as ours. A device that is lost is remembered to be.
    pub(super) fn check(&self, call: &str, code: CUresult) -> Result<()> {
        if code == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let fault = Fault::new(call, code);
        if fault.is_device_lost() && !self.lost.swap(true, Ordering::AcqRel) {
            tracing::error!(device = %self.id(), uuid = self.uuid, %fault, "the device is lost");
        }
        Err(translate(self.id(), &fault))
    }

    /// The driver's answer in a drop, where nobody can be told: what could not be given back is counted and logged.
    pub(super) fn dropped(&self, call: &str, code: CUresult) {
        if self.check(call, code).is_err() {
            self.leaked(call);
        }
    }

    /// Something stays with the driver until the process ends.
    pub(super) fn leaked(&self, call: &str) {
        self.failed_drops.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(device = %self.id(), call, "something of the device cannot be given back");
    }

    /// The device in our words: NVML's number, where it was matched with that.
    #[must_use]
    pub const fn id(&self) -> DeviceId {
        self.known_as
    }

    /// The device in the driver's words, which are those of the CUDA runtime too (`device_id`, `cudaSetDevice`): its place
    /// among those that this process may see.
    #[must_use]
    pub const fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Its name, such as `NVIDIA A10G`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `GPU-` and the identifier, as NVML and `nvidia-smi` write it. (A MIG device has another prefix there.)
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// What physical memory and mappings are multiples of, in bytes.
    #[must_use]
    pub const fn granularity(&self) -> u64 {
        self.granularity
    }

    pub(super) const fn device(&self) -> CUdevice {
        self.device
    }

    /// Whether the device was lost: every call for it fails from then on, until the process ends.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// How often something could not be given back to the driver.
    #[must_use]
    pub fn failed_drops(&self) -> u64 {
        self.failed_drops.load(Ordering::Relaxed)
    }

    /// Free and total memory of the device, in bytes, whoever uses it.
    ///
    /// # Errors
    /// As the driver says.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places live through the call.
        self.check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Waits until all work on the device that this process asked for is done. Blocking.
    ///
    /// # Errors
    /// As the driver says; what went wrong in that work comes out here.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: takes nothing.
        self.check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: held once, given back once; every handle on the device holds this one.
        let code = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        self.dropped("cuDevicePrimaryCtxRelease", code);
    }
}

fn translate(device: DeviceId, fault: &Fault) -> Error {
    let error = if fault.is_out_of_memory() {
        Error::new(ErrorKind::OutOfDeviceMemory, format!("{device} has no such memory left"))
    } else if fault.is_device_lost() {
        let mend = "look at nvidia-smi and the kernel's log, then restart the server";
        Error::not_ready(format!("{device} is lost to this process: {mend}"))
    } else {
        Error::internal(format!("the CUDA driver refused work for {device}"))
    };
    error.with_source(fault.clone())
}

pub(super) fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (index, byte) in bytes.iter().enumerate() {
        let dash = if matches!(index, 0 | 4 | 6 | 8 | 10) { "-" } else { "" };
        text.push_str(&format!("{dash}{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_written_as_nvml_writes_them() {
        let bytes = std::array::from_fn(|index| index as u8 * 0x11);
        assert_eq!(uuid_text(&bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
