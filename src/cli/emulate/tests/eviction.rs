//! Who leaves for whom, and what happens where nobody can.

use super::*;
use crate::cli::emulate::container::Invocation;

#[tokio::test]
async fn where_the_container_is_full_the_least_recently_used_leaves_with_its_files() {
    let scene = Scene::start(&[]).await;
    scene.fake.holds(2);
    for target in ["a", "b", "a", "c"] {
        scene.call(target).await.ok();
    }
    assert_eq!(scene.fake.targets(Operation::Unload), ["b"]);
    assert_eq!((scene.fake.loaded(), scene.on_disk()), (vec!["a".to_owned(), "c".to_owned()], 2));
    let unload = &scene.fake.asked(Operation::Unload)[0];
    assert_eq!(unload.hash, scene.fake.asked(Operation::Load)[1].hash);
    scene.call("b").await.ok();
    assert_eq!(scene.fake.targets(Operation::Unload), ["b", "a"]);
    scene.finish().await;
}

#[tokio::test]
async fn models_leave_one_by_one_until_the_container_has_room() {
    let scene = Scene::start(&[]).await;
    for target in ["a", "b", "c"] {
        scene.call(target).await.ok();
    }
    scene.fake.script(Operation::Load, "d", [Script::Status(507, "no"), Script::Status(507, "not yet")]);
    scene.call("d").await.ok();
    assert_eq!(scene.fake.targets(Operation::Unload), ["a", "b"]);
    assert_eq!(scene.fake.targets(Operation::Load), ["a", "b", "c", "d", "d", "d"]);
    scene.finish().await;
}

#[tokio::test]
async fn with_nobody_left_to_unload_there_is_no_capacity() {
    let scene = Scene::start(&[]).await;
    scene.call("a").await.ok();
    scene.fake.script(Operation::Load, "b", (0..2).map(|_| Script::Status(507, "out of memory")));
    let reply = scene.call("b").await;
    let body = reply.error(503, "ServiceUnavailable");
    let text = body["Message"].as_str().unwrap();
    assert!(text.contains("InsufficientCapacity") && text.contains("out of memory"), "{text}");
    assert_eq!((scene.fake.targets(Operation::Unload), scene.on_disk()), (vec!["a".to_owned()], 0));
    scene.call("b").await.ok();
    scene.finish().await;
}

#[tokio::test]
async fn a_model_that_is_called_never_leaves() {
    let scene = Scene::start(&[]).await;
    scene.fake.holds(1);
    scene.call("a").await.ok();
    scene.fake.script(Operation::Invoke, "a", [Script::Gated]);
    let call = scene.begin("a");
    scene.fake.until(Operation::Invoke, 2).await;
    scene.call("b").await.error(503, "ServiceUnavailable");
    assert_eq!(scene.fake.targets(Operation::Unload), Vec::<String>::new());
    scene.fake.release(1);
    call.await.unwrap().ok();
    scene.call("b").await.ok();
    assert_eq!(scene.fake.loaded(), ["b"]);
    scene.finish().await;
}

#[tokio::test]
async fn a_call_without_room_has_others_leave_and_is_made_again() {
    let scene = Scene::start(&[]).await;
    for target in ["a", "b", "c"] {
        scene.call(target).await.ok();
    }
    scene.fake.script(Operation::Invoke, "a", [Script::Status(507, "no"), Script::Status(507, "not yet")]);
    scene.call("a").await.ok();
    assert_eq!(scene.fake.targets(Operation::Unload), ["b", "c"]);
    scene.fake.script(Operation::Invoke, "a", [Script::Status(507, "out of memory")]);
    let body = scene.call("a").await.error(424, "ModelError");
    assert_eq!((&body["OriginalStatusCode"], &body["OriginalMessage"]), (&507.into(), &"out of memory".into()));
    scene.finish().await;
}

