//! Which devices are used: a decision over `--device` and what was found, with its reasons.

use crate::config::DeviceChoice;
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// The devices in use, the default first, and one sentence on why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// At least one device.
    pub devices: Vec<DeviceId>,
    /// Why these, for the log.
    pub reason: String,
}

/// Chooses devices. `gpus` holds the usable GPUs, or why none can be used.
///
/// # Errors
/// `InvalidArgument` if a GPU is asked for by index that cannot be used.
pub fn select(choices: &[DeviceChoice], gpus: &Result<Vec<u32>, String>) -> Result<Selection> {
    let mut devices = Vec::new();
    let mut reasons = Vec::new();
    for choice in choices {
        match (choice, gpus) {
            (DeviceChoice::Cpu, _) => {
                devices.push(DeviceId::Cpu);
                reasons.push("cpu: asked for".to_owned());
            }
            (DeviceChoice::Auto, Ok(found)) if !found.is_empty() => {
                devices.extend(found.iter().copied().map(DeviceId::Gpu));
                devices.push(DeviceId::Cpu);
                reasons.push(format!("auto: {} GPU(s) can be used, the cpu for models that ask for it", found.len()));
            }
            (DeviceChoice::Auto, Ok(_)) => {
                devices.push(DeviceId::Cpu);
                reasons.push("auto: the cpu, since no GPU was found".to_owned());
            }
            (DeviceChoice::Auto, Err(why)) => {
                devices.push(DeviceId::Cpu);
                reasons.push(format!("auto: the cpu, since {why}"));
            }
            (DeviceChoice::Gpu(index), Ok(found)) if found.contains(index) => {
                devices.push(DeviceId::Gpu(*index));
                reasons.push(format!("gpu:{index}: asked for"));
            }
            (DeviceChoice::Gpu(index), Ok(found)) => {
                return Err(Error::invalid(format!(
                    "--device gpu:{index} cannot be used: the GPUs found are {found:?}; say auto or cpu"
                )));
            }
            (DeviceChoice::Gpu(index), Err(why)) => {
                return Err(Error::invalid(format!("--device gpu:{index} cannot be used: {why}; say auto or cpu")));
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    devices.retain(|device| seen.insert(*device));
    if devices.is_empty() {
        return Err(Error::invalid("--device names no device: say auto, cpu or gpu:N"));
    }
    Ok(Selection { devices, reason: reasons.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_gpus_first_and_falls_back_aloud() {
        let found = select(&[DeviceChoice::Auto], &Ok(vec![0, 1])).unwrap();
        assert_eq!(found.devices, [DeviceId::Gpu(0), DeviceId::Gpu(1), DeviceId::Cpu]);
        let none = select(&[DeviceChoice::Auto], &Err("there is no NVIDIA driver".to_owned())).unwrap();
        assert_eq!(none.devices, [DeviceId::Cpu]);
        assert!(none.reason.contains("no NVIDIA driver"), "{}", none.reason);
    }

    #[test]
    fn a_gpu_asked_for_by_name_is_never_replaced_silently() {
        let why = Err("there is no NVIDIA driver".to_owned());
        let text = select(&[DeviceChoice::Gpu(0)], &why).unwrap_err().to_string();
        assert_eq!(text, "--device gpu:0 cannot be used: there is no NVIDIA driver; say auto or cpu");
        assert!(select(&[DeviceChoice::Gpu(4)], &Ok(vec![0])).is_err());
    }

    #[test]
    fn a_device_named_twice_is_used_once() {
        let both = select(&[DeviceChoice::Cpu, DeviceChoice::Auto], &Ok(vec![0])).unwrap();
        assert_eq!(both.devices, [DeviceId::Cpu, DeviceId::Gpu(0)]);
    }
}
