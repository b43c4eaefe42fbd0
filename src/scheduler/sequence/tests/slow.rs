//! Sequences without a heap, a map or a thought for time.

use std::time::Instant;

use super::{Ask, Batched, Choice, Picked, Refused, SequenceId, SequenceRules, Sequenced};

struct Tenant {
    id: SequenceId,
    /// Whether its last request is yet to come.
    is_open: bool,
    queue: Vec<Ask>,
    /// What was taken to run.
    runs: Option<Ask>,
    state: Option<u32>,
    used: Instant,
}

pub(super) struct Waiting {
    id: SequenceId,
    is_open: bool,
    queue: Vec<Ask>,
}

/// The sequences of a model.
pub(super) struct Slow {
    rules: SequenceRules,
    lanes: Vec<Vec<Option<Tenant>>>,
    lost: Vec<bool>,
    /// Slots by the time at which their first request became one, for each lane.
    turns: Vec<Vec<usize>>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) ended: Vec<Ask>,
}

impl Slow {
    pub(super) fn new(rules: &SequenceRules, lanes: usize) -> Self {
        Self {
            rules: rules.clone(),
            lanes: (0..lanes).map(|_| (0..rules.slots).map(|_| None).collect()).collect(),
            lost: vec![false; lanes],
            turns: vec![Vec::new(); lanes],
            waiting: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.lanes.iter().flatten().flatten()
    }

    pub(super) fn len(&self) -> usize {
        let held: usize = self.tenants().map(|tenant| tenant.queue.len()).sum();
        held + self.waiting.iter().map(|waiting| waiting.queue.len()).sum::<usize>()
    }

    pub(super) fn live(&self) -> usize {
        self.tenants().count()
    }

    pub(super) fn push(&mut self, ask: Ask, now: Instant) -> Result<Option<usize>, Refused> {
        let sequence = ask.sequence().clone();
        let is_known = |slow: &Self| {
            slow.tenants().any(|tenant| tenant.is_open && tenant.id == sequence.id)
                || slow.waiting.iter().any(|waiting| waiting.is_open && waiting.id == sequence.id)
        };
        if !is_known(self) && !sequence.start {
            return Err(Refused::NotStarted);
        }
        if self.len() >= self.rules.capacity {
            self.sweep(now);
        }
        if self.len() >= self.rules.capacity {
            return Err(Refused::Full);
        }
        if self.lost.iter().all(|lost| *lost) {
            return Err(Refused::NoInstance);
        }
        if !is_known(self) && !sequence.start {
            return Err(Refused::NotStarted);
        }
        for lane in 0..self.lanes.len() {
            for slot in 0..self.lanes[lane].len() {
                let Some(tenant) = &mut self.lanes[lane][slot] else { continue };
                if tenant.is_open && tenant.id == sequence.id {
                    tenant.queue.push(ask);
                    tenant.is_open = !sequence.end;
                    tenant.used = now;
                    self.stand_in_line(lane, slot);
                    return Ok(Some(lane));
                }
            }
        }
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.is_open && waiting.id == sequence.id) {
            waiting.queue.push(ask);
            waiting.is_open = !sequence.end;
            return Ok(None);
        }
        let new = Waiting { id: sequence.id.clone(), is_open: !sequence.end, queue: vec![ask] };
        for slot in 0..self.rules.slots as usize {
            for lane in 0..self.lanes.len() {
                if !self.lost[lane] && self.lanes[lane][slot].is_none() {
                    self.settle(lane, slot, new, now);
                    return Ok(Some(lane));
                }
            }
        }
        self.waiting.push(new);
        Ok(None)
    }

    fn settle(&mut self, lane: usize, slot: usize, new: Waiting, now: Instant) {
        let Waiting { id, is_open, queue } = new;
        self.lanes[lane][slot] = Some(Tenant { id, is_open, queue, runs: None, state: None, used: now });
        self.stand_in_line(lane, slot);
    }

    fn stand_in_line(&mut self, lane: usize, slot: usize) {
        let is_ready = |tenant: &Tenant| tenant.runs.is_none() && !tenant.queue.is_empty();
        if self.lanes[lane][slot].as_ref().is_some_and(is_ready) && !self.turns[lane].contains(&slot) {
            self.turns[lane].push(slot);
        }
    }

    fn release(&mut self, lane: usize, slot: usize, now: Instant) {
        self.lanes[lane][slot] = None;
        self.turns[lane].retain(|turn| *turn != slot);
        while !self.waiting.is_empty() {
            let first = self.waiting.remove(0);
            if first.queue.iter().any(Batched::is_gone) {
                self.ended.extend(first.queue);
                continue;
            }
            self.settle(lane, slot, first, now);
            return;
        }
    }

