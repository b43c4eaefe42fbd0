//! Families of the host: its memory, its processors, the disk that models are fetched to.

use super::{Family, Kind, family};

/// The host's memory, as the cgroup or the machine limits it.
pub const CPU_MEMORY_TOTAL: Family = family(
    "nv_cpu_memory_total_bytes",
    Kind::Gauge,
    &[],
    "CPU memory that may be used (cgroup limit or RAM), in bytes",
);
/// The host's memory in use.
pub const CPU_MEMORY_USED: Family = family("nv_cpu_memory_used_bytes", Kind::Gauge, &[], "CPU memory in use, in bytes");
/// How busy the host's processors are.
pub const CPU_UTILIZATION: Family = family(
    "nv_cpu_utilization",
    Kind::Gauge,
    &[],
    "CPU utilization (part of the last second that the cores worked, of the container or the machine), 0.0 to 1.0",
);
/// The disk that models are fetched to.
pub const DISK_TOTAL: Family = family(
    "roundhouse_cache_disk_total_bytes",
    Kind::Gauge,
    &[],
    "Bytes of the disk that models are fetched to; absent until one is",
);
/// What of it is in use.
pub const DISK_USED: Family = family(
    "roundhouse_cache_disk_used_bytes",
    Kind::Gauge,
    &[],
    "Bytes in use on the disk that models are fetched to, by anybody; absent until one is",
);
