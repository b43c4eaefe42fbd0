//! Models on several devices: where they are placed, what is booked for them there, and that all of it comes back.

use std::time::Duration;

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::Error;
use roundhouse::inference::DeviceId;
use roundhouse::lifecycle::residency::{EvictionReason, ModelResidency, Tier};

use crate::support::client::{get, infer, load, unload};
use crate::support::repository::{Repository, config, holds};
use crate::support::server::TestServer;
use crate::support::{eventually, within};

const GPU: [DeviceId; 2] = [DeviceId::Gpu(0), DeviceId::Gpu(1)];

/// A model that holds so many KiB on each device of its groups.
fn with(repository: Repository, name: &str, kib: u64, groups: &str) -> Repository {
    repository.with(name, "gated", &format!("{}{groups}", holds(kib, kib)))
}

fn devices(row: &ModelResidency) -> Vec<DeviceId> {
    row.copies.iter().map(|copy| copy.device).collect()
}

/// KiB booked on gpu:0, gpu:1 and the cpu.
fn booked(server: &TestServer) -> Vec<u64> {
    server.books().iter().map(|book| book.booked >> 10).collect()
}

#[tokio::test]
async fn a_group_of_gpus_is_on_each_of_them_with_a_lease_there_and_answers_on_all() {
    let repository = with(Repository::empty(), "m", 100, "instance_group { kind: KIND_GPU }");
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    server.gated.close("m", Step::Execute);
    let mut clients = Vec::new();
    for tag in 0..2 {
        clients.push(server.send(&infer("m", tag)).await);
    }
    server.until("m", |counts| counts.executions_begun == 2).await;
    let mut ran: Vec<_> = server.gated.order().iter().map(|executed| executed.device).collect();
    ran.sort_unstable();
    assert_eq!(ran, GPU);
    server.gated.open("m", Step::Execute);
    for (tag, mut client) in (0..).zip(clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    let row = server.row("m");
    assert_eq!(devices(&row), GPU);
    assert_eq!((row.device, row.device_bytes), (Some(GPU[0]), 200 << 10));
    assert_eq!(booked(&server), [100, 100, 0]);
    let counts = server.gated.counts("m");
    assert_eq!((counts.live_models, counts.live_instances, server.loads("ok")), (2, 2, 1));
    let shown = server.ask(&get("/v2/models/m/config")).await.json();
    let group = &shown["instance_group"][0];
    assert_eq!((group["kind"].as_str(), group["gpus"].to_string()), (Some("KIND_GPU"), "[0,1]".to_owned()));
    let page = server.ask(&get("/v1/residency")).await.json();
    let copies = page["models"][0]["copies"].as_array().unwrap();
    assert_eq!((copies.len(), &copies[1]["device"], &copies[1]["instances"]), (2, &"gpu:1".into(), &1.into()));
    let explained = server.ask(&get("/v1/models/m/explain")).await.text().to_owned();
    assert!(explained.contains("it is in memory of gpu:0 and gpu:1"), "{explained}");
    server.ask(&unload("m")).await.expect(200);
    assert_eq!(booked(&server), [0, 0, 0]);
    server.finish().await;
}

#[tokio::test]
async fn instances_on_the_cpu_and_on_gpus_take_from_one_queue() {
    let groups = "instance_group [ { kind: KIND_CPU count: 2 }, { kind: KIND_GPU gpus: 1 count: 3 } ]";
    let server = TestServer::start_on_gpus(with(Repository::empty(), "m", 10, groups), 2, 300).await;
    server.ask(&load("m")).await.expect(200);
    let row = server.row("m");
    let copies: Vec<_> = row.copies.iter().map(|copy| (copy.device, copy.instances)).collect();
    assert_eq!(copies, [(GPU[1], 3), (DeviceId::Cpu, 2)]);
    // Two threads a device take turns.
    server.gated.close("m", Step::Execute);
    let mut clients = Vec::new();
    for tag in 0..5 {
        clients.push(server.send(&infer("m", tag)).await);
    }
    server.until("m", |counts| counts.executions_begun == 4).await;
    server.gated.open("m", Step::Execute);
    for (tag, mut client) in (0..).zip(clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    server.finish().await;
}

#[tokio::test]
async fn models_that_say_nothing_spread_over_the_gpus_one_on_each() {
    let names = ["a", "b", "c", "d"];
    let repository = names.iter().fold(Repository::empty(), |repository, name| with(repository, name, 100, ""));
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    for name in names {
        server.ask(&load(name)).await.expect(200);
    }
    let placed: Vec<_> = names.iter().map(|name| server.row(name).device.unwrap()).collect();
    assert_eq!(placed, [GPU[0], GPU[1], GPU[0], GPU[1]]);
    assert_eq!(booked(&server), [200, 200, 0]);
    server.repository.touch("a");
    server.ask(&load("a")).await.expect(200);
    eventually("the old copy is gone", || booked(&server) == [200, 200, 0]).await;
    assert_eq!(server.row("a").device, Some(GPU[0]), "there was room for both");
    server.finish().await;
}

#[tokio::test]
async fn a_gpu_that_is_not_there_is_named_and_so_is_what_there_is() {
    let repository = with(Repository::empty(), "m", 10, "instance_group { kind: KIND_GPU gpus: [ 0, 3 ] }");
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    let error = server.ask(&load("m")).await.expect(400).error();
    assert!(error.contains("names gpu:3 in `gpus`, and the devices in use are gpu:0, gpu:1, cpu"), "{error}");
    assert_eq!(server.gated.counts("m").loads_begun, 0);
    server.finish().await;
}

#[tokio::test]
async fn a_load_that_fails_on_the_second_device_leaves_nothing_on_the_first() {
    let repository = with(Repository::empty(), "m", 100, "instance_group { kind: KIND_GPU }");
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    for (step, before) in [(Step::Load, 1), (Step::Instance, 1)] {
        for fault in [Fault::Error(Error::internal("the second is broken")), Fault::Panic("the second is broken")] {
            (0..before).for_each(|_| server.gated.spare_next("m", step));
            server.gated.fail_next("m", step, fault);
            server.ask(&load("m")).await.expect(500);
            assert_eq!((server.gated.alive(), booked(&server)), (0, vec![0, 0, 0]));
        }
    }
    server.ask(&load("m")).await.expect(200);
    assert_eq!(devices(&server.row("m")), GPU);
    server.finish().await;
}

#[tokio::test]
async fn a_device_that_is_full_refuses_the_whole_load_and_nobody_leaves_the_other() {
    let repository = with(Repository::empty(), "m", 200, "instance_group { kind: KIND_GPU }");
    let repository = with(repository, "idle", 200, "instance_group { kind: KIND_GPU gpus: 0 }");
    let repository = with(repository, "busy", 200, "instance_group { kind: KIND_GPU gpus: 1 }");
    let server =
        TestServer::start_on_gpus_with(repository, 2, 300, |config| config.cache.room_wait = Duration::from_millis(50))
            .await;
    server.ask(&load("idle")).await.expect(200);
    server.gated.close("busy", Step::Execute);
    let mut running = server.send(&infer("busy", 1)).await;
    server.until("busy", |counts| counts.executions_begun == 1).await;
    let error = server.ask(&load("m")).await.expect(503).error();
    assert!(error.contains("no room for model 'm' on gpu:1"), "{error}");
    assert_eq!(server.in_memory(), ["busy", "idle"]);
    assert_eq!(booked(&server), [200, 200, 0]);
    server.gated.open("busy", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    for name in ["busy", "idle"] {
        server.ask(&unload(name)).await.expect(200);
    }
    server.ask(&load("m")).await.expect(200);
    assert_eq!(booked(&server), [200, 200, 0]);
    server.finish().await;
}

#[tokio::test]
async fn under_load_one_copy_may_leave_its_device_while_the_others_answer() {
    let repository = with(Repository::empty(), "m", 200, "instance_group { kind: KIND_GPU }");
    let repository = with(repository, "b", 200, "instance_group { kind: KIND_GPU gpus: 0 }");
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    server.ask(&load("m")).await.expect(200);
    server.gated.close("m", Step::Execute);
    let mut clients = Vec::new();
    for tag in 0..2 {
        clients.push(server.send(&infer("m", tag)).await);
    }
    server.until("m", |counts| counts.executions_begun == 2).await;
    let mut loading = server.send(&load("b")).await;
    eventually("b waits for what runs", || server.books()[0].reserved == 200 << 10).await;
    let on_first = server.gated.order().iter().find(|executed| executed.device == GPU[0]).unwrap().tag;
    assert_eq!(server.gated.counts("b").loads_begun, 0, "what leaves has not left");
    server.gated.admit_tag("m", on_first);
    loading.receive().await.expect(200);
    let row = server.row("m");
    assert_eq!((row.tier, devices(&row)), (Tier::Device, vec![GPU[1]]));
    assert_eq!(booked(&server), [200, 200, 0]);
    clients.push(server.send(&infer("m", 2)).await);
    server.gated.open("m", Step::Execute);
    for (tag, mut client) in (0..).zip(clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    assert_eq!(server.metric("roundhouse_model_copies_total{change=\"removed\"}"), Some(1.0));
    assert_eq!((server.loads("ok"), server.row("m").evictions), (2, 0));
    // The last one takes the model with it.
    server.repository.put(
        "c/config.pbtxt",
        config("c", "gated", &format!("{}instance_group {{ kind: KIND_GPU gpus: 1 }}", holds(200, 200))),
    );
    server.repository.add_version("c", 1);
    eventually("nobody uses it", || server.row("m").in_use == 0).await;
    server.ask(&load("c")).await.expect(200);
    let left = server.row("m").last_eviction.unwrap();
    assert_eq!((left.reason, left.made_room_for.as_deref()), (EvictionReason::Room, Some("c")));
    assert_eq!(server.gated.counts("m").live_models, 0);
    server.finish().await;
}

#[tokio::test]
async fn an_instance_that_panics_on_one_device_is_replaced_there() {
    let repository = with(Repository::empty(), "m", 100, "instance_group { kind: KIND_GPU }");
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    server.ask(&load("m")).await.expect(200);
    server.gated.fail_next("m", Step::Execute, Fault::Panic("as the test asks"));
    server.ask(&infer("m", 1)).await.expect(500);
    server.gated.close("m", Step::Execute);
    let begun = server.gated.counts("m").executions_begun;
    let mut clients = Vec::new();
    for tag in 0..2 {
        clients.push(server.send(&infer("m", tag)).await);
    }
    server.until("m", |counts| counts.executions_begun == begun + 2).await;
    let mut ran: Vec<_> = server.gated.order()[begun..].iter().map(|executed| executed.device).collect();
    ran.sort_unstable();
    assert_eq!(ran, GPU);
    server.gated.open("m", Step::Execute);
    for (tag, mut client) in (0..).zip(clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    server.finish().await;
}

#[tokio::test]
async fn a_reload_with_fewer_devices_and_other_files_leaves_the_rest() {
    let repository = with(Repository::empty(), "m", 100, "instance_group { kind: KIND_GPU }");
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    server.ask(&load("m")).await.expect(200);
    let fewer = format!("{}instance_group {{ kind: KIND_GPU gpus: 1 }}", holds(100, 100));
    server.repository.put("m/config.pbtxt", config("m", "gated", &fewer));
    server.repository.touch("m");
    server.ask(&load("m")).await.expect(200);
    eventually("the old copies are gone", || booked(&server) == [0, 100, 0]).await;
    assert_eq!((server.loads("ok"), devices(&server.row("m"))), (2, vec![GPU[1]]));
    server.finish().await;
}

#[tokio::test]
async fn two_loads_that_want_the_same_devices_both_end() {
    let groups = "instance_group { kind: KIND_GPU }";
    let names = ["a", "b", "c", "d"];
    let repository = names.iter().fold(Repository::empty(), |repository, name| with(repository, name, 200, groups));
    let server = TestServer::start_on_gpus(repository, 2, 300).await;
    // Each needs all of both: they can only go one after the other, whoever begins.
    for round in 0..4 {
        let mut clients = Vec::new();
        for name in names {
            clients.push(server.send(&infer(name, round)).await);
        }
        for mut client in clients {
            assert_eq!(within("an answer", client.receive()).await.tag(), round);
        }
    }
    server.finish().await;
}
