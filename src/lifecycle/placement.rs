//! On which devices a model is loaded, and which of its instance groups run on each. Pure.
//!
//! After Triton's `instance_group`: a group of `KIND_GPU` is on each GPU that it names, on all that are in use where it
//! names none; one of `KIND_CPU` is on the CPU. A group that leaves it to the server (`KIND_AUTO`, `KIND_MODEL`, or no
//! group at all) is on one device of the default kind, where Triton has it on every GPU: a server of thousands of models
//! would fill each of its devices with copies that nobody asked for. More copies come where a queue pays for them
//! (`spread`).

use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::model_config::{InstanceGroup, InstanceKind};

/// A device as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub device: DeviceId,
    /// Bytes that models may take on it.
    pub limit: u64,
    /// Bytes that may be had without an eviction.
    pub free: u64,
    /// Models on it.
    pub models: usize,
    /// Bytes that the model is expected to need there.
    pub need: u64,
    /// Whether a copy of the model is there now.
    pub has_copy: bool,
}

impl Candidate {
    const fn is_gpu(&self) -> bool {
        matches!(self.device, DeviceId::Gpu(_))
    }
}

/// A device that a model is to be on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Which.
    pub device: DeviceId,
    /// The groups that run there, by their places in the configuration; the first also where none is written.
    pub groups: Vec<usize>,
}

/// Where the groups of a configuration are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// In the order of the devices, so that everybody books in one order.
    pub sites: Vec<Site>,
    /// The devices of each group; of the one that is not written, where none is.
    pub groups: Vec<Vec<DeviceId>>,
    /// Whether the server chose a device: then it may choose more.
    pub is_free: bool,
    /// What is otherwise than was asked for.
    pub warnings: Vec<String>,
}

impl Placement {
    /// Chooses among `devices`, the default first.
    ///
    /// # Errors
    /// `InvalidArgument` for a device that is not in use, naming those that are.
    pub fn of(groups: &[InstanceGroup], devices: &[Candidate]) -> Result<Self> {
        let mut placement = Self::default();
        let unwritten = InstanceGroup {
            name: String::new(),
            kind: InstanceKind::Auto,
            count: 1,
            gpus: Vec::new(),
            rate_limiter: crate::model_config::RateLimiter::default(),
        };
        let written = if groups.is_empty() { std::slice::from_ref(&unwritten) } else { groups };
        // All that the server places goes to one device.
        let mut chosen = None;
        for group in written {
            let found = match (group.kind, group.gpus.as_slice()) {
                (InstanceKind::Cpu, _) => vec![cpu(devices)?],
                (InstanceKind::Gpu, []) => match all_gpus(devices) {
                    none if none.is_empty() => {
                        let text = "instance_group asks for a GPU and none is in use: running on the cpu";
                        placement.warnings.push(text.to_owned());
                        vec![cpu(devices)?]
                    }
                    all => all,
                },
                (InstanceKind::Gpu, named) => named_gpus(named, devices)?,
                // As in Triton: these GPUs if all of them are there, else the CPU.
                (InstanceKind::Auto | InstanceKind::Model, named @ [_, ..]) => match named_gpus(named, devices) {
                    Ok(found) => found,
                    Err(why) => {
                        if !all_gpus(devices).is_empty() {
                            placement.warnings.push(format!("{why}: running on the cpu"));
                        }
                        vec![cpu(devices)?]
                    }
                },
                (InstanceKind::Auto | InstanceKind::Model, []) => {
                    placement.is_free = true;
                    let device = chosen.or_else(|| roomiest(devices));
                    chosen = device;
                    vec![device.ok_or_else(|| Error::internal("there is no device"))?]
                }
            };
            placement.groups.push(found);
        }
        // A copy more of what is only partly the server's to place would be of that part alone.
        placement.is_free &= placement.groups.len() == 1;
        for candidate in devices {
            let is_on = |(_, found): &(usize, &Vec<DeviceId>)| found.contains(&candidate.device);
            let groups: Vec<usize> = placement.groups.iter().enumerate().filter(is_on).map(|(at, _)| at).collect();
            if !groups.is_empty() {
                placement.sites.push(Site { device: candidate.device, groups });
            }
        }
        Ok(placement)
    }

    /// Whether it is on these devices, whatever runs there.
    #[must_use]
    pub fn is_on(&self, device: DeviceId) -> bool {
        self.sites.iter().any(|site| site.device == device)
    }
}

