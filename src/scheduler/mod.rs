//! Who runs when: a bounded queue for each model, batches from it, threads for each device.
//!
//! `batcher` decides what runs together and when (pure), `order` in which order answers leave (pure), `budget` how long to
//! wait for company (pure), `turns` whose turn it is on a device (pure); `queue` and `executor` do it, over `layout`, which
//! lays out the tensors of a batch (`pictures`: those made of pixels).
//!
//! *Architecture invariant:* threads belong to devices. A model costs a queue and its instances, never a thread or a timer.

pub mod answer;
pub mod batcher;
pub mod budget;
#[cfg(any(test, feature = "test-util"))]
pub mod bursts;
pub mod ensemble;
pub mod executor;
pub mod layout;
pub mod order;
mod pictures;
pub mod prompt;
pub mod queue;
mod run;
pub mod sequence;
pub mod stream;
pub mod turns;
pub mod work;
