//! What is where, as operators and routers are told: one row a model, one book a tier.

use std::time::{Duration, SystemTime};

use crate::inference::{DeviceId, Version};
use crate::lifecycle::state::ModelState;

/// Where a model can be answered from, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// In memory of the device it runs on.
    Device,
    /// In host RAM, to be copied to the device.
    Host,
    /// On this machine's disk.
    Disk,
    /// In the repository alone.
    Remote,
}

impl Tier {
    /// All of them, nearest first.
    pub const ALL: [Self; 4] = [Self::Device, Self::Host, Self::Disk, Self::Remote];

    /// The word in headers, metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
            Self::Remote => "remote",
        }
    }
}

/// How long a model is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// Until its room is needed.
    #[default]
    Cached,
    /// Until its last request is answered (SageMaker's ModelCacheSetting Disabled).
    Transient,
    /// For good.
    Pinned,
}

impl Retention {
    /// The word in documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Transient => "transient",
            Self::Pinned => "pinned",
        }
    }
}

/// Why a model left a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionReason {
    /// Another one needed the room.
    Room,
    /// A measurement found more in use than was booked.
    Overrun,
    /// Not to be kept beyond its requests.
    Transient,
    /// Its object is gone from the repository.
    Deleted,
    /// It was asked for.
    Unload,
    /// A copy more than the model's requests take.
    Surplus,
    /// Its device cannot be used any more.
    Lost,
}

impl EvictionReason {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Room, Self::Overrun, Self::Transient, Self::Deleted, Self::Unload, Self::Surplus, Self::Lost];

    /// The word in metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::Overrun => "overrun",
            Self::Transient => "transient",
            Self::Deleted => "deleted",
            Self::Unload => "unload",
            Self::Surplus => "surplus",
            Self::Lost => "lost",
        }
    }
}

/// How long the parts of a load took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Asking the repository what there is.
    pub resolve: Duration,
    /// Fetching and unpacking to disk, which overlap.
    pub fetch: Duration,
    /// Waiting for a place among the loads and for room.
    pub wait: Duration,
    /// The runtime's own load.
    pub initialise: Duration,
    /// Requests made up for the model, on each instance.
    pub warm_up: Duration,
}

impl Phases {
    /// All together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.resolve + self.fetch + self.wait + self.initialise + self.warm_up
    }

    /// Each with its word in metrics and documents.
    #[must_use]
    pub const fn each(&self) -> [(&'static str, Duration); 5] {
        [
            ("resolve", self.resolve),
            ("fetch", self.fetch),
            ("wait", self.wait),
            ("initialise", self.initialise),
            ("warm_up", self.warm_up),
        ]
    }
}

/// The last load of a model that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastLoad {
    /// When it ended.
    pub at: SystemTime,
    /// Where its files came from.
    pub from: Tier,
    /// How long it took.
    pub phases: Phases,
    /// Bytes booked for it on its device once measured.
    pub bytes: u64,
}

/// The last time a model left its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastEviction {
    /// When.
    pub at: SystemTime,
    /// Why.
    pub reason: EvictionReason,
    /// The model that needed the room, where one did.
    pub made_room_for: Option<String>,
    /// How long it had been there.
    pub age: Duration,
    /// How long it had not been asked for.
    pub idle: Duration,
}

/// A fetch under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FetchProgress {
    /// Bytes that came.
    pub done: u64,
    /// Bytes there are.
    pub total: u64,
    /// Bytes a second since it began.
    pub rate: f64,
}

impl FetchProgress {
    /// Seconds that are left at this rate.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn eta_seconds(&self) -> Option<f64> {
        (self.rate > 0.0).then(|| self.total.saturating_sub(self.done) as f64 / self.rate)
    }
}

/// A model's copy on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyResidency {
    /// Which.
    pub device: DeviceId,
    /// Bytes booked for it there.
    pub bytes: u64,
    /// Instances of each version.
    pub instances: usize,
    /// Whether it came since the model's queue cost more than a load, and goes when it no longer does.
    pub is_extra: bool,
}

