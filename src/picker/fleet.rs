//! What is known of the fleet: by the instances' digests, and between those by the picks and the answers themselves.
//!
//! A digest is up to one interval old. So a pick that has a model brought is taken for a load that has begun, and an answer
//! for a copy that is warm, until a digest that was asked for later says otherwise. Times are the picker's own: no
//! instance's clock counts.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::choice::{Candidate, Choice, Copy, Reason, Standing, choose};
use super::digest::{Digest, Held, Row};
use super::member::{Guess, Member};
use super::model::Model;
use super::ring::{Id, Ring};
use super::share::Warm;

/// How far the ring is walked for a request. Copies elsewhere are found all the same.
const WALK: usize = 8;

/// How much more than its share of the requests an instance may have before it is passed over for models it does not have.
const BOUND: u32 = 2;

/// How long a digest may know nothing of what was picked before it was asked for.
const GRACE: Duration = Duration::from_secs(1);

/// How the fleet is seen.
#[derive(Clone, Copy, Debug)]
pub struct FleetOptions {
    /// How old a digest may be to go by.
    pub stale_after: Duration,
    /// Points of the ring at least.
    pub ring_size: usize,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { stale_after: Duration::from_secs(3), ring_size: 1024 }
    }
}

/// The instances and their models.
#[derive(Debug)]
pub struct Fleet<K> {
    options: FleetOptions,
    /// By id; a place whose instance has gone stays empty.
    members: Vec<Option<Member<K>>>,
    ring: Ring,
    models: HashMap<K, Model>,
    /// Requests of all instances that run or wait for their turn.
    executing: u32,
}

/// A request on its way; to be given back when it is answered or given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket<K> {
    model: K,
    id: Id,
    /// What the instance was taken to have.
    copy: Copy,
    /// Whether it was known to have a copy, by its own word.
    told: bool,
}

/// Who is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picked<K> {
    /// Who, why, and who else.
    pub choice: Choice,
    /// The request, for [`Fleet::finish`].
    pub ticket: Ticket<K>,
}

/// One instance, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Its address.
    pub name: String,
    /// What its word is worth now.
    pub standing: Standing,
    /// Whether it has started.
    pub ready: bool,
    /// Whether it is on its way out.
    pub draining: bool,
    /// How long ago its last digest came.
    pub age: Option<Duration>,
    /// Models it has or brings.
    pub models: usize,
    /// Requests sent there that are not answered.
    pub in_flight: u32,
}

impl<K: Eq + Hash + Clone + Ord> Fleet<K> {
    /// A fleet of nobody.
    #[must_use]
    pub fn new(options: FleetOptions) -> Self {
        Self { options, members: Vec::new(), ring: Ring::default(), models: HashMap::new(), executing: 0 }
    }

    /// The ring has at least so many points once the instances are told again.
    pub const fn set_ring_size(&mut self, least: usize) {
        self.options.ring_size = least;
    }

