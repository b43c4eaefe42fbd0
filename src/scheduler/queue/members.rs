//! Members of a queue that come and go while it works.
//!
//! A member that comes is asked for turns like those that were there. Of one that is to go no more turns are asked; each of
//! its instances goes when it is idle, and what waits is left to the others. Nothing waits under a lock, and what went is
//! given out, for the caller to drop on a thread that may block.
//!
//! A queue of sequences keeps its instances: what a sequence left in one is of use to that one only.

use std::sync::Arc;

use smallvec::SmallVec;

use super::super::executor::ExecutorHandle;
use super::super::turns::Share;
use super::scheduling::{Member, MemberId};
use super::state::Group;
use super::{ModelQueue, unloaded};
use crate::backend::{Model, ModelInstance};
use crate::error::{Error, Result};

/// Where a group runs, and its part of that.
pub(super) struct Seat {
    pub(super) id: MemberId,
    pub(super) executor: ExecutorHandle,
    pub(super) share: Arc<Share>,
}

impl Seat {
    /// The seat of `id`, among those that are ascending by it.
    pub(super) fn of(seats: &[Self], id: MemberId) -> Option<&Self> {
        seats.get(seats.binary_search_by_key(&id, |seat| seat.id).ok()?)
    }

    fn copied(&self) -> Self {
        Self { id: self.id, executor: self.executor.clone(), share: Arc::clone(&self.share) }
    }
}

/// What is left of members that are gone: instances first, then the models they share.
#[derive(Default)]
pub struct Remains {
    pub(super) instances: Vec<Box<dyn ModelInstance>>,
    models: Vec<Arc<dyn Model>>,
}

impl Remains {
    pub(super) fn take(&mut self, group: Group) {
        self.instances.extend(group.idle.into_iter().chain(group.gone));
        self.models.push(group.model);
    }

    /// How many instances went.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.instances.len()
    }
}

/// The seats and the groups of members, the first of them named `first`. Makes their instances, which may block.
///
/// # Errors
/// Whatever a model says when it cannot make an instance.
pub(super) fn seats(first: MemberId, members: Vec<Member>) -> Result<(Vec<Seat>, SmallVec<[Group; 1]>)> {
    let (mut seats, mut groups) = (Vec::new(), SmallVec::new());
    for (id, member) in (first..).zip(members) {
        let Member { model, instances, executor, share } = member;
        let idle = (0..instances.max(1)).map(|_| model.instance()).collect::<Result<Vec<_>>>()?;
        let (line, total) = (executor.line(), idle.len());
        groups.push(Group { id, model, line, idle, asked: 0, total, surplus: 0, gone: Vec::new(), is_leaving: false });
        seats.push(Seat { id, executor, share });
    }
    Ok((seats, groups))
}

impl ModelQueue {
    pub(in crate::scheduler) fn share(&self, group: MemberId) -> Arc<Share> {
        Seat::of(&self.seats.load(), group).map(|seat| Arc::clone(&seat.share)).unwrap_or_default()
    }

    /// Whether members may come and go.
    #[must_use]
    pub const fn is_flexible(&self) -> bool {
        self.sequences.is_none()
    }

    /// The members that are not on their way out, and how many instances each has.
    #[must_use]
    pub fn members(&self) -> Vec<(MemberId, usize)> {
        let state = self.state.lock();
        let staying = state.groups.iter().filter(|group| !group.is_leaving);
        staying.map(|group| (group.id, group.total - group.surplus)).collect()
    }

    /// Requests that wait although every instance has something to do. None where they wait for company alone.
    #[must_use]
    pub fn backlog(&self) -> usize {
        let state = self.state.lock();
        if state.has_spare() { 0 } else { state.batcher.as_ref().map_or(0, super::Batcher::len) }
    }

