//! The host as a device: cgroup v2 where it limits us, else `/proc`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::monitor::{DeviceMemory, DeviceMonitor, Processors};
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// What `/proc/stat` counts in, in milliseconds: USER_HZ is 100 on every machine that we run on.
const STAT_TICK: u64 = 10;

/// Reads the host's memory and its processors. Root folders are parameters so that tests bring their own.
#[derive(Clone, Debug)]
pub struct Host {
    proc: PathBuf,
    cgroup: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { proc: "/proc".into(), cgroup: "/sys/fs/cgroup".into() }
    }
}

impl Host {
    /// A host read from other folders than `/proc` and `/sys/fs/cgroup`.
    #[must_use]
    pub fn at(proc: impl Into<PathBuf>, cgroup: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), cgroup: cgroup.into() }
    }

    /// Our cgroup's `memory.max` and `memory.current` (cgroup v2), where there is a limit.
    fn cgroup_memory(&self) -> Option<(u64, u64)> {
        let own = std::fs::read_to_string(self.proc.join("self/cgroup")).ok()?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/');
        let number = |folder: &Path, file: &str| -> Option<u64> {
            std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
        };
        // The tightest limit on the way from our group to the root holds; inside a container the root is our own.
        let mut folder = self.cgroup.join(path);
        let mut tightest = None;
        loop {
            if let (Some(max), Some(current)) = (number(&folder, "memory.max"), number(&folder, "memory.current"))
                && tightest.is_none_or(|(other, _)| max < other)
            {
                tightest = Some((max, current));
            }
            if folder == self.cgroup || !folder.pop() {
                return tightest;
            }
        }
    }

    /// Processor time by the root of the cgroups that we see (v2): the container's own in a container, else the machine's.
    fn cgroup_worked(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(self.cgroup.join("cpu.stat")).ok()?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        used.trim().parse().ok().map(Duration::from_micros)
    }

    /// The machine's processor time. Waiting for disks is none, nor is what a hypervisor gave to others.
    fn machine_worked(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(self.proc.join("stat")).ok()?;
        let all = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = all.split_whitespace().map_while(|count| count.parse().ok()).collect();
        let [user, nice, system, _idle, _waiting, interrupts, soft_interrupts, ..] = ticks[..] else { return None };
        let worked = [user, nice, system, interrupts, soft_interrupts].into_iter().fold(0, u64::saturating_add);
        Some(Duration::from_millis(worked.saturating_mul(STAT_TICK)))
    }

    fn meminfo(&self) -> Result<(u64, u64)> {
        let path = self.proc.join("meminfo");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::internal(format!("cannot read {}", path.display())).with_source(error))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok())
                .map(|kib| kib * 1024)
                .ok_or_else(|| Error::internal(format!("{} has no {name}", path.display())))
        };
        Ok((field("MemTotal")?, field("MemAvailable")?))
    }

    fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(self.proc.join("self/statm")).unwrap_or_default();
        statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).map_or(0, |pages| pages * 4096)
    }
}

impl DeviceMonitor for Host {
    fn memory(&self, device: DeviceId) -> Result<DeviceMemory> {
        if device != DeviceId::Cpu {
            return Err(Error::not_found(format!("device {device} is not the host")));
        }
        let (total, available) = self.meminfo()?;
        let ours = self.resident();
        Ok(match self.cgroup_memory() {
            Some((max, current)) if max < total => DeviceMemory { total: max, used: current, ours },
            _ => DeviceMemory { total, used: total.saturating_sub(available), ours },
        })
    }

    fn processors(&self) -> Option<Processors> {
        let worked = self.cgroup_worked().or_else(|| self.machine_worked())?;
        let cores = std::thread::available_parallelism().ok()?.get();
        Some(Processors { worked, cores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(group: &str, limits: &[(&str, &str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path().join("proc");
        std::fs::create_dir_all(proc.join("self")).unwrap();
        std::fs::write(proc.join("meminfo"), "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB\n").unwrap();
        std::fs::write(proc.join("self/cgroup"), format!("0::{group}\n")).unwrap();
        std::fs::write(proc.join("self/statm"), "100 7 1 1 0 1 0\n").unwrap();
        for (folder, max, current) in limits {
            let folder = root.path().join("cgroup").join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("memory.max"), max).unwrap();
            std::fs::write(folder.join("memory.current"), current).unwrap();
        }
        let host = Host::at(proc, root.path().join("cgroup"));
        (root, host)
    }

    #[test]
    fn without_a_limit_the_machine_counts() {
        let (_root, host) = folders("/a", &[("a", "max\n", "5\n")]);
        let memory = host.memory(DeviceId::Cpu).unwrap();
        assert_eq!(memory, DeviceMemory { total: 1_024_000, used: 409_600, ours: 28_672 });
        assert!(host.memory(DeviceId::Gpu(0)).is_err());
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let (_root, host) = folders("/a/b", &[("a/b", "800000\n", "7\n"), ("a", "500000\n", "9\n")]);
        assert_eq!(host.memory(DeviceId::Cpu).unwrap().total, 500_000);
        assert_eq!(host.memory(DeviceId::Cpu).unwrap().used, 9);
    }

    #[test]
    fn processor_time_is_the_containers_else_the_machines() {
        let (root, host) = folders("/", &[]);
        assert_eq!(host.processors(), None, "neither can be asked");
        std::fs::write(root.path().join("proc/stat"), "cpu  200 30 40 9000 500 6 7 800 0 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!(host.processors().unwrap().worked, Duration::from_millis(2830));
        std::fs::create_dir_all(root.path().join("cgroup")).unwrap();
        std::fs::write(root.path().join("cgroup/cpu.stat"), "usage_usec 1500\nuser_usec 1000\n").unwrap();
        assert_eq!(host.processors().unwrap().worked, Duration::from_micros(1500));
        for torn in ["", "usage_usec\n", "usage_usec -1\n"] {
            std::fs::write(root.path().join("cgroup/cpu.stat"), torn).unwrap();
            assert_eq!(host.processors().unwrap().worked, Duration::from_millis(2830), "{torn:?}");
        }
        std::fs::write(root.path().join("proc/stat"), "cpu  200 30\n").unwrap();
        assert_eq!(host.processors(), None);
    }

    #[test]
    fn what_this_thread_works_is_in_the_time_of_this_machines_processors() {
        let host = Host::default();
        let before = host.processors().expect("this machine can be asked");
        assert!((1..=4096).contains(&before.cores), "{before:?}");
        let mut rounds = 0_u64;
        while host.processors().expect("it was asked before").worked < before.worked + Duration::from_millis(50) {
            rounds = std::hint::black_box(rounds.wrapping_add(1));
        }
    }
}
