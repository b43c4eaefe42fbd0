//! Who runs when: a bounded queue for each model, threads for each device.
//!
//! *Architecture invariant:* threads belong to devices. A model costs a queue and its instances, never a thread.

pub mod executor;
pub mod prompt;
pub mod queue;
