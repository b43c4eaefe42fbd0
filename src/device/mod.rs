//! Devices: which there are, which are used and why, what memory they have, and what the host is asked for.

pub mod allocator;
pub mod cuda;
pub mod devices;
pub mod disk;
pub mod host;
pub mod monitor;
pub mod nvml;
pub mod priority;
pub mod selection;
