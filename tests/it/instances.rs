//! Instances that change while their model answers, and copies that come where a queue pays for them.

use std::time::{Duration, Instant};

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::Error;
use roundhouse::inference::DeviceId;
use serde_json::{Value, json};

use crate::support::client::{Client, Request, get, infer, load, post, unload};
use crate::support::repository::{Repository, config, holds};
use crate::support::server::TestServer;
use crate::support::{eventually, within};

const GPU: [DeviceId; 2] = [DeviceId::Gpu(0), DeviceId::Gpu(1)];

fn sized(groups: &str) -> Repository {
    Repository::empty().with("m", "gated", &format!("{}{groups}", holds(100, 100)))
}

fn rewrite(server: &TestServer, groups: &str) {
    server.repository.put("m/config.pbtxt", config("m", "gated", &format!("{}{groups}", holds(100, 100))));
}

fn load_with(config: &Value) -> Request {
    let body = json!({"parameters": {"config": config.to_string()}}).to_string();
    post("/v2/repository/models/m/load", body)
}

async fn shown(server: &TestServer) -> Value {
    server.ask(&get("/v2/models/m/config")).await.expect(200).json()
}

fn devices(server: &TestServer) -> Vec<DeviceId> {
    server.row("m").copies.iter().map(|copy| copy.device).collect()
}

fn updates(server: &TestServer) -> usize {
    server.metric("roundhouse_model_updates_total").unwrap() as usize
}

fn copies(server: &TestServer, change: &str) -> usize {
    server.metric(&format!("roundhouse_model_copies_total{{change=\"{change}\"}}")).unwrap() as usize
}

async fn send_all(server: &TestServer, tags: std::ops::Range<i32>) -> Vec<(i32, Client)> {
    let mut clients = Vec::new();
    for tag in tags {
        clients.push((tag, server.send(&infer("m", tag)).await));
    }
    clients
}

async fn receive_all(clients: Vec<(i32, Client)>) {
    for (tag, mut client) in clients {
        assert_eq!(within("an answer", client.receive()).await.tag(), tag);
    }
}

#[tokio::test]
async fn another_count_changes_the_instances_under_load_without_a_load() {
    let server = TestServer::start_on_gpus(sized("instance_group { kind: KIND_CPU count: 1 }"), 1, 300).await;
    assert_eq!(server.ask(&infer("m", 0)).await.tag(), 0);
    server.gated.close("m", Step::Execute);
    let clients = send_all(&server, 1..5).await;
    server.until("m", |counts| counts.executions_begun == 2).await;
    let mut config = shown(&server).await;
    config["instance_group"][0]["count"] = 2.into();
    server.ask(&load_with(&config)).await.expect(200);
    server.until("m", |counts| counts.executions_begun == 3).await;
    assert_eq!(server.gated.counts("m").live_instances, 2);
    assert_eq!(shown(&server).await["instance_group"][0]["count"], 2);
    // One less: it goes when it has ended what it runs.
    config["instance_group"][0]["count"] = 1.into();
    let mut shrinking = server.send(&load_with(&config)).await;
    server.gated.open("m", Step::Execute);
    shrinking.receive().await.expect(200);
    receive_all(clients).await;
    let counts = server.gated.counts("m");
    assert_eq!((counts.live_models, counts.live_instances, counts.loads_begun), (1, 1, 1));
    assert_eq!((server.loads("ok"), server.row("m").loads, updates(&server)), (1, 1, 2));
    let statistics = server.ask(&get("/v2/models/m/stats")).await.json();
    assert_eq!(statistics["model_stats"][0]["inference_stats"]["success"]["count"], 5, "what was counted goes on");
    // Back to what the repository says.
    server.ask(&load("m")).await.expect(200);
    assert_eq!((updates(&server), server.loads("ok")), (3, 1));
    server.ask(&load("m")).await.expect(200);
    assert_eq!(updates(&server), 3, "nothing is different");
    server.finish().await;
}

#[tokio::test]
async fn a_configuration_in_the_repository_moves_a_model_between_devices_while_it_answers() {
    let server = TestServer::start_on_gpus(sized("instance_group { kind: KIND_CPU count: 1 }"), 2, 300).await;
    assert_eq!(server.ask(&infer("m", 0)).await.tag(), 0);
    let steps = [
        ("instance_group { kind: KIND_GPU gpus: 0 }", vec![GPU[0]], [100, 0, 0]),
        ("instance_group { kind: KIND_GPU }", vec![GPU[0], GPU[1]], [100, 100, 0]),
        ("instance_group { kind: KIND_GPU gpus: 1 count: 2 }", vec![GPU[1]], [0, 100, 0]),
        (
            "instance_group [ { kind: KIND_GPU gpus: 1 }, { kind: KIND_CPU } ]",
            vec![GPU[1], DeviceId::Cpu],
            [0, 100, 100],
        ),
        ("instance_group { kind: KIND_GPU gpus: 1 rate_limiter { priority: 2 } }", vec![GPU[1]], [0, 100, 0]),
    ];
    for (tag, (groups, expected, booked)) in (1..).zip(steps) {
        server.gated.close("m", Step::Execute);
        let clients = send_all(&server, 10 * tag..10 * tag + 4).await;
        let begun = server.gated.counts("m").executions_begun;
        server.until("m", |counts| counts.executions_begun >= begun).await;
        rewrite(&server, groups);
        let mut changing = server.send(&load("m")).await;
        server.gated.open("m", Step::Execute);
        changing.receive().await.expect(200);
        receive_all(clients).await;
        assert_eq!(devices(&server), expected, "{groups}");
        let books: Vec<_> = server.books().iter().map(|book| book.booked >> 10).collect();
        assert_eq!(books, booked, "{groups}");
        assert_eq!(server.gated.counts("m").live_models, expected.len());
    }
    assert_eq!((server.loads("ok"), updates(&server)), (1, 5));
    server.finish().await;
}

