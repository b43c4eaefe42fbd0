//! GPUs as the driver's management library (NVML) sees them; loaded at run time, and no fault where it is not there.
#![expect(unsafe_code, reason = "events are watched as long as the library is loaded")]

mod health;

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use nvml_wrapper::Device;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use parking_lot::Mutex;

use self::health::{Signs, is_of_the_gpu, judge};
use super::monitor::{DeviceMemory, DeviceMonitor, GpuIdentity, GpuProcess, GpuReading};
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// The driver installs this name; the one without a number comes only with development packages.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// NVML, initialised. Shut down when dropped.
pub struct Nvml {
    /// One a physical GPU. Before the library, which their sets of events are of.
    watches: Vec<Mutex<Watch>>,
    /// One a device of ours.
    places: Vec<Place>,
    library: Arc<nvml_wrapper::Nvml>,
}

/// Where a device of ours is found.
#[derive(Clone, Copy, Debug)]
struct Place {
    gpu: u32,
    /// The place on it, where it is cut into MIG devices.
    mig: Option<u32>,
}

/// The critical errors of a GPU since we began.
struct Watch {
    /// `None` where the driver tells none.
    events: Option<EventSet<'static>>,
    xid: Option<u64>,
}

impl Watch {
    /// Takes what has come in; waits for nothing.
    fn look(&mut self) -> Option<u64> {
        // As many as a healthy driver never has waiting.
        for _ in 0..64 {
            let Some(Ok(event)) = self.events.as_ref().map(|events| events.wait(0)) else { break };
            if let Some(XidError::Value(xid)) = event.event_data
                && is_of_the_gpu(xid)
            {
                self.xid.get_or_insert(xid);
            }
        }
        self.xid
    }
}

impl fmt::Debug for Nvml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvml").field("gpus", &self.places.len()).finish_non_exhaustive()
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
        let library = Arc::new(library);
        let places = (0..count).flat_map(|gpu| places_of(&library, gpu)).collect();
        let watches = (0..count).map(|gpu| Mutex::new(watch(&library, gpu))).collect();
        Ok(Self { watches, places, library })
    }

    /// The GPUs by index; one that does not tell its identifier is called by its index.
    fn identities(&self) -> Vec<GpuIdentity> {
        let uuid = |place: &Place| self.device(*place).and_then(|gpu| gpu.uuid());
        let named = |(index, place): (u32, &Place)| GpuIdentity {
            index,
            uuid: uuid(place).unwrap_or_else(|_error| format!("gpu:{index}")),
        };
        (0..).zip(&self.places).map(named).collect()
    }

    fn device(&self, place: Place) -> Result<Device<'_>, NvmlError> {
        let gpu = self.library.device_by_index(place.gpu)?;
        place.mig.map_or_else(|| self.library.device_by_index(place.gpu), |mig| gpu.mig_device_by_index(mig))
    }

    fn place(&self, device: DeviceId) -> Result<Place> {
        let DeviceId::Gpu(index) = device else {
            return Err(Error::not_found(format!("device {device} is no GPU")));
        };
        let place = usize::try_from(index).ok().and_then(|index| self.places.get(index)).copied();
        place.ok_or_else(|| {
            Error::not_found(format!("there is no {device}: the driver counts {} GPUs", self.places.len()))
        })
    }

    /// What speaks against a physical GPU.
    fn signs(&self, gpu: u32, device: &Result<Device<'_>, NvmlError>) -> Signs {
        let is_lost = |error: &NvmlError| matches!(error, NvmlError::GpuLost);
        let Ok(device) = device else {
            return Signs { lost: device.as_ref().is_err_and(is_lost), ..Signs::default() };
        };
        let uncorrected = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
        Signs {
            // A handle may outlive what it stands for.
            lost: device.memory_info().is_err_and(|error| is_lost(&error)),
            xid: self.watches.get(gpu as usize).and_then(|watch| watch.lock().look()),
            uncorrected: uncorrected.unwrap_or(0),
            retiring: device.are_pages_pending_retired().unwrap_or(false),
        }
    }

    /// What our process holds on a GPU; zero where the driver does not say: it knows processes by their numbers outside
    /// of containers, and some cards do not count by process.
    fn ours(gpu: &Device<'_>) -> u64 {
        let own = std::process::id();
        let used = processes(gpu).into_iter().filter(|process| process.pid == own).filter_map(|process| process.bytes);
        used.fold(0, u64::saturating_add)
    }
}

