//! What goes wrong with a GPU: clear errors, a book that stays true, and everybody else goes on.

use std::time::Duration;

use roundhouse::lifecycle::residency::Tier;

use super::sleep::room;
use super::{answers, ask, models, run, weighs};
use crate::cuda::{MIB, count, folder_inside, say};
use crate::support::client::get;
use crate::support::eventually;
use crate::support::server::TestServer;

const OUT_OF_MEMORY: u32 = 2;
const ILLEGAL_ADDRESS: u32 = 700;

alone! {
    on "device 1073741824";
    fn a_model_larger_than_the_device_is_refused_for_good_and_nobody_leaves_for_it() {
        run(async {
            let repository = models(&["a"], 24).with("big", "gated", &weighs(100, 1, 0));
            let server = TestServer::start_on_cuda(repository, room(64, 256)).await;
            answers(&server, "a").await;
            let refused = server.ask(&ask("big")).await.expect(503);
            assert!(refused.error().contains("'big' is too large for gpu:0: raise --memory-limit gpu:0=SIZE"), "{}", refused.error());
            assert_eq!((server.row("a").tier, server.row("a").evictions), (Tier::Device, 0));
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn a_model_that_needs_more_than_it_says_gets_it_where_there_is_room_and_is_refused_where_there_is_not() {
        run(async {
            let says = |says: u64, needs: u64| {
                weighs(needs, 2, 0).replacen(&(needs * MIB).to_string(), &(says * MIB).to_string(), 1)
            };
            let repository = models(&["a"], 24).with("more", "gated", &says(2, 30)).with("most", "gated", &says(2, 90));
            let server = TestServer::start_on_cuda(repository, room(64, 256)).await;
            answers(&server, "more").await;
            assert_eq!(server.row("more").device_bytes, 30 * MIB);
            answers(&server, "a").await;
            let refused = server.ask(&ask("most")).await;
            assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("out_of_device_memory")), "{}", refused.text());
            answers(&server, "more").await;
            answers(&server, "a").await;
            server.finish().await;
        });
    }
}

alone! {
    on "device 134217728";
    fn where_another_process_takes_memory_others_leave_for_a_load_and_it_is_refused_when_that_does_not_do() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b", "c"], 24), room(100, 256)).await;
            answers(&server, "a").await;
            // 128 MiB are there; of what is left of them, none is free for b.
            say(&format!("others 0 {}", 128 * MIB - count("used 0")));
            answers(&server, "b").await;
            assert_eq!((server.row("a").tier, server.row("b").tier), (Tier::Host, Tier::Device));
            answers(&server, "a").await;
            say(&format!("others 0 {}", 128 * MIB));
            server.inner.unload_model("a", false).await.unwrap();
            let refused = server.ask(&ask("b")).await;
            assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("out_of_device_memory")), "{}", refused.text());
            say("others 0 0");
            answers(&server, "b").await;
            answers(&server, "c").await;
            server.finish().await;
        });
    }
}

