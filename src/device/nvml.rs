//! GPUs as the driver's management library (NVML) sees them; loaded at run time, and no fault where it is not there.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

use super::monitor::{DeviceMemory, DeviceMonitor, GpuIdentity};
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// The driver installs this name; the one without a number comes only with development packages.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// NVML, initialised. Shut down when dropped.
pub struct Nvml {
    library: nvml_wrapper::Nvml,
    count: u32,
}

impl fmt::Debug for Nvml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvml").field("gpus", &self.count).finish_non_exhaustive()
    }
}

impl Nvml {
    /// Loads the library, by its name where none is given, and counts the GPUs.
    ///
    /// # Errors
    /// Why no GPU can be seen, in words that fit after "since": that a machine has none is no error of ours.
    pub fn open(library: Option<&Path>) -> Result<Self, String> {
        let path = library.map_or(OsStr::new(LIBRARY), Path::as_os_str);
        let name = path.display();
        let reason = |error: NvmlError| match error {
            // Its text repeats the path and calls dlopen by name.
            NvmlError::LibloadingError(_) => {
                format!("the NVIDIA management library {name} cannot be loaded: is the driver installed?")
            }
            NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".to_owned(),
            NvmlError::LibRmVersionMismatch => {
                format!("the NVIDIA driver and its library {name} are of different versions: reboot after an update")
            }
            NvmlError::FailedToLoadSymbol(_) => format!("{name} lacks a function: the driver is too old, or no NVML"),
            error => format!("the NVIDIA management library failed: {error}"),
        };
        let library = nvml_wrapper::Nvml::builder().lib_path(path).init().map_err(reason)?;
        let count = library.device_count().map_err(reason)?;
        Ok(Self { library, count })
    }

    /// The GPUs by index; one that does not tell its identifier is called by its index.
    fn identities(&self) -> Vec<GpuIdentity> {
        let uuid = |index| self.library.device_by_index(index).and_then(|gpu| gpu.uuid());
        let gpus = (0..self.count)
            .map(|index| GpuIdentity { index, uuid: uuid(index).unwrap_or_else(|_error| format!("gpu:{index}")) });
        gpus.collect()
    }

    /// What our process holds on a GPU; zero where the driver does not say: it knows processes by their numbers outside
    /// of containers, and some cards do not count by process.
    fn ours(gpu: &nvml_wrapper::Device<'_>) -> u64 {
        let own = std::process::id();
        let processes = gpu.running_compute_processes().unwrap_or_default();
        let used = processes.iter().filter(|process| process.pid == own).map(|process| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        });
        used.fold(0, u64::saturating_add)
    }
}

impl DeviceMonitor for Nvml {
    fn gpus(&self) -> Vec<GpuIdentity> {
        self.identities()
    }

    fn memory(&self, device: DeviceId) -> Result<DeviceMemory> {
        let DeviceId::Gpu(index) = device else {
            return Err(Error::not_found(format!("device {device} is no GPU")));
        };
        if index >= self.count {
            return Err(Error::not_found(format!("there is no {device}: the driver counts {} GPUs", self.count)));
        }
        let failed =
            |error: NvmlError| Error::internal(format!("cannot read the memory of {device}")).with_source(error);
        let gpu = self.library.device_by_index(index).map_err(failed)?;
        let memory = gpu.memory_info().map_err(failed)?;
        // What the driver keeps for itself is no room for anybody.
        Ok(DeviceMemory {
            total: memory.total,
            used: memory.used.saturating_add(memory.reserved),
            ours: Self::ours(&gpu),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_says_so_in_words() {
        let reason = Nvml::open(Some(Path::new("/nowhere/libnvidia-ml.so.1"))).unwrap_err();
        assert_eq!(
            reason,
            "the NVIDIA management library /nowhere/libnvidia-ml.so.1 cannot be loaded: is the driver installed?"
        );
    }

    #[test]
    fn what_is_no_nvml_says_that_functions_are_missing() {
        // The C library is a library, and not this one.
        let reason = Nvml::open(Some(Path::new("libc.so.6"))).unwrap_err();
        assert_eq!(reason, "libc.so.6 lacks a function: the driver is too old, or no NVML");
    }
}
