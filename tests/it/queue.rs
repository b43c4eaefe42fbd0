//! The queue under anything that may happen to it, as properties: every request is answered once, in order, and what was
//! given up is not run.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use proptest::prelude::*;
use roundhouse::backend::gated::{Fault, Gated, Step};
use roundhouse::backend::placement::Placement;
use roundhouse::backend::{Backend, Model, ModelFiles};
use roundhouse::error::{Error, ErrorKind, Result};
use roundhouse::inference::{DeviceId, NamedTensor, NamedTensors};
use roundhouse::metrics::statistics::{FailureReason, ModelStatistics};
use roundhouse::model_config::{UnknownFields, parse};
use roundhouse::scheduler::executor::Executor;
use roundhouse::scheduler::queue::{Member, ModelQueue, Scheduling};
use roundhouse::scheduler::work::Work;
use roundhouse::tensor::{Shape, Tensor};

use crate::support::repository::config;
use crate::support::{eventually, within};

/// One thing that happens to the queues.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A request to one of the models.
    Ask { model: usize },
    /// One of the callers that still wait leaves.
    Leave { at: prop::sample::Index },
    /// One execution of a model goes on.
    Finish { model: usize },
    /// The next execution of a model panics.
    Panic { model: usize },
    /// The next execution of a model fails.
    Fail { model: usize },
}

const MODELS: [&str; 2] = ["a", "b"];
const CAPACITY: usize = 4;

fn event() -> impl Strategy<Value = Event> {
    let model = || 0..MODELS.len();
    prop_oneof![
        6 => model().prop_map(|model| Event::Ask { model }),
        2 => any::<prop::sample::Index>().prop_map(|at| Event::Leave { at }),
        3 => model().prop_map(|model| Event::Finish { model }),
        1 => model().prop_map(|model| Event::Panic { model }),
        1 => model().prop_map(|model| Event::Fail { model }),
    ]
}

type Answer = Pin<Box<dyn Future<Output = Result<NamedTensors>>>>;

/// A request whose caller waits.
struct Asked {
    model: usize,
    tag: i32,
    answer: Answer,
}

pub(crate) fn work(tag: i32) -> Work {
    let tensor = Tensor::from_vec(Shape::new(&[1]), vec![tag]).unwrap();
    Work {
        inputs: std::iter::once(NamedTensor { name: "x".into(), tensor }).collect(),
        outputs: std::iter::once(0).collect(),
        batch_size: 1,
        deadline: None,
        priority: 0,
        arrived: Instant::now(),
        trace: None,
        sequence: None,
        id: "".into(),
    }
}

pub(crate) fn load(gated: &Gated, name: &str) -> Arc<dyn Model> {
    let files = ModelFiles {
        directory: ".".into(),
        version_directory: ".".into(),
        version: 1,
        model_file: None,
        derived: None,
    };
    let config = parse(&config(name, "gated", ""), UnknownFields::Deny).unwrap().config;
    gated.load(&files, &config, &Placement::of(DeviceId::Cpu)).unwrap().into()
}

/// What a caller was told, if what it was told is right.
fn judge(asked: &Asked, result: &Result<NamedTensors>) -> bool {
    match result {
        Ok(outputs) => outputs[0].tensor.data().as_ref() == asked.tag.to_le_bytes(),
        Err(error) => matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Internal | ErrorKind::BackendFailed),
    }
}

async fn play(events: Vec<Event>, threads: usize, instances: usize) {
    let gated = Gated::default();
    let executor = Executor::start(DeviceId::Cpu, threads, 1).unwrap();
    let statistics: Vec<_> = MODELS.iter().map(|_| Arc::new(ModelStatistics::default())).collect();
    let queues: Vec<_> = MODELS
        .iter()
        .zip(&statistics)
        .map(|(name, statistics)| {
            gated.close(name, Step::Execute);
            let model = load(&gated, name);
            let member = Member { model, instances, executor: executor.handle(), share: Arc::default() };
            ModelQueue::new(vec![member], Scheduling::one_by_one(CAPACITY), Arc::clone(statistics)).unwrap()
        })
        .collect();
    let mut asked: Vec<Asked> = Vec::new();
    let mut left: Vec<(usize, i32)> = Vec::new();
    let mut answered = [0_u64; MODELS.len()];
    let mut all = [0_u64; MODELS.len()];
    let mut tag = 0;
    for event in events {
        match event {
            Event::Ask { model } => {
                tag += 1;
                all[model] += 1;
                let queue = Arc::clone(&queues[model]);
                let mut one = Asked { model, tag, answer: Box::pin(async move { queue.infer(work(tag)).await }) };
                // The first poll puts it into the queue, or refuses it.
                match futures_util::poll!(one.answer.as_mut()) {
                    Poll::Pending => asked.push(one),
                    Poll::Ready(result) => {
                        assert!(judge(&one, &result), "{result:?}");
                        answered[model] += 1;
                    }
                }
                assert!(queues[model].pending() <= CAPACITY);
            }
            Event::Leave { at } if !asked.is_empty() => {
                let leaver = asked.swap_remove(at.index(asked.len()));
                left.push((leaver.model, leaver.tag));
            }
            Event::Leave { .. } => {}
            Event::Finish { model } => gated.admit(MODELS[model], Step::Execute, 1),
            Event::Panic { model } => gated.fail_next(MODELS[model], Step::Execute, Fault::Panic("as the test asks")),
            Event::Fail { model } => {
                let error = Error::new(ErrorKind::BackendFailed, "as the test asks");
                gated.fail_next(MODELS[model], Step::Execute, Fault::Error(error));
            }
        }
    }
    gated.open_all();
    asked.sort_by_key(|one| one.tag);
    for mut one in asked {
        let result = within("an answer", one.answer.as_mut()).await;
        assert!(judge(&one, &result), "request {}: {result:?}", one.tag);
        answered[one.model] += 1;
    }
    for (model, name) in MODELS.iter().enumerate() {
        let gone = left.iter().filter(|(of, _)| *of == model).count() as u64;
        assert_eq!(answered[model] + gone, all[model], "every request is answered or given up, and none twice");
        eventually("nothing runs", || {
            let counts = gated.counts(name);
            counts.executions_begun == counts.executions_ended
        })
        .await;
        let order = gated.order();
        let tags: Vec<_> =
            order.iter().filter(|executed| executed.model == *name).map(|executed| executed.tag).collect();
        if instances == 1 {
            assert!(tags.is_sorted_by(|one, other| one < other), "{name} ran in the order {tags:?}");
        }
        eventually("panicked instances are replaced", || gated.counts(name).live_instances == instances).await;
        // What ran counts as run; what was refused, failed or given up counts as failed: some of what was given up ran.
        let own = &statistics[model];
        let canceled = own.failures(FailureReason::Canceled);
        assert_eq!(canceled, gone);
        assert!(own.success.count() + own.fail.count() >= all[model]);
        drop(within("the queue closes", queues[model].close()).await);
        assert_eq!(queues[model].pending(), 0);
        let closed = queues[model].infer(work(0)).await.unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::NotReady);
    }
    drop(queues);
    assert_eq!(gated.alive(), 0);
    drop(executor);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_once_whatever_happens(
        events in prop::collection::vec(event(), 1..60),
        threads in 1_usize..3,
        instances in 1_usize..3,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(events, threads, instances));
    }
}
