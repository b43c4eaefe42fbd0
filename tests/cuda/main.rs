//! What stands in `device/cuda`, through the real cudarc and nvml-wrapper, over doubles of the driver's two libraries.
//!
//! A library is opened once a process, so each test runs in a process of its own, with a machine of its own: see `alone!`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

#[macro_use]
mod support;

mod double;
mod driver;
mod hooks;
mod memory;
mod onnxruntime;
mod plugin;
mod pool;
mod real;
mod shared;
mod sleep;
