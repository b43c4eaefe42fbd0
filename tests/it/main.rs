//! The tests of the whole server, in one binary: what only a client inside the process, or one that holds the gates of a
//! fake backend, can see. The wire format itself is tested by the clients in `tests/python`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, helpers included"
)]

mod access;
mod batching;
mod conformance;
mod container_start;
mod devices;
mod digest;
mod drain;
mod emulate;
mod ensemble;
mod eviction;
mod faults;
#[macro_use]
#[path = "../cuda/support.rs"]
#[expect(dead_code, reason = "what the tests of `device/cuda` alone need")]
mod cuda;
mod gpu;
mod grpc;
mod http2;
mod images;
mod instances;
mod kernels;
mod lifecycle;
mod limits;
mod loads;
mod members;
mod metrics;
mod operators;
mod placement;
mod process;
mod queue;
mod response_cache;
mod s3;
mod sagemaker;
mod scheduling;
mod sequence;
mod shared_memory;
mod start;
mod streaming;
mod support;
mod tls;
mod trace;
mod warm_from;
mod warm_up;
mod wire;
