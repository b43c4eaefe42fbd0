//! What a start makes of what earlier runs left, wherever they ended.

use super::*;

/// A cache folder with complete entries of these models.
async fn world_with(models: &[&str]) -> World {
    let world = World::new(&[]);
    let cache = world.open(PLENTY);
    for (model, hours) in models.iter().zip((1..=models.len() as u64).rev()) {
        world.put(&format!("{model}/1/model.onnx"), 5000);
        let handle = world.ensure(&cache, model).await.unwrap();
        let (id, at) = (handle.id(), SystemTime::now() - Duration::from_secs(hours * 3600));
        drop(handle);
        idle(&cache).await;
        cache.inner.store.mark_used(id, at).unwrap();
    }
    close(cache).await;
    world
}

fn first_entry(world: &World) -> PathBuf {
    world.path("entries").read_dir().unwrap().next().unwrap().unwrap().path()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_entries_are_adopted_and_need_no_fetch() {
    let world = world_with(&["a", "b"]).await;
    let before = world.fetches();
    let cache = world.open(PLENTY);
    assert_eq!((cache.usage().entries, cache.usage().booked), (2, world.used()));
    let handle = world.ensure(&cache, "a").await.unwrap();
    assert_eq!((handle.versions(), handle.tree().unwrap().versions), ([1].as_slice(), vec![1]));
    assert_eq!(world.fetches(), before);
    // What is on the disk serves when the repository cannot be asked.
    assert_eq!(cache.newest("b").map(|handle| handle.versions().to_vec()), Some(vec![1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_leaves_is_deleted_and_comes_anew() {
    type Break = fn(&World);
    let breaks: [(&str, Break); 9] = [
        ("its manifest is missing", |world| std::fs::remove_file(first_entry(world).join("manifest.json")).unwrap()),
        ("its manifest is garbage", |world| std::fs::write(first_entry(world).join("manifest.json"), "{").unwrap()),
        ("its manifest is cut off", |world| {
            let manifest = first_entry(world).join("manifest.json");
            let text = std::fs::read(&manifest).unwrap();
            std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
        }),
        ("its manifest is a folder", |world| {
            std::fs::remove_file(first_entry(world).join("manifest.json")).unwrap();
            std::fs::create_dir(first_entry(world).join("manifest.json")).unwrap();
        }),
        ("a file is too short", |world| std::fs::write(first_entry(world).join("files/1/model.onnx"), "x").unwrap()),
        ("a file is missing", |world| std::fs::remove_file(first_entry(world).join("files/1/model.onnx")).unwrap()),
        ("it has another's name", |world| {
            std::fs::rename(first_entry(world), world.path("entries").join("0".repeat(32))).unwrap();
        }),
        ("it had not got its name yet", |world| {
            std::fs::rename(first_entry(world), world.path("temp").join("x.0")).unwrap();
        }),
        ("it had lost its name already", |world| {
            std::fs::rename(first_entry(world), world.path("trash").join("0")).unwrap();
        }),
    ];
    for (what, destroy) in breaks {
        let world = world_with(&["m"]).await;
        destroy(&world);
        let cache = world.open(PLENTY);
        assert_eq!((cache.usage().entries, cache.usage().booked), (0, 0), "{what}");
        assert_eq!((world.count("entries"), world.count("temp"), world.count("trash")), (0, 0, 0), "{what}");
        assert_eq!(world.ensure(&cache, "m").await.unwrap().versions(), [1], "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_was_cut_off_costs_nothing_but_the_update() {
    let world = world_with(&["m"]).await;
    std::fs::write(first_entry(&world).join("manifest.json.new"), "{").unwrap();
    let cache = world.open(PLENTY);
    assert_eq!((cache.usage().entries, cache.usage().booked), (1, world.used()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_capacity_keeps_what_was_used_last() {
    let world = world_with(&["old", "newer", "newest"]).await;
    let cache = world.open(7 * BLOCK);
    let mut names: Vec<_> = cache.entries().into_iter().map(|entry| entry.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["newer", "newest"]);
    assert_eq!((world.count("entries"), cache.usage().booked, cache.usage().evictions), (2, 6 * BLOCK, 1));
    // The next one that must go is the older of the two.
    world.put("m/1/model.onnx", 5000);
    let handle = world.ensure(&cache, "m").await.unwrap();
    assert!(cache.newest("newer").is_none() && cache.newest("newest").is_some());
    drop(handle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_and_uses_outlive_a_restart() {
    let world = world_with(&["a"]).await;
    let cache = world.open(PLENTY);
    let handle = world.ensure(&cache, "a").await.unwrap();
    assert_eq!(handle.history("cpu"), None);
    handle.note_load("cpu", LoadRecord { bytes: 1, seconds: f64::NAN });
    handle.note_load("gpu:0", LoadRecord { bytes: 77, seconds: 0.25 });
    assert_eq!(handle.history("gpu:0").map(|load| load.bytes), Some(77));
    drop(handle);
    close(cache).await;
    let cache = world.open(PLENTY);
    let handle = cache.newest("a").unwrap();
    assert_eq!(handle.history("gpu:0"), Some(LoadRecord { bytes: 77, seconds: 0.25 }));
    assert_eq!(handle.history("cpu"), Some(LoadRecord { bytes: 1, seconds: 0.0 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_is_remembered_for_the_next_start() {
    let world = world_with(&["old", "newer"]).await;
    let cache = world.open(PLENTY);
    drop(world.ensure(&cache, "old").await.unwrap());
    close(cache).await;
    let cache = world.open(4 * BLOCK);
    assert!(cache.newest("old").is_some() && cache.newest("newer").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_has_one_server() {
    let world = World::new(&[]);
    let cache = world.open(PLENTY);
    let error = world.try_open(PLENTY).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("another server uses the cache folder"), "{error}");
    assert!(error.to_string().contains(world.path("").display().to_string().trim_end_matches('/')), "{error}");
    close(cache).await;
    assert!(world.try_open(PLENTY).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_another_version_or_of_another_program_is_left_alone() {
    let world = world_with(&["m"]).await;
    std::fs::write(world.path("VERSION"), "2\n").unwrap();
    let error = world.try_open(PLENTY).err().unwrap();
    assert!(error.to_string().contains("of version '2'") && error.to_string().contains("--cache-dir"), "{error}");
    std::fs::remove_file(world.path("VERSION")).unwrap();
    let error = world.try_open(PLENTY).err().unwrap();
    assert!(error.to_string().contains("is no cache of this server"), "{error}");
    assert_eq!(world.count("entries"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_cannot_be_made_is_named() {
    let world = World::new(&[]);
    std::fs::write(world.folder.path().join("cache"), "a file").unwrap();
    let error = world.try_open(PLENTY).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("cannot use the cache folder"), "{error}");
}
