//! Members of a queue that come and go under load: every request is answered once, what went is given out, and what is
//! left works.

use std::sync::Arc;

use proptest::prelude::*;
use roundhouse::backend::Model;
use roundhouse::backend::gated::{Fault, Gated, Step};
use roundhouse::error::{ErrorKind, Result};
use roundhouse::inference::{DeviceId, NamedTensors};
use roundhouse::metrics::statistics::ModelStatistics;
use roundhouse::scheduler::executor::Executor;
use roundhouse::scheduler::queue::{Member, MemberId, ModelQueue, Remains, Scheduling};
use tokio::task::JoinHandle;

use crate::queue::{load, work};
use crate::support::{eventually, within};

const MODEL: &str = "m";

/// One thing that happens to the queue.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A request.
    Ask,
    /// One execution goes on.
    Finish,
    /// The next execution panics.
    Panic,
    /// A member comes, on one of the devices.
    Add { device: usize, instances: usize },
    /// One of the members goes.
    Remove(prop::sample::Index),
    /// One of them has another instance.
    Grow(prop::sample::Index),
    /// One of them has one less.
    Shrink(prop::sample::Index),
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => Just(Event::Ask),
        4 => Just(Event::Finish),
        1 => Just(Event::Panic),
        2 => (0_usize..2, 1_usize..3).prop_map(|(device, instances)| Event::Add { device, instances }),
        2 => index().prop_map(Event::Remove),
        1 => index().prop_map(Event::Grow),
        1 => index().prop_map(Event::Shrink),
    ]
}

/// A queue over two devices.
struct Devices {
    gated: Gated,
    executors: [Executor; 2],
    queue: Arc<ModelQueue>,
    statistics: Arc<ModelStatistics>,
}

impl Devices {
    fn new(threads: usize) -> Self {
        let gated = Gated::default();
        let executors = [DeviceId::Gpu(0), DeviceId::Gpu(1)].map(|id| Executor::start(id, threads, 1).unwrap());
        let statistics = Arc::new(ModelStatistics::default());
        let first = member(load(&gated, MODEL), &executors[0], 1);
        let queue = ModelQueue::new(vec![first], Scheduling::one_by_one(1000), Arc::clone(&statistics)).unwrap();
        Self { gated, executors, queue, statistics }
    }

    fn add(&self, device: usize, instances: usize) -> MemberId {
        self.queue.add(vec![member(load(&self.gated, MODEL), &self.executors[device], instances)]).unwrap()[0]
    }

    fn grow(&self, id: MemberId) {
        let instance = load(&self.gated, MODEL).instance().unwrap();
        self.queue.grow(id, vec![instance]).unwrap();
    }

    fn infer(&self, tag: i32) -> JoinHandle<Result<NamedTensors>> {
        let queue = Arc::clone(&self.queue);
        tokio::spawn(async move { queue.infer(work(tag)).await })
    }

    fn remove(&self, id: MemberId) -> JoinHandle<Result<Remains>> {
        let queue = Arc::clone(&self.queue);
        tokio::spawn(async move { queue.remove(&[id]).await })
    }

    fn shrink(&self, id: MemberId) -> JoinHandle<Result<Remains>> {
        let queue = Arc::clone(&self.queue);
        tokio::spawn(async move { queue.shrink(id, 1).await })
    }

    fn instances(&self) -> usize {
        self.queue.members().iter().map(|(_, instances)| instances).sum()
    }

    async fn finish(self) {
        assert_eq!(self.queue.pending(), 0);
        drop(within("the queue closes", self.queue.close()).await);
        drop(self.queue);
        assert_eq!(self.gated.alive(), 0);
    }
}

fn member(model: Arc<dyn Model>, executor: &Executor, instances: usize) -> Member {
    Member { model, instances, executor: executor.handle(), share: Arc::default() }
}

