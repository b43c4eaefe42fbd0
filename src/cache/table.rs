//! The book of one tier: what is on it, how many bytes each entry takes, and who must leave for a newcomer. Pure.
//!
//! ## absent => Reserved => Resident => Leaving => absent
//! [`CacheTable::reserve`] books the bytes before any is used and names the entries that must leave; they are Leaving at
//! once, so that no second newcomer counts on them. Whoever carries the decision out calls [`CacheTable::remove`] when
//! their bytes are really free. A newcomer may use its bytes once [`CacheTable::overhang`] is 0.
//! [`CacheTable::ready`] makes it Resident.
//!
//! What always holds: booked bytes are the sum over Reserved and Resident entries and stay within the limit but where a
//! measurement ([`CacheTable::correct`]) found more than was reserved; an eviction that would not make enough room does
//! not happen.

mod preview;

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::cache::eviction::{EvictionPolicy, Key, Lru, NoRoom, Weight};
use crate::error::{Error, ErrorKind};

/// Why an entry is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Larger than the whole tier, in bytes: no wait will help.
    NeverFits {
        /// What was asked for.
        need: u64,
        /// What the tier may hold.
        limit: u64,
    },
    /// Not now.
    NoRoom(NoRoom),
    /// The key is on the tier already, or has not left it yet.
    Present,
}

impl Refusal {
    /// The same as an error of `kind`, which is that of the tier: `OutOfDeviceMemory` or `OutOfDisk`.
    #[must_use]
    pub fn into_error(self, kind: ErrorKind) -> Error {
        let retryable = !matches!(self, Self::NeverFits { .. });
        Error::new(kind, self.to_string()).with_source(self).with_retryable(retryable)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverFits { need, limit } => write!(f, "{need} bytes can never fit into a limit of {limit} bytes"),
            Self::NoRoom(no_room) => no_room.fmt(f),
            Self::Present => f.write_str("already there or not gone yet"),
        }
    }
}

impl std::error::Error for Refusal {}

/// An entry that must leave.
#[derive(Clone, Debug, PartialEq)]
pub struct Victim<K> {
    /// Which.
    pub key: K,
    /// Bytes it frees.
    pub bytes: u64,
    /// Since it became resident.
    pub age: Duration,
    /// Since it was last asked for.
    pub idle: Duration,
}

/// What was decided for a newcomer or a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction<K> {
    /// Must be gone before new bytes are used; they are Leaving already.
    pub victims: Vec<Victim<K>>,
    /// How many of the victims the least recently used rule would have spared.
    pub unlike_lru: usize,
}

impl<K> Default for Eviction<K> {
    fn default() -> Self {
        Self { victims: Vec::new(), unlike_lru: 0 }
    }
}

/// How far an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its bytes are booked, it is not there yet.
    Reserved,
    /// There.
    Resident,
    /// Evicted; its bytes are not free yet.
    Leaving,
}

/// One entry, as the book has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// How far it is.
    pub stage: Stage,
    /// Its bytes, and the seconds to bring it back.
    pub weight: Weight,
    /// Never evicted while set.
    pub pinned: bool,
    /// Requests that use it now; not evicted while there are any.
    pub users: u32,
    /// When it was reserved; once resident, since when it is.
    pub since: Instant,
    /// When it was last asked for.
    pub last_use: Instant,
}