#[tokio::test]
async fn a_change_that_fails_leaves_what_was() {
    let server = TestServer::start_on_gpus(sized("instance_group { kind: KIND_GPU gpus: 0 }"), 2, 300).await;
    assert_eq!(server.ask(&infer("m", 0)).await.tag(), 0);
    let before = shown(&server).await;
    let broken = || Fault::Error(Error::internal("it is broken"));
    // A second group comes to gpu:0 after the copy on gpu:1 has come: both go again.
    rewrite(
        &server,
        "instance_group [ { kind: KIND_GPU gpus: [ 0, 1 ] }, { kind: KIND_GPU gpus: 0 rate_limiter { priority: 3 } } ]",
    );
    server.gated.spare_next("m", Step::Instance);
    server.gated.fail_next("m", Step::Instance, broken());
    server.ask(&load("m")).await.expect(500);
    server.gated.fail_next("m", Step::Load, broken());
    server.ask(&load("m")).await.expect(500);
    let counts = server.gated.counts("m");
    assert_eq!((counts.live_models, counts.live_instances), (1, 1));
    assert_eq!((devices(&server), shown(&server).await), (vec![GPU[0]], before));
    let books: Vec<_> = server.books().iter().map(|book| book.booked >> 10).collect();
    assert_eq!(books, [100, 0, 0]);
    assert_eq!(server.ask(&infer("m", 1)).await.tag(), 1);
    server.ask(&load("m")).await.expect(200);
    assert_eq!((devices(&server), server.gated.counts("m").live_instances), (GPU.to_vec(), 3));
    server.finish().await;
}

#[tokio::test]
async fn anything_else_that_differs_is_loaded_anew() {
    let server = TestServer::start_on_gpus(sized("instance_group { kind: KIND_CPU count: 1 }"), 1, 300).await;
    server.ask(&load("m")).await.expect(200);
    rewrite(
        &server,
        "instance_group { kind: KIND_CPU count: 2 } max_batch_size: 0 parameters { key: \"retain\" value { string_value: \"true\" } }",
    );
    server.ask(&load("m")).await.expect(200);
    assert_eq!((server.loads("ok"), updates(&server)), (2, 0));
    server.repository.touch("m");
    server.ask(&load("m")).await.expect(200);
    assert_eq!((server.loads("ok"), updates(&server)), (3, 0));
    server.finish().await;
}

#[tokio::test]
async fn a_model_of_sequences_keeps_its_instances_and_is_loaded_anew() {
    let more = "sequence_batching { } max_batch_size: 2 instance_group";
    let server = TestServer::start_on_gpus(sized(&format!("{more} {{ kind: KIND_GPU }}")), 2, 300).await;
    server.ask(&load("m")).await.expect(200);
    assert_eq!(devices(&server), GPU);
    rewrite(&server, &format!("{more} {{ kind: KIND_GPU gpus: 1 }}"));
    server.ask(&load("m")).await.expect(200);
    assert_eq!((server.loads("ok"), updates(&server), devices(&server)), (2, 0, vec![GPU[1]]));
    server.finish().await;
}

/// A moment for the house, so many seconds after the last.
struct Looks(Instant);

impl Looks {
    fn after(&mut self, server: &TestServer, seconds: u64) {
        self.0 += Duration::from_secs(seconds);
        server.inner.spread_copies(self.0);
    }
}

/// A model with one instance and a long queue, at which was looked long enough.
async fn crowded(server: &TestServer, looks: &mut Looks) -> Vec<(i32, Client)> {
    server.ask(&load("m")).await.expect(200);
    server.gated.close("m", Step::Execute);
    let clients = send_all(server, 0..12).await;
    server.until_pending("m", 11).await;
    looks.after(server, 0);
    looks.after(server, 1);
    clients
}