/// The device of the default kind with the most room: where the model is, if another copy fits beside it, else the one
/// with the most bytes that need no eviction, of equals the one with the fewest models, of those the first.
fn roomiest(devices: &[Candidate]) -> Option<DeviceId> {
    let is_default = |candidate: &&Candidate| devices.first().is_some_and(|first| first.is_gpu() == candidate.is_gpu());
    let of_kind = || devices.iter().filter(is_default);
    if let Some(here) = of_kind().find(|candidate| candidate.has_copy && candidate.free >= candidate.need) {
        return Some(here.device);
    }
    let any_fits = of_kind().any(|candidate| candidate.need <= candidate.limit);
    let able = of_kind().filter(|candidate| !any_fits || candidate.need <= candidate.limit);
    // The last of equals is found: the first device comes last.
    let found = able.rev().max_by_key(|candidate| (candidate.free, std::cmp::Reverse(candidate.models)));
    found.map(|candidate| candidate.device)
}

fn cpu(devices: &[Candidate]) -> Result<DeviceId> {
    let found = devices.iter().find(|candidate| !candidate.is_gpu());
    found.map(|candidate| candidate.device).ok_or_else(|| {
        Error::invalid(format!(
            "instance_group asks for the cpu, and --device allows {} alone: add cpu to --device",
            listed(devices)
        ))
    })
}

fn all_gpus(devices: &[Candidate]) -> Vec<DeviceId> {
    devices.iter().filter(|candidate| candidate.is_gpu()).map(|candidate| candidate.device).collect()
}

fn named_gpus(named: &[u32], devices: &[Candidate]) -> Result<Vec<DeviceId>> {
    let there = all_gpus(devices);
    let missing: Vec<String> = named
        .iter()
        .map(|gpu| DeviceId::Gpu(*gpu))
        .filter(|gpu| !there.contains(gpu))
        .map(|gpu| gpu.to_string())
        .collect();
    if missing.is_empty() {
        return Ok(named.iter().map(|gpu| DeviceId::Gpu(*gpu)).collect());
    }
    Err(Error::invalid(format!(
        "instance_group names {} in `gpus`, and the devices in use are {}: change `gpus` or --device",
        missing.join(", "),
        listed(devices)
    )))
}

