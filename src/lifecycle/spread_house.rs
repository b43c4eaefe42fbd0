//! Copies that come where a queue pays for them and go where it does not: what `spread` decides, seen and carried out once a
//! second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::flight::Operation;
use super::handle::Resident;
use super::loader::DevicePlace;
use super::residency::EvictionReason;
use super::slot::{Departure, Entered, Slot};
use super::spread::{Choice, Leaver, REST, Seen, Watch, cost};
use super::{ModelManager, Name};
use crate::cache::eviction::Weight;
use crate::config::Eviction;
use crate::inference::DeviceId;

/// The models that are watched: those that wait, and those with copies more than they were placed with.
#[derive(Default)]
pub(super) struct Spread {
    watched: HashMap<Name, Watched>,
}

struct Watched {
    watch: Watch,
    /// Nanoseconds that instances had run at the last look.
    ran: u64,
    at: Instant,
    /// A copy failed to load: none is tried before.
    not_before: Option<Instant>,
}

/// A place for a copy, and what it costs there.
struct Offer {
    place: DevicePlace,
    cost: f64,
}

impl ModelManager {
    /// Looks at every model that may have more copies. At most one is begun a look.
    pub fn spread(&self, now: Instant) {
        let is_alike = |one: &DevicePlace, other: &DevicePlace| is_gpu(one.device()) == is_gpu(other.device());
        let devices = &self.0.loader.devices;
        let may_spread = devices.iter().any(|one| devices.iter().filter(|other| is_alike(one, other)).count() > 1);
        if !may_spread || self.0.options.max_copies == Some(1) {
            return;
        }
        let mut spread = self.0.spread.lock();
        let models = self.0.models.load_full();
        spread.watched.retain(|name, _| models.get(name).is_some_and(|slot| slot.is_resident()));
        // The one whose requests have waited longest for a copy that pays.
        let mut best: Option<(f64, Arc<Slot>, DevicePlace)> = None;
        for (name, slot) in models.iter() {
            let Some(resident) = slot.resident().filter(|resident| resident.may_spread()) else { continue };
            let waiting =
                resident.versions.iter().filter_map(|version| version.queue()).map(|queue| queue.backlog()).sum();
            let extra = resident.copies.iter().filter(|copy| copy.is_extra).count();
            if waiting == 0 && extra == 0 && !spread.watched.contains_key(name) {
                continue;
            }
            let ran = resident.ran();
            let watched = spread.watched.entry(Arc::clone(name)).or_insert(Watched::new(now, ran));
            watched.not_before = watched.not_before.filter(|until| *until > now);
            let may_come = waiting > 0 && watched.not_before.is_none() && !slot.is_in_flight();
            let offer = if may_come { self.offer(name, &resident, now) } else { None };
            let instances: usize = resident.copies.iter().map(|copy| copy.instances()).sum();
            let own = resident.copies.iter().rfind(|copy| copy.is_extra).map_or(0, |copy| copy.instances());
            let again = resident.copies.first().map(|copy| copy.seconds);
            let seen = Seen {
                waiting,
                busy: busy(ran.saturating_sub(watched.ran), now.saturating_duration_since(watched.at)),
                others: instances.saturating_sub(own),
                extra,
                cost: offer.as_ref().map(|offer| offer.cost).or(again.filter(|_| waiting == 0)),
            };
            (watched.ran, watched.at) = (ran, now);
            let waited = watched.watch.waited();
            match watched.watch.look(now, &seen) {
                Choice::Stay => {}
                Choice::Remove => {
                    if let Some(copy) = resident.copies.iter().rfind(|copy| copy.is_extra) {
                        self.unload_soon(name, Departure::because(EvictionReason::Surplus).from(copy.device()));
                    }
                }
                Choice::Add => {
                    if let Some(offer) = offer
                        && best.as_ref().is_none_or(|(most, _, _)| waited > *most)
                    {
                        best = Some((waited, Arc::clone(slot), offer.place));
                    }
                }
            }
            if waiting == 0 && extra == 0 && watched.not_before.is_none() && watched.watch.is_over() {
                spread.watched.remove(name);
            }
        }
        if let Some((_, slot, _)) = &best
            && let Some(watched) = spread.watched.get_mut(&slot.name)
        {
            watched.watch.pay();
        }
        drop(spread);
        if let Some((_, slot, place)) = best {
            self.start_copy(&slot, place);
        }
    }

