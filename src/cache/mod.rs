//! What a tier of limited bytes holds and what it gives up first. Pure: decides, does nothing.
//!
//! *Architecture invariant:* no I/O, no clock and no lock below this module; time comes in as `now`. The simulator
//! (`cli/simulate.rs`) drives the same code with a clock of its own.

pub mod cost_aware;
pub mod eviction;
pub mod table;
