//! Memory that is short: who leaves, who stays, who waits and who is refused.

use std::time::Duration;

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::config::amount::{Amount, Limited, MemoryLimit};
use roundhouse::config::{Eviction, EvictionRule, ServerConfig};
use roundhouse::error::Error;
use roundhouse::lifecycle::residency::{EvictionReason, Retention, Tier};

use crate::sequence::{LONG, step, told};
use crate::support::client::{Client, infer, load, unload};
use crate::support::repository::{Repository, config, holds};
use crate::support::server::TestServer;
use crate::support::{eventually, within};

/// Memory for models of so many KiB, and no protection of the young.
fn memory(kib: u64) -> impl FnOnce(&mut ServerConfig) {
    move |config| {
        let amount = Amount::Bytes(kib << 10);
        config.cache.memory_limits = vec![MemoryLimit { device: Limited::Cpu, amount }];
        // What a load takes is chance in a test; the order of requests is not.
        config.cache.rule = EvictionRule::Lru;
        config.cache.min_residency = Duration::ZERO;
        config.cache.room_wait = Duration::from_secs(60);
    }
}

async fn ask(server: &TestServer, model: &str, tag: i32) {
    assert_eq!(server.ask(&infer(model, tag)).await.tag(), tag);
}

#[tokio::test]
async fn a_model_that_needs_room_takes_it_from_those_asked_for_least() {
    let repository = Repository::empty().sized(&[("a", 100), ("b", 100), ("c", 100), ("d", 100)]);
    let server = TestServer::start_with(repository, memory(300)).await;
    for (tag, model) in (0..).zip(["a", "b", "c", "a", "a", "c", "c"]) {
        ask(&server, model, tag).await;
    }
    assert_eq!(server.books()[0].booked, 300 << 10);
    ask(&server, "d", 9).await;
    assert_eq!(server.in_memory(), ["a", "c", "d"]);
    assert_eq!(server.books()[0].booked, 300 << 10);
    let row = server.row("b");
    assert_eq!((row.tier, row.evictions, row.device_bytes), (Tier::Remote, 1, 0));
    let left = row.last_eviction.unwrap();
    assert_eq!((left.reason, left.made_room_for.as_deref()), (EvictionReason::Room, Some("d")));
    assert_eq!(server.gated.counts("b").live_models, 0);
    ask(&server, "b", 10).await;
    assert_eq!(server.row("b").loads, 2);
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_can_never_fit_is_refused_at_once_and_evicts_nobody() {
    let repository = Repository::empty().sized(&[("a", 100), ("large", 301)]);
    let server = TestServer::start_with(repository, memory(300)).await;
    ask(&server, "a", 1).await;
    let refused = server.ask(&infer("large", 2)).await.expect(503);
    let text = refused.error();
    assert!(text.contains("'large' is too large for cpu") && text.contains("--memory-limit"), "{text}");
    assert_eq!(refused.header("retry-after"), None, "no wait helps");
    assert_eq!(refused.json()["code"], "out_of_device_memory");
    assert_eq!(
        (server.in_memory().as_slice(), server.gated.counts("large").loads_begun),
        (["a".to_owned()].as_slice(), 0)
    );
    server.finish().await;
}

#[tokio::test]
async fn a_model_in_use_stays_and_who_needs_its_room_waits_until_it_is_idle() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200)]);
    let server = TestServer::start_with(repository, memory(300)).await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut waiting = server.send(&infer("b", 2)).await;
    eventually("b waits for room", || server.row_if("b").is_some_and(|row| row.state.name() == "LOADING")).await;
    // Somebody else is not held up by that.
    assert_eq!(server.gated.counts("b").loads_begun, 0);
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    assert_eq!(waiting.receive().await.tag(), 2);
    assert_eq!(server.in_memory(), ["b"]);
    server.finish().await;
}

#[tokio::test]
async fn who_waited_for_room_long_enough_is_told_what_there_is() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200)]);
    let server = TestServer::start_with(repository, |config| {
        memory(300)(config);
        config.cache.room_wait = Duration::from_millis(50);
    })
    .await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let refused = server.ask(&infer("b", 2)).await.expect(503);
    assert!(refused.header("retry-after").is_some(), "a wait helps");
    let text = refused.error();
    assert!(
        text.contains("no room for model 'b'") && text.contains("102400 free") && text.contains("204800 in use"),
        "{text}"
    );
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    assert_eq!(server.in_memory(), ["a"], "nobody was evicted in vain");
    server.finish().await;
}