    /// The cheapest place for a copy more, if there is one.
    fn offer(&self, name: &Name, resident: &Resident, now: Instant) -> Option<Offer> {
        let first = resident.copies.first()?;
        let is_well = |place: &&DevicePlace| place.sick().is_none();
        let alike = self.0.loader.devices.iter().filter(is_well);
        let alike = alike.filter(|place| is_gpu(place.device()) == is_gpu(first.device()));
        let most = self.0.options.max_copies.unwrap_or(usize::MAX);
        if resident.copies.len() >= most {
            return None;
        }
        let spares_all = self.0.options.eviction != Eviction::Automatic;
        let offers = alike.filter(|place| resident.copy_on(place.device()).is_none()).filter_map(|place| {
            let device = place.device();
            let past = self.0.history.lock().get(resident.fingerprint, device);
            let weight = Weight { bytes: past.map_or(first.booked(), |past| past.bytes), seconds: first.seconds };
            let busy = |other: &Name| spares_all || other == name || self.is_busy(other, device);
            let leavers = place.pool.preview(name, weight, now, &busy).ok()?;
            let leaver = |(_, entry): &(Name, crate::cache::table::Entry)| Leaver {
                seconds: entry.weight.seconds,
                idle: now.saturating_duration_since(entry.last_use),
            };
            let leavers: Vec<_> = leavers.iter().map(leaver).collect();
            let cost = cost(past.map_or(first.seconds, |past| past.seconds), &leavers)?;
            Some(Offer { place: place.clone(), cost })
        });
        offers.min_by(|one, other| one.cost.total_cmp(&other.cost))
    }

    /// A copy could not be loaded: not tried again for a while.
    pub(super) fn copy_failed(&self, name: &Name) {
        if let Some(watched) = self.0.spread.lock().watched.get_mut(name) {
            watched.not_before = Some(watched.at + REST);
        }
    }

    /// Brings a copy without anybody waiting for it.
    pub(super) fn start_copy(&self, slot: &Arc<Slot>, place: DevicePlace) {
        let Entered::Lead(waiter) = slot.enter(Operation::Change) else { return };
        let flight = Arc::clone(waiter.flight());
        flight.insist();
        let (manager, slot) = (self.clone(), Arc::clone(slot));
        drop(tokio::spawn(async move {
            let _guard = slot.guard(&manager, &flight);
            slot.add_copy(&manager, &flight, &place).await;
        }));
        drop(waiter);
    }
}

impl Watched {
    const fn new(now: Instant, ran: u64) -> Self {
        Self { watch: Watch::new(now), ran, at: now, not_before: None }
    }
}

const fn is_gpu(device: DeviceId) -> bool {
    matches!(device, DeviceId::Gpu(_))
}

/// How many instances ran on average, from what they ran together.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a second")]
fn busy(ran: u64, since: std::time::Duration) -> f64 {
    match since.is_zero() {
        true => 0.0,
        false => ran as f64 / 1e9 / since.as_secs_f64(),
    }
}

impl Resident {
    /// Whether the server may add copies, and take them away.
    fn may_spread(&self) -> bool {
        self.is_free && self.versions.iter().all(|version| version.is_flexible())
    }

    /// Nanoseconds that its instances ran so far.
    fn ran(&self) -> u64 {
        let each = self.versions.iter().map(|version| {
            let statistics = &version.statistics;
            let parts = [&statistics.compute_input, &statistics.compute_infer, &statistics.compute_output];
            parts.iter().map(|part| part.nanoseconds()).sum::<u64>()
        });
        each.sum()
    }
}
