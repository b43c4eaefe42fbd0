//! `Book`: the table of the disk with what each entry is, behind one lock that is never held across I/O. Whoever gets a
//! list of [`Leaving`] entries unlinks them and says so with [`Book::gone`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::record::{EntryId, LoadRecord, Record};
use super::store::Adopted;
use super::{DiskEntryView, DiskUsage};
use crate::cache::eviction::{EvictionPolicy, Weight};
use crate::cache::table::{CacheTable, Eviction, Refusal, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::manifest::Fingerprint;

/// An entry that must be unlinked.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    pub(super) id: EntryId,
    /// Where room was needed: its bytes, its age and how long it was not asked for.
    pub(super) evicted: Option<(u64, Duration, Duration)>,
}

/// A reservation: nothing but the number of bytes yet.
pub(super) struct Reserved {
    pub(super) id: EntryId,
    pub(super) serial: u32,
    pub(super) leaving: Vec<Leaving>,
}

/// An entry that is there.
pub(super) struct Row {
    pub(super) record: Arc<Record>,
    pub(super) fingerprint: Fingerprint,
    /// Later than all before it.
    pub(super) sequence: u64,
    last_use: SystemTime,
    /// Leaves as soon as it is unused.
    superseded: bool,
    /// Held by who writes the record anew, in a thread that may block.
    pub(super) writing: Arc<Mutex<()>>,
}

struct State {
    table: CacheTable<EntryId>,
    rows: HashMap<EntryId, Row>,
    names: HashMap<Arc<str>, Vec<EntryId>>,
    sequence: u64,
    /// Entries that have left.
    removed: u64,
    /// Entries being unlinked.
    departing: usize,
    evictions: u64,
    evicted_bytes: u64,
}

/// See the module.
pub(super) struct Book {
    state: Mutex<State>,
    /// Bytes have become free.
    changed: Notify,
}

impl Book {
    /// A book of what was adopted, the oldest use first, and who must leave for it to fit.
    pub(super) fn new(
        limit: u64,
        min_residency: Duration,
        policy: Box<dyn EvictionPolicy<EntryId>>,
        mut adopted: Vec<Adopted>,
    ) -> (Self, Vec<Leaving>) {
        let table = CacheTable::new(u64::MAX, min_residency, policy);
        let (rows, names) = (HashMap::new(), HashMap::new());
        let mut state =
            State { table, rows, names, sequence: 0, removed: 0, departing: 0, evictions: 0, evicted_bytes: 0 };
        let now = Instant::now();
        adopted.sort_by_key(|entry| (entry.last_use, entry.id));
        let mut order: Vec<_> = adopted.iter().map(|entry| (entry.record.committed(), entry.id)).collect();
        order.sort_unstable();
        let order: HashMap<_, _> = order.into_iter().zip(1..).map(|((_, id), sequence)| (id, sequence)).collect();
        state.sequence = order.len() as u64;
        for Adopted { id, record, bytes, last_use } in adopted {
            let Some(fingerprint) = record.fingerprint() else { continue };
            let seconds = record.seconds;
            let ago = |time: SystemTime| now.checked_sub(time.elapsed().unwrap_or_default()).unwrap_or(now);
            let booked = state.table.reserve(&id, Weight { bytes, seconds }, ago(last_use));
            debug_assert!(booked.is_ok(), "ids on the disk are unique and the limit is not set yet");
            state.table.ready(&id, seconds, ago(record.committed()));
            state.insert(
                id,
                Row {
                    record: Arc::new(record),
                    fingerprint,
                    sequence: order.get(&id).copied().unwrap_or_default(),
                    last_use,
                    superseded: false,
                    writing: Arc::default(),
                },
            );
        }
        state.table.set_limit(limit);
        // None of them is in use; how young they are is no reason to hold more than is allowed.
        let eviction = state.table.make_room(0, now + min_residency).unwrap_or_default();
        let leaving = state.decide(eviction);
        (Self { state: Mutex::new(state), changed: Notify::new() }, leaving)
    }

