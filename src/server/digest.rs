//! What this instance tells those that choose between instances, as far as it is not about single models.

use super::InferenceServer;
use crate::lifecycle::digest::Digest;

/// What this instance tells those that choose between instances.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceDigest {
    /// What to ask with for what changed since; of no use after a restart.
    pub cursor: String,
    /// Whether new work is welcome.
    pub ready: bool,
    /// Whether it is on its way out: it answers what is in memory and loads nothing more.
    pub draining: bool,
    /// The models.
    pub models: Digest,
}

impl InferenceServer {
    /// What those are told that choose between instances; of what changed since `cursor` alone, if it is one of ours.
    #[must_use]
    pub fn digest(&self, cursor: Option<&str>) -> InstanceDigest {
        let start = self.0.start;
        let since = cursor.and_then(|cursor| cursor.split_once('-')).filter(|(own, _)| *own == start.to_string());
        let models = self.0.models.digest(since.and_then(|(_, generation)| generation.parse().ok()));
        InstanceDigest {
            cursor: format!("{start}-{}", models.generation),
            ready: self.is_ready(),
            draining: self.is_draining(),
            models,
        }
    }
}
