//! What is where, put into rows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::copies::DeviceCopy;
use super::files::OnDisk;
use super::need::need;
use super::residency::{
    CopyResidency, Explanation, ModelResidency, ResidencyPage, ResidencyQuery, Retention, Tier, TierBook,
};
use super::slot::Slot;
use super::state::ModelState;
use super::{ModelManager, Name};
use crate::cache::memory_pool::{MemoryLease, PoolBook};
use crate::device::cuda::pinned::PinnedUsage;
use crate::device::monitor::DeviceMonitor;
use crate::error::{Error, Result};
use crate::inference::DeviceId;

impl ModelManager {
    /// A page of rows, and the books.
    #[must_use]
    pub fn residency(&self, query: &ResidencyQuery, monitor: &dyn DeviceMonitor) -> ResidencyPage {
        let stamp = self.0.loader.files.stamp();
        if self.0.disk_stamp.swap(stamp, Ordering::AcqRel) != stamp {
            self.0.vanished.store(self.next_generation(), Ordering::Release);
        }
        let generation = self.0.generation.load(Ordering::Acquire);
        let vanished = self.0.vanished.load(Ordering::Acquire);
        let since = query.since.filter(|since| *since >= vanished);
        let models = self.0.models.load_full();
        let mut names: Vec<&Name> = models.keys().collect();
        if let Some(after) = &query.after {
            names.retain(|name| ***name > **after);
        }
        names.sort_unstable();
        let on_disk = self.0.loader.files.all_on_disk();
        let is_after = |name: &&String| query.after.as_ref().is_none_or(|after| *name > after);
        let mut all: BTreeSet<&str> = names.iter().map(|name| &***name).collect();
        all.extend(on_disk.keys().filter(is_after).map(String::as_str));
        let mut rows = Vec::new();
        let mut next = None;
        for name in all {
            if rows.len() >= query.limit.max(1) {
                next = rows.last().map(|row: &ModelResidency| row.name.clone());
                break;
            }
            let row = self.row(name, models.get(name).map(Arc::as_ref), on_disk.get(name));
            if since.is_none_or(|since| row.generation > since) {
                rows.push(row);
            }
        }
        ResidencyPage { generation, complete: since.is_none(), books: self.books(monitor), models: rows, next }
    }

    /// One model's row; `None` where nothing is known of it here.
    #[must_use]
    pub fn model_residency(&self, name: &str) -> Option<ModelResidency> {
        let models = self.0.models.load();
        let slot = models.get(name).map(Arc::as_ref);
        let disk = self.0.loader.files.on_disk(name);
        (slot.is_some() || disk.is_some()).then(|| self.row(name, slot, disk.as_ref()))
    }

    /// The books of the tiers.
    #[must_use]
    pub fn books(&self, monitor: &dyn DeviceMonitor) -> Vec<TierBook> {
        let now = Instant::now();
        let devices = self.0.loader.devices.iter().map(|place| {
            let book = place.pool.book(now, &|name| self.is_busy(name, place.device()));
            TierBook {
                tier: Tier::Device,
                device: Some(place.device()),
                limit: book.limit,
                booked: book.booked,
                evictable: book.evictable,
                reserved: book.reserved.saturating_sub(self.scratch_bytes(place.device())),
                scratch: self.scratch_bytes(place.device()),
                models: book.models,
                used: monitor.memory(place.device()).ok().map(|memory| memory.used),
            }
        });
        let host = self.0.loader.host.iter().map(|host| {
            let book = host.book.book(now, &|name| self.is_in_flight(name));
            TierBook {
                tier: Tier::Host,
                device: None,
                limit: book.limit,
                booked: book.booked,
                evictable: book.evictable,
                reserved: book.reserved,
                scratch: 0,
                models: book.models,
                used: Some(host.pinned.usage().locked),
            }
        });
        devices.chain(host).chain(self.0.loader.files.book()).collect()
    }

    /// Of each tier its device, where it has one, and what is booked; evictable bytes are left out.
    #[must_use]
    pub fn tallies(&self) -> Vec<(Tier, Option<DeviceId>, PoolBook)> {
        let devices = self.0.loader.devices.iter();
        let devices = devices.map(|place| (Tier::Device, Some(place.device()), place.pool.tally()));
        let host = self.0.loader.host.iter().map(|host| (Tier::Host, None, host.book.tally()));
        let disk = self.0.loader.files.book().map(|book| {
            let TierBook { limit, booked, models, .. } = book;
            (Tier::Disk, None, PoolBook { limit, booked, models, ..PoolBook::default() })
        });
        devices.chain(host).chain(disk).collect()
    }

