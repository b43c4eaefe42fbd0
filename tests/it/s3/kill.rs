//! The real binary, killed at random points of downloads, unpacking and renaming: the next start finds whole entries and
//! nothing else.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::bucket::{Bucket, CacheFolder, Files, Random, config, noise, output, packed, paths};
use super::double::Operation;
use crate::support::binary::Binary;
use crate::support::client::{Client, infer};

const MODELS: usize = 10;
const KILLS: u64 = 120;

/// Which randomness; another one finds other instants.
const SEED: u64 = 4711;

fn name(number: usize) -> String {
    format!("m{number}")
}

/// A model of some 150 KB whose bytes follow from its number and the serial of its content, which its output's name tells.
fn content(number: usize, serial: u64) -> Files {
    let output = format!("y{serial}");
    vec![
        ("config.pbtxt".to_owned(), config(&name(number), "identity", &output, "")),
        ("1/labels".to_owned(), noise(serial * 100 + number as u64, 700)),
        ("1/weights".to_owned(), noise(serial * 1000 + number as u64, 150_000 + number * 1000)),
    ]
}

/// The bucket, what is in it, and the folder that every server takes over from the one before.
struct Scene {
    bucket: Bucket,
    serials: [u64; MODELS],
    cache: CacheFolder,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheFolder(folder.path().join("cache"));
        let mut scene = Self { bucket: Bucket::start().await, serials: [0; MODELS], cache, _folder: folder };
        (0..MODELS).for_each(|number| scene.change(number));
        scene
    }

    /// Puts another content in the place of a model's.
    fn change(&mut self, number: usize) {
        self.serials[number] += 1;
        let files = content(number, self.serials[number]);
        match [".tar.gz", ".tar.zst", ".tar", ".zip", ""][number % 5] {
            "" => self.bucket.folder(&name(number), files),
            ending => self.bucket.put(&format!("{}{ending}", name(number)), packed(ending, &files)),
        }
    }

    fn start(&self) -> Binary {
        let cache = self.cache.0.to_str().unwrap();
        // Room for six, so that some leave while others come; no runtime is looked for.
        let arguments =
            ["--s3-anonymous", "true", "--cache-dir", cache, "--cache-capacity", "1100KiB", "--min-residency-ms", "0"];
        let fast = ["--onnxruntime-library", "/nowhere", "--io-threads", "2", "--executor-threads", "1"];
        Binary::start(self.bucket.uri().as_ref(), &[arguments.as_slice(), &fast].concat())
    }

    /// Holds that what lies in the folder is whole: what each entry says is there with the right bytes, all of one
    /// content, and nothing else.
    fn check(&self) {
        assert_eq!(self.cache.litter(), Vec::<String>::new());
        for entry in self.cache.0.join("entries").read_dir().unwrap() {
            check_entry(&entry.unwrap().path(), &self.serials);
        }
    }
}

fn check_entry(entry: &Path, serials: &[u64]) {
    let manifest: Value = serde_json::from_slice(&std::fs::read(entry.join("manifest.json")).unwrap()).unwrap();
    let number: usize = manifest["name"].as_str().unwrap()[1..].parse().unwrap();
    let text = String::from_utf8(std::fs::read(entry.join("files/config.pbtxt")).unwrap()).unwrap();
    let serial = text.split("\"y").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    assert!((1..=serials[number]).contains(&serial), "{serial} was never there");
    let expected = content(number, serial);
    for (path, content) in &expected {
        assert!(std::fs::read(entry.join("files").join(path)).unwrap() == *content, "{path} of content {serial}");
    }
    let listed = manifest["files"].as_array().unwrap().iter().map(|file| file[0].as_str().unwrap().to_owned());
    let mut listed: Vec<_> = listed.collect();
    listed.sort();
    let there: Vec<_> = paths(&entry.join("files")).into_iter().filter(|path| !path.ends_with('/')).collect();
    assert_eq!(there, listed);
    let outside: Vec<_> = paths(entry).into_iter().filter(|path| !path.starts_with("files/")).collect();
    assert!(outside.iter().all(|path| path == "manifest.json" || path == "derived/"), "{outside:?}");
}

