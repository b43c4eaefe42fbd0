//! Metrics: one table of families (`defs`), per-model statistics that requests record into (`statistics`), and the
//! Prometheus page made of both (`prometheus`).

pub mod defs;
pub mod prometheus;
pub mod statistics;