fn listed(devices: &[Candidate]) -> String {
    devices.iter().map(|candidate| candidate.device.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model_config::{UnknownFields, parse};

    const CPU: DeviceId = DeviceId::Cpu;
    const GPU: [DeviceId; 3] = [DeviceId::Gpu(0), DeviceId::Gpu(1), DeviceId::Gpu(2)];

    fn groups(text: &str) -> Vec<InstanceGroup> {
        parse(&format!("backend: 'identity' {text}"), UnknownFields::Deny).unwrap().config.instance_groups
    }

    fn device(device: DeviceId, free: u64, models: usize) -> Candidate {
        Candidate { device, limit: 100, free, models, need: 10, has_copy: false }
    }

    fn three() -> Vec<Candidate> {
        vec![device(GPU[0], 50, 3), device(GPU[1], 80, 1), device(CPU, 100, 0)]
    }

    fn placed(text: &str, devices: &[Candidate]) -> Vec<(DeviceId, Vec<usize>)> {
        let placement = Placement::of(&groups(text), devices).unwrap();
        placement.sites.into_iter().map(|site| (site.device, site.groups)).collect()
    }

    #[test]
    fn a_model_that_says_nothing_is_on_the_one_device_with_the_most_room() {
        assert_eq!(placed("", &three()), [(GPU[1], vec![0])]);
        assert_eq!(placed("instance_group { count: 3 }", &three()), [(GPU[1], vec![0])]);
        assert_eq!(placed("instance_group { kind: KIND_MODEL }", &three()), [(GPU[1], vec![0])]);
        assert_eq!(placed("instance_group { } instance_group { count: 2 }", &three()), [(GPU[1], vec![0, 1])]);
        let equal = [device(GPU[0], 50, 3), device(GPU[1], 50, 1), device(GPU[2], 50, 1)];
        assert_eq!(placed("", &equal), [(GPU[1], vec![0])], "the fewest models, then the first");
        let cpu_first = [device(CPU, 1, 9), device(GPU[0], 50, 0)];
        assert_eq!(placed("", &cpu_first), [(CPU, vec![0])], "the default kind is the first device's");
    }

    #[test]
    fn a_reload_stays_where_there_is_room_for_both_copies_and_a_device_that_is_too_small_is_passed_over() {
        let mut devices = three();
        devices[0].has_copy = true;
        assert_eq!(placed("", &devices), [(GPU[0], vec![0])]);
        devices[0].free = 9;
        assert_eq!(placed("", &devices), [(GPU[1], vec![0])]);
        devices[1].limit = 5;
        assert_eq!(placed("", &devices), [(GPU[0], vec![0])]);
        devices[0].limit = 5;
        assert_eq!(placed("", &devices), [(GPU[1], vec![0])], "the refusal is the book's to give");
    }

    #[test]
    fn gpus_are_all_where_none_is_named_and_the_cpu_may_have_instances_beside() {
        assert_eq!(placed("instance_group { kind: KIND_GPU }", &three()), [(GPU[0], vec![0]), (GPU[1], vec![0])]);
        let mixed = "instance_group { kind: KIND_CPU count: 2 } instance_group { kind: KIND_GPU gpus: 1 }
            instance_group { kind: KIND_GPU gpus: [1, 0] }";
        assert_eq!(placed(mixed, &three()), [(GPU[0], vec![2]), (GPU[1], vec![1, 2]), (CPU, vec![0])]);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let error = |text: &str, devices: &[Candidate]| Placement::of(&groups(text), devices).unwrap_err().to_string();
        assert_eq!(
            error("instance_group { kind: KIND_GPU gpus: [1, 4, 7] }", &three()),
            "instance_group names gpu:4, gpu:7 in `gpus`, and the devices in use are gpu:0, gpu:1, cpu: change `gpus` or --device"
        );
        assert_eq!(
            error("instance_group { kind: KIND_CPU }", &three()[..2]),
            "instance_group asks for the cpu, and --device allows gpu:0, gpu:1 alone: add cpu to --device"
        );
        assert!(error("instance_group { kind: KIND_GPU gpus: 0 }", &three()[2..]).contains("in use are cpu"));
    }

    #[test]
    fn where_there_is_no_gpu_a_model_that_wants_any_runs_on_the_cpu_aloud() {
        let placement = Placement::of(&groups("instance_group { kind: KIND_GPU }"), &three()[2..]).unwrap();
        assert_eq!(placement.groups, [[CPU]]);
        assert_eq!(placement.warnings.len(), 1);
        let auto = Placement::of(&groups("instance_group { gpus: 0 }"), &three()[2..]).unwrap();
        assert_eq!((auto.groups, auto.warnings.len()), (vec![vec![CPU]], 0));
        let missing = Placement::of(&groups("instance_group { gpus: [0, 5] }"), &three()).unwrap();
        assert_eq!((missing.groups, missing.warnings.len()), (vec![vec![CPU]], 1));
        assert_eq!(placed("instance_group { gpus: [0] }", &three()), [(GPU[0], vec![0])]);
    }

    #[test]
    fn only_what_the_server_places_alone_may_have_more_copies() {
        let is_free = |text: &str| Placement::of(&groups(text), &three()).unwrap().is_free;
        assert!(is_free(""));
        assert!(is_free("instance_group { count: 2 }"));
        assert!(!is_free("instance_group { kind: KIND_GPU }"));
        assert!(!is_free("instance_group { } instance_group { kind: KIND_CPU }"));
    }

    proptest! {
        /// Each group is somewhere, sites follow the order of the devices without repetition, and both tell the same.
        #[test]
        fn sites_and_groups_tell_the_same(free in prop::collection::vec((0_u64..100, 0_usize..5), 4), kinds in prop::collection::vec(0_u8..4, 0..4)) {
            let texts: Vec<&str> = kinds.iter().map(|kind| match kind {
                0 => "instance_group { }",
                1 => "instance_group { kind: KIND_CPU count: 2 }",
                2 => "instance_group { kind: KIND_GPU }",
                _ => "instance_group { kind: KIND_GPU gpus: [2, 0] }",
            }).collect();
            let ids = [GPU[0], GPU[1], GPU[2], CPU];
            let devices: Vec<_> = ids.iter().zip(&free).map(|(id, (free, models))| device(*id, *free, *models)).collect();
            let placement = Placement::of(&groups(&texts.join(" ")), &devices).unwrap();
            prop_assert_eq!(placement.groups.len(), texts.len().max(1));
            let order: Vec<_> = placement.sites.iter().map(|site| ids.iter().position(|id| *id == site.device).unwrap()).collect();
            prop_assert!(order.is_sorted_by(|one, other| one < other));
            for (at, found) in placement.groups.iter().enumerate() {
                prop_assert!(!found.is_empty());
                for id in ids {
                    let listed = placement.sites.iter().any(|site| site.device == id && site.groups.contains(&at));
                    prop_assert_eq!(listed, found.contains(&id));
                }
            }
        }
    }
}