#[tokio::test]
async fn a_load_that_waits_for_room_stops_when_its_caller_leaves() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200)]);
    let server = TestServer::start_with(repository, memory(300)).await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.ask(&infer("b", 2).header("x-request-timeout-ms", 100)).await.expect(504);
    eventually("the load is abandoned", || server.loads("cancelled") == 1).await;
    assert_eq!(server.books()[0].booked, 200 << 10, "its bytes are back");
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    server.finish().await;
}

#[tokio::test]
async fn with_external_eviction_nobody_is_evicted_and_the_refusal_says_what_would_help() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200)]);
    let server = TestServer::start_with(repository, |config| {
        memory(300)(config);
        config.cache.eviction = Eviction::External;
    })
    .await;
    ask(&server, "a", 1).await;
    let text = server.ask(&load("b")).await.expect(503).error();
    assert!(text.contains("no room") && text.contains("204800 evictable"), "{text}");
    server.ask(&unload("a")).await.expect(200);
    server.ask(&load("b")).await.expect(200);
    assert_eq!(server.in_memory(), ["b"]);
    server.finish().await;
}

#[tokio::test]
async fn a_pinned_model_is_loaded_and_never_evicted_until_it_is_unpinned() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200), ("c", 50)]);
    let server = TestServer::start_with(repository, |config| {
        memory(300)(config);
        config.pin_model = vec!["a".to_owned()];
    })
    .await;
    assert_eq!(
        (server.in_memory().as_slice(), server.row("a").retention),
        (["a".to_owned()].as_slice(), Retention::Pinned)
    );
    ask(&server, "c", 1).await;
    let refused = server.ask(&infer("b", 1)).await.expect(503);
    assert!(refused.error().contains("no room"), "at once, since no wait helps: {}", refused.error());
    assert_eq!(server.in_memory(), ["a", "c"]);
    server.inner.unpin_model("a").unwrap();
    ask(&server, "b", 2).await;
    assert!(!server.in_memory().contains(&"a".to_owned()));
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_is_not_retained_leaves_when_its_requests_are_answered() {
    let retain = "parameters { key: \"retain\" value { string_value: \"false\" } }";
    let repository = Repository::empty().with("a", "gated", retain).with("b", "gated", "");
    let server = TestServer::start_with(repository, memory(300)).await;
    server.gated.close("a", Step::Execute);
    let mut clients = [server.send(&infer("a", 1)).await, server.send(&infer("a", 2)).await];
    server.until("a", |counts| counts.executions_begun == 2).await;
    server.gated.open("a", Step::Execute);
    for (tag, client) in (1..).zip(&mut clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    eventually("the model is gone", || server.gated.counts("a").live_models == 0).await;
    ask(&server, "b", 3).await;
    ask(&server, "a", 4).await;
    eventually("the model is gone again", || server.row("a").evictions == 2).await;
    assert_eq!(server.row("a").last_eviction.unwrap().reason, EvictionReason::Transient);
    assert_eq!(server.in_memory(), ["b"]);
    server.finish().await;
}

#[tokio::test]
async fn a_prefetch_takes_free_memory_and_nobody_elses() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200), ("c", 100)]);
    let server = TestServer::start_with(repository, memory(300)).await;
    ask(&server, "a", 1).await;
    within("a prefetch", server.inner.prefetch_model("b")).await.unwrap();
    assert_eq!(server.in_memory(), ["a"]);
    within("a prefetch", server.inner.prefetch_model("c")).await.unwrap();
    assert_eq!(server.in_memory(), ["a", "c"]);
    assert!(within("a prefetch", server.inner.prefetch_model("nowhere")).await.is_err());
    server.finish().await;
}

#[tokio::test]
async fn a_changed_model_without_room_for_two_copies_drains_the_old_one_first() {
    let server = TestServer::start_with(Repository::empty().sized(&[("a", 200)]), memory(300)).await;
    ask(&server, "a", 1).await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 2)).await;
    server.until("a", |counts| counts.executions_begun == 2).await;
    server.repository.touch("a");
    let mut loading = server.send(&load("a")).await;
    eventually("the old copy is on its way out", || server.inner.resident_versions().is_empty()).await;
    let mut late = server.send(&infer("a", 3)).await;
    assert_eq!(server.gated.counts("a").loads_begun, 1, "not two copies at once");
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 2);
    loading.receive().await.expect(200);
    assert_eq!(late.receive().await.tag(), 3);
    assert_eq!(server.books()[0].booked, 200 << 10);
    server.finish().await;
}