    /// Bytes that runs share of a device, as its book has them.
    fn scratch_bytes(&self, device: DeviceId) -> u64 {
        let scratch = self.0.scratch.get(&device);
        scratch.map_or(0, |lease| lease.lock().as_ref().map_or(0, MemoryLease::bytes))
    }

    /// What the pool of locked host memory holds, if there is one.
    #[must_use]
    pub fn pinned(&self) -> Option<PinnedUsage> {
        self.0.loader.host.as_ref().map(|host| host.pinned.usage())
    }

    /// Loads that may run at once.
    #[must_use]
    pub fn load_places(&self) -> usize {
        self.0.options.load_concurrency.max(1)
    }

    /// Loads that wait for a place.
    #[must_use]
    pub fn loads_waiting(&self) -> usize {
        self.0.gate.waiting()
    }

    fn row(&self, name: &str, slot: Option<&Slot>, disk: Option<&OnDisk>) -> ModelResidency {
        // Before what it is the generation of: a row of this generation may say more than that, never less.
        let generation = slot.map_or(0, Slot::generation);
        let states = slot.map(Slot::states).unwrap_or_default();
        let resident = slot.and_then(Slot::resident);
        let story = slot.map(Slot::story).unwrap_or_default();
        let asleep = slot.and_then(Slot::asleep).filter(|_| resident.is_none());
        let sleeps = asleep.is_some();
        let resident = resident.or(asleep);
        let entry = match (&self.0.loader.host, sleeps) {
            (Some(host), true) => slot.and_then(|slot| host.book.entry(&slot.name)),
            _ => resident.as_ref().and_then(|resident| resident.copies.first()?.pool.entry(&slot?.name)),
        };
        let tier = match (&resident, disk) {
            (Some(_), _) if sleeps => Tier::Host,
            (Some(_), _) => Tier::Device,
            (None, Some(disk)) if disk.complete => Tier::Disk,
            (None, _) => Tier::Remote,
        };
        let in_order = [ModelState::Ready, ModelState::Loading, ModelState::Unloading];
        let state = in_order.into_iter().find(|state| states.iter().any(|row| row.state == *state));
        let now = Instant::now();
        let last_use =
            entry.and_then(|entry| SystemTime::now().checked_sub(now.saturating_duration_since(entry.last_use)));
        let pinned = slot.is_some_and(Slot::is_pinned);
        let retention = resident.as_ref().map_or(Retention::Cached, |resident| resident.retention);
        ModelResidency {
            name: name.to_owned(),
            tier,
            state: state.unwrap_or(ModelState::Unavailable),
            reason: states
                .iter()
                .map(|row| row.reason.as_str())
                .find(|reason| !reason.is_empty())
                .unwrap_or_default()
                .to_owned(),
            versions: resident
                .iter()
                .flat_map(|resident| resident.versions().iter().map(|version| version.id.version))
                .collect(),
            device: resident.as_ref().and_then(|resident| Some(resident.copies.first()?.device())),
            device_bytes: resident.as_ref().map_or(0, |resident| resident.booked()),
            copies: resident.iter().flat_map(|resident| resident.copies.iter().map(|copy| copy.row())).collect(),
            host_bytes: resident.as_ref().map_or(0, |resident| resident.host_bytes()),
            disk_bytes: disk.map_or(0, |disk| disk.bytes),
            fingerprint: resident
                .as_ref()
                .map(|resident| resident.fingerprint.to_string())
                .or_else(|| disk.map(|disk| disk.fingerprint.to_string())),
            retention: if pinned { Retention::Pinned } else { retention },
            in_use: resident.as_ref().map_or(0, |resident| resident.in_use()),
            last_use,
            loads: story.loads,
            evictions: story.evictions,
            last_load: story.last_load,
            last_eviction: story.last_eviction,
            fetch: disk.and_then(|disk| disk.fetch),
            generation,
        }
    }

