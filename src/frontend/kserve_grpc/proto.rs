//! The messages of `proto/` as Rust, and what else `build.rs` reads out of them.

/// Package `inference`: KServe v2 with Triton's extensions.
pub mod inference {
    #![expect(missing_docs, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// Package `grpc.health.v1`.
pub mod health {
    #![expect(missing_docs, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// The descriptors of all of it (`FileDescriptorSet`), for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The fields of a model's configuration: message by its path below the package, field, number.
pub(super) const CONFIG_NUMBERS: &[(&str, &str, u32)] = &include!(concat!(env!("OUT_DIR"), "/config_numbers.rs"));
