//! Unloads and reloads while requests come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::Error;

use crate::support::client::{Client, get, infer, load, unload};
use crate::support::eventually;
use crate::support::repository::{Repository, config};
use crate::support::server::{TestServer, all};

#[tokio::test]
async fn an_unload_answers_when_the_last_request_is_done_and_the_memory_is_free() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.ask(&load("a")).await.expect(200);
    server.gated.close("a", Step::Execute);
    // Two run and three wait.
    let mut clients = Vec::new();
    for tag in 0..5 {
        clients.push(server.send(&infer("a", tag)).await);
    }
    server.until("a", |counts| counts.executions_begun == 2).await;
    server.until_pending("a", 3).await;
    let mut unloading = server.send(&unload("a")).await;
    eventually("the model is unloading", || server.inner.resident_versions().is_empty()).await;
    assert_eq!(server.state("a").await, "UNLOADING");
    assert_eq!(server.gated.counts("a").live_models, 1);
    assert_eq!(server.metric("roundhouse_model_unloads_total"), Some(0.0));
    server.gated.open("a", Step::Execute);
    unloading.receive().await.expect(200);
    let counts = server.gated.counts("a");
    assert_eq!((counts.live_models, counts.live_instances, counts.executions_ended), (0, 0, 5));
    for (tag, client) in (0..5).zip(&mut clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    assert_eq!(server.state("a").await, "UNAVAILABLE");
    server.finish().await;
}

#[tokio::test]
async fn an_unload_goes_on_though_its_caller_left() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let caller = server.send(&unload("a")).await;
    eventually("the model is unloading", || server.inner.resident_versions().is_empty()).await;
    drop(caller);
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    eventually("the memory is free", || server.gated.alive() == 0).await;
    server.finish().await;
}

#[tokio::test]
async fn a_request_during_an_unload_gets_a_fresh_load() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Execute);
    let mut old = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut unloading = server.send(&unload("a")).await;
    eventually("the model is unloading", || server.inner.resident_versions().is_empty()).await;
    let mut fresh = server.send(&infer("a", 2)).await;
    server.ask(&infer("a", 3).header("x-request-timeout-ms", 5)).await.expect(504);
    server.gated.open("a", Step::Execute);
    assert_eq!(old.receive().await.tag(), 1);
    unloading.receive().await.expect(200);
    assert_eq!(fresh.receive().await.tag(), 2);
    assert_eq!(server.loads("ok"), 2);
    server.finish().await;
}

#[tokio::test]
async fn unloading_twice_at_once_is_unloading_once_and_of_nothing_is_no_error() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.ask(&unload("a")).await.expect(200);
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut first = server.send(&unload("a")).await;
    eventually("the model is unloading", || server.inner.resident_versions().is_empty()).await;
    let mut second = server.send(&unload("a")).await;
    server.gated.open("a", Step::Execute);
    for client in [&mut first, &mut second] {
        client.receive().await.expect(200);
        assert_eq!(server.gated.alive(), 0);
    }
    assert_eq!(running.receive().await.tag(), 1);
    assert_eq!(server.metric("roundhouse_model_unloads_total"), Some(1.0));
    server.finish().await;
}

#[tokio::test]
async fn a_load_during_an_unload_comes_after_it_and_an_unload_during_a_load_too() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut unloading = server.send(&unload("a")).await;
    eventually("the model is unloading", || server.inner.resident_versions().is_empty()).await;
    server.gated.close("a", Step::Load);
    let mut loading = server.send(&load("a")).await;
    server.gated.open("a", Step::Execute);
    unloading.receive().await.expect(200);
    server.until("a", |counts| counts.loads_begun == 2).await;
    assert_eq!(running.receive().await.tag(), 1);
    let mut again = server.send(&unload("a")).await;
    server.gated.open("a", Step::Load);
    loading.receive().await.expect(200);
    again.receive().await.expect(200);
    assert_eq!(server.gated.alive(), 0);
    assert_eq!(server.metric("roundhouse_model_unloads_total"), Some(2.0));
    server.finish().await;
}