    /// Why a model is where it is, and what its next load would cost. Asks the repository about a model that is not here.
    ///
    /// # Errors
    /// `NotFound` for a model that is neither here nor in the repository.
    pub async fn explain(&self, name: &str) -> Result<Explanation> {
        crate::repository::check_name(name)?;
        let row = match self.model_residency(name) {
            Some(row) => row,
            None => {
                self.0.loader.repository.resolve(name).await?;
                self.row(name, None, None)
            }
        };
        let slot = self.0.models.load().get(name).cloned();
        let resident = slot.as_ref().and_then(|slot| slot.resident_or_asleep());
        let failure = slot.as_ref().and_then(|slot| slot.failure());
        let place = self.0.loader.devices.first().ok_or_else(|| Error::internal("there is no device"))?;
        let first = resident.as_ref().and_then(|resident| resident.copies.first());
        let device = first.map_or(place.device(), |copy| copy.device());
        let content = resident.as_ref().map(|resident| resident.fingerprint);
        let content = content.or_else(|| self.0.loader.files.on_disk(name).map(|disk| disk.fingerprint));
        let past = content.and_then(|content| self.0.history.lock().get(content, device));
        let needed = past.map(|past| need(Some(past), None, 0));
        let place_in_line = first.and_then(|copy| {
            let line = copy.pool.line(Instant::now(), &|name| self.is_busy(name, device));
            let place = line.iter().position(|other| **other == *name)?;
            Some((place, line.len()))
        });
        let mut reasons = Vec::new();
        match row.tier {
            Tier::Device => {
                reasons.push(format!("it is in memory of {} and answers at once", where_it_is(&row.copies)))
            }
            Tier::Host => reasons.push("it is asleep in host memory; a request wakes it".to_owned()),
            Tier::Disk => reasons.push("its files are on this machine; a request loads it from there".to_owned()),
            Tier::Remote => reasons.push("it is in the repository alone; a request fetches and loads it".to_owned()),
        }
        for copy in row.copies.iter().filter(|copy| copy.is_extra) {
            let device = copy.device;
            reasons.push(format!(
                "its copy on {device} came since its queue cost more than a load, and goes when it no longer does"
            ));
        }
        if let Some(error) = failure {
            reasons.push(format!("its last load failed: {}", error.report()));
        }
        match (row.retention, place_in_line) {
            (Retention::Pinned, _) => reasons.push("it is pinned: it is never evicted".to_owned()),
            (Retention::Transient, _) => {
                reasons.push("it is not retained: it is unloaded when its requests are answered".to_owned());
            }
            (Retention::Cached, Some((place, all))) => {
                reasons.push(format!("were room needed, {place} of {all} models that may go would go before it"));
            }
            (Retention::Cached, None) if row.in_use > 0 => {
                reasons.push(format!("{} requests use it: it is not evicted meanwhile", row.in_use));
            }
            (Retention::Cached, None) if resident.as_ref().is_some_and(|resident| resident.has_sequences()) => {
                reasons.push("a sequence has begun and not ended: it is not evicted meanwhile".to_owned());
            }
            (Retention::Cached, None) => {}
        }
        if let (None, Some(left)) = (&resident, &row.last_eviction) {
            let why = match &left.made_room_for {
                Some(other) => format!("to make room for '{other}'"),
                None => format!("reason: {}", left.reason.name()),
            };
            let (age, idle) = (left.age.as_secs_f64(), left.idle.as_secs_f64());
            reasons.push(format!("it left memory after {age:.1} s there and {idle:.1} s without a request, {why}"));
        }
        if let Some(last) = &row.last_load {
            let parts: Vec<_> = last
                .phases
                .each()
                .into_iter()
                .filter(|(_, duration)| !duration.is_zero())
                .map(|(phase, duration)| format!("{phase} {:.3} s", duration.as_secs_f64()))
                .collect();
            reasons.push(format!("its last load came from {} and took {}", last.from.name(), parts.join(", ")));
        }
        let expected_seconds = match row.tier {
            Tier::Device => Some(0.0),
            Tier::Host => self.0.loader.host.as_ref().map(|host| host.wake_seconds(row.host_bytes)),
            Tier::Disk => past.map(|past| past.seconds),
            Tier::Remote => row.last_load.map(|last| last.phases.total().as_secs_f64()),
        };
        Ok(Explanation {
            model: row,
            reasons,
            expected_bytes: needed.map(|need| need.bytes),
            expected_from: needed.map(|need| need.source.name()),
            expected_seconds,
            place_in_line,
        })
    }
}

impl DeviceCopy {
    fn row(&self) -> CopyResidency {
        CopyResidency {
            device: self.device(),
            bytes: self.booked(),
            instances: self.instances(),
            is_extra: self.is_extra,
        }
    }
}

/// `gpu:0 and gpu:1`.
fn where_it_is(copies: &[CopyResidency]) -> String {
    copies.iter().map(|copy| copy.device.to_string()).collect::<Vec<_>>().join(" and ")
}
