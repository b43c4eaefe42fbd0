//! Devices: which there are, which are used and why, and what memory they have.

pub mod allocator;
pub mod host;
pub mod monitor;
pub mod selection;