#[tokio::test]
async fn a_call_that_waits_too_long_for_room_is_answered_what_the_container_said() {
    let call = Invocation { content_type: None, accept: None, custom_attributes: None, body: Bytes::new() };
    // Where a machine is so slow that the limit ends the call before there is an answer, a longer one is tried.
    for limit in [200, 2000, 20_000].map(Duration::from_millis) {
        let (fake, models, work) = (Fake::start().await, tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["a", "b"] {
            fs::create_dir_all(models.path().join(name).join("1")).unwrap();
            fs::write(models.path().join(name).join("config.pbtxt"), "backend: \"identity\"").unwrap();
        }
        let container = Container::parse(&format!("http://{}", fake.address)).unwrap();
        let repository = Arc::new(Local::open(models.path()).unwrap());
        let (store, _) = Store::open(repository, work.path(), None, false, Handle::current()).unwrap();
        let settings = Settings {
            load_wait: LONG,
            load_limit: LONG,
            invocation: limit,
            unload_limit: LONG,
            keeps: true,
            loads: 1,
            caps: Caps::default(),
        };
        let platform = Platform::new(container, store, settings, Handle::current());
        if platform.invoke("a", &call).await.is_err() {
            platform.shut_down().await;
            continue;
        }
        fake.script(Operation::Invoke, "b", [Script::Status(507, "out of memory")]);
        fake.script(Operation::Unload, "a", [Script::Gated]);
        let error = tokio::time::timeout(LONG, platform.invoke("b", &call)).await.unwrap().unwrap_err();
        let asked = fake.targets(Operation::Unload);
        fake.release(1);
        platform.shut_down().await;
        if !asked.is_empty() {
            let original = error.original.unwrap();
            assert_eq!((original.status, original.message.as_str()), (507, "out of memory"));
            return;
        }
    }
    panic!("no eviction began");
}

#[tokio::test]
async fn an_unload_whose_connection_breaks_is_asked_for_again() {
    let scene = Scene::start(&["--max-models", "1"]).await;
    scene.call("a").await.ok();
    scene.fake.script(Operation::Unload, "a", [Script::Cut]);
    scene.call("b").await.ok();
    assert_eq!(
        (scene.fake.targets(Operation::Unload), scene.fake.loaded()),
        (vec!["a".to_owned(); 2], vec!["b".to_owned()])
    );
    scene.finish().await;
}

#[tokio::test]
async fn an_eviction_goes_on_when_the_caller_it_was_for_has_left() {
    let scene = Scene::start(&[]).await;
    scene.call("a").await.ok();
    scene.call("b").await.ok();
    scene.fake.script(Operation::Invoke, "b", [Script::Status(507, "out of memory")]);
    scene.fake.script(Operation::Unload, "a", [Script::Gated]);
    let call = scene.begin("b");
    scene.fake.until(Operation::Unload, 1).await;
    call.abort();
    assert!(call.await.is_err_and(|error| error.is_cancelled()));
    scene.fake.release(1);
    eventually("the files of a are gone", || scene.on_disk() == 1).await;
    scene.call("a").await.ok();
    assert_eq!((scene.fake.asked(Operation::Load).len(), scene.fake.asked(Operation::Unload).len()), (3, 1));
    scene.finish().await;
}

#[tokio::test]
async fn a_model_that_does_not_go_stays_and_the_next_one_leaves() {
    let scene = Scene::start(&[]).await;
    scene.fake.holds(2);
    scene.call("a").await.ok();
    scene.call("b").await.ok();
    scene.fake.script(Operation::Unload, "a", [Script::Status(500, "busy")]);
    scene.call("c").await.ok();
    assert_eq!(scene.fake.targets(Operation::Unload), ["a", "b"]);
    scene.call("a").await.ok();
    assert_eq!(scene.fake.asked(Operation::Load).len(), 4, "a was not loaded again, c was tried twice");
    scene.finish().await;
}

#[tokio::test]
async fn a_container_that_does_not_run_holds_nothing_that_must_leave() {
    let mut scene = Scene::start(&["--max-models", "1"]).await;
    scene.call("a").await.ok();
    let address = scene.fake.address;
    scene.fake.stop().await;
    // Its connections may end a moment later.
    loop {
        let reply = scene.call("b").await;
        if reply.status == 503 {
            break;
        }
        reply.error(424, "ModelError");
    }
    assert_eq!(scene.on_disk(), 0, "a has left, b could not be loaded");
    scene.fake = Fake::start_at(address).await;
    scene.call("b").await.ok();
    scene.call("a").await.ok();
    assert_eq!(scene.fake.loaded(), ["a"]);
    scene.finish().await;
}

#[tokio::test]
async fn who_calls_a_model_on_its_way_out_waits_and_loads_it_again() {
    let scene = Scene::start(&["--max-models", "1"]).await;
    scene.call("a").await.ok();
    scene.fake.script(Operation::Unload, "a", [Script::Gated]);
    let other = scene.begin("b");
    scene.fake.until(Operation::Unload, 1).await;
    let same = scene.begin("a");
    scene.fake.release(1);
    other.await.unwrap().ok();
    let again = same.await.unwrap();
    // Where `b` is still in use when `a` is to come, there is no room for `a` at all.
    assert!(again.status == 200 || again.status == 503, "{:?}", again.body);
    scene.call("a").await.ok();
    scene.finish().await;
}

#[tokio::test]
async fn caps_on_models_and_disk_make_models_leave_before_the_container_says_so() {
    for cap in [["--max-models", "2"], ["--disk-capacity", "40"]] {
        let scene = Scene::start(&cap).await;
        for target in ["a", "b", "c"] {
            scene.call(target).await.ok();
        }
        assert_eq!((scene.fake.targets(Operation::Unload), scene.on_disk()), (vec!["a".to_owned()], 2), "{cap:?}");
        scene.finish().await;
    }
    let scene = Scene::start(&["--disk-capacity", "10"]).await;
    for target in ["a", "a.tar.gz"] {
        let body = scene.call(target).await.error(400, "ValidationError");
        assert!(body["Message"].as_str().unwrap().contains("--disk-capacity"), "{body}");
    }
    assert_eq!(scene.on_disk(), 0);
    scene.finish().await;
}

#[tokio::test]
async fn without_a_cache_each_model_leaves_after_its_invocation() {
    let scene = Scene::start(&["--cache-setting", "disabled"]).await;
    scene.fake.script(Operation::Invoke, "a", [Script::Gated, Script::Gated]);
    let calls = [scene.begin("a"), scene.begin("a")];
    scene.fake.until(Operation::Invoke, 2).await;
    assert_eq!(scene.fake.asked(Operation::Unload).len(), 0);
    scene.fake.release(2);
    for call in calls {
        call.await.unwrap().ok();
    }
    scene.fake.until(Operation::Unload, 1).await;
    eventually("its files are gone", || scene.on_disk() == 0).await;
    scene.call("a").await.ok();
    scene.fake.until(Operation::Unload, 2).await;
    assert_eq!((scene.fake.asked(Operation::Load).len(), scene.fake.asked(Operation::Unload).len()), (2, 2));
    scene.finish().await;
}

#[tokio::test]
async fn many_callers_of_more_models_than_fit_are_answered_or_told_that_there_is_no_room() {
    let scene = Scene::start(&[]).await;
    scene.fake.holds(2);
    let names = ["a", "b", "c", "d", "e"];
    for _round in 0..4 {
        let calls: Vec<_> = (0..25).map(|index| scene.begin(names[index % names.len()])).collect();
        for call in calls {
            let reply = call.await.unwrap();
            assert!(reply.status == 200 || reply.status == 503, "{} {:?}", reply.status, reply.body);
        }
        assert!(scene.fake.loaded().len() <= 2);
    }
    for name in names {
        scene.call(name).await.ok();
    }
    scene.finish().await;
}
