//! The documents, borrowing from the views of `lifecycle::residency`. Sizes are whole numbers whose names end in `_bytes`,
//! durations are floats whose names end in `_seconds`, points of time are RFC 3339 in UTC. Every member is always there;
//! what is not known is null.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::super::time::Rfc3339;
use crate::inference::{DeviceId, Version};
use crate::lifecycle::residency::{
    CopyResidency, Explanation, FetchProgress, LastEviction, LastLoad, ModelResidency, ResidencyPage, TierBook,
};

/// `GET /v1/residency`.
#[derive(Serialize)]
pub struct Page<'a> {
    generation: u64,
    complete: bool,
    books: Books<'a>,
    models: Rows<'a>,
    next: Option<&'a str>,
}

impl<'a> Page<'a> {
    /// The document over a page.
    #[must_use]
    pub fn of(page: &'a ResidencyPage) -> Self {
        Self {
            generation: page.generation,
            complete: page.complete,
            books: Books(&page.books),
            models: Rows(&page.models),
            next: page.next.as_deref(),
        }
    }
}

struct Books<'a>(&'a [TierBook]);

impl Serialize for Books<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Book::of))
    }
}

struct Rows<'a>(&'a [ModelResidency]);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Row::of))
    }
}

#[derive(Serialize)]
struct Book {
    tier: &'static str,
    device: Option<Device>,
    limit_bytes: u64,
    booked_bytes: u64,
    evictable_bytes: u64,
    reserved_bytes: u64,
    scratch_bytes: u64,
    models: usize,
    used_bytes: Option<u64>,
}

impl Book {
    fn of(book: &TierBook) -> Self {
        Self {
            tier: book.tier.name(),
            device: book.device.map(Device),
            limit_bytes: book.limit,
            booked_bytes: book.booked,
            evictable_bytes: book.evictable,
            reserved_bytes: book.reserved,
            scratch_bytes: book.scratch,
            models: book.models,
            used_bytes: book.used,
        }
    }
}

/// A device as its name: `cpu`, `gpu:0`.
struct Device(DeviceId);

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Versions as texts, as KServe writes them.
struct Versions<'a>(&'a [Version]);

impl Serialize for Versions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Text(Version);
        impl Serialize for Text {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }
        serializer.collect_seq(self.0.iter().copied().map(Text))
    }
}

/// One model.
#[derive(Serialize)]
pub struct Row<'a> {
    name: &'a str,
    tier: &'static str,
    state: &'static str,
    reason: &'a str,
    versions: Versions<'a>,
    device: Option<Device>,
    device_bytes: u64,
    copies: Vec<DeviceCopy>,
    host_bytes: u64,
    disk_bytes: u64,
    fingerprint: Option<&'a str>,
    retention: &'static str,
    in_use: usize,
    last_use: Option<Rfc3339>,
    loads: u64,
    evictions: u64,
    last_load: Option<Load>,
    last_eviction: Option<Eviction<'a>>,
    fetch: Option<Fetch>,
    generation: u64,
}

impl<'a> Row<'a> {
    /// The document over a model's row.
    #[must_use]
    pub fn of(model: &'a ModelResidency) -> Self {
        Self {
            name: &model.name,
            tier: model.tier.name(),
            state: model.state.name(),
            reason: &model.reason,
            versions: Versions(&model.versions),
            device: model.device.map(Device),
            device_bytes: model.device_bytes,
            copies: model.copies.iter().map(DeviceCopy::of).collect(),
            host_bytes: model.host_bytes,
            disk_bytes: model.disk_bytes,
            fingerprint: model.fingerprint.as_deref(),
            retention: model.retention.name(),
            in_use: model.in_use,
            last_use: model.last_use.map(Rfc3339),
            loads: model.loads,
            evictions: model.evictions,
            last_load: model.last_load.as_ref().map(Load::of),
            last_eviction: model.last_eviction.as_ref().map(Eviction::of),
            fetch: model.fetch.as_ref().map(Fetch::of),
            generation: model.generation,
        }
    }
}

#[derive(Serialize)]
struct DeviceCopy {
    device: Device,
    device_bytes: u64,
    instances: usize,
    extra: bool,
}

impl DeviceCopy {
    const fn of(copy: &CopyResidency) -> Self {
        let CopyResidency { device, bytes, instances, is_extra } = *copy;
        Self { device: Device(device), device_bytes: bytes, instances, extra: is_extra }
    }
}

#[derive(Serialize)]
struct Load {
    at: Rfc3339,
    from: &'static str,
    resolve_seconds: f64,
    fetch_seconds: f64,
    wait_seconds: f64,
    initialise_seconds: f64,
    warm_up_seconds: f64,
    total_seconds: f64,
    device_bytes: u64,
}

impl Load {
    fn of(load: &LastLoad) -> Self {
        let seconds = |part: Duration| part.as_secs_f64();
        Self {
            at: Rfc3339(load.at),
            from: load.from.name(),
            resolve_seconds: seconds(load.phases.resolve),
            fetch_seconds: seconds(load.phases.fetch),
            wait_seconds: seconds(load.phases.wait),
            initialise_seconds: seconds(load.phases.initialise),
            warm_up_seconds: seconds(load.phases.warm_up),
            total_seconds: seconds(load.phases.total()),
            device_bytes: load.bytes,
        }
    }
}

#[derive(Serialize)]
struct Eviction<'a> {
    at: Rfc3339,
    reason: &'static str,
    made_room_for: Option<&'a str>,
    age_seconds: f64,
    idle_seconds: f64,
}

impl<'a> Eviction<'a> {
    fn of(eviction: &'a LastEviction) -> Self {
        Self {
            at: Rfc3339(eviction.at),
            reason: eviction.reason.name(),
            made_room_for: eviction.made_room_for.as_deref(),
            age_seconds: eviction.age.as_secs_f64(),
            idle_seconds: eviction.idle.as_secs_f64(),
        }
    }
}

#[derive(Serialize)]
struct Fetch {
    done_bytes: u64,
    total_bytes: u64,
    bytes_per_second: f64,
    eta_seconds: Option<f64>,
}

impl Fetch {
    fn of(progress: &FetchProgress) -> Self {
        Self {
            done_bytes: progress.done,
            total_bytes: progress.total,
            bytes_per_second: progress.rate,
            eta_seconds: progress.eta_seconds(),
        }
    }
}

/// `GET /v1/models/NAME/explain`.
#[derive(Serialize)]
pub struct Explained<'a> {
    model: Row<'a>,
    reasons: &'a [String],
    expected_bytes: Option<u64>,
    expected_from: Option<&'static str>,
    expected_seconds: Option<f64>,
    place_in_line: Option<Place>,
}

#[derive(Serialize)]
struct Place {
    before: usize,
    of: usize,
}

impl<'a> Explained<'a> {
    /// The document over an explanation.
    #[must_use]
    pub fn of(explanation: &'a Explanation) -> Self {
        Self {
            model: Row::of(&explanation.model),
            reasons: &explanation.reasons,
            expected_bytes: explanation.expected_bytes,
            expected_from: explanation.expected_from,
            expected_seconds: explanation.expected_seconds,
            place_in_line: explanation.place_in_line.map(|(before, of)| Place { before, of }),
        }
    }
}

#[cfg(test)]
mod tests;