    /// Books `bytes` for an entry of this content.
    ///
    /// # Errors
    /// [`Refusal`], and whether a retry after [`Book::next_change`] is worth it: bytes that nobody needs any more are just
    /// being freed.
    pub(super) fn reserve(&self, name: &str, content: Fingerprint, bytes: u64) -> Result<Reserved, (Refusal, bool)> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let free = |serial: &u32| state.table.get(&EntryId::new(name, content, *serial)).is_none();
        let serial = (0..=u32::MAX).find(free).unwrap_or_default();
        let id = EntryId::new(name, content, serial);
        let now = Instant::now();
        let eviction = state.table.reserve(&id, Weight { bytes, seconds: 0.0 }, now);
        let eviction = eviction.map_err(|refusal| (refusal, state.departing > 0))?;
        state.table.touch(&id, now);
        Ok(Reserved { id, serial, leaving: state.decide(eviction) })
    }

    /// Books another number of bytes for an entry. Where there is no room nothing changes.
    ///
    /// # Errors
    /// As [`Book::reserve`].
    pub(super) fn resize(&self, id: EntryId, bytes: u64) -> Result<Vec<Leaving>, (Refusal, bool)> {
        let mut state = self.state.lock();
        let Some(before) = state.table.get(&id).map(|entry| entry.weight) else { return Ok(Vec::new()) };
        let limit = state.table.limit();
        if bytes > limit && bytes > before.bytes {
            return Err((Refusal::NeverFits { need: bytes, limit }, false));
        }
        let now = Instant::now();
        match state.table.correct(&id, Weight { bytes, ..before }, now) {
            Ok(eviction) => {
                if bytes < before.bytes {
                    self.changed.notify_waiters();
                }
                Ok(state.decide(eviction))
            }
            Err(refusal) => {
                let restored = state.table.correct(&id, before, now);
                debug_assert!(restored.is_ok_and(|eviction| eviction.victims.is_empty()), "it had room before");
                Err((refusal, state.departing > 0))
            }
        }
    }

    /// Bytes booked for an entry.
    pub(super) fn booked(&self, id: EntryId) -> u64 {
        self.state.lock().table.get(&id).map_or(0, |entry| entry.weight.bytes)
    }

    /// The entry is on the disk under its name. It is in use, once, from now on. Older entries of the name leave.
    pub(super) fn publish(&self, id: EntryId, record: Arc<Record>) -> Vec<Leaving> {
        let mut state = self.state.lock();
        let Some(fingerprint) = record.fingerprint() else { return Vec::new() };
        state.table.ready(&id, record.seconds, Instant::now());
        let used = state.table.begin_use(&id);
        debug_assert!(used, "it has just become resident");
        state.sequence += 1;
        let sequence = state.sequence;
        let older = state.names.get(&*record.name).cloned().unwrap_or_default();
        let last_use = SystemTime::now();
        let kept = Arc::clone(&record);
        state.insert(id, Row { record, fingerprint, sequence, last_use, superseded: false, writing: Arc::default() });
        let is_covered =
            |row: &Row| row.fingerprint != fingerprint || row.record.kept.iter().all(|one| kept.kept.contains(one));
        older.into_iter().filter_map(|id| state.supersede(id, is_covered)).collect()
    }

    /// The bytes of an entry are free: unlinked, or never used.
    pub(super) fn gone(&self, leaving: &Leaving) {
        let mut state = self.state.lock();
        state.table.remove(&leaving.id);
        state.departing = state.departing.saturating_sub(1);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Gives a reservation back whose files are gone.
    pub(super) fn release(&self, id: EntryId) {
        self.state.lock().table.remove(&id);
        self.changed.notify_waiters();
    }

    /// Ends when bytes become free, or more are to be unlinked, after this was called.
    pub(super) fn next_change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Wakes who waits for a change.
    pub(super) fn announce(&self) {
        self.changed.notify_waiters();
    }

    /// Bytes that must be freed before what was booked last may be used.
    pub(super) fn overhang(&self) -> u64 {
        self.state.lock().table.overhang()
    }

    /// Takes every entry of this content into use, the newest first.
    pub(super) fn use_content(&self, name: &str, content: Fingerprint) -> Vec<(EntryId, Arc<Record>)> {
        self.use_where(name, |row| row.fingerprint == content)
    }

    /// Whether there is an entry of this content.
    pub(super) fn holds(&self, name: &str, content: Fingerprint) -> bool {
        let state = self.state.lock();
        let mut ids = state.names.get(name).into_iter().flatten();
        ids.any(|id| state.rows.get(id).is_some_and(|row| row.fingerprint == content && !row.superseded))
    }

    /// Takes the entry of `name` that came last into use.
    pub(super) fn use_newest(&self, name: &str) -> Option<(EntryId, Arc<Record>)> {
        let mut state = self.state.lock();
        let id = state.newest(name)?;
        state.begin_use(id)
    }

    fn use_where(&self, name: &str, wanted: impl Fn(&Row) -> bool) -> Vec<(EntryId, Arc<Record>)> {
        let mut state = self.state.lock();
        let mut ids = state.names.get(name).cloned().unwrap_or_default();
        ids.retain(|id| state.rows.get(id).is_some_and(&wanted));
        ids.sort_by_key(|id| std::cmp::Reverse(state.rows.get(id).map(|row| row.sequence)));
        ids.into_iter().filter_map(|id| state.begin_use(id)).collect()
    }

    /// Changes whenever another entry of this content comes.
    pub(super) fn generation(&self, name: &str, content: Fingerprint) -> u64 {
        let state = self.state.lock();
        let ids = state.names.get(name).into_iter().flatten();
        let rows = ids.filter_map(|id| state.rows.get(id)).filter(|row| row.fingerprint == content);
        rows.map(|row| row.sequence).max().unwrap_or_default()
    }

    /// One use more of an entry that is in use.
    pub(super) fn begin_use(&self, id: EntryId) {
        let used = self.state.lock().table.begin_use(&id);
        debug_assert!(used, "an entry in use is resident");
    }

    /// One use less.
    pub(super) fn end_use(&self, id: EntryId) -> Option<Leaving> {
        let mut state = self.state.lock();
        state.table.end_use(&id);
        state.depart_unused(id)
    }

    /// One request for a model.
    pub(super) fn touch(&self, name: &str) {
        let mut state = self.state.lock();
        if let Some(id) = state.newest(name) {
            state.table.touch(&id, Instant::now());
            if let Some(row) = state.rows.get_mut(&id) {
                row.last_use = SystemTime::now();
            }
        }
    }

    /// When an entry was last asked for.
    pub(super) fn last_use(&self, id: EntryId) -> Option<SystemTime> {
        self.state.lock().rows.get(&id).map(|row| row.last_use)
    }

    /// The entries of `name` leave, those in use after their last use.
    pub(super) fn forget(&self, name: &str) -> Vec<Leaving> {
        let mut state = self.state.lock();
        let ids = state.names.get(name).cloned().unwrap_or_default();
        ids.into_iter().filter_map(|id| state.supersede(id, |_| true)).collect()
    }

    pub(super) fn history(&self, id: EntryId, device: &str) -> Option<LoadRecord> {
        self.state.lock().rows.get(&id)?.record.history.get(device).copied()
    }

    pub(super) fn writing(&self, id: EntryId) -> Option<Arc<Mutex<()>>> {
        self.state.lock().rows.get(&id).map(|row| Arc::clone(&row.writing))
    }

    pub(super) fn note_load(&self, id: EntryId, device: &str, load: LoadRecord) {
        if let Some(row) = self.state.lock().rows.get_mut(&id) {
            Arc::make_mut(&mut row.record).history.insert(device.to_owned(), load);
        }
    }

    /// The record as it is now.
    pub(super) fn record(&self, id: EntryId) -> Option<Arc<Record>> {
        self.state.lock().rows.get(&id).map(|row| Arc::clone(&row.record))
    }

    pub(super) fn usage(&self) -> DiskUsage {
        let state = self.state.lock();
        let reserved = state.table.iter().filter(|(_, entry)| entry.stage == Stage::Reserved);
        DiskUsage {
            reserved: reserved.map(|(_, entry)| entry.weight.bytes).sum(),
            evictable: state.table.evictable(Instant::now(), &|_| false),
            limit: state.table.limit(),
            booked: state.table.booked(),
            free: state.table.free(),
            entries: state.rows.len(),
            evictions: state.evictions,
            evicted_bytes: state.evicted_bytes,
        }
    }

    /// Another number when an entry has come or left.
    pub(super) fn stamp(&self) -> u64 {
        let state = self.state.lock();
        state.sequence + state.removed
    }

    /// Bytes that neither an entry nor a reservation has.
    pub(super) fn free(&self) -> u64 {
        self.state.lock().table.free()
    }

    /// Every entry that is there.
    pub(super) fn entries(&self) -> Vec<DiskEntryView> {
        let state = self.state.lock();
        let view = |(id, row): (&EntryId, &Row)| {
            let entry = state.table.get(id)?;
            Some(DiskEntryView {
                name: row.record.name.clone(),
                bytes: entry.weight.bytes,
                fingerprint: row.fingerprint,
                versions: row.record.kept.clone(),
                in_use: entry.users > 0,
                last_use: Some(row.last_use),
                stage: entry.stage,
                progress: None,
            })
        };
        state.rows.iter().filter_map(view).collect()
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.state.lock().departing == 0
    }

    #[cfg(test)]
    pub(super) fn inspect<T>(&self, look: impl FnOnce(&CacheTable<EntryId>) -> T) -> T {
        look(&self.state.lock().table)
    }
}

