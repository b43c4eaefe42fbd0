//! Metrics: one table of families (`defs`), per-model statistics that requests record into (`statistics`), their series
//! (`per_model`), and the Prometheus page made of all (`prometheus`).

pub mod defs;
mod per_model;
pub mod prometheus;
pub mod statistics;