    /// Makes the instances of more members, and has them take work. Blocking.
    ///
    /// # Errors
    /// What a model says when it cannot make an instance: then nobody came. `Unsupported` for a queue of sequences,
    /// `NotReady` for one that is closed.
    pub fn add(self: &Arc<Self>, members: Vec<Member>) -> Result<Vec<MemberId>> {
        self.expect_flexible()?;
        let Some(_running) = self.pin() else { return Err(unloaded()) };
        // Their names are given when they come.
        let (mut fresh, mut groups) = seats(0, members)?;
        let mut ids = Vec::with_capacity(fresh.len());
        {
            let mut state = self.state.lock();
            for (seat, group) in fresh.iter_mut().zip(&mut groups) {
                let id = state.next_id;
                state.next_id += 1;
                (seat.id, group.id) = (id, id);
                ids.push(id);
            }
            // Under the lock, so that seats stay in order; whoever is asked finds its seat.
            let known = self.seats.load();
            self.seats.store(Arc::new(known.iter().map(Seat::copied).chain(fresh).collect()));
            state.groups.extend(groups);
            state.count_instances();
        }
        self.ask_all();
        Ok(ids)
    }

    /// Has more instances of a member's model take work.
    ///
    /// # Errors
    /// As [`ModelQueue::add`]; `Internal` for a member that left.
    pub fn grow(self: &Arc<Self>, id: MemberId, fresh: Vec<Box<dyn ModelInstance>>) -> Result<()> {
        self.expect_flexible()?;
        let Some(_running) = self.pin() else { return Err(unloaded()) };
        {
            let mut state = self.state.lock();
            let group = state.group_mut(id).filter(|group| !group.is_leaving);
            let group = group.ok_or_else(|| Error::internal("a member left while it grew"))?;
            group.total += fresh.len();
            group.idle.extend(fresh);
            state.count_instances();
        }
        self.ask_all();
        Ok(())
    }

    /// Takes instances out of a member; returns when they are idle and out. What runs is run to its end; a stream hears
    /// that it is in the way. Whoever drops the future leaves the rest to the close of the queue.
    ///
    /// # Errors
    /// `Unsupported` for a queue of sequences, `Internal` where nobody would be left to answer.
    pub async fn shrink(self: &Arc<Self>, id: MemberId, count: usize) -> Result<Remains> {
        self.let_go(&[(id, Some(count))]).await
    }

    /// Takes members out, all at once; returns when their instances are idle and out, as [`ModelQueue::shrink`].
    ///
    /// # Errors
    /// As [`ModelQueue::shrink`].
    pub async fn remove(self: &Arc<Self>, ids: &[MemberId]) -> Result<Remains> {
        let all: Vec<_> = ids.iter().map(|id| (*id, None)).collect();
        self.let_go(&all).await
    }

    async fn let_go(self: &Arc<Self>, parts: &[(MemberId, Option<usize>)]) -> Result<Remains> {
        self.expect_flexible()?;
        {
            let mut state = self.state.lock();
            let mut going = 0;
            for (id, count) in parts {
                let here = state.group_mut(*id).map_or(0, |group| group.total - group.surplus);
                going += count.unwrap_or(here).min(here);
            }
            if going >= state.serving() && going > 0 {
                return Err(Error::internal("a queue keeps an instance as long as it is open"));
            }
            for (id, count) in parts {
                if let Some(group) = state.group_mut(*id) {
                    group.is_leaving |= count.is_none();
                    group.shrink(count.unwrap_or(group.total));
                }
            }
            // Whoever was to be reminded may be among them.
            state.reminder = None;
            state.count_instances();
        }
        self.wanted.notify_waiters();
        self.ask_all();
        let mut remains = Remains::default();
        for (id, _) in parts {
            self.gone(*id, &mut remains).await;
        }
        Ok(remains)
    }

    /// Waits until all that is to go of a group went.
    async fn gone(&self, id: MemberId, remains: &mut Remains) {
        loop {
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            {
                let mut state = self.state.lock();
                // Closed meanwhile: whoever closed it has what was left.
                let Some(group) = state.group_mut(id) else { return };
                if group.surplus == 0 {
                    remains.instances.append(&mut group.gone);
                    if group.is_leaving {
                        if let Some(at) = state.groups.iter().position(|group| group.id == id) {
                            remains.take(state.groups.remove(at));
                        }
                        let known = self.seats.load();
                        let rest = known.iter().filter(|seat| seat.id != id).map(Seat::copied).collect();
                        self.seats.store(Arc::new(rest));
                    }
                    return;
                }
            }
            returned.await;
        }
    }

    fn expect_flexible(&self) -> Result<()> {
        if self.is_flexible() {
            return Ok(());
        }
        Err(Error::unsupported("the instances of a model of sequences stay as long as it does"))
    }
}
