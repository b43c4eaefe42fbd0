//! The CUDA driver: whether there is one, and which devices it has.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use super::context::{Context, uuid_text};
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// Every function that is called below this folder. cudarc panics at a call that the library lacks, so they are looked
/// up beforehand.
const FUNCTIONS: [&str; 41] = [
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuIpcCloseMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemCreate",
    "cuMemFreeHost",
    "cuMemGetAddressRange_v2",
    "cuMemGetAllocationGranularity",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// The oldest driver that is used, as it counts itself: CUDA 12.0, which the oldest builds of ONNX Runtime and libtorch that
/// we load need.
const OLDEST: i32 = 12_000;

/// The driver, begun.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    version: i32,
    devices: u32,
}

impl Driver {
    /// Loads the driver's library, begins it, and counts the devices. The library stays loaded.
    ///
    /// # Errors
    /// Why there is none that can be used, in words that fit after "since": that a machine has none is no error of ours.
    pub fn open() -> Result<Self, String> {
        // SAFETY: loading NVIDIA's library runs its initialisers, which is what it is for; nothing is called.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "the CUDA driver's library libcuda.so.1 cannot be loaded: is the NVIDIA driver installed?".into()
            );
        }
        if let Some(name) = missing() {
            return Err(format!(
                "the CUDA driver lacks {name}: it is too old; update it to one for CUDA {} or newer",
                shown(OLDEST)
            ));
        }
        let reason = |call: &str, code: CUresult| match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            CUresult::CUDA_ERROR_NO_DEVICE => Err("the CUDA driver sees no GPU".to_owned()),
            CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
                Err("the CUDA driver and its library are of different versions: reboot after an update".to_owned())
            }
            code => Err(format!("the CUDA driver cannot be used: {}", Fault::new(call, code))),
        };
        let (mut version, mut devices) = (0, 0);
        // SAFETY: the functions are there; the places that they write to live through the calls.
        unsafe {
            reason("cuDriverGetVersion", sys::cuDriverGetVersion(&raw mut version))?;
            if version < OLDEST {
                return Err(format!(
                    "the CUDA driver is too old: it is for CUDA {}; update it to one for {} or newer",
                    shown(version),
                    shown(OLDEST)
                ));
            }
            reason("cuInit", sys::cuInit(0))?;
            reason("cuDeviceGetCount", sys::cuDeviceGetCount(&raw mut devices))?;
        }
        match u32::try_from(devices) {
            Ok(devices) if devices > 0 => Ok(Self { version, devices }),
            _ => Err("the CUDA driver sees no GPU".to_owned()),
        }
    }

    /// The newest CUDA that the driver is for, such as `13.0`.
    #[must_use]
    pub fn version(&self) -> String {
        shown(self.version)
    }

    /// How many devices it lets this process see: `CUDA_VISIBLE_DEVICES` may hide some and change their order, so that
    /// they are matched with those of NVML by [`Context::uuid`].
    #[must_use]
    pub const fn devices(&self) -> u32 {
        self.devices
    }

    /// Opens a device, by the driver's index, which is what it is called then.
    ///
    /// # Errors
    /// `NotFound` where there is no such device; else as the driver says.
    pub fn context(&self, index: u32) -> Result<Arc<Context>> {
        self.context_as(index, DeviceId::Gpu(index))
    }

    /// Opens a device, by the driver's index, that is called `known_as` in errors and logs.
    ///
    /// # Errors
    /// As [`Driver::context`].
    pub fn context_as(&self, index: u32, known_as: DeviceId) -> Result<Arc<Context>> {
        if index >= self.devices {
            return Err(Error::not_found(format!(
                "there is no CUDA device {index}: the driver shows {} of them",
                self.devices
            )));
        }
        Context::open(index, known_as)
    }

    /// The identifier of a device as NVML writes it, without opening the device.
    ///
    /// # Errors
    /// As the driver says.
    pub fn uuid(&self, index: u32) -> Result<String> {
        let failed = |call: &str, code: CUresult| match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(Error::internal(format!("CUDA device {index} does not tell its identifier"))
                .with_source(Fault::new(call, code))),
        };
        let ordinal = i32::try_from(index).map_err(|_large| Error::not_found(format!("no CUDA device {index}")))?;
        let (mut device, mut uuid) = (0, sys::CUuuid { bytes: [0; 16] });
        // SAFETY: the driver has begun; the places that it writes to live through the calls.
        unsafe {
            failed("cuDeviceGet", sys::cuDeviceGet(&raw mut device, ordinal))?;
            failed("cuDeviceGetUuid", sys::cuDeviceGetUuid_v2(&raw mut uuid, device))?;
        }
        Ok(uuid_text(&uuid.bytes.map(|byte| byte as u8)))
    }
}

fn missing() -> Option<&'static str> {
    // SAFETY: the library is there, and stays loaded for the whole process.
    let library = unsafe { sys::culib() };
    let is_missing = |name: &&&str| {
        // SAFETY: the address is looked up and not called.
        unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err()
    };
    FUNCTIONS.iter().find(is_missing).copied()
}

/// `13000` is 13.0.
fn shown(version: i32) -> String {
    format!("{}.{}", version / 1_000, version % 1_000 / 10)
}

/// A call that the driver answered with a code.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {text} ({name})")]
pub struct Fault {
    call: String,
    name: String,
    text: String,
    code: CUresult,
}

impl Fault {
    pub(super) fn new(call: &str, code: CUresult) -> Self {
        let error = cudarc::driver::DriverError(code);
        let owned = |text: std::result::Result<&std::ffi::CStr, _>| {
            text.map_or_else(
                |_unknown| format!("{code:?}"),
                |text: &std::ffi::CStr| text.to_string_lossy().into_owned(),
            )
        };
        Self { call: call.to_owned(), name: owned(error.error_name()), text: owned(error.error_string()), code }
    }

    /// Whether memory is what was lacking.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }

    /// Whether nothing can be done on the device any more, by this process or at all: it fell off the bus, its memory went
    /// bad, or a kernel broke the context, which all models of the device share.
    #[must_use]
    pub fn is_device_lost(&self) -> bool {
        matches!(
            self.code,
            CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
                | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
                | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
                | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
                | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
                | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
                | CUresult::CUDA_ERROR_ASSERT
                | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
                | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
                | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
                | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
                | CUresult::CUDA_ERROR_INVALID_PC
                | CUresult::CUDA_ERROR_LAUNCH_FAILED
                | CUresult::CUDA_ERROR_UNKNOWN
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!((shown(13_000), shown(12_080)), ("13.0".to_owned(), "12.8".to_owned()));
    }
}
