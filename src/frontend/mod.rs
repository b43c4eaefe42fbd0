//! Protocols: what comes in becomes an `InferenceRequest`, what goes out is written as each protocol wants it.
//!
//! *Architecture invariant:* only this folder knows HTTP, protobuf and JSON. Front ends are siblings over `server`; none
//! inherits from another.

pub mod access;
pub mod admin;
pub mod body;
pub mod classification;
pub mod compression;
pub mod config_json;
pub mod events;
pub mod generate;
pub mod json;
pub mod kserve_grpc;
pub mod kserve_http;
pub mod listener;
pub mod metrics_http;
pub mod percent;
pub mod picker;
pub mod provenance;
pub mod sagemaker;
pub mod shared_tensors;
pub mod status;
pub mod tensor_body;
pub mod tensor_json;
pub mod time;
pub mod trace_headers;
pub mod watch;