#[tokio::test]
async fn a_changed_model_that_cannot_be_loaded_leaves_the_copy_that_answers() {
    let server = TestServer::start_with(Repository::empty().sized(&[("a", 100), ("b", 150)]), memory(300)).await;
    ask(&server, "a", 1).await;
    within("a pin", server.inner.pin_model("b")).await.unwrap();
    server.repository.put("a/config.pbtxt", config("a", "gated", &holds(200, 200)));
    let refused = server.ask(&load("a")).await.expect(503);
    assert!(refused.error().contains("no room"), "{}", refused.error());
    ask(&server, "a", 2).await;
    assert_eq!(server.gated.counts("a").loads_begun, 1);
    server.inner.unpin_model("b").unwrap();
    server.ask(&load("a")).await.expect(200);
    assert_eq!(server.row("a").device_bytes, 200 << 10);
    server.finish().await;
}

#[tokio::test]
async fn a_load_that_waits_for_room_holds_no_place_among_the_loads() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200), ("c", 50)]);
    let server = TestServer::start_with(repository, |config| {
        memory(300)(config);
        config.load_concurrency = 1;
    })
    .await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut waiting = server.send(&infer("b", 2)).await;
    eventually("b waits for room", || server.row_if("b").is_some_and(|row| row.state.name() == "LOADING")).await;
    ask(&server, "c", 3).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    assert_eq!(waiting.receive().await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_holds_more_than_it_said_pushes_others_out_or_is_dropped() {
    let repository = Repository::empty().sized(&[("a", 100), ("b", 100)]);
    repository.put("greedy/config.pbtxt", config("greedy", "gated", &holds(50, 150)));
    repository.add_version("greedy", 1);
    repository.put("giant/config.pbtxt", config("giant", "gated", &holds(50, 400)));
    repository.add_version("giant", 1);
    let server = TestServer::start_with(repository, memory(300)).await;
    ask(&server, "a", 1).await;
    ask(&server, "b", 2).await;
    ask(&server, "b", 3).await;
    ask(&server, "greedy", 4).await;
    eventually("somebody has made room", || server.row("a").last_eviction.is_some()).await;
    assert_eq!(server.in_memory(), ["b", "greedy"]);
    assert_eq!(server.row("a").last_eviction.unwrap().reason, EvictionReason::Overrun);
    assert_eq!(server.row("greedy").device_bytes, 150 << 10);
    let refused = server.ask(&infer("giant", 5)).await.expect(503);
    assert!(refused.error().contains("holds 409600 bytes once loaded"), "{}", refused.error());
    assert_eq!(server.gated.counts("giant").live_models, 0);
    let refused = server.ask(&infer("giant", 6)).await.expect(503);
    assert!(refused.error().contains("'giant' is too large"), "{}", refused.error());
    assert_eq!(server.gated.counts("giant").loads_begun, 1, "it is not loaded again to be dropped again");
    // What it was measured to need is known now.
    let explained = server.inner.explain("greedy").await.unwrap();
    assert_eq!((explained.expected_bytes, explained.expected_from), (Some(150 << 10), Some("measured")));
    server.finish().await;
}

#[tokio::test]
async fn a_poll_swaps_what_changed_and_unloads_what_is_gone() {
    let server = TestServer::start_with(Repository::gated(&["a", "b", "c"]), |config| {
        config.repository_poll = Some(Duration::from_millis(1));
    })
    .await;
    for model in ["a", "b", "c"] {
        ask(&server, model, 1).await;
    }
    server.repository.touch("a");
    server.repository.remove("b");
    eventually("the changed one is loaded anew", || server.gated.counts("a").loads_ended == 2).await;
    eventually("the deleted one is gone", || server.gated.counts("b").live_models == 0).await;
    eventually("the old copy is gone", || server.gated.counts("a").live_models == 1).await;
    assert_eq!(server.gated.counts("c").loads_begun, 1, "what did not change stays as it is");
    server.finish().await;
}

/// Ten times more models than fit, random requests, loads that fail: every answer is right or a clear refusal.
#[tokio::test]
async fn thrash_loses_nothing() {
    let names: Vec<String> = (0..40).map(|number| format!("m{number:02}")).collect();
    let sizes: Vec<(&str, u64)> = names.iter().zip(20..).map(|(name, kib)| (name.as_str(), kib)).collect();
    let server = TestServer::start_with(Repository::empty().sized(&sizes), |config| {
        memory(160)(config);
        config.load_retry = Duration::ZERO;
    })
    .await;
    for name in names.iter().step_by(5) {
        for _ in 0..3 {
            server.gated.fail_next(name, Step::Load, Fault::Error(Error::internal("torn")));
        }
    }
    let clients = (0..8_u64).map(|client| {
        let (address, names) = (server.addresses.http, &names);
        async move {
            let mut connection = Client::connect(address).await;
            let mut random = client * 7919 + 1;
            let (mut right, mut refused) = (0, 0);
            for tag in 0..60 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let name = &names[usize::try_from(random >> 33).unwrap() % names.len()];
                let answer = connection.ask(&infer(name, tag)).await;
                match answer.status {
                    200 => {
                        assert_eq!(answer.tag(), tag);
                        right += 1;
                    }
                    500 | 503 => {
                        assert!(answer.error().contains(name), "{}", answer.error());
                        refused += 1;
                    }
                    other => panic!("{other}: {}", answer.text()),
                }
            }
            (right, refused)
        }
    });
    let counts = within("the thrash", futures_util::future::join_all(clients)).await;
    let (right, refused) = counts.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    assert!(right > 400 && refused > 0, "{right} right, {refused} refused");
    let book = server.books()[0].clone();
    assert!(book.booked <= book.limit, "{book:?}");
    let live: u64 =
        (0..40).map(|number| server.gated.counts(&names[number]).live_models as u64 * (20 + number as u64)).sum();
    eventually("what leaves has left", || server.books()[0].models == server.in_memory().len()).await;
    assert!(live << 10 <= book.limit, "{live} KiB are held");
    server.finish().await;
}

