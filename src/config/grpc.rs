//! What KServe v2 over gRPC is told.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Deserialize;

use super::{Port, ServeOptions};

/// How answers to inferences are compressed where the caller reads it; Triton's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrpcCompression {
    /// Not at all.
    #[default]
    None,
    /// The fastest.
    Low,
    /// Between the two.
    Medium,
    /// The smallest.
    High,
}

impl GrpcCompression {
    /// The level of gzip and deflate, from 1 to 9.
    #[must_use]
    pub const fn level(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Low => Some(1),
            Self::Medium => Some(6),
            Self::High => Some(9),
        }
    }
}

/// KServe v2 over gRPC.
#[derive(Clone, Copy, Debug)]
pub struct GrpcConfig {
    /// The port; `None` where it is not opened.
    pub port: Option<u16>,
    /// The largest message, before and after decompression, in bytes.
    pub max_message_bytes: usize,
    /// Calls of one connection at a time.
    pub max_concurrent_streams: u32,
    /// After how long a connection that is silent is asked for a sign of life; never if `None`.
    pub keepalive_time: Option<Duration>,
    /// How long it has for that.
    pub keepalive_timeout: Duration,
    /// How answers are compressed.
    pub compression: GrpcCompression,
}

impl GrpcConfig {
    /// The part of the options that concerns gRPC.
    pub(super) fn of(options: &ServeOptions, usual: Option<u16>, body_bytes: usize) -> Self {
        Self {
            port: options.grpc_port.map_or(usual, Port::number),
            max_message_bytes: options.grpc_max_message_bytes.map_or(body_bytes, NonZeroUsize::get),
            max_concurrent_streams: options.grpc_max_concurrent_streams.map_or(1024, std::num::NonZeroU32::get),
            keepalive_time: match options.grpc_keepalive_time_ms {
                Some(0) => None,
                given => Some(Duration::from_millis(given.unwrap_or(60_000))),
            },
            keepalive_timeout: Duration::from_millis(options.grpc_keepalive_timeout_ms.unwrap_or(20_000)),
            compression: options.grpc_infer_response_compression_level.unwrap_or_default(),
        }
    }
}
