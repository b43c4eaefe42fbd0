//! One load for all who call, with its limits, and what comes after it.

use super::*;

#[tokio::test]
async fn a_hundred_callers_make_one_load_and_get_a_hundred_answers() {
    let scene = Scene::start(&[]).await;
    scene.fake.script(Operation::Load, "a", [Script::Gated]);
    let calls: Vec<_> = (0..100).map(|_| scene.begin("a")).collect();
    scene.fake.until(Operation::Load, 1).await;
    scene.fake.release(1);
    for call in calls {
        call.await.unwrap().ok();
    }
    assert_eq!((scene.fake.asked(Operation::Load).len(), scene.fake.asked(Operation::Invoke).len()), (1, 100));
    scene.finish().await;
}

#[tokio::test]
async fn a_load_that_fails_fails_for_all_who_wait_for_it() {
    let scene = Scene::start(&[]).await;
    scene.fake.script(Operation::Load, "a", [Script::Gated]);
    // Once let go there is no room, and nobody to unload.
    scene.fake.holds(0);
    let first = scene.begin("a");
    scene.fake.until(Operation::Load, 1).await;
    let second = scene.begin("a");
    scene.fake.release(1);
    for call in [first, second] {
        call.await.unwrap().error(503, "ServiceUnavailable");
    }
    assert_eq!(scene.on_disk(), 0);
    scene.finish().await;
}

#[tokio::test]
async fn who_waits_too_long_is_told_to_come_again_while_the_load_goes_on() {
    let scene = Scene::start(&["--load-wait-ms", "50"]).await;
    scene.fake.script(Operation::Load, "a", [Script::Gated]);
    let reply = scene.call("a").await;
    reply.error(429, "ModelNotReadyException");
    assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    scene.fake.until(Operation::Load, 1).await;
    scene.call("a").await.error(429, "ModelNotReadyException");
    scene.fake.release(1);
    loop {
        let reply = scene.call("a").await;
        if reply.status == 200 {
            break;
        }
        reply.error(429, "ModelNotReadyException");
    }
    assert_eq!(scene.fake.asked(Operation::Load).len(), 1);
    scene.finish().await;
}

#[tokio::test]
async fn a_load_goes_on_when_its_only_caller_has_left() {
    let scene = Scene::start(&[]).await;
    scene.fake.script(Operation::Load, "a", [Script::Gated]);
    let call = scene.begin("a");
    scene.fake.until(Operation::Load, 1).await;
    call.abort();
    assert!(call.await.is_err_and(|error| error.is_cancelled()));
    scene.fake.release(1);
    scene.call("a").await.ok();
    assert_eq!(scene.fake.asked(Operation::Load).len(), 1);
    scene.finish().await;
}

#[tokio::test]
async fn a_load_past_its_limit_is_a_model_error_and_is_taken_back() {
    // Where a machine is so slow that the limit ends the fetch already, a longer one is tried.
    for limit in ["200", "2000", "20000"] {
        let scene = Scene::start(&["--load-limit-ms", limit]).await;
        scene.fake.script(Operation::Load, "a", [Script::Gated]);
        let body = scene.call("a").await.error(424, "ModelError");
        let text = format!("within {} s", limit.parse::<f64>().unwrap() / 1000.0);
        assert!(body["OriginalMessage"].as_str().unwrap().contains(&text), "{body}");
        assert_eq!(scene.on_disk(), 0);
        let (loads, unloads) = (scene.fake.targets(Operation::Load), scene.fake.targets(Operation::Unload));
        scene.finish().await;
        if !loads.is_empty() {
            assert_eq!(unloads, ["a"]);
            return;
        }
    }
    panic!("no load began");
}

#[tokio::test]
async fn a_model_that_the_container_has_already_counts_as_loaded() {
    let scene = Scene::start(&[]).await;
    scene.fake.script(Operation::Load, "a", [Script::Status(409, "already loaded")]);
    // It says so and has not: the call that finds out loads it again.
    scene.call("a").await.ok();
    assert_eq!(scene.fake.asked(Operation::Load).len(), 2);
    scene.finish().await;
}

#[tokio::test]
async fn after_a_restart_of_the_container_a_model_is_loaded_again_once_and_not_fetched() {
    let scene = Scene::start(&[]).await;
    scene.call("a").await.ok();
    let hash = scene.fake.asked(Operation::Load)[0].hash.clone();
    fs::remove_dir_all(scene.models.path().join("a")).unwrap();
    fs::remove_file(scene.models.path().join("a.tar.gz")).unwrap();
    scene.fake.forget();
    let calls: Vec<_> = (0..10).map(|_| scene.begin("a")).collect();
    for call in calls {
        call.await.unwrap().ok();
    }
    let loads = scene.fake.asked(Operation::Load);
    assert_eq!((loads.len(), &loads[1].hash), (2, &hash));
    scene.finish().await;
}

#[tokio::test]
async fn a_model_that_answers_404_itself_is_loaded_again_once_and_then_believed() {
    let scene = Scene::start(&[]).await;
    scene.call("a").await.ok();
    let not_found = Script::Status(404, "no such class");
    scene.fake.script(Operation::Invoke, "a", [not_found.clone(), not_found]);
    let body = scene.call("a").await.error(424, "ModelError");
    assert_eq!((&body["OriginalStatusCode"], &body["OriginalMessage"]), (&404.into(), &"no such class".into()));
    assert_eq!(scene.fake.asked(Operation::Load).len(), 2);
    scene.finish().await;
}

#[tokio::test]
async fn a_changed_model_is_served_as_it_was_until_it_is_loaded_anew() {
    let scene = Scene::start(&["--max-models", "1"]).await;
    scene.call("a").await.ok();
    fs::write(scene.models.path().join("a/1/x"), "new").unwrap();
    scene.call("a").await.ok();
    assert_eq!(scene.fake.asked(Operation::Load).len(), 1);
    scene.call("b").await.ok();
    scene.call("a").await.ok();
    let loads = scene.fake.asked(Operation::Load);
    assert_ne!(loads[0].hash, loads[2].hash);
    scene.finish().await;
}

#[tokio::test]
async fn the_end_stops_loads_that_hang_and_leaves_nothing() {
    let scene = Scene::start(&[]).await;
    scene.call("b").await.ok();
    scene.fake.script(Operation::Load, "a", [Script::Gated]);
    let call = scene.begin("a");
    scene.fake.until(Operation::Load, 2).await;
    scene.stop.cancel();
    // Its caller waits for as long as requests in flight may take.
    call.abort();
    scene.finish().await;
}