async fn play(events: Vec<Event>, threads: usize) {
    let devices = Devices::new(threads);
    devices.gated.close(MODEL, Step::Execute);
    let (mut asked, mut going) = (Vec::new(), Vec::new());
    let mut expected = 1;
    for event in events {
        let members = devices.queue.members();
        let pick = |index: prop::sample::Index| members[index.index(members.len())];
        match event {
            Event::Ask => {
                let tag = i32::try_from(asked.len()).unwrap();
                asked.push((tag, devices.infer(tag)));
            }
            Event::Finish => devices.gated.admit(MODEL, Step::Execute, 1),
            Event::Panic => devices.gated.fail_next(MODEL, Step::Execute, Fault::Panic("as the test asks")),
            Event::Add { device, instances } => {
                devices.add(device, instances);
                expected += instances;
            }
            Event::Remove(index) => {
                let (id, instances) = pick(index);
                if instances < expected {
                    expected -= instances;
                    going.push((instances, devices.remove(id)));
                } else {
                    let refused = devices.queue.remove(&[id]).await;
                    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Internal, "the last one stays");
                }
            }
            Event::Grow(index) => {
                devices.grow(pick(index).0);
                expected += 1;
            }
            Event::Shrink(index) => {
                let (id, instances) = pick(index);
                // A member without instances stays until it is removed.
                if instances > 1 {
                    expected -= 1;
                    going.push((1, devices.shrink(id)));
                }
            }
        }
        // What was spawned begins before the next event.
        tokio::task::yield_now().await;
        assert_eq!(devices.instances(), expected);
    }
    devices.gated.open_all();
    for (tag, answer) in asked {
        match within("an answer", answer).await.unwrap() {
            Ok(outputs) => assert_eq!(outputs[0].tensor.data().as_ref(), tag.to_le_bytes()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Internal, "request {tag}: {}", error.report()),
        }
    }
    let (mut meant, mut went) = (0, 0);
    for (instances, remains) in going {
        meant += instances;
        // Where two wait for instances of one member, either may get what went.
        went += within("what is to go went", remains).await.unwrap().unwrap().instances();
    }
    assert_eq!(went, meant);
    eventually("what is left is what was meant to be", || {
        devices.gated.counts(MODEL).live_instances == expected && devices.instances() == expected
    })
    .await;
    devices.finish().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_once_while_members_come_and_go(
        events in prop::collection::vec(event(), 1..60),
        threads in 1_usize..3,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(events, threads));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_requests_from_many_threads_meet_members_that_change_all_the_time() {
    const CLIENTS: i32 = 8;
    const EACH: i32 = 250;
    let devices = Devices::new(2);
    let clients = (0..CLIENTS).map(|client| {
        let queue = Arc::clone(&devices.queue);
        tokio::spawn(async move {
            for number in 0..EACH {
                let tag = client * EACH + number;
                let outputs = queue.infer(work(tag)).await.unwrap();
                assert_eq!(outputs[0].tensor.data().as_ref(), tag.to_le_bytes());
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut rounds = 0;
    let mut last = devices.queue.members()[0].0;
    while !clients.iter().all(JoinHandle::is_finished) || rounds < 10 {
        let fresh = devices.add(rounds % 2, 1 + rounds % 3);
        devices.grow(fresh);
        drop(within("a member goes", devices.remove(last)).await.unwrap().unwrap());
        drop(within("an instance goes", devices.shrink(fresh)).await.unwrap().unwrap());
        last = fresh;
        rounds += 1;
    }
    for client in clients {
        within("a client ends", client).await.unwrap();
    }
    assert_eq!(devices.statistics.success.count(), u64::try_from(CLIENTS * EACH).unwrap());
    assert_eq!(devices.queue.members().len(), 1);
    assert_eq!(devices.gated.counts(MODEL).live_models, 1);
    devices.finish().await;
}

#[tokio::test]
async fn a_batch_that_one_device_cannot_take_for_now_is_taken_by_the_other() {
    let devices = Devices::new(1);
    devices.gated.close(MODEL, Step::Execute);
    // Another model has the only thread of the first device.
    let other = load(&devices.gated, "other");
    devices.gated.close("other", Step::Execute);
    let busy =
        ModelQueue::new(vec![member(other, &devices.executors[0], 1)], Scheduling::one_by_one(9), Arc::default());
    let busy = busy.unwrap();
    let holds = tokio::spawn({
        let busy = Arc::clone(&busy);
        async move { busy.infer(work(0)).await }
    });
    devices.gated.until("other", |counts| counts.executions_begun == 1).await;
    devices.add(1, 1);
    let answer = devices.infer(7);
    within("the second device runs it", devices.gated.until(MODEL, |counts| counts.executions_begun == 1)).await;
    devices.gated.open_all();
    assert!(answer.await.unwrap().is_ok());
    assert!(holds.await.unwrap().is_ok());
    drop(busy.close().await);
    drop(busy);
    devices.finish().await;
}

#[tokio::test]
async fn a_member_that_cannot_be_made_does_not_come_and_a_closed_queue_takes_none() {
    let devices = Devices::new(1);
    devices.gated.fail_next(MODEL, Step::Instance, Fault::Error(roundhouse::error::Error::internal("no memory")));
    let model = load(&devices.gated, MODEL);
    let refused = devices.queue.add(vec![member(Arc::clone(&model), &devices.executors[1], 2)]);
    assert_eq!(refused.err().unwrap().to_string(), "no memory");
    assert_eq!(devices.queue.members(), [(0, 1)]);
    drop(devices.queue.close().await);
    let closed = devices.queue.add(vec![member(model, &devices.executors[1], 1)]);
    assert_eq!(closed.err().unwrap().kind(), ErrorKind::NotReady);
    devices.finish().await;
}
