//! What waits, which instances are idle, and what is to be asked of an executor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::super::answer::{Reply, Wait};
use super::super::batcher::{Batched, Batcher, Due};
use super::super::budget::Budget;
use super::super::layout::Likeness;
use super::super::order::Place;
use super::super::work::Work;
use super::scheduling::MemberId;
use crate::backend::{Model, ModelInstance};

/// A request that waits or runs.
pub(in crate::scheduler) struct Job {
    pub(in crate::scheduler) work: Work,
    pub(super) likeness: Likeness,
    /// Its place among the answers, where they leave in order.
    pub(super) place: Option<Place>,
    pub(in crate::scheduler) reply: Reply,
    /// Told when it begins, where its time in the queue is bounded.
    pub(super) wait: Option<Arc<Wait>>,
}

impl Job {
    /// It is about to run: its time in the queue is over well.
    pub(super) fn begin(&self) {
        if let Some(wait) = &self.wait {
            wait.begin();
        }
    }
}

impl Batched for Job {
    fn items(&self) -> u32 {
        u32::try_from(self.work.batch_size).unwrap_or(u32::MAX)
    }

    fn is_gone(&self) -> bool {
        self.reply.is_closed() || self.wait.as_ref().is_some_and(|wait| wait.is_left())
    }

    fn fits(&self, first: &Self) -> bool {
        self.likeness == first.likeness
    }
}

/// The instances of one member.
pub(super) struct Group {
    pub(super) id: MemberId,
    /// What another instance is made of.
    pub(super) model: Arc<dyn Model>,
    /// Whose threads run it: groups at one device have the same.
    pub(super) line: usize,
    pub(super) idle: Vec<Box<dyn ModelInstance>>,
    /// Turns asked of the executor that have not begun; more than idle instances only where some of those left.
    pub(super) asked: usize,
    /// Instances there are, idle or running; fewer than were made if one panicked and could not be replaced.
    pub(super) total: usize,
    /// How many of them are to go as soon as they are idle.
    pub(super) surplus: usize,
    /// Those that went, until somebody drops them where that may take its time.
    pub(super) gone: Vec<Box<dyn ModelInstance>>,
    /// Whether nothing of it is to stay.
    pub(super) is_leaving: bool,
}

impl Group {
    fn spare(&self) -> usize {
        self.idle.len().saturating_sub(self.asked)
    }

    /// Turns that were asked for and have an instance to take them.
    fn open(&self) -> usize {
        self.asked.min(self.idle.len())
    }

    /// Lets so many instances go: those that are idle now, the others when they come back.
    pub(super) fn shrink(&mut self, count: usize) {
        self.surplus = (self.surplus + count).min(self.total);
        while self.surplus > 0
            && let Some(instance) = self.idle.pop()
        {
            self.part(instance);
        }
    }

    fn part(&mut self, instance: Box<dyn ModelInstance>) {
        self.gone.push(instance);
        self.surplus -= 1;
        self.total -= 1;
    }

    /// An instance came back, or was lost; whether it is one that was to go.
    fn put_back(&mut self, instance: Option<Box<dyn ModelInstance>>) -> bool {
        let was_to_go = self.surplus > 0;
        match instance {
            Some(instance) if was_to_go => self.part(instance),
            Some(instance) => self.idle.push(instance),
            None => {
                self.total = self.total.saturating_sub(1);
                self.surplus = self.surplus.saturating_sub(1);
            }
        }
        was_to_go
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) batcher: Option<Batcher<Job>>,
    /// Ascending by their ids.
    pub(super) groups: SmallVec<[Group; 1]>,
    /// The id of the next one.
    pub(super) next_id: MemberId,
    /// When an executor was asked to look again.
    pub(super) reminder: Option<Instant>,
    /// Learns how long to wait for company, where the model says by when it must answer.
    pub(super) budget: Option<Budget>,
    /// Whether nobody waits for company any more.
    pub(super) is_hastened: bool,
}

/// What an executor is to be asked.
pub(super) enum Ask {
    Turn(MemberId),
    Reminder(MemberId, Instant),
}

impl State {
    pub(super) fn delay(&self, now: Instant) -> Duration {
        let Some(batcher) = self.batcher.as_ref().filter(|_| !self.is_hastened) else { return Duration::ZERO };
        match (&self.budget, batcher.oldest()) {
            (Some(budget), Some(oldest)) => budget.delay(now, batcher.items(), oldest),
            _ => batcher.rules().delay,
        }
    }

    pub(super) fn group_mut(&mut self, id: MemberId) -> Option<&mut Group> {
        let at = self.groups.binary_search_by_key(&id, |group| group.id).ok()?;
        self.groups.get_mut(at)
    }

    /// Instances that requests may hope for.
    pub(super) fn serving(&self) -> usize {
        self.groups.iter().map(|group| group.total - group.surplus).sum()
    }

    /// Instances came or go: who learns from their number is told.
    pub(super) fn count_instances(&mut self) {
        let serving = self.serving();
        if let Some(budget) = &mut self.budget {
            budget.set_instances(serving);
        }
    }

    /// Whether an instance is idle that nobody was asked to run.
    pub(super) fn has_spare(&self) -> bool {
        self.groups.iter().any(|group| group.spare() > 0)
    }

    /// An instance came back to its group, or was lost; whether it is one that was to go.
    pub(super) fn put_back(&mut self, id: MemberId, instance: Option<Box<dyn ModelInstance>>) -> bool {
        self.group_mut(id).is_some_and(|group| group.put_back(instance))
    }

    /// What to ask of an executor now, and counts it.
    pub(super) fn ask(&mut self, now: Instant) -> Option<Ask> {
        let delay = self.delay(now);
        let batches = self.batcher.as_ref()?.batches();
        let index = self.next_group(batches)?;
        let group = &mut self.groups[index];
        match self.batcher.as_mut()?.due(now, delay) {
            Due::Now => {
                group.asked += 1;
                Some(Ask::Turn(group.id))
            }
            Due::At(at) if self.reminder.is_none_or(|reminder| at < reminder) => {
                self.reminder = Some(at);
                Some(Ask::Reminder(group.id, at))
            }
            Due::At(_) | Due::Never => None,
        }
    }

    /// The group with the most instances to spare, at a device that was asked for fewer turns than there are batches. A
    /// batch is for whichever device comes to it first: one may be busy with other models.
    fn next_group(&self, batches: usize) -> Option<usize> {
        let asked_at =
            |line: usize| -> usize { self.groups.iter().filter(|group| group.line == line).map(Group::open).sum() };
        let found = self.groups.iter().enumerate().filter(|(_, group)| group.spare() > 0);
        let found = found.filter(|(_, group)| asked_at(group.line) < batches);
        found.max_by_key(|(_, group)| group.spare()).map(|(index, _)| index)
    }
}

/// How a turn came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scheduler) enum Turn {
    /// It was asked for.
    Asked,
    /// What waited may have waited long enough.
    Reminded,
}