/// When the server is killed.
#[derive(Debug)]
enum Moment {
    /// After so many bytes from the store.
    AfterBytes(u64),
    /// After so many requests to the store.
    AfterRequests(usize),
    /// When more or less lies in this folder of the cache than before.
    Change(&'static str),
    /// After so many answers, and a little later.
    AfterAnswers(usize, usize),
}

impl Moment {
    fn of(random: &mut Random) -> Self {
        match random.below(8) {
            0..=2 => Self::AfterBytes(random.below(700_000) as u64),
            3 => Self::AfterRequests(random.below(14)),
            4 => Self::Change("temp"),
            5 => Self::Change("entries"),
            6 => Self::Change("trash"),
            _ => Self::AfterAnswers(random.below(3), random.below(200)),
        }
    }
}

/// Sends requests for cold models and returns at the instant.
async fn until(scene: &Scene, binary: &Binary, models: &[usize], instant: &Moment, random: &mut Random) {
    let (bytes, requests) = (scene.bucket.double.sent(), scene.bucket.double.requests().len());
    let count = |folder: &str| paths(&scene.cache.0.join(folder)).len();
    let mut clients = Vec::new();
    for (tag, number) in (0..).zip(models) {
        let mut client = Client::connect(binary.http).await;
        client.send(&infer(&name(*number), tag)).await;
        clients.push(client);
    }
    let answered = std::cell::Cell::new(0);
    let answers = futures_util::future::join_all(clients.iter_mut().map(|client| {
        let answered = &answered;
        async move {
            drop(client.try_receive().await);
            answered.set(answered.get() + 1);
        }
    }));
    let before = match instant {
        Moment::Change(folder) => count(folder),
        _ => 0,
    };
    let (mut more, most_yields) = (random.below(20), 1_000_000);
    let look = async {
        for _ in 0..most_yields {
            let reached = match instant {
                Moment::AfterBytes(most) => scene.bucket.double.sent() - bytes >= *most,
                Moment::AfterRequests(most) => scene.bucket.double.requests().len() - requests >= *most,
                Moment::Change(folder) => count(folder) != before,
                Moment::AfterAnswers(most, _) => answered.get() >= *most,
            };
            if reached {
                if let Moment::AfterAnswers(_, later) = instant {
                    more += later;
                }
                for _ in 0..std::mem::take(&mut more) {
                    tokio::task::yield_now().await;
                }
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    // All is answered before the instant comes: then that is the instant.
    futures_util::future::select(std::pin::pin!(look), std::pin::pin!(answers)).await;
}

#[tokio::test]
async fn a_server_killed_at_any_instant_leaves_whole_entries_and_starts_again() {
    let began = Instant::now();
    let mut scene = Scene::new().await;
    let mut random = Random::new(SEED);
    let (mut fetching, mut leaving, mut adopted) = (0, 0, 0);
    for kill in 0..KILLS {
        let binary = scene.start();
        scene.check();
        adopted += scene.cache.entries();
        let sampled = random.below(MODELS);
        let answer = binary.ask(&infer(&name(sampled), 7)).await;
        assert_eq!(
            (answer.tag(), output(&answer)),
            (7, format!("y{}", scene.serials[sampled])),
            "kill {kill} of {SEED}"
        );
        let cold: Vec<_> = (1..=5).map(|step| (sampled + step) % MODELS).collect();
        for number in cold.iter().take(3) {
            scene.change(*number);
        }
        let instant = Moment::of(&mut random);
        println!("kill {kill} of seed {SEED}: {instant:?}");
        until(&scene, &binary, &cold, &instant, &mut random).await;
        // SIGKILL.
        drop(binary);
        let has = |folder: &str| usize::from(!paths(&scene.cache.0.join(folder)).is_empty());
        (fetching, leaving) = (fetching + has("temp"), leaving + has("trash"));
    }
    let binary = scene.start();
    scene.check();
    for number in 0..MODELS {
        let answer = binary.ask(&infer(&name(number), 9)).await;
        assert_eq!((answer.tag(), output(&answer)), (9, format!("y{}", scene.serials[number])));
    }
    binary.finish();
    let gets = scene.bucket.double.count(Operation::Get);
    println!(
        "{KILLS} kills, {fetching} in a fetch and {leaving} in a deletion, {adopted} entries adopted, {gets} requests for \
         bytes, {:?}",
        began.elapsed()
    );
    assert!(fetching >= KILLS as usize / 4, "{fetching} kills in the middle of a fetch");
    assert!(adopted > KILLS as usize, "{adopted} entries adopted");
}
