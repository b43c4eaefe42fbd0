//! CUDA devices through the driver's own API: contexts, streams, memory; an allocator over them, and models that sleep.
//!
//! From below: `driver` (is there one), `context` (a device), `stream`, `virtual_memory`, `pinned` (handles whose drop is
//! the bookkeeping); `ranges`, `arena`, `accounts`, `transfer` decide and know no driver; `pool` hands memory out to
//! owners, `owner` is a model's share of it, `sleeper` takes the memory from under a model and gives it back, `hooks` is what
//! runtimes call, `shared` is memory of other processes, `block` what one would have of it, `gpu` all of that for one device.
//! A machine without CUDA is a normal state: `Driver::open` says why there is none.

pub mod accounts;
pub mod arena;
pub mod block;
pub mod context;
pub mod driver;
pub mod gpu;
pub mod hooks;
pub mod owner;
pub mod pinned;
pub mod pool;
mod purse;
pub mod ranges;
mod region;
pub mod shared;
pub mod sleeper;
pub mod stream;
mod transfer;
pub mod virtual_memory;