/// Room for the model of sequences `s` or for `b`; a sequence is live for so long without a word.
async fn with_sequences(idle: &str, more: &str) -> TestServer {
    let repository = Repository::empty().sized(&[("b", 200)]);
    let more = format!("{} {more}", holds(200, 200));
    repository.put("s/config.pbtxt", crate::sequence::config(&format!("direct {{ }} {idle}"), &more));
    repository.add_version("s", 1);
    TestServer::start_with(repository, memory(300)).await
}

#[tokio::test]
async fn a_model_with_a_live_sequence_stays_until_that_ends() {
    let server = with_sequences(LONG, "").await;
    assert_eq!(told(server.ask(&step(7, true, false, 10)).await)[5], 0);
    let mut waiting = server.send(&infer("b", 2)).await;
    eventually("b waits for room", || server.row_if("b").is_some_and(|row| row.state.name() == "LOADING")).await;
    let why = server.inner.explain("s").await.unwrap().reasons.join("; ");
    assert!(why.contains("a sequence has begun and not ended"), "{why}");
    assert_eq!(told(server.ask(&step(7, false, false, 11)).await)[5], 10, "it has what it left");
    assert_eq!(server.gated.counts("b").loads_begun, 0);
    assert_eq!(told(server.ask(&step(7, false, true, 12)).await)[5], 11);
    assert_eq!(waiting.receive().await.tag(), 2);
    assert_eq!(server.in_memory(), ["b"]);
    server.finish().await;
}

#[tokio::test]
async fn a_sequence_that_is_silent_for_too_long_keeps_no_model() {
    let server = with_sequences("max_sequence_idle_microseconds: 100000", "").await;
    told(server.ask(&step(7, true, false, 10)).await);
    assert_eq!(server.ask(&infer("b", 2)).await.tag(), 2);
    assert_eq!(server.in_memory(), ["b"]);
    server.finish().await;
}

#[tokio::test]
async fn a_model_not_to_be_kept_stays_for_its_sequence() {
    let retain = "parameters { key: \"retain\" value { string_value: \"false\" } }";
    for idle in [LONG, "max_sequence_idle_microseconds: 100000"] {
        let server = with_sequences(idle, retain).await;
        told(server.ask(&step(7, true, false, 10)).await);
        if idle == LONG {
            assert_eq!(told(server.ask(&step(7, false, false, 11)).await)[5], 10);
            assert_eq!(told(server.ask(&step(7, false, true, 12)).await)[5], 11);
            assert_eq!(server.row("s").loads, 1);
        }
        eventually("it is dismissed", || server.in_memory().is_empty()).await;
        server.finish().await;
    }
}

#[tokio::test]
async fn an_unload_that_is_asked_for_waits_for_no_sequence() {
    let server = with_sequences(LONG, "").await;
    told(server.ask(&step(7, true, false, 10)).await);
    server.ask(&unload("s")).await.expect(200);
    assert!(server.in_memory().is_empty());
    server.ask(&step(7, false, false, 11)).await.expect(400);
    server.finish().await;
}
