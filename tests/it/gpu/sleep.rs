//! Models that have to leave a GPU sleep, and wake as they were.

use roundhouse::backend::gated::Step;
use roundhouse::config::ServerConfig;
use roundhouse::config::amount::{Amount, Limited, MemoryLimit};
use roundhouse::lifecycle::residency::{Tier, TierBook};

use super::{answers, ask, models, run};
use crate::cuda::{MIB, count, say};
use crate::support::client::{get, load};
use crate::support::eventually;
use crate::support::server::TestServer;

/// Room for two models of 24 MiB on the device, and for as much as is said in host memory.
pub(super) fn room(device: u64, host: u64) -> impl FnOnce(&mut ServerConfig) {
    move |config| {
        let amount = Amount::Bytes(device * MIB);
        config.cache.memory_limits = vec![MemoryLimit { device: Limited::Gpu(0), amount }];
        config.cache.host_limit = Amount::Bytes(host * MIB);
        config.retain = true;
    }
}

pub(super) fn host_book(server: &TestServer) -> TierBook {
    let page = server.inner.residency(&roundhouse::lifecycle::residency::ResidencyQuery {
        limit: 1,
        ..roundhouse::lifecycle::residency::ResidencyQuery::default()
    });
    page.books.into_iter().find(|book| book.tier == Tier::Host).unwrap()
}

fn total(server: &TestServer, name: &str) -> f64 {
    server.metric(name).unwrap()
}

const WAKES: &str = "roundhouse_model_wakes_total{outcome=\"ok\"}";
const SLEEPS: &str = "roundhouse_model_sleeps_total{outcome=\"ok\"}";

alone! {
    on "device 1073741824";
    fn a_victim_sleeps_and_the_next_request_wakes_it_with_the_very_same_weights() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b", "c"], 24), room(64, 256)).await;
            answers(&server, "a").await;
            answers(&server, "b").await;
            answers(&server, "c").await;
            eventually("one sleeps", || total(&server, "roundhouse_models_asleep") == 1.0).await;
            let asleep = ["a", "b", "c"].into_iter().find(|name| server.row(name).tier == Tier::Host).unwrap();
            let row = server.row(asleep);
            assert_eq!((row.device_bytes, row.host_bytes, row.loads), (0, 24 * MIB, 1));
            assert_eq!((host_book(&server).models, host_book(&server).booked), (1, 24 * MIB));
            assert_eq!(server.state(asleep).await, "READY");
            server.ask(&get(&format!("/v2/models/{asleep}/ready"))).await.expect(200);
            let creates = count("calls cuMemCreate");
            let answer = server.ask(&ask(asleep)).await.expect(200);
            assert_eq!(answer.header("x-model-state"), Some("host"));
            let row = server.row(asleep);
            assert_eq!((row.tier, row.device_bytes, row.host_bytes, row.loads), (Tier::Device, 24 * MIB, 0, 1));
            assert!(count("calls cuMemCreate") >= creates);
            assert_eq!(server.gated.counts(asleep).loads_begun, 1, "its session was not made anew");
            assert!(total(&server, WAKES) >= 1.0 && total(&server, SLEEPS) >= 2.0);
            assert!(total(&server, "roundhouse_model_wake_bytes_total") >= (24 * MIB) as f64);
            server.finish().await;
            assert_eq!(count("mappings"), 0, "{} mapped", count("mapped"));
        });
    }
}