#[tokio::test]
async fn a_queue_that_costs_more_than_a_load_brings_a_copy_and_a_long_rest_takes_it_away() {
    let server = TestServer::start_on_gpus(sized("instance_group { count: 1 }"), 3, 300).await;
    let mut looks = Looks(Instant::now());
    let clients = crowded(&server, &mut looks).await;
    eventually("a copy came", || devices(&server) == GPU).await;
    server.until("m", |counts| counts.executions_begun == 2).await;
    assert_eq!((copies(&server, "added"), server.loads("ok"), server.gated.counts("m").live_models), (1, 1, 2));
    assert!(server.row("m").copies[1].is_extra);
    let explained = server.ask(&get("/v1/models/m/explain")).await.text().to_owned();
    assert!(explained.contains("its copy on gpu:1 came since its queue cost more than a load"), "{explained}");
    assert_eq!(
        shown(&server).await["instance_group"][0]["gpus"],
        json!([0]),
        "the configuration is what was asked for"
    );
    server.gated.open("m", Step::Execute);
    receive_all(clients).await;
    for _ in 0..58 {
        looks.after(&server, 1);
    }
    assert_eq!(devices(&server), GPU);
    for _ in 0..10 {
        looks.after(&server, 1);
    }
    eventually("the copy went", || devices(&server) == GPU[..1]).await;
    assert_eq!((copies(&server, "removed"), server.gated.counts("m").live_models), (1, 1));
    assert_eq!(server.ask(&infer("m", 7)).await.tag(), 7);
    server.finish().await;
}

#[tokio::test]
async fn no_copy_takes_the_place_of_a_model_that_was_asked_for_just_now_or_goes_beyond_the_most() {
    let repository = sized("instance_group { count: 1 }").with(
        "b",
        "gated",
        &format!("{}instance_group {{ kind: KIND_GPU gpus: 1 }}", holds(250, 250)),
    );
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    assert_eq!(server.ask(&infer("b", 1)).await.tag(), 1);
    let mut looks = Looks(Instant::now());
    let clients = crowded(&server, &mut looks).await;
    assert_eq!((devices(&server), server.gated.counts("m").loads_begun), (vec![GPU[0]], 1));
    // Nobody asks for the other any more.
    looks.after(&server, 100);
    looks.after(&server, 1);
    eventually("a copy came", || devices(&server) == GPU).await;
    assert_eq!(server.in_memory(), ["m"]);
    server.gated.open("m", Step::Execute);
    receive_all(clients).await;
    server.finish().await;

    let change = |config: &mut roundhouse::config::ServerConfig| config.max_copies = Some(1);
    let server = TestServer::start_on_gpus_with(sized("instance_group { count: 1 }"), 2, 300, change).await;
    let clients = crowded(&server, &mut Looks(Instant::now())).await;
    assert_eq!(server.gated.counts("m").loads_begun, 1);
    server.gated.open("m", Step::Execute);
    receive_all(clients).await;
    server.finish().await;
}

#[tokio::test]
async fn an_unload_and_a_reload_go_before_a_copy_that_is_on_its_way() {
    let server = TestServer::start_on_gpus(sized("instance_group { count: 1 }"), 2, 300).await;
    server.ask(&load("m")).await.expect(200);
    for reload in [true, false] {
        server.gated.close("m", Step::Load);
        let begun = server.gated.counts("m").loads_begun;
        let clients = crowded_again(&server, &mut Looks(Instant::now())).await;
        server.until("m", |counts| counts.loads_begun == begun + 1).await;
        server.repository.touch("m");
        let mut other = server.send(&if reload { load("m") } else { unload("m") }).await;
        server.gated.open("m", Step::Load);
        server.gated.open("m", Step::Execute);
        within("the other operation", other.receive()).await.expect(200);
        receive_all(clients).await;
    }
    assert_eq!((server.in_memory().len(), server.gated.counts("m").live_models), (0, 0));
    server.finish().await;
}

/// The same for a model that is there.
async fn crowded_again(server: &TestServer, looks: &mut Looks) -> Vec<(i32, Client)> {
    server.gated.close("m", Step::Execute);
    let clients = send_all(server, 0..12).await;
    server.until_pending("m", 11).await;
    looks.after(server, 0);
    looks.after(server, 1);
    clients
}

#[tokio::test]
async fn a_copy_that_cannot_be_loaded_leaves_the_model_as_it_was() {
    let server = TestServer::start_on_gpus(sized("instance_group { count: 1 }"), 2, 300).await;
    server.ask(&load("m")).await.expect(200);
    server.gated.fail_next("m", Step::Load, Fault::Panic("as the test asks"));
    let clients = crowded_again(&server, &mut Looks(Instant::now())).await;
    server.until("m", |counts| counts.loads_ended == 2).await;
    server.gated.open("m", Step::Execute);
    receive_all(clients).await;
    eventually("nothing is left of it", || server.books().iter().map(|book| book.booked >> 10).eq([100, 0, 0])).await;
    assert_eq!((devices(&server), copies(&server, "added")), (vec![GPU[0]], 0));
    server.finish().await;
}
