//! KServe v2 over gRPC over real sockets, where a client must hold gates, cut connections or send what no client sends.
//! What unmodified clients see is in `tests/python/test_grpc.py`.

pub(crate) mod client;
mod rights;
mod robust;
mod shared_memory;
mod streams;
mod trace;
mod unary;