    /// The instances are these from now on. Those that stay keep what is known of them. Their ids, in the order of `names`.
    pub fn set_members(&mut self, names: &[String]) -> Vec<Id> {
        for id in 0..self.members.len() {
            if self.members[id].as_ref().is_some_and(|member| !names.contains(&member.name)) {
                self.leave(id as Id);
            }
        }
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            let known = self.members.iter().position(|member| member.as_ref().is_some_and(|own| own.name == *name));
            ids.push(known.unwrap_or_else(|| {
                self.members.push(Some(Member::new(name.clone())));
                self.members.len() - 1
            }) as Id);
        }
        let there = self.members.iter().enumerate();
        let there: Vec<_> = there.filter_map(|(id, member)| Some((id as Id, member.as_ref()?.name.as_str()))).collect();
        self.ring = Ring::new(&there, self.options.ring_size);
        ids
    }

    /// Forgets what is known of an instance that has gone.
    fn leave(&mut self, id: Id) {
        let Some(member) = self.members[id as usize].take() else { return };
        self.executing = self.executing.saturating_sub(member.executing());
        for key in member.held {
            if let Some(model) = self.models.get_mut(&key) {
                model.holders.retain(|holder| holder.id != id);
                if model.is_over() {
                    self.models.remove(&key);
                }
            }
        }
    }

    /// An instance's address.
    #[must_use]
    pub fn name(&self, id: Id) -> Option<&str> {
        Some(self.member(id)?.name.as_str())
    }

    /// The instance at an address.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Id> {
        let at = self.members.iter().position(|member| member.as_ref().is_some_and(|own| own.name == name))?;
        Some(at as Id)
    }

    fn member(&self, id: Id) -> Option<&Member<K>> {
        self.members.get(id as usize)?.as_ref()
    }

    fn member_mut(&mut self, id: Id) -> Option<&mut Member<K>> {
        self.members.get_mut(id as usize)?.as_mut()
    }

    // === what instances say ===

    /// Takes over a digest that was asked for at `asked` and came at `now`.
    pub fn hear(&mut self, id: Id, digest: &Digest<K>, asked: Instant, now: Instant) {
        let Some(member) = self.members.get_mut(id as usize).and_then(Option::as_mut) else { return };
        member.hear(digest, now);
        for key in std::mem::take(&mut member.busy) {
            if let Some(holder) = self.models.get_mut(&key).and_then(|model| model.holder_mut(id)) {
                holder.others = 0;
            }
        }
        let guesses = std::mem::take(&mut member.guesses);
        if digest.complete {
            let listed: HashSet<&K> = digest.rows.iter().map(|row| &row.model).collect();
            let gone: Vec<K> = member.held.iter().filter(|key| !listed.contains(key)).cloned().collect();
            for key in gone {
                self.lose(id, &key, asked, now);
            }
        }
        for row in &digest.rows {
            self.hear_row(id, row, asked, now);
        }
        for guess in guesses {
            let holder = self.models.get(&guess.model).and_then(|model| model.holder(id));
            if holder.is_none_or(|holder| holder.guessed != Some(guess.at)) {
                // Told by now.
                continue;
            }
            if asked.saturating_duration_since(guess.at) >= GRACE {
                self.lose(id, &guess.model, asked, now);
            } else if let Some(member) = self.member_mut(id) {
                member.guesses.push(guess);
            }
        }
    }

    fn hear_row(&mut self, id: Id, row: &Row<K>, asked: Instant, now: Instant) {
        let copy = match row.held {
            Held::Ready => Copy::Warm,
            Held::Loading => Copy::Loading,
            Held::Gone => return self.lose(id, &row.model, asked, now),
        };
        let Some(member) = self.members.get_mut(id as usize).and_then(Option::as_mut) else { return };
        let model = self.models.entry(row.model.clone()).or_insert_with(|| Model::new(now));
        model.advance(now);
        if row.load_seconds > 0.0 {
            // Each digest tells it anew of a model in use, and it is one load.
            if model.load_seconds.to_bits() != row.load_seconds.to_bits() {
                member.hear_load(row.load_seconds);
            }
            model.load_seconds = row.load_seconds;
        }
        let holder = model.enter(id);
        // An answer from there that came after the digest was asked for is the younger word.
        let is_newer = holder.guessed.is_some_and(|guessed| guessed > asked) && holder.copy == Copy::Warm;
        if !is_newer {
            (holder.copy, holder.guessed) = (copy, None);
        }
        (holder.parallel, holder.uses) = (row.parallel.max(1), row.uses);
        holder.others = row.in_use.saturating_sub(holder.own);
        if holder.others > 0 {
            member.busy.push(row.model.clone());
        }
        member.held.insert(row.model.clone());
    }

    /// A model is not where it was, unless a guess is younger than that.
    fn lose(&mut self, id: Id, key: &K, asked: Instant, now: Instant) {
        let Some(member) = self.members.get_mut(id as usize).and_then(Option::as_mut) else { return };
        let Some(model) = self.models.get_mut(key) else {
            member.held.remove(key);
            return;
        };
        model.advance(now);
        let Some(holder) = model.holder_mut(id) else {
            member.held.remove(key);
            return;
        };
        if holder.guessed.is_some_and(|guessed| asked.saturating_duration_since(guessed) < GRACE) {
            return;
        }
        (holder.copy, holder.guessed, holder.others) = (Copy::Absent, None, 0);
        self.forget_idle(id, key);
    }

    /// Forgets a holder that has nothing and answers nobody.
    fn forget_idle(&mut self, id: Id, key: &K) {
        let Some(model) = self.models.get_mut(key) else { return };
        model.holders.retain(|holder| holder.id != id || holder.copy != Copy::Absent || holder.own > 0);
        if model.holder(id).is_none() {
            if let Some(member) = self.members.get_mut(id as usize).and_then(Option::as_mut) {
                member.held.remove(key);
            }
            if self.models.get(key).is_some_and(Model::is_over) {
                self.models.remove(key);
            }
        }
    }

    /// An instance refused the connection, or cannot be found.
    pub fn refused(&mut self, id: Id) {
        if let Some(member) = self.member_mut(id) {
            member.down = true;
        }
    }

    /// An instance is there, but what it says is of no use: it goes stale in its time.
    pub fn babbled(&mut self, id: Id) {
        if let Some(member) = self.member_mut(id) {
            member.down = false;
        }
    }

    // === requests ===

    /// Picks an instance for a request for `key`, whose hash is `hash`, among those that `allowed` lets through. `None`
    /// where there is nobody.
    pub fn pick(&mut self, key: &K, hash: u64, now: Instant, allowed: impl Fn(Id) -> bool) -> Option<Picked<K>> {
        if let Some(model) = self.models.get_mut(key) {
            model.advance(now);
        }
        let candidates = self.candidates(key, hash, now, allowed);
        let pays = self.models.get(key).is_some_and(Model::pays);
        let choice = choose(&candidates, pays)?;
        let id = *choice.order.first()?;
        let copy = candidates.iter().find(|candidate| candidate.id == id).map_or(Copy::Absent, |found| found.copy);
        let ticket = self.send(key, id, copy, choice.reason, now);
        Some(Picked { choice, ticket })
    }

    /// The candidates in the order of the ring, and after those further copies.
    fn candidates(
        &self,
        key: &K,
        hash: u64,
        now: Instant,
        allowed: impl Fn(Id) -> bool,
    ) -> SmallVec<[Candidate; WALK]> {
        let holders = self.models.get(key).map(|model| model.holders.as_slice()).unwrap_or_default();
        let mut ids = self.ring.walk(hash, if self.ring.len() <= 2 * WALK { self.ring.len() } else { WALK });
        // Where a choice is restricted, who is allowed may stand far off.
        if !ids.iter().any(|id| allowed(*id)) {
            ids = self.ring.walk(hash, self.ring.len());
        }
        let mut further: SmallVec<[Id; 4]> =
            holders.iter().map(|holder| holder.id).filter(|id| !ids.contains(id)).collect();
        further.sort_unstable();
        ids.extend(further);
        let share = (BOUND * (self.executing + 1)).div_ceil(u32::try_from(self.ring.len().max(1)).unwrap_or(1));
        let candidate = |id: Id| {
            let member = self.member(id)?;
            let holder = holders.iter().find(|holder| holder.id == id);
            let standing = member.standing(now, self.options.stale_after);
            let is_known = standing == Standing::Fresh;
            Some(Candidate {
                id,
                standing,
                closed: is_known && (member.draining || !member.ready),
                copy: holder.filter(|_| is_known).map_or(Copy::Absent, |holder| holder.copy),
                queue: holder.map_or(0.0, |holder| holder.queue()),
                has_load_place: member.has_load_place(now),
                over_share: member.executing() + 1 > share,
            })
        };
        ids.into_iter().filter(|id| allowed(*id)).filter_map(candidate).collect()
    }

    fn send(&mut self, key: &K, id: Id, copy: Copy, reason: Reason, now: Instant) -> Ticket<K> {
        let model = self.models.entry(key.clone()).or_insert_with(|| Model::new(now));
        if reason == Reason::Copy {
            model.pay();
        }
        let holder = model.enter(id);
        let told = copy == Copy::Warm && holder.guessed.is_none();
        holder.own += 1;
        let begins = copy == Copy::Absent && holder.copy == Copy::Absent && reason != Reason::Last;
        if begins {
            (holder.copy, holder.guessed) = (Copy::Loading, Some(now));
        }
        if let Some(member) = self.members.get_mut(id as usize).and_then(Option::as_mut) {
            member.held.insert(key.clone());
            member.in_flight += 1;
            self.executing += 1;
            if begins {
                member.guesses.push(Guess { model: key.clone(), at: now, loads: true });
            }
            if copy == Copy::Loading || begins && reason != Reason::Ring {
                member.waiting += 1;
                self.executing -= 1;
            }
        }
        let copy = if copy == Copy::Absent && reason != Reason::Ring && begins { Copy::Loading } else { copy };
        Ticket { model: key.clone(), id, copy, told }
    }

    /// The answer to a request has begun: `by` whom, where that is known, and whether the model was in memory there.
    pub fn answered(&mut self, ticket: &Ticket<K>, by: Option<Id>, was_warm: bool, now: Instant) {
        let Some(by) = by else { return };
        let Some(member) = self.members.get_mut(by as usize).and_then(Option::as_mut) else { return };
        if by == ticket.id && ticket.told {
            member.proved(was_warm, now);
        }
        let model = self.models.entry(ticket.model.clone()).or_insert_with(|| Model::new(now));
        model.advance(now);
        let holder = model.enter(by);
        if holder.copy != Copy::Warm {
            (holder.copy, holder.guessed) = (Copy::Warm, Some(now));
            member.guesses.retain(|guess| guess.model != ticket.model);
            member.guesses.push(Guess { model: ticket.model.clone(), at: now, loads: false });
        }
        member.held.insert(ticket.model.clone());
    }

    /// A request is answered, or nobody waits for its answer any more.
    pub fn finish(&mut self, ticket: &Ticket<K>, now: Instant) {
        if let Some(member) = self.members.get_mut(ticket.id as usize).and_then(Option::as_mut) {
            let before = member.executing();
            member.in_flight = member.in_flight.saturating_sub(1);
            if ticket.copy == Copy::Loading {
                member.waiting = member.waiting.saturating_sub(1);
            }
            self.executing = (self.executing + member.executing()).saturating_sub(before);
        }
        if let Some(model) = self.models.get_mut(&ticket.model) {
            model.advance(now);
            if let Some(holder) = model.holder_mut(ticket.id) {
                holder.own = holder.own.saturating_sub(1);
            }
        }
        self.forget_idle(ticket.id, &ticket.model);
    }

    // === for people, and for neighbours ===

    /// What is known of each instance, in the order they came.
    #[must_use]
    pub fn overview(&self, now: Instant) -> Vec<Overview> {
        let row = |member: &Member<K>| Overview {
            name: member.name.clone(),
            standing: member.standing(now, self.options.stale_after),
            ready: member.ready,
            draining: member.draining,
            age: member.heard.map(|heard| now.saturating_duration_since(heard)),
            models: member.held.len(),
            in_flight: member.in_flight,
        };
        self.members.iter().flatten().map(row).collect()
    }

    /// Whether any instance's word can be gone by.
    #[must_use]
    pub fn knows_anybody(&self, now: Instant) -> bool {
        let fresh = |member: &Member<K>| member.standing(now, self.options.stale_after) == Standing::Fresh;
        self.members.iter().flatten().any(fresh)
    }

    /// The models that are warm somewhere, as far as instances are believed now.
    #[must_use]
    pub fn warm(&self, now: Instant) -> Warm<K> {
        let is_believed = |id: Id| {
            self.member(id).is_some_and(|member| member.standing(now, self.options.stale_after) == Standing::Fresh)
        };
        let models = self.models.iter().filter_map(|(key, model)| {
            let copies = || model.holders.iter().filter(|holder| holder.copy == Copy::Warm && is_believed(holder.id));
            let uses = copies().fold(0_u64, |sum, holder| sum.saturating_add(holder.uses));
            copies().next().map(|_| (key.clone(), uses))
        });
        Warm {
            models: models.collect(),
            names: self.members.iter().flatten().map(|member| member.name.clone()).collect(),
            ring_size: self.options.ring_size,
        }
    }

    /// Models that go with an instance on its way out and are nowhere else, and whose they will be: the most used first.
    #[must_use]
    pub fn heirs(&self, id: Id, hash: impl Fn(&K) -> u64, most: usize, now: Instant) -> Vec<(K, Id)> {
        let Some(leaver) = self.member(id) else { return Vec::new() };
        let stays = |id: Id| {
            self.member(id).is_some_and(|member| {
                !member.draining && member.ready && member.standing(now, self.options.stale_after) == Standing::Fresh
            })
        };
        let mut models: Vec<_> = leaver
            .held
            .iter()
            .filter_map(|key| {
                let model = self.models.get(key)?;
                let own = model.holder(id).filter(|holder| holder.copy == Copy::Warm)?;
                let is_alone = !model.holders.iter().any(|holder| holder.copy != Copy::Absent && stays(holder.id));
                is_alone.then_some((own.uses, key))
            })
            .collect();
        models.sort_unstable_by(|one, other| other.0.cmp(&one.0).then(one.1.cmp(other.1)));
        let heir = |key: &K| self.ring.walk(hash(key), self.ring.len()).into_iter().find(|id| stays(*id));
        models.into_iter().take(most).filter_map(|(_, key)| Some((key.clone(), heir(key)?))).collect()
    }
}

#[cfg(test)]
mod tests;
