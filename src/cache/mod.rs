//! What a tier of limited bytes holds and what it gives up first: the disk, and each device's memory.
//!
//! *Architecture invariant:* `table` and the policies decide and do nothing: no I/O, no clock and no lock; time comes in as
//! `now`, and the simulator (`cli/simulate.rs`) drives the same code with a clock of its own. `memory_pool` and `disk` put
//! a lock and real bytes around it.

pub mod cost_aware;
pub mod disk;
pub mod eviction;
pub mod memory_pool;
pub mod response;
pub mod table;