alone! {
    on "device 1073741824\nslow 500";
    fn a_hundred_requests_for_a_model_that_sleeps_make_one_wake_and_a_hundred_answers() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b"], 8), room(14, 256)).await;
            answers(&server, "a").await;
            answers(&server, "b").await;
            eventually("a sleeps", || server.row("a").tier == Tier::Host).await;
            let mut clients = Vec::new();
            for _ in 0..100 {
                clients.push(server.send(&ask("a")).await);
            }
            for mut client in clients {
                client.receive().await.expect(200);
            }
            assert_eq!((total(&server, WAKES), server.gated.counts("a").loads_begun), (1.0, 1));
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn where_host_memory_is_full_the_models_that_slept_longest_end_and_load_anew() {
        run(async {
            let names = ["a", "b", "c", "d"];
            let server = TestServer::start_on_cuda(models(&names, 24), room(36, 30)).await;
            for name in names {
                answers(&server, name).await;
            }
            eventually("one sleeps and two are gone", || {
                let tier = |tier| names.iter().filter(|name| server.row(name).tier == tier).count();
                (tier(Tier::Device), tier(Tier::Host)) == (1, 1)
            })
            .await;
            assert!(count("pinned") <= 30 * MIB + 256 * MIB, "what sleeps is bounded; staging is beside it");
            for name in names {
                answers(&server, name).await;
            }
            assert!(total(&server, "roundhouse_evictions_total{tier=\"host\",reason=\"room\"}") >= 1.0);
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn without_host_memory_victims_are_unloaded() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b"], 24), room(36, 0)).await;
            answers(&server, "a").await;
            answers(&server, "b").await;
            eventually("a is gone", || server.row_if("a").is_none_or(|row| row.tier == Tier::Remote)).await;
            assert_eq!(total(&server, SLEEPS), 0.0);
            answers(&server, "a").await;
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn a_victim_in_use_is_waited_for_and_never_sleeps_under_a_run() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b"], 24), room(36, 256)).await;
            answers(&server, "a").await;
            server.gated.close("a", Step::Execute);
            let mut running = server.send(&ask("a")).await;
            server.until("a", |counts| counts.executions_begun == 2).await;
            let mut waiting = server.send(&ask("b")).await;
            eventually("b waits for room", || total(&server, "roundhouse_loads_waiting") >= 0.0).await;
            assert_eq!(server.row("a").tier, Tier::Device);
            server.gated.open("a", Step::Execute);
            running.receive().await.expect(200);
            waiting.receive().await.expect(200);
            answers(&server, "a").await;
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn a_model_that_sleeps_can_be_unloaded_loaded_anew_and_pinned() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b"], 24), room(64, 256)).await;
            let to_sleep = async || {
                answers(&server, "a").await;
                let other = format!("parameters {{ key: \"x\" value {{ string_value: \"1\" }} }}\n{}", super::weighs(40, 1, 1));
                server.repository.put("big/config.pbtxt", crate::support::repository::config("big", "gated", &other));
                server.repository.add_version("big", 1);
                answers(&server, "big").await;
                eventually("a sleeps", || server.row("a").tier == Tier::Host).await;
            };
            to_sleep().await;
            server.inner.unload_model("a", false).await.unwrap();
            assert_eq!((host_book(&server).models, host_book(&server).booked), (0, 0));
            assert_eq!(total(&server, "roundhouse_models_asleep"), 0.0);
            server.inner.unload_model("big", false).await.unwrap();
            to_sleep().await;
            server.repository.touch("a");
            server.ask(&load("a")).await.expect(200);
            assert_eq!(server.gated.counts("a").loads_begun, 3, "what the repository has is loaded, not what slept");
            answers(&server, "a").await;
            server.inner.pin_model("a").await.unwrap();
            answers(&server, "b").await;
            answers(&server, "a").await;
            assert_eq!(server.row("a").tier, Tier::Device, "what is pinned does not sleep");
            server.inner.unpin_model("a").unwrap();
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn a_sleep_that_the_driver_refuses_is_an_unload_and_a_wake_that_it_refuses_leaves_the_model_asleep() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b"], 24), room(36, 256)).await;
            answers(&server, "a").await;
            say("fail cuMemHostAlloc 0 2");
            answers(&server, "b").await;
            eventually("a is gone", || server.row_if("a").is_none_or(|row| row.tier == Tier::Remote)).await;
            assert_eq!(total(&server, "roundhouse_model_sleeps_total{outcome=\"failed\"}"), 1.0);
            say("heal");
            answers(&server, "a").await;
            eventually("b sleeps", || server.row("b").tier == Tier::Host).await;
            server.inner.unload_model("a", false).await.unwrap();
            say("fail cuMemMap 0 2");
            let refused = server.ask(&ask("b")).await;
            assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("out_of_device_memory")), "{}", refused.text());
            assert_eq!(server.row("b").tier, Tier::Host, "nothing is lost");
            say("heal");
            answers(&server, "b").await;
            assert_eq!(server.gated.counts("b").loads_begun, 1);
            server.finish().await;
        });
    }
}
