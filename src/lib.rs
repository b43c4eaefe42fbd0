//! Roundhouse keeps thousands of models behind one endpoint on a few GPUs.
//!
//! The map, from the ground up; a file imports only from below (`tests/layers.rs` holds the floors, ARCHITECTURE.md
//! the reasons):
//!
//! - [`error`], [`sync`]: what went wrong, and waiting.
//! - [`tensor`], [`config`]: what is computed on, and how the server is told.
//! - [`inference`], [`telemetry`]: requests, responses, ids; log lines. [`kernels`]: what is computed around models.
//! - [`model_config`], [`metrics`]: Triton's `config.pbtxt`; the one table of metrics.
//! - [`backend`], [`repository`], [`device`]: runtimes, where models come from, where they run; [`artifact`]: archives.
//! - [`scheduler`]: a queue for each model, threads for each device; [`cache`]: which models are on a tier, and which leave;
//!   [`picker`]: which instance of a fleet is asked.
//! - [`lifecycle`]: which models are in memory, and how they come and go.
//! - [`server`]: what the server does, in the words of no protocol.
//! - [`frontend`]: the protocols.
//! - [`app`], [`cli`]: choosing the parts, and the command line.
//!
//! A request's one way down: `frontend` decodes it, `server` checks it, `lifecycle` pins its model (loading it first if it
//! must), `scheduler` runs it on a `backend`'s instance, and the response climbs the same stairs.

pub mod app;
pub mod artifact;
pub mod backend;
pub mod cache;
pub mod cli;
pub mod config;
pub mod device;
pub mod error;
pub mod frontend;
pub mod inference;
pub mod kernels;
pub mod lifecycle;
pub mod metrics;
pub mod model_config;
pub mod picker;
pub mod repository;
pub mod scheduler;
pub mod server;
pub mod sync;
pub mod telemetry;
pub mod tensor;