/// The devices that a GPU is: itself, or those that it is cut into.
fn places_of(library: &nvml_wrapper::Nvml, gpu: u32) -> Vec<Place> {
    let whole = Place { gpu, mig: None };
    let Ok(device) = library.device_by_index(gpu) else { return vec![whole] };
    if device.mig_mode().map_or(0, |mode| mode.current) == 0 {
        return vec![whole];
    }
    // Places may be empty. A GPU that is to be cut and is not offers nothing to compute on.
    let is_there = |mig: &u32| device.mig_device_by_index(*mig).is_ok();
    let cut = (0..device.mig_device_count().unwrap_or(0)).filter(is_there);
    cut.map(|mig| Place { gpu, mig: Some(mig) }).collect()
}

fn watch(library: &Arc<nvml_wrapper::Nvml>, gpu: u32) -> Watch {
    // SAFETY: the reference is used by the set of events alone, which is dropped before its monitor's hold on the library
    // is (`Nvml::watches` stands before `Nvml::library`); what an `Arc` holds does not move.
    let library: &'static nvml_wrapper::Nvml = unsafe { &*Arc::as_ptr(library) };
    let events = library.device_by_index(gpu).ok().and_then(|device| {
        let set = library.create_event_set().ok()?;
        device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()
    });
    Watch { events, xid: None }
}

fn processes(gpu: &Device<'_>) -> Vec<GpuProcess> {
    let processes = gpu.running_compute_processes().unwrap_or_default();
    let seen = processes.into_iter().map(|process| GpuProcess {
        pid: process.pid,
        bytes: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
    });
    seen.collect()
}

impl DeviceMonitor for Nvml {
    fn gpus(&self) -> Vec<GpuIdentity> {
        self.identities()
    }

    fn gpu(&self, index: u32) -> Result<GpuReading> {
        let place = self.place(DeviceId::Gpu(index))?;
        // What a MIG device does not say of itself, the GPU says that it is a part of.
        let whole = self.library.device_by_index(place.gpu);
        let health = judge(&self.signs(place.gpu, &whole));
        let (device, whole) = (self.device(place).ok(), whole.ok());
        let rates = device.as_ref().and_then(|device| device.utilization_rates().ok());
        let watts = |milliwatts: Result<u32, NvmlError>| milliwatts.ok().map(|milliwatts| f64::from(milliwatts) / 1e3);
        Ok(GpuReading {
            utilization: rates.as_ref().map(|rates| f64::from(rates.gpu) / 100.0),
            memory_utilization: rates.as_ref().map(|rates| f64::from(rates.memory) / 100.0),
            power: whole.as_ref().and_then(|gpu| watts(gpu.power_usage())),
            power_limit: whole.as_ref().and_then(|gpu| watts(gpu.enforced_power_limit())),
            energy: whole
                .as_ref()
                .and_then(|gpu| gpu.total_energy_consumption().ok())
                .map(|millijoules| millijoules / 1_000),
            temperature: whole.as_ref().and_then(|gpu| gpu.temperature(TemperatureSensor::Gpu).ok()),
            processes: device.as_ref().map(processes).unwrap_or_default(),
            health,
        })
    }

    fn memory(&self, device: DeviceId) -> Result<DeviceMemory> {
        let place = self.place(device)?;
        let failed =
            |error: NvmlError| Error::internal(format!("cannot read the memory of {device}")).with_source(error);
        let gpu = self.device(place).map_err(failed)?;
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