impl Entry {
    /// Whether it may go as of `now`.
    fn may_go(&self, min_residency: Duration, now: Instant) -> bool {
        self.stage == Stage::Resident && !self.pinned && self.users == 0 && self.age(now) >= min_residency
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

/// See the module.
#[derive(Debug)]
pub struct CacheTable<K: Key> {
    limit: u64,
    min_residency: Duration,
    policy: Box<dyn EvictionPolicy<K>>,
    /// Decides beside the policy and is never obeyed.
    shadow: Lru<K>,
    entries: HashMap<K, Entry>,
    /// Bytes of Reserved and Resident entries.
    booked: u64,
    /// Bytes of Leaving entries.
    leaving: u64,
    /// Bytes of entries that are not Resident, or pinned or in use: never evictable whatever their age.
    held: u64,
}

impl<K: Key> CacheTable<K> {
    /// An empty tier of `limit` bytes, on which an entry stays for `min_residency` at least.
    #[must_use]
    pub fn new(limit: u64, min_residency: Duration, policy: Box<dyn EvictionPolicy<K>>) -> Self {
        Self {
            limit,
            min_residency,
            policy,
            shadow: Lru::default(),
            entries: HashMap::new(),
            booked: 0,
            leaving: 0,
            held: 0,
        }
    }

    /// The limit, in bytes.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes booked: reserved and resident, without those that are leaving.
    #[must_use]
    pub const fn booked(&self) -> u64 {
        self.booked
    }

    /// Bytes that neither an entry nor a reservation has.
    #[must_use]
    pub const fn free(&self) -> u64 {
        self.limit.saturating_sub(self.booked)
    }

    /// Bytes that have yet to leave before what was reserved last may be used.
    #[must_use]
    pub const fn overhang(&self) -> u64 {
        self.booked.saturating_add(self.leaving).saturating_sub(self.limit)
    }

    /// The entry of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Entry)> {
        self.entries.iter()
    }

    /// Another limit, in bytes. Nothing leaves by that; [`CacheTable::make_room`] sees to it.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// One request for `key`, which may be absent: demand counts all the same.
    pub fn touch(&mut self, key: &K, now: Instant) {
        self.policy.touch(key);
        self.shadow.touch(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.last_use = entry.last_use.max(now);
        }
    }

    /// Books `weight` for `key`, which is not a candidate for eviction until [`CacheTable::ready`].
    ///
    /// # Errors
    /// A [`Refusal`]; nothing is booked and nobody leaves.
    pub fn reserve(&mut self, key: &K, weight: Weight, now: Instant) -> Result<Eviction<K>, Refusal> {
        self.reserve_sparing(key, weight, now, &|_| false)
    }

    /// As [`CacheTable::reserve`], and nobody leaves whom `busy` names: users that this table was not told of.
    ///
    /// # Errors
    /// As [`CacheTable::reserve`].
    pub fn reserve_sparing(
        &mut self,
        key: &K,
        weight: Weight,
        now: Instant,
        busy: &dyn Fn(&K) -> bool,
    ) -> Result<Eviction<K>, Refusal> {
        if self.entries.contains_key(key) {
            return Err(Refusal::Present);
        }
        if weight.bytes > self.limit {
            return Err(Refusal::NeverFits { need: weight.bytes, limit: self.limit });
        }
        let eviction = self.make_room_sparing(weight.bytes, now, busy)?;
        let entry = Entry { stage: Stage::Reserved, weight, pinned: false, users: 0, since: now, last_use: now };
        self.entries.insert(key.clone(), entry);
        self.booked = self.booked.saturating_add(weight.bytes);
        self.held = self.held.saturating_add(weight.bytes);
        Ok(eviction)
    }

    /// Puts what was measured in the place of what was booked. The book takes the truth even where there is no room for
    /// it.
    ///
    /// # Errors
    /// [`Refusal::NoRoom`] where the tier is now over its limit and nobody may leave to mend that: the entry should be
    /// dropped. Nobody leaves.
    pub fn correct(&mut self, key: &K, weight: Weight, now: Instant) -> Result<Eviction<K>, Refusal> {
        self.correct_sparing(key, weight, now, &|_| false)
    }

    /// Books `extra` bytes more for an entry, or nothing: others leave as for a newcomer.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing changes.
    pub fn grow_sparing(
        &mut self,
        key: &K,
        extra: u64,
        now: Instant,
        busy: &dyn Fn(&K) -> bool,
    ) -> Result<Eviction<K>, Refusal> {
        let Some(entry) = self.entries.get(key).copied() else { return Ok(Eviction::default()) };
        let need = entry.weight.bytes.saturating_add(extra);
        if need > self.limit {
            return Err(Refusal::NeverFits { need, limit: self.limit });
        }
        self.update(key, |entry| entry.users += 1);
        let made = self.make_room_sparing(extra, now, busy);
        self.update(key, |entry| entry.users -= 1);
        let eviction = made?;
        self.set_weight(key, Weight { bytes: need, ..entry.weight });
        Ok(eviction)
    }

    /// Books less for an entry, for which nobody has to leave.
    pub fn shrink(&mut self, key: &K, weight: Weight) {
        self.set_weight(key, weight);
    }

    fn set_weight(&mut self, key: &K, weight: Weight) {
        self.update(key, |entry| entry.weight = weight);
        if self.entries.get(key).is_some_and(|entry| entry.stage == Stage::Resident) {
            self.policy.insert(key, weight);
            self.shadow.insert(key, weight);
        }
    }

    /// As [`CacheTable::correct`], and nobody leaves whom `busy` names.
    ///
    /// # Errors
    /// As [`CacheTable::correct`].
    pub fn correct_sparing(
        &mut self,
        key: &K,
        weight: Weight,
        now: Instant,
        busy: &dyn Fn(&K) -> bool,
    ) -> Result<Eviction<K>, Refusal> {
        if !self.entries.contains_key(key) {
            return Ok(Eviction::default());
        }
        self.set_weight(key, weight);
        if self.booked <= self.limit {
            return Ok(Eviction::default());
        }
        // The entry itself is what someone waits for: it is held while others are looked for.
        self.update(key, |entry| entry.users += 1);
        let eviction = self.make_room_sparing(0, now, busy);
        self.update(key, |entry| entry.users -= 1);
        eviction
    }

    /// The entry is there, or another copy of it; `seconds` is what bringing it took. Its residency begins.
    pub fn ready(&mut self, key: &K, seconds: f64, now: Instant) {
        // A fresh copy of what is resident begins its residency anew.
        if self.entries.get(key).is_none_or(|entry| entry.stage == Stage::Leaving) {
            return;
        }
        self.update(key, |entry| {
            entry.stage = Stage::Resident;
            entry.weight.seconds = seconds;
            entry.since = now;
        });
        if let Some(entry) = self.entries.get(key) {
            self.policy.insert(key, entry.weight);
            self.shadow.insert(key, entry.weight);
        }
    }

    /// One more request uses the entry; `false` where it is not resident.
    #[must_use]
    pub fn begin_use(&mut self, key: &K) -> bool {
        let resident = self.entries.get(key).is_some_and(|entry| entry.stage == Stage::Resident);
        if resident {
            self.update(key, |entry| entry.users += 1);
        }
        resident
    }

    /// One request less uses it.
    pub fn end_use(&mut self, key: &K) {
        self.update(key, |entry| entry.users = entry.users.saturating_sub(1));
    }

    /// Whether the entry is never evicted; `false` where it is absent or leaving.
    pub fn set_pinned(&mut self, key: &K, pinned: bool) -> bool {
        let here = self.entries.get(key).is_some_and(|entry| entry.stage != Stage::Leaving);
        if here {
            self.update(key, |entry| entry.pinned = pinned);
        }
        here
    }

    /// The entry is gone and its bytes are free, whatever it was: evicted, unloaded, or a reservation given back.
    pub fn remove(&mut self, key: &K) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.count_out(&entry);
        if entry.stage == Stage::Resident {
            self.policy.remove(key);
            self.shadow.remove(key);
        }
        Some(entry)
    }