alone! {
    on "device 134217728";
    fn a_run_that_finds_no_memory_has_others_leave_and_is_answered() {
        run(async {
            let repository = models(&["a"], 40).with("b", "gated", &weighs(8, 1, 30));
            let server = TestServer::start_on_cuda(repository, room(120, 256)).await;
            answers(&server, "b").await;
            server.inner.unload_model("b", false).await.unwrap();
            answers(&server, "a").await;
            // Room for its weights and for some of its scratch, until a leaves.
            say(&format!("others 0 {}", (128 - 40 - 20) * MIB));
            answers(&server, "b").await;
            assert_eq!(server.row("a").tier, Tier::Host);
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn a_run_whose_allocation_fails_is_run_once_more_and_then_refused_and_the_session_survives() {
        run(async {
            // Runs of `b` need more than is kept of those of `a`, on whichever stream they are.
            let repository = models(&["a"], 8).with("b", "gated", &weighs(8, 1, 24));
            let server = TestServer::start_on_cuda(repository, room(64, 0)).await;
            server.inner.load_model("a", None).await.unwrap();
            // Mapping fails once, for the pool's own tries and for the first run.
            for nth in 1..=3 {
                say(&format!("fail cuMemMap {nth} {OUT_OF_MEMORY}"));
            }
            answers(&server, "a").await;
            say("heal");
            server.inner.unload_model("a", false).await.unwrap();
            server.inner.load_model("b", None).await.unwrap();
            say(&format!("fail cuMemMap 0 {OUT_OF_MEMORY}\nfail cuMemCreate 0 {OUT_OF_MEMORY}"));
            let refused = server.ask(&ask("b")).await;
            assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("out_of_device_memory")), "{}", refused.text());
            say("heal");
            answers(&server, "b").await;
            assert_eq!(server.gated.counts("b").loads_begun, 1);
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824\ndevice 1073741824";
    fn models_of_a_device_that_is_lost_are_unavailable_and_others_serve() {
        run(async {
            let on = |gpu: u32| format!("instance_group [ {{ kind: KIND_GPU gpus: [ {gpu} ] }} ]\n{}", weighs(8, 1, 1));
            let repository = crate::support::repository::Repository::empty()
                .with("first", "gated", &on(0))
                .with("second", "gated", &on(1))
                .with("any", "gated", &weighs(8, 1, 1));
            let server = TestServer::start_on_cuda(repository, |config| config.load_retry = Duration::ZERO).await;
            answers(&server, "first").await;
            answers(&server, "second").await;
            say(&format!("lost 0 {ILLEGAL_ADDRESS}"));
            let failed = server.ask(&ask("first")).await;
            assert!(failed.status == 503 && failed.error().contains("gpu:0 is lost"), "{}", failed.text());
            // Its models leave it; what names no device goes elsewhere.
            eventually("it is out of memory", || server.row("first").tier != Tier::Device).await;
            let again = server.ask(&ask("first")).await;
            assert!(again.status == 503 && again.error().contains("gpu:0 is lost"), "{}", again.text());
            answers(&server, "any").await;
            assert_eq!(server.row("any").device, Some(roundhouse::inference::DeviceId::Gpu(1)));
            answers(&server, "second").await;
            let page = server.inner.metrics_page();
            let sick = page.lines().filter(|line| line.starts_with("roundhouse_gpu_healthy") && line.ends_with(" 0")).count();
            assert_eq!(sick, 1, "{page}");
            server.ask(&get("/v2/health/live")).await.expect(200);
            let health = server.ask(&get("/v2/health/ready")).await.expect(200).json();
            assert_eq!((health["sick_devices"].as_array().unwrap().len(), &health["sick_devices"][0]["device"]), (1, &"gpu:0".into()));
            say(&format!("lost 1 {ILLEGAL_ADDRESS}"));
            server.ask(&ask("second")).await.expect(503);
            let health = server.ask(&get("/v2/health/ready")).await.expect(503);
            assert!(health.error().contains("no GPU is left"), "{}", health.text());
            server.ask(&get("/v2/health/live")).await.expect(200);
        });
    }
}

alone! {
    on "device 1073741824";
    fn nvml_that_is_gone_while_the_server_runs_changes_nothing_but_what_it_told() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a", "b"], 24), room(36, 256)).await;
            answers(&server, "a").await;
            let folder = folder_inside().unwrap();
            std::fs::write(folder.join("state"), "init 999\n").unwrap();
            answers(&server, "b").await;
            answers(&server, "a").await;
            let used = server.books()[0].used.unwrap();
            assert!(used >= 24 * MIB && used <= count("used 0") + MIB, "the driver tells it: {used}");
            assert!(server.inner.metrics_page().contains("roundhouse_model_wakes_total"));
            server.finish().await;
        });
    }
}

alone! {
    on "version 11080\ndevice 1073741824";
    fn with_a_driver_that_is_too_old_models_are_on_the_cpu_and_a_gpu_that_is_asked_for_is_refused_with_the_mend() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a"], 8), |_| {}).await;
            answers(&server, "a").await;
            assert_eq!(server.row("a").device, Some(roundhouse::inference::DeviceId::Cpu));
            server.finish().await;
        });
        let why = roundhouse::app::Machine::here().gpus.unwrap_err();
        assert!(why.contains("too old: it is for CUDA 11.8; update it to one for 12.0 or newer"), "{why}");
    }
}