    /// The first request of a slot is gone: the rest up to a fresh start is of no use.
    fn cut(&mut self, lane: usize, slot: usize, now: Instant) {
        self.turns[lane].retain(|turn| *turn != slot);
        let tenant = self.lanes[lane][slot].as_mut().unwrap();
        let rest =
            tenant.queue.iter().skip(1).position(|ask| ask.sequence.start).map_or(tenant.queue.len(), |at| at + 1);
        self.ended.extend(tenant.queue.drain(..rest));
        if tenant.queue.is_empty() {
            self.release(lane, slot, now);
        } else {
            self.stand_in_line(lane, slot);
        }
    }

    fn is_direct(&self) -> bool {
        matches!(self.rules.choice, Choice::Direct { .. })
    }

    fn has_gone(&self, lane: usize, slot: usize) -> bool {
        let Some(tenant) = &self.lanes[lane][slot] else { return false };
        tenant.runs.is_none() && tenant.queue.first().is_some_and(Batched::is_gone)
    }

    /// Ends what was given up, for room.
    fn sweep(&mut self, now: Instant) {
        let (gone, kept) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting: &Waiting| waiting.queue.iter().any(Batched::is_gone));
        self.waiting = kept;
        let gone: Vec<Waiting> = gone;
        self.ended.extend(gone.into_iter().flat_map(|waiting| waiting.queue));
        if self.is_direct() {
            for lane in 0..self.lanes.len() {
                let slots: Vec<_> = (0..self.lanes[lane].len()).filter(|slot| self.has_gone(lane, *slot)).collect();
                for slot in slots {
                    self.cut(lane, slot, now);
                }
            }
        }
    }

    pub(super) fn next(&mut self, lane: usize, now: Instant) -> Picked {
        if self.lost[lane] {
            return Vec::new();
        }
        loop {
            let mut line = self.turns[lane].clone();
            let most = match &self.rules.choice {
                Choice::Direct { .. } => {
                    line.sort_unstable();
                    // All that are gone are gone before one runs.
                    if let Some(slot) = line.iter().copied().find(|slot| self.has_gone(lane, *slot)) {
                        self.cut(lane, slot, now);
                        continue;
                    }
                    usize::MAX
                }
                Choice::Oldest(rules) => rules.max_items.max(1) as usize,
            };
            let Some(first) = line.first() else { return Vec::new() };
            let kind = |slot: usize| self.lanes[lane][slot].as_ref().unwrap().queue[0].kind;
            let wanted = kind(*first);
            let taken: Vec<usize> = if self.is_direct() {
                line.iter().copied().filter(|slot| kind(*slot) == wanted).collect()
            } else {
                line.iter().copied().take_while(|slot| kind(*slot) == wanted).take(most).collect()
            };
            let mut rows = Picked::new();
            let mut gone = Vec::new();
            for slot in taken {
                if self.has_gone(lane, slot) {
                    gone.push(slot);
                    continue;
                }
                self.turns[lane].retain(|turn| *turn != slot);
                let is_direct = self.is_direct();
                let tenant = self.lanes[lane][slot].as_mut().unwrap();
                let ask = tenant.queue.remove(0);
                let state = tenant.state.filter(|_| !ask.sequence.start);
                tenant.state = state;
                while is_direct && rows.len() < slot {
                    rows.push((rows.len() as u32, None, None));
                }
                rows.push((slot as u32, Some(ask.number), state));
                tenant.runs = Some(ask);
            }
            for slot in &gone {
                self.cut(lane, *slot, now);
            }
            if !rows.is_empty() || gone.is_empty() {
                return rows;
            }
        }
    }

    /// These slots, in this order, were answered.
    pub(super) fn done(&mut self, lane: usize, slots: &[u32], now: Instant) {
        for slot in slots.iter().map(|slot| *slot as usize) {
            let Some(tenant) = &mut self.lanes[lane][slot] else { continue };
            let Some(ask) = tenant.runs.take() else { continue };
            tenant.state = Some(tenant.state.unwrap_or(0) + 1);
            tenant.used = now;
            if ask.sequence.end { self.release(lane, slot, now) } else { self.stand_in_line(lane, slot) }
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        loop {
            let mut due = Vec::new();
            for (lane, slots) in self.lanes.iter().enumerate() {
                for (slot, tenant) in slots.iter().enumerate() {
                    let Some(tenant) = tenant else { continue };
                    let is_silent = tenant.runs.is_none() && tenant.queue.is_empty();
                    if is_silent && tenant.used + self.rules.idle <= now {
                        due.push((tenant.used, lane, slot));
                    }
                }
            }
            let Some((_, lane, slot)) = due.into_iter().min() else { return };
            self.release(lane, slot, now);
        }
    }

    pub(super) fn lose(&mut self, lane: usize) {
        self.lost[lane] = true;
        self.turns[lane].clear();
        for tenant in self.lanes[lane].iter_mut().filter_map(Option::take) {
            self.ended.extend(tenant.queue);
        }
        if self.lost.iter().all(|lost| *lost) {
            self.ended.extend(std::mem::take(&mut self.waiting).into_iter().flat_map(|waiting| waiting.queue));
        }
    }
}
