//! Models that change or go while servers use them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use roundhouse::lifecycle::residency::{EvictionReason, Tier};

use super::bucket::{Bucket, CacheFolder, ask, memory, model, model_with, output, state};
use super::double::{Fault, Operation};
use crate::support::client::{Client, infer, load, unload};
use crate::support::repository::holds;
use crate::support::server::{TestServer, all};
use crate::support::{eventually, within};

/// Asks `m` from four connections until `change` is over, and a little longer; gives how many answers came from the old
/// and the new content.
async fn under_load(server: &TestServer, change: impl Future<Output = ()>) -> (usize, usize) {
    let (over, old, new) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let clients = all((0..4).map(|client| {
        let (over, old, new) = (&over, &old, &new);
        async move {
            let mut connection = Client::connect(server.addresses.http).await;
            let mut seen_new = false;
            for tag in client * 1_000_000.. {
                let last = over.load(Ordering::SeqCst);
                let answer = connection.ask(&infer("m", tag)).await;
                assert_eq!(answer.tag(), tag);
                let is_new = output(&answer) == "z";
                assert!(is_new || !seen_new, "the old content came back");
                seen_new = is_new;
                if is_new { new } else { old }.fetch_add(1, Ordering::SeqCst);
                if last {
                    assert!(is_new, "asked after the change");
                    return;
                }
            }
        }
    }));
    let change = async {
        eventually("answers come from the old content", || old.load(Ordering::SeqCst) > 20).await;
        change.await;
        eventually("the new content answers", || new.load(Ordering::SeqCst) > 20).await;
        over.store(true, Ordering::SeqCst);
    };
    within("requests and a change", futures_util::future::join(clients, change)).await;
    (old.into_inner(), new.into_inner())
}

#[tokio::test]
async fn a_changed_model_is_swapped_by_a_load_without_a_failed_request() {
    let bucket = Bucket::start().await;
    bucket.archive("m.tar.gz", &model("m", 200_000));
    let server = bucket.serve(|_| {}).await;
    ask(&server, "m", 1).await;
    let before = server.row("m").fingerprint;
    under_load(&server, async {
        bucket.archive("m.tar.gz", &model_with("m", "z", 200_000, ""));
        server.ask(&load("m")).await.expect(200);
    })
    .await;
    assert_ne!(server.row("m").fingerprint, before);
    let cache = CacheFolder::of(&server);
    eventually("the old entry is gone", || cache.entries() == 1 && cache.litter().is_empty()).await;
    eventually("the old copy is gone", || server.gated.counts("m").live_models == 1).await;
    // What did not change is not loaded again.
    server.ask(&load("m")).await.expect(200);
    assert_eq!((server.gated.counts("m").loads_ended, bucket.gets()), (2, 2));
    server.finish().await;
}

#[tokio::test]
async fn a_poll_swaps_a_changed_model_without_a_failed_request_and_drops_one_that_is_gone() {
    let bucket = Bucket::start().await;
    bucket.folder("m", model("m", 50_000));
    bucket.models(&[("gone", 1000), ("same", 1000)]);
    let server = bucket.serve(|config| config.repository_poll = Some(Duration::from_millis(1))).await;
    for name in ["m", "gone", "same"] {
        ask(&server, name, 1).await;
    }
    under_load(&server, async {
        bucket.remove("gone.tar");
        bucket.folder("m", model_with("m", "z", 50_000, ""));
    })
    .await;
    eventually("the deleted one is gone", || server.gated.counts("gone").live_models == 0).await;
    let cache = CacheFolder::of(&server);
    eventually("its entry is gone too", || cache.entries() == 2 && cache.litter().is_empty()).await;
    server.ask(&infer("gone", 2)).await.expect(404);
    assert_eq!(server.gated.counts("same").loads_begun, 1);
    server.finish().await;
}