/// One model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelResidency {
    /// Its key.
    pub name: String,
    /// The nearest tier it is on.
    pub tier: Tier,
    /// Where it stands.
    pub state: ModelState,
    /// Why it is not ready, where there is a reason.
    pub reason: String,
    /// Versions that answer, ascending.
    pub versions: Vec<Version>,
    /// The device it is on; the first of several.
    pub device: Option<DeviceId>,
    /// Bytes booked for it, on all its devices together.
    pub device_bytes: u64,
    /// Its copies, by device.
    pub copies: Vec<CopyResidency>,
    /// Bytes of its weights kept in host RAM to wake it from.
    pub host_bytes: u64,
    /// Bytes it takes on disk.
    pub disk_bytes: u64,
    /// The content that is loaded or on disk, as hexadecimal digits.
    pub fingerprint: Option<String>,
    /// How long it is kept.
    pub retention: Retention,
    /// Handles on it now: requests being answered.
    pub in_use: usize,
    /// When it was last asked for, to about a second.
    pub last_use: Option<SystemTime>,
    /// Loads that ended well since the server started.
    pub loads: u64,
    /// Times it left a device since the server started.
    pub evictions: u64,
    /// Its last load.
    pub last_load: Option<LastLoad>,
    /// Its last eviction.
    pub last_eviction: Option<LastEviction>,
    /// Its fetch, if one is under way.
    pub fetch: Option<FetchProgress>,
    /// The generation of the instance's residency in which this row last changed.
    pub generation: u64,
}

/// The book of one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierBook {
    /// Which.
    pub tier: Tier,
    /// The device, for [`Tier::Device`].
    pub device: Option<DeviceId>,
    /// Bytes that may be booked.
    pub limit: u64,
    /// Bytes that are.
    pub booked: u64,
    /// Bytes that could be had by eviction now.
    pub evictable: u64,
    /// Bytes of models that are being loaded.
    pub reserved: u64,
    /// Bytes that are no model's alone, for [`Tier::Device`]: scratch of runs, and what is kept for the next.
    pub scratch: u64,
    /// Models on it.
    pub models: usize,
    /// What the device itself says is in use, by anybody; `None` where it cannot be asked.
    pub used: Option<u64>,
}

/// One page of what is where.
#[derive(Clone, Debug, PartialEq)]
pub struct ResidencyPage {
    /// Goes up with every change: a page of the same generation says the same.
    pub generation: u64,
    /// Whether rows that did not change are listed too, whatever was asked: models have vanished since that generation, and
    /// what is not listed from here to the last page is gone.
    pub complete: bool,
    /// The tiers.
    pub books: Vec<TierBook>,
    /// Models that are on some tier of this machine, or being brought, or that failed, ascending by name.
    pub models: Vec<ModelResidency>,
    /// Where the next page begins: ask for names after this one.
    pub next: Option<String>,
}

/// What to put on a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResidencyQuery {
    /// Names after this one alone.
    pub after: Option<String>,
    /// At most so many models.
    pub limit: usize,
    /// Rows that changed in a later generation alone.
    pub since: Option<u64>,
}

/// Why a model is where it is, and what its next load would cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Its row.
    pub model: ModelResidency,
    /// Sentences for people, the most important first.
    pub reasons: Vec<String>,
    /// Bytes it is expected to need on its device.
    pub expected_bytes: Option<u64>,
    /// What that is taken from: `measured`, `declared` or `estimated`.
    pub expected_from: Option<&'static str>,
    /// Seconds its next load is expected to take from where it is now.
    pub expected_seconds: Option<f64>,
    /// What the eviction order thinks of it: those that would go before it, of all that may go; `None` where it is not on
    /// a device.
    pub place_in_line: Option<(usize, usize)>,
}
