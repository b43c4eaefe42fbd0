//! Metrics: one table of families (`defs`), per-model statistics that requests record into (`statistics`), their series
//! (`per_model`) for the `busiest`, what autoscalers go by (`signal` out of what `meter` counts), and the Prometheus page made
//! of all (`prometheus`); and what CloudWatch is told (`observations`, `cloudwatch`).

mod busiest;
pub mod cloudwatch;
pub mod defs;
pub mod meter;
pub mod observations;
mod per_model;
pub mod prometheus;
mod sample;
pub mod signal;
pub mod statistics;