impl State {
    fn insert(&mut self, id: EntryId, row: Row) {
        self.names.entry(row.record.name.as_str().into()).or_default().push(id);
        self.rows.insert(id, row);
    }

    fn remove(&mut self, id: EntryId) {
        let Some(row) = self.rows.remove(&id) else { return };
        self.removed += 1;
        if let Some(ids) = self.names.get_mut(&*row.record.name) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.names.remove(&*row.record.name);
            }
        }
        self.departing += 1;
    }

    /// Who leaves by a decision of the table is no entry any more.
    fn decide(&mut self, eviction: Eviction<EntryId>) -> Vec<Leaving> {
        let mut leaving = Vec::with_capacity(eviction.victims.len());
        for victim in eviction.victims {
            self.remove(victim.key);
            self.evictions += 1;
            self.evicted_bytes += victim.bytes;
            leaving.push(Leaving { id: victim.key, evicted: Some((victim.bytes, victim.age, victim.idle)) });
        }
        leaving
    }

    fn supersede(&mut self, id: EntryId, wanted: impl Fn(&Row) -> bool) -> Option<Leaving> {
        let row = self.rows.get_mut(&id).filter(|row| wanted(row))?;
        row.superseded = true;
        self.depart_unused(id)
    }

    fn depart_unused(&mut self, id: EntryId) -> Option<Leaving> {
        let is_superseded = self.rows.get(&id).is_some_and(|row| row.superseded);
        let is_unused = self.table.get(&id).is_some_and(|entry| entry.users == 0 && entry.stage == Stage::Resident);
        if !(is_superseded && is_unused) {
            return None;
        }
        self.remove(id);
        // Its bytes are booked until they are free, and nobody else may choose it meanwhile.
        self.table.set_pinned(&id, true);
        Some(Leaving { id, evicted: None })
    }

    fn newest(&self, name: &str) -> Option<EntryId> {
        let sequence = |id: &EntryId| self.rows.get(id).filter(|row| !row.superseded).map(|row| row.sequence);
        self.names.get(name)?.iter().copied().filter(|id| sequence(id).is_some()).max_by_key(sequence)
    }

    fn begin_use(&mut self, id: EntryId) -> Option<(EntryId, Arc<Record>)> {
        let row = self.rows.get_mut(&id).filter(|row| !row.superseded)?;
        let record = Arc::clone(&row.record);
        row.last_use = SystemTime::now();
        self.table.begin_use(&id).then_some((id, record))
    }
}

/// A refusal for the model it concerns.
pub(super) fn refused(name: &str, refusal: Refusal) -> Error {
    let context = match refusal {
        Refusal::NeverFits { need, limit } => format!(
            "model '{name}' takes {need} bytes on the disk or more, and the disk cache may hold {limit}: raise --cache-capacity"
        ),
        Refusal::NoRoom(_) | Refusal::Present => {
            format!("the disk cache has no room for model '{name}' now: try again, or raise --cache-capacity")
        }
    };
    refusal.into_error(ErrorKind::OutOfDisk).wrap(context)
}
