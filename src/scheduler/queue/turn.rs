//! A queue's turn on a device's thread: the batch that is due, run and answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use smallvec::SmallVec;

use super::super::answer::Patience;
use super::super::batcher::{Batched, Batcher, Entry, Next};
use super::super::order::Place;
use super::super::work::Work;
use super::{Ask, Job, MemberId, ModelQueue, Turn, deadline_exceeded, no_instance};
use crate::backend::ModelInstance;
use crate::error::Result;
use crate::inference::NamedTensors;

impl ModelQueue {
    /// A reminder came for a group that cannot take its turn yet; it stands in line as if it had been asked.
    pub(in crate::scheduler) fn reminded(&self, group: MemberId) {
        if let Some(sequences) = &self.sequences {
            return sequences.reminded(group);
        }
        let mut state = self.state.lock();
        state.reminder = None;
        if let Some(group) = state.group_mut(group) {
            group.asked += 1;
        }
    }

    /// One turn on a device's thread: the batch that is due. Says whether the same group wants another.
    pub(in crate::scheduler) fn turn(self: &Arc<Self>, group: MemberId, turn: Turn) -> bool {
        if let Some(sequences) = &self.sequences {
            return sequences.turn(self, group, turn);
        }
        let pinned = self.pin();
        let mut given = None;
        let mut more = None;
        let expired;
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            if turn == Turn::Reminded {
                state.reminder = None;
            }
            // A queue that was closed meanwhile has nothing asked, a member that left nothing to do.
            let Some(own) = state.group_mut(group) else { return false };
            if turn == Turn::Asked {
                own.asked = own.asked.saturating_sub(1);
            }
            if pinned.is_none() {
                return false;
            }
            let is_able = !own.idle.is_empty();
            let now = Instant::now();
            let delay = state.delay(now);
            let Some(batcher) = &mut state.batcher else { return false };
            batcher.given_up(self.given_up.swap(0, Ordering::Relaxed));
            // The short way may have taken the instance, or it left; others may be idle.
            let next = if is_able { Some(batcher.next(now, delay)) } else { None };
            match next {
                Some(Next::Batch(batch)) => {
                    given = state.group_mut(group).and_then(|own| own.idle.pop()).map(|instance| (batch, instance));
                }
                Some(Next::Wait(at)) => {
                    if state.reminder.is_none_or(|reminder| at < reminder) {
                        state.reminder = Some(at);
                        more = Some(Ask::Reminder(group, at));
                    }
                }
                Some(Next::Nothing) => {}
                None => more = state.ask(now),
            }
            expired = state.batcher.as_mut().map(Batcher::take_expired).unwrap_or_default();
        }
        for entry in expired {
            // The caller, who watches the same deadline, counts it.
            self.answer(entry.request, Err(deadline_exceeded()));
        }
        if let Some(ask) = more {
            self.carry_out(ask);
        }
        let Some((batch, instance)) = given else { return false };
        let items = batch.iter().map(|entry| entry.request.items()).fold(0, u32::saturating_add);
        let began = Instant::now();
        let instance = self.run(instance, batch, group);
        let ran = began.elapsed();
        if let Some(budget) = &mut self.state.lock().budget {
            budget.observe_run(items, ran);
        }
        match self.take_back(instance, group) {
            Some(Ask::Turn(asked)) if asked == group => true,
            Some(ask) => {
                self.carry_out(ask);
                false
            }
            None => false,
        }
    }

    /// Runs a batch and answers its requests; the instance comes back unless it panicked beyond repair.
    fn run(
        self: &Arc<Self>,
        instance: Box<dyn ModelInstance>,
        batch: Vec<Entry<Job>>,
        group: MemberId,
    ) -> Option<Box<dyn ModelInstance>> {
        for entry in &batch {
            entry.request.begin();
        }
        if self.decoupled {
            let mut instance = Some(instance);
            for Entry { request, queued, .. } in batch {
                let Some(running) = instance.take() else {
                    self.answer(request, Err(no_instance()));
                    continue;
                };
                instance = self.stream(running, request, queued, group);
            }
            return instance;
        }
        let replace = |broken| self.replace(broken, group);
        let (jobs, queued): (SmallVec<[Job; 8]>, SmallVec<[Instant; 8]>) =
            batch.into_iter().map(|entry| (entry.request, entry.queued)).unzip();
        let (left, results) = {
            let works: SmallVec<[&Work; 8]> = jobs.iter().map(|job| &job.work).collect();
            let is_gone = |index: usize| jobs.get(index).is_none_or(Job::is_gone);
            self.runner.run(Some(instance), &works, &queued, &is_gone, &replace)
        };
        for (job, result) in jobs.into_iter().zip(results) {
            self.answer(job, result);
        }
        left
    }

    /// Runs the request of a decoupled model, whose answers go where they are read.
    pub(in crate::scheduler) fn stream(
        &self,
        instance: Box<dyn ModelInstance>,
        job: Job,
        queued: Instant,
        group: MemberId,
    ) -> Option<Box<dyn ModelInstance>> {
        let is_wanted = || self.is_wanted(group);
        let patience = Patience { least: self.patience, is_wanted: &is_wanted, wanted: &self.wanted };
        let replace = |broken| self.replace(broken, group);
        let Job { work, reply, .. } = job;
        self.runner.run_stream(instance, (&work, queued), reply, &patience, &replace)
    }

    /// Answers a request, after those before it where answers leave in order.
    pub(in crate::scheduler) fn answer(&self, job: Job, result: Result<NamedTensors>) {
        let Job { place, reply, .. } = job;
        match (&self.order, place) {
            (Some(order), Some(place)) => {
                let released: SmallVec<[_; 4]> = order.lock().finish(place, (reply, result)).collect();
                for (reply, result) in released {
                    reply.finish(result);
                }
            }
            _ => reply.finish(result),
        }
    }

    pub(super) fn leave_order(&self, place: Option<Place>) {
        if let (Some(order), Some(place)) = (&self.order, place) {
            let released: SmallVec<[_; 4]> = order.lock().leave(place).collect();
            for (reply, result) in released {
                reply.finish(result);
            }
        }
    }
}
