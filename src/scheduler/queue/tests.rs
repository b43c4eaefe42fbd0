//! Turns that come too late.

use super::super::executor::Executor;
use super::*;
use crate::backend::gated::Gated;
use crate::backend::placement::Placement;
use crate::backend::{Backend, ModelFiles};
use crate::inference::DeviceId;
use crate::model_config::{UnknownFields, parse};

#[tokio::test]
async fn a_turn_that_comes_after_the_end_changes_nothing() {
    let tensor = "[ { name: \"x\" data_type: TYPE_INT32 dims: [ -1 ] } ]";
    let text = format!("name: \"m\" backend: \"gated\" input {tensor} output {tensor}");
    let config = parse(&text, UnknownFields::Deny).unwrap().config;
    let files = ModelFiles {
        directory: ".".into(),
        version_directory: ".".into(),
        version: 1,
        model_file: None,
        derived: None,
    };
    let model = Gated::default().load(&files, &config, &Placement::of(DeviceId::Cpu)).unwrap();
    let executor = Executor::start(DeviceId::Cpu, 1, 1).unwrap();
    let queue = ModelQueue::new(
        vec![Member { model: model.into(), instances: 1, executor: executor.handle(), share: Arc::default() }],
        Scheduling::one_by_one(1),
        Arc::default(),
    )
    .unwrap();
    let running = queue.pin().unwrap();
    let closing = queue.close();
    tokio::pin!(closing);
    assert!(futures_util::poll!(closing.as_mut()).is_pending());
    assert!(!queue.turn(0, Turn::Asked));
    assert!(queue.pin().is_none());
    assert!(futures_util::poll!(closing.as_mut()).is_pending(), "what runs is waited for");
    drop(running);
    drop(closing.await);
    assert_eq!(queue.running.count(), 0);
}