/// Clients that ask `model` again and again until they are told to stop, and fail on anything but the right answer.
struct Hammer {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Hammer {
    async fn start(server: &TestServer, model: &'static str, clients: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = Vec::new();
        for client in 0..clients {
            let mut connection: Client = server.client().await;
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tasks.push(tokio::spawn(async move {
                let mut tag = i32::try_from(client).unwrap() << 20;
                while !stop.load(Ordering::Relaxed) {
                    tag += 1;
                    assert_eq!(connection.ask(&infer(model, tag)).await.tag(), tag);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, answered, tasks }
    }

    /// Lets so many more answers pass.
    async fn go_on(&self, answers: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + answers;
        eventually("answers under load", || {
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "a client failed");
            self.answered.load(Ordering::Relaxed) >= goal
        })
        .await;
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_reload_under_load_fails_no_request_and_drops_the_old_copy() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let hammer = Hammer::start(&server, "a", 8).await;
    hammer.go_on(50).await;
    for round in 2..12 {
        server.repository.touch("a");
        server.ask(&load("a")).await.expect(200);
        assert_eq!(server.gated.counts("a").loads_ended, round);
        hammer.go_on(50).await;
        eventually("one copy is left", || server.gated.counts("a").live_models == 1).await;
    }
    hammer.stop().await;
    assert_eq!(server.metric("roundhouse_models_resident"), Some(1.0));
    server.finish().await;
}

#[tokio::test]
async fn unloads_under_load_fail_no_request() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let hammer = Hammer::start(&server, "a", 8).await;
    for _ in 0..20 {
        hammer.go_on(20).await;
        server.ask(&unload("a")).await.expect(200);
    }
    hammer.go_on(20).await;
    hammer.stop().await;
    let (loads, unloads) = (server.loads("ok"), server.metric("roundhouse_model_unloads_total").unwrap());
    assert_eq!((loads, unloads, server.loads("cancelled")), (21, 20.0, 0));
    server.finish().await;
}

#[tokio::test]
async fn a_reload_that_fails_leaves_the_old_copy_answering() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.ask(&load("a")).await.expect(200);
    for fault in [Fault::Error(Error::internal("torn")), Fault::Panic("torn")] {
        server.repository.touch("a");
        server.gated.fail_next("a", Step::Load, fault);
        server.ask(&load("a")).await.expect(500);
        assert_eq!(server.ask(&infer("a", 3)).await.tag(), 3);
        assert_eq!(server.state("a").await, "READY");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_load_of_what_is_loaded_and_unchanged_loads_nothing() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.ask(&load("a")).await.expect(200);
    server.ask(&load("a")).await.expect(200);
    assert_eq!(server.gated.counts("a").loads_begun, 1);
    server.repository.touch("a");
    server.ask(&load("a")).await.expect(200);
    assert_eq!(server.gated.counts("a").loads_begun, 2);
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_is_gone_from_the_repository_leaves_once_that_is_seen() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.repository.remove("a");
    server.ask(&load("a")).await.expect(404);
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1, "its requests are answered");
    eventually("the copy is gone", || server.gated.alive() == 0).await;
    server.ask(&infer("a", 2)).await.expect(404);
    server.finish().await;
}

#[tokio::test]
async fn a_reload_answers_with_the_new_copy_while_the_old_one_still_runs() {
    let repository = Repository::gated(&["a"]);
    repository.put("a/config.pbtxt", config("a", "gated", "version_policy { all { } }"));
    let server = TestServer::start(repository).await;
    server.gated.close("a", Step::Execute);
    let mut old = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.repository.add_version("a", 2);
    server.ask(&load("a")).await.expect(200);
    let mut fresh = server.send(&infer("a", 2)).await;
    server.until("a", |counts| counts.executions_begun == 2).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(old.receive().await.json()["model_version"], "1");
    assert_eq!(fresh.receive().await.json()["model_version"], "2");
    eventually("the old copy is gone", || server.gated.counts("a").live_models == 2).await;
    server.finish().await;
}

#[tokio::test]
async fn an_old_copy_that_still_runs_keeps_no_other_model_from_loading() {
    let server = TestServer::start_with(Repository::gated(&["a", "b"]), |config| config.load_concurrency = 1).await;
    server.gated.close("a", Step::Execute);
    let mut old = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.repository.touch("a");
    server.ask(&load("a")).await.expect(200);
    // Every thread but one is free, and so should be the one load.
    assert_eq!(server.ask(&infer("b", 2).header("x-request-timeout-ms", 20_000)).await.tag(), 2);
    server.gated.open("a", Step::Execute);
    assert_eq!(old.receive().await.tag(), 1);
    server.finish().await;
}

#[tokio::test]
async fn an_unload_after_a_reload_waits_for_the_old_copy_too() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Execute);
    let mut old = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.repository.touch("a");
    server.ask(&load("a")).await.expect(200);
    let mut unloading = server.send(&unload("a")).await;
    eventually("the new copy is gone", || server.gated.counts("a").live_models == 1).await;
    server.gated.open("a", Step::Execute);
    unloading.receive().await.expect(200);
    assert_eq!(server.gated.alive(), 0, "an answered unload means that the memory is free");
    assert_eq!(old.receive().await.tag(), 1);
    server.finish().await;
}

#[tokio::test]
async fn loads_unloads_and_requests_in_any_order_leave_nothing_behind() {
    let names = ["a", "b", "c"];
    let server = TestServer::start_with(Repository::gated(&names), |config| config.load_concurrency = 2).await;
    let clients = (0..12).map(|client: usize| {
        let server = &server;
        async move {
            let mut connection = server.client().await;
            // A small generator of its own for each client: the same sequence in each run.
            let mut random = 0x9e37_79b9_u64.wrapping_mul(client as u64 + 1);
            for step in 0..60 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let name = names[(random >> 33) as usize % names.len()];
                match (random >> 40) % 8 {
                    0 => drop(connection.ask(&load(name)).await.expect(200)),
                    1 => drop(connection.ask(&unload(name)).await.expect(200)),
                    2 => {
                        // Gone before the answer.
                        connection.send(&infer(name, step)).await;
                        connection = server.client().await;
                    }
                    3 => {
                        let hurried = infer(name, step).header("x-request-timeout-ms", 1);
                        let status = connection.ask(&hurried).await.status;
                        assert!(matches!(status, 200 | 504), "{status}");
                    }
                    4 => drop(connection.ask(&get("/v2/models/stats")).await.expect(200)),
                    _ => assert_eq!(connection.ask(&infer(name, step)).await.tag(), step),
                }
            }
        }
    });
    all(clients).await;
    for name in names {
        let counts = server.gated.counts(name);
        assert_eq!(counts.loads_begun, counts.loads_ended);
    }
    server.finish().await;
}