    /// Chooses who leaves so that `need` bytes are free; they are Leaving at once.
    ///
    /// # Errors
    /// [`Refusal::NoRoom`] where all that may go would not do; nobody leaves.
    pub fn make_room(&mut self, need: u64, now: Instant) -> Result<Eviction<K>, Refusal> {
        self.make_room_sparing(need, now, &|_| false)
    }

    /// As [`CacheTable::make_room`], and nobody leaves whom `busy` names.
    ///
    /// # Errors
    /// As [`CacheTable::make_room`].
    pub fn make_room_sparing(
        &mut self,
        need: u64,
        now: Instant,
        busy: &dyn Fn(&K) -> bool,
    ) -> Result<Eviction<K>, Refusal> {
        let (keys, lru) = self.choose(need, now, busy)?;
        let unlike_lru = keys.iter().filter(|key| !lru.contains(key)).count();
        let victims = keys.into_iter().filter_map(|key| self.leave(key, now)).collect();
        Ok(Eviction { victims, unlike_lru })
    }

    /// Who should leave so that `need` bytes are free, and who would by the least recently used rule.
    fn choose(&self, need: u64, now: Instant, busy: &dyn Fn(&K) -> bool) -> Result<(Vec<K>, Vec<K>), Refusal> {
        let missing = self.booked.saturating_add(need).saturating_sub(self.limit);
        if missing == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        let refuse = |evictable: u64| {
            let pinned = self.booked.saturating_sub(evictable);
            Refusal::NoRoom(NoRoom { need, free: self.free(), evictable, pinned })
        };
        // A tier full of entries in use is told from the sums, without a walk.
        let most = self.booked - self.held;
        if most < missing && self.min_residency.is_zero() {
            return Err(refuse(most));
        }
        let excluded =
            |key: &K| self.entries.get(key).is_none_or(|entry| !entry.may_go(self.min_residency, now)) || busy(key);
        let keys = self.policy.victims(missing, &excluded).map_err(|no_room| refuse(no_room.evictable))?;
        let lru = self.shadow.victims(missing, &excluded).unwrap_or_default();
        Ok((keys, lru))
    }