#[tokio::test]
async fn a_changed_model_without_room_for_two_copies_drains_the_old_one_first() {
    let bucket = Bucket::start().await;
    bucket.archive("m.tar", &model_with("m", "y", 1000, &holds(200, 200)));
    let server = bucket.serve(|config| memory(config, 300)).await;
    ask(&server, "m", 1).await;
    bucket.archive("m.tar", &model_with("m", "z", 1000, &holds(200, 200)));
    server.ask(&load("m")).await.expect(200);
    assert_eq!(output(&ask(&server, "m", 2).await), "z");
    assert_eq!(server.books()[0].booked, 200 << 10);
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_changes_between_the_look_and_the_download_is_looked_up_anew() {
    let bucket = Bucket::start().await;
    bucket.archive("m.tar.zst", &model("m", 10_000));
    bucket.double.fault(Operation::Get, &bucket.key("m.tar.zst"), Fault::Hang);
    let server = bucket.serve(|_| {}).await;
    let mut client = server.send(&infer("m", 1)).await;
    eventually("the download has begun", || bucket.double.waiting() == 1).await;
    bucket.archive("m.tar.zst", &model_with("m", "z", 10_000, ""));
    bucket.double.release(1);
    let answer = client.receive().await;
    assert_eq!((answer.tag(), output(&answer).as_str(), state(&answer)), (1, "z", "remote"));
    assert_eq!((bucket.lists(), bucket.gets()), (2, 2));
    assert!(CacheFolder::of(&server).litter().is_empty());
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_changes_in_the_middle_of_its_download_is_never_a_mixture() {
    let bucket = Bucket::start().await;
    // Three parts, of which the last are asked for by the tag that the look-up saw.
    bucket.folder("m", model("m", 20 << 20));
    let key = bucket.key("m/1/weights");
    bucket.double.faults(Operation::Get, &key, 3, Fault::Hang);
    let server = bucket.serve(|_| {}).await;
    let mut client = server.send(&infer("m", 1)).await;
    eventually("the parts are asked for", || bucket.double.waiting() == 3).await;
    bucket.double.release(1);
    eventually("one part comes", || bucket.double.sent() > 8 << 20).await;
    let fresh = model_with("m", "z", 20 << 20, "");
    bucket.folder("m", fresh.clone());
    bucket.double.release(2);
    let answer = client.receive().await;
    assert_eq!((answer.tag(), output(&answer).as_str()), (1, "z"));
    let cache = CacheFolder::of(&server);
    let entry = cache.0.join("entries").read_dir().unwrap().next().unwrap().unwrap().path();
    assert!(std::fs::read(entry.join("files/1/weights")).unwrap() == fresh[1].1, "the new bytes and no others");
    assert_eq!((cache.entries(), cache.litter()), (1, Vec::new()));
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_is_gone_is_not_found_after_the_next_look() {
    let bucket = Bucket::start().await;
    bucket.folder("folder", model("folder", 1000));
    bucket.models(&[("resident", 1000), ("on-disk", 1000)]);
    let server = bucket.serve(|_| {}).await;
    for name in ["folder", "resident", "on-disk"] {
        ask(&server, name, 1).await;
    }
    server.ask(&unload("on-disk")).await.expect(200);
    for path in ["folder", "resident.tar", "on-disk.tar"] {
        bucket.remove(path);
    }
    // Nobody has looked yet.
    assert_eq!(state(&ask(&server, "resident", 2).await), "device");
    server.gated.close("resident", roundhouse::backend::gated::Step::Execute);
    let mut running = server.send(&infer("resident", 3)).await;
    server.until("resident", |counts| counts.executions_begun == 3).await;
    server.ask(&infer("on-disk", 2)).await.expect(404);
    for name in ["folder", "resident"] {
        server.ask(&load(name)).await.expect(404);
    }
    server.gated.open("resident", roundhouse::backend::gated::Step::Execute);
    assert_eq!(running.receive().await.tag(), 3, "who was there is answered");
    let cache = CacheFolder::of(&server);
    for name in ["folder", "resident", "on-disk"] {
        eventually("it is out of memory", || server.gated.counts(name).live_models == 0).await;
        server.ask(&infer(name, 4)).await.expect(404);
        eventually("nothing of it is left", || server.row_if(name).is_none_or(|row| row.tier == Tier::Remote)).await;
    }
    eventually("nothing of them is on the disk", || cache.entries() == 0 && cache.litter().is_empty()).await;
    eventually("their bytes are free", || server.disk().booked == 0).await;
    let evicted = |reason: EvictionReason| {
        let reason = reason.name();
        server.metric(&format!("roundhouse_evictions_total{{tier=\"device\",reason=\"{reason}\"}}"))
    };
    assert_eq!(evicted(EvictionReason::Deleted), Some(2.0));
    // And back.
    bucket.models(&[("resident", 1000)]);
    let came_back = async {
        // It is remembered for a second that it was not there.
        while server.ask(&infer("resident", 5)).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    within("the model is back", came_back).await;
    server.finish().await;
}
