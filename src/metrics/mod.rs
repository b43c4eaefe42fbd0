//! Metrics: one table of families (`defs`), per-model statistics that requests record into (`statistics`), their series
//! (`per_model`) for the `busiest`, what autoscalers go by (`signal` out of what `meter` counts), and the Prometheus page made
//! of all (`prometheus`).

mod busiest;
pub mod defs;
pub mod meter;
mod per_model;
pub mod prometheus;
pub mod signal;
pub mod statistics;
