//! What is told of the server's work, and to whom.

use super::ServeOptions;

/// Metrics beside the port that they are served on.
#[derive(Clone, Copy, Debug)]
pub struct MetricsConfig {
    /// How many models have series of their own; the others share one.
    pub models: usize,
}

impl MetricsConfig {
    /// The part of the options that concerns metrics.
    pub(super) fn of(options: &ServeOptions) -> Self {
        Self { models: options.metrics_models.unwrap_or(100) }
    }
}
