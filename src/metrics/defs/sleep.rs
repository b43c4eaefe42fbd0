//! Families of models that sleep.

use super::{Family, Kind, family};

/// Models that sleep now.
pub const ASLEEP_MODELS: Family = family(
    "roundhouse_models_asleep",
    Kind::Gauge,
    &[],
    "Models whose weights are in host memory, to be woken by their next request",
);
/// Models that were to sleep.
pub const SLEEPS: Family = family(
    "roundhouse_model_sleeps_total",
    Kind::Counter,
    &["outcome"],
    "Models that were to sleep in the place of being unloaded, by outcome: ok, failed (they were unloaded)",
);
/// Bytes that went to host memory.
pub const SLEEP_BYTES: Family =
    family("roundhouse_model_sleep_bytes_total", Kind::Counter, &[], "Bytes of weights copied to host memory");
/// How long going to sleep takes.
pub const SLEEP_SECONDS: Family = family(
    "roundhouse_model_sleep_seconds",
    Kind::Histogram,
    &[],
    "Time to copy a model's weights to host memory and to free their memory on the device, in seconds",
);
/// Models that were to wake.
pub const WAKES: Family = family(
    "roundhouse_model_wakes_total",
    Kind::Counter,
    &["outcome"],
    "Models that were to wake, by outcome: ok, failed (there was no memory, or the device failed)",
);
/// Bytes that came back.
pub const WAKE_BYTES: Family =
    family("roundhouse_model_wake_bytes_total", Kind::Counter, &[], "Bytes of weights copied back to devices");
/// How long waking takes.
pub const WAKE_SECONDS: Family = family(
    "roundhouse_model_wake_seconds",
    Kind::Histogram,
    &[],
    "Time to map memory below a model's weights and to copy them back, in seconds; waits for room are not in it",
);
/// Host memory for models that sleep.
pub const PINNED: Family = family(
    "roundhouse_pinned_host_bytes",
    Kind::Gauge,
    &["kind"],
    "Locked host memory for models that sleep, in bytes: limit, locked, taken (of what is locked)",
);