    /// The bytes of all entries that may go as of `now`.
    #[must_use]
    pub fn evictable(&self, now: Instant, busy: &dyn Fn(&K) -> bool) -> u64 {
        let may_go = |(key, entry): &(&K, &Entry)| entry.may_go(self.min_residency, now) && !busy(key);
        self.entries.iter().filter(may_go).fold(0, |sum, (_, entry)| sum.saturating_add(entry.weight.bytes))
    }

    /// Entries that may go as of `now`, whoever should go first in front.
    #[must_use]
    pub fn line(&self, now: Instant, busy: &dyn Fn(&K) -> bool) -> Vec<K> {
        let may_go = |key: &K, entry: &Entry| entry.may_go(self.min_residency, now) && !busy(key);
        let all = self.entries.iter().filter(|(key, entry)| may_go(key, entry));
        let bytes = all.fold(0_u64, |sum, (_, entry)| sum.saturating_add(entry.weight.bytes));
        let excluded = |key: &K| self.entries.get(key).is_none_or(|entry| !may_go(key, entry));
        self.policy.victims(bytes, &excluded).unwrap_or_default()
    }

    /// Whether a newcomer of `need` bytes would be let in if `key` were gone.
    #[must_use]
    pub fn would_fit_without(&self, key: &K, need: u64, now: Instant, busy: &dyn Fn(&K) -> bool) -> bool {
        let own = self.entries.get(key).map_or(0, |entry| entry.weight.bytes);
        let others = self
            .entries
            .iter()
            .filter(|(other, entry)| *other != key && entry.may_go(self.min_residency, now) && !busy(other));
        let evictable = others.fold(0_u64, |sum, (_, entry)| sum.saturating_add(entry.weight.bytes));
        self.booked.saturating_sub(own).saturating_sub(evictable).saturating_add(need) <= self.limit
    }

    /// Whether `need` bytes for `key` would fit if it, and all that is not pinned, were gone: else no wait helps.
    #[must_use]
    pub fn could_fit(&self, key: &K, need: u64) -> bool {
        let pinned = self.entries.iter().filter(|(other, entry)| *other != key && entry.pinned);
        let pinned = pinned.fold(0_u64, |sum, (_, entry)| sum.saturating_add(entry.weight.bytes));
        pinned.saturating_add(need) <= self.limit
    }

    fn leave(&mut self, key: K, now: Instant) -> Option<Victim<K>> {
        self.policy.evict(&key);
        self.shadow.evict(&key);
        self.update(&key, |entry| entry.stage = Stage::Leaving);
        let entry = self.entries.get(&key)?;
        let idle = now.saturating_duration_since(entry.last_use);
        Some(Victim { bytes: entry.weight.bytes, age: entry.age(now), idle, key })
    }

    /// The one way an entry changes: the sums follow.
    fn update(&mut self, key: &K, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let before = *entry;
        change(entry);
        let after = *entry;
        self.count_out(&before);
        self.count_in(&after);
    }

    const fn count_in(&mut self, entry: &Entry) {
        let bytes = entry.weight.bytes;
        match entry.stage {
            Stage::Leaving => self.leaving = self.leaving.saturating_add(bytes),
            Stage::Reserved | Stage::Resident => self.booked = self.booked.saturating_add(bytes),
        }
        if Self::is_held(entry) {
            self.held = self.held.saturating_add(bytes);
        }
    }

    const fn count_out(&mut self, entry: &Entry) {
        let bytes = entry.weight.bytes;
        match entry.stage {
            Stage::Leaving => self.leaving = self.leaving.saturating_sub(bytes),
            Stage::Reserved | Stage::Resident => self.booked = self.booked.saturating_sub(bytes),
        }
        if Self::is_held(entry) {
            self.held = self.held.saturating_sub(bytes);
        }
    }

    /// Whether its booked bytes may not go, whatever its age.
    const fn is_held(entry: &Entry) -> bool {
        match entry.stage {
            Stage::Reserved => true,
            Stage::Resident => entry.pinned || entry.users > 0,
            Stage::Leaving => false,
        }
    }
}

#[cfg(test)]
mod tests;
