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
use crate::backend::ModelInstance;

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
#[derive(Default)]
pub(super) struct Group {
    pub(super) idle: Vec<Box<dyn ModelInstance>>,
    /// Turns asked of the executor that have not begun; never more than there are idle instances to take them.
    pub(super) asked: usize,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) batcher: Option<Batcher<Job>>,
    pub(super) groups: SmallVec<[Group; 1]>,
    /// Instances there are, idle or running; fewer than at the start only if one panicked and could not be replaced.
    pub(super) instances: usize,
    /// When an executor was asked to look again.
    pub(super) reminder: Option<Instant>,
    /// Learns how long to wait for company, where the model says by when it must answer.
    pub(super) budget: Option<Budget>,
    /// Whether nobody waits for company any more.
    pub(super) is_hastened: bool,
}

/// What an executor is to be asked.
pub(super) enum Ask {
    Turn(usize),
    Reminder(usize, Instant),
}

impl State {
    pub(super) fn delay(&self, now: Instant) -> Duration {
        let Some(batcher) = self.batcher.as_ref().filter(|_| !self.is_hastened) else { return Duration::ZERO };
        match (&self.budget, batcher.oldest()) {
            (Some(budget), Some(oldest)) => budget.delay(now, batcher.items(), oldest),
            _ => batcher.rules().delay,
        }
    }

    /// What to ask of an executor now, and counts it.
    pub(super) fn ask(&mut self, now: Instant) -> Option<Ask> {
        let spare = |(_, group): &(usize, &Group)| group.idle.len().saturating_sub(group.asked);
        let (index, group) = self.groups.iter().enumerate().max_by_key(spare)?;
        if group.idle.len() <= group.asked {
            return None;
        }
        let asked: usize = self.groups.iter().map(|group| group.asked).sum();
        let delay = self.delay(now);
        let batcher = self.batcher.as_mut()?;
        if asked >= batcher.batches() {
            return None;
        }
        match batcher.due(now, delay) {
            Due::Now => {
                self.groups[index].asked += 1;
                Some(Ask::Turn(index))
            }
            Due::At(at) if self.reminder.is_none_or(|reminder| at < reminder) => {
                self.reminder = Some(at);
                Some(Ask::Reminder(index, at))
            }
            Due::At(_) | Due::Never => None,
        }
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
