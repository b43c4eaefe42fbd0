//! S3 on loopback to files ready on the disk: what a GiB of weights costs this process, beside each stage on its own.
//!
//! `cargo bench --bench fetch [-- --mib 1024 --rounds 3 --formats tar,tar.zst,tar.gz,prefix]`
//!
//! The store is a process of its own, so that the client's processor time is the client's alone. The model and its
//! archives are made once and kept below `target/`. In each round and format: the model through `DiskCache::ensure`, then
//! the network to nowhere, the decoder from the page cache to nowhere, and the writing with its `fsync`. The wall clock of
//! the first is held against the slowest of the others, within the round; medians are printed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints, and stops where its work fails"
)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use roundhouse::artifact::pack::pack;
use roundhouse::artifact::{Format, Limits, start_write_back};
use roundhouse::cache::cost_aware::CostAware;
use roundhouse::cache::disk::{ChooseVersions, DiskCache, DiskOptions};
use roundhouse::device::priority::lower_this_thread;
use roundhouse::repository::ModelRepository;
use roundhouse::repository::download::{DownloadOptions, Downloader, Meter, WINDOW};
use roundhouse::repository::manifest::ModelManifest;
use roundhouse::repository::s3::{S3, S3Options};
use tokio_util::sync::CancellationToken;

#[expect(dead_code, reason = "the tests need more of it")]
#[path = "../tests/it/s3/double.rs"]
mod double;

/// Bytes that are read and written at a time where nothing else says how many.
const CHUNK: usize = 256 << 10;

/// As `src/app/parts.rs` has it.
const LOADING_THREADS: usize = 2;
const LOADING_NICE: i32 = 10;

/// The part of objects from 64 MiB to 10 GiB.
const PART: u64 = 16 << 20;

/// What the model comes as, and the most processor seconds a GiB of it may cost.
const FORMATS: [(&str, Option<Format>, f64); 4] = [
    ("tar", Some(Format::Tar), 1.2),
    ("tar.zst", Some(Format::TarZst), 2.3),
    ("tar.gz", Some(Format::TarGz), 4.2),
    ("prefix", None, 1.0),
];

/// The most that the wall clock may be of the slowest stage's.
const WALL: f64 = 1.15;

struct Options {
    mib: usize,
    rounds: usize,
    formats: Vec<String>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return serve(&arguments[1..]);
    }
    let options = parse(&arguments);
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fetch-{}", options.mib));
    make(&root, &options);
    println!(
        "{} MiB of fp16 weights, {} rounds, parts of {} MiB, medians; load average {}",
        options.mib,
        options.rounds,
        PART >> 20,
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default()
    );
    println!(
        "{:8} {:>9} {:>7} {:>7} | {:>7} {:>8} {:>8} {:>8} {:>9} {:>7} | {:>12} {:>5} {:>8}",
        "format",
        "CPU-s/GiB",
        "at most",
        "",
        "wall s",
        "network",
        "decoder",
        "disk",
        "w/slowest",
        "at most",
        "buffered MiB",
        "bound",
        "requests"
    );
    let mut missed = 0;
    for (name, format, most) in FORMATS {
        if options.formats.iter().any(|wanted| wanted == name) {
            let rounds: Vec<_> = (0..options.rounds).map(|_| measure(&root, name, format, options.mib)).collect();
            missed += report(name, most, &rounds);
        }
    }
    println!("{}", if missed == 0 { "all within".to_owned() } else { format!("{missed} figures missed") });
}

fn parse(arguments: &[String]) -> Options {
    let mut options =
        Options { mib: 1024, rounds: 3, formats: FORMATS.iter().map(|(name, ..)| (*name).to_owned()).collect() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            "--mib" => options.mib = value().parse().expect("--mib N"),
            "--rounds" => options.rounds = value().parse::<usize>().expect("--rounds N").max(1),
            "--formats" => options.formats = value().split(',').map(str::to_owned).collect(),
            // Cargo's own, and filters.
            _ => {}
        }
    }
    options
}

// ---- The model ------------------------------------------------------------------------------------------------------

/// The model's folder and its archives, made where they are absent.
fn make(root: &Path, options: &Options) {
    let model = root.join("model");
    if !root.join("made").exists() {
        let _absent = std::fs::remove_dir_all(root);
        std::fs::create_dir_all(model.join("1")).expect("a folder");
        let config = "backend: \"onnxruntime\"\nmax_batch_size: 0\n";
        std::fs::write(model.join("config.pbtxt"), config).expect("a configuration");
        eprintln!("making {} MiB of weights ...", options.mib);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        // A graph of some size, and the bulk beside it.
        weights(&model.join("1/model.onnx"), (options.mib << 20) / 64, &mut state);
        weights(&model.join("1/model.onnx.data"), (options.mib << 20) / 64 * 63, &mut state);
        std::fs::write(root.join("made"), "").expect("a mark");
    }
    for (name, format, _) in FORMATS {
        let Some(format) = format.filter(|_| options.formats.iter().any(|wanted| wanted == name)) else { continue };
        let archive = root.join(format!("model.{name}"));
        if !archive.exists() {
            eprintln!("packing model.{name} ...");
            let temp = root.join("packing");
            pack(&model, File::create(&temp).expect("an archive"), format).expect("packed");
            std::fs::rename(temp, archive).expect("renamed");
        }
    }
}

/// Writes values about normal around zero with a deviation of 0.02, as weights have.
fn weights(path: &Path, bytes: usize, state: &mut u64) {
    let mut file = File::create(path).expect("a file");
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        for pair in chunk.chunks_exact_mut(2) {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            // Eight uniform bytes: their sum is normal enough.
            let sum: u32 = state.to_le_bytes().into_iter().map(u32::from).sum();
            let fine = (*state >> 40) as f32 / (1_u32 << 24) as f32;
            pair.copy_from_slice(&f16::from_f32((sum as f32 + fine - 1020.0) * 0.0001).to_le_bytes());
        }
        let count = left.min(CHUNK);
        file.write_all(&chunk[..count]).expect("written");
        left -= count;
    }
    file.sync_all().expect("on the disk");
}

// ---- The store ------------------------------------------------------------------------------------------------------

/// The child: keeps `KEY=FILE` objects in memory, says where, and ends with its standard input.
fn serve(objects: &[String]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let double = double::S3Double::start().await;
        for object in objects {
            let (key, file) = object.split_once('=').expect("KEY=FILE");
            double.put(key, std::fs::read(file).expect("an object"));
        }
        println!("{}", double.uri("bucket/models"));
        // Each line asks how many requests there were.
        let mut input = io::stdin().lines();
        while let Some(Ok(_)) = input.next() {
            println!("{}", double.requests().len());
        }
    });
    runtime.shutdown_background();
}

struct Store {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    uri: String,
}

impl Store {
    fn start(objects: &[(String, PathBuf)]) -> Self {
        let objects = objects.iter().map(|(key, file)| format!("bucket/models/{key}={}", file.display()));
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("serve")
            .args(objects)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a store");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let uri = line(&mut output);
        Self { child, output, uri }
    }

    fn requests(&mut self) -> usize {
        writeln!(self.child.stdin.as_ref().expect("its input")).expect("asked");
        line(&mut self.output).parse().expect("a number")
    }
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).expect("a line of the store");
    line.trim().to_owned()
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

// ---- Measuring ------------------------------------------------------------------------------------------------------

struct Round {
    cpu: f64,
    wall: f64,
    network: f64,
    decoder: f64,
    disk: f64,
    buffered: u64,
    requests: usize,
}

impl Round {
    fn over_slowest(&self) -> f64 {
        self.wall / self.network.max(self.decoder).max(self.disk)
    }
}

fn measure(root: &Path, name: &str, format: Option<Format>, mib: usize) -> Round {
    let model = root.join("model");
    let objects: Vec<(String, PathBuf)> = match format {
        Some(_) => vec![(format!("model.{name}"), root.join(format!("model.{name}")))],
        None => ["config.pbtxt", "1/model.onnx", "1/model.onnx.data"]
            .iter()
            .map(|path| (format!("model/{path}"), model.join(path)))
            .collect(),
    };
    let mut store = Store::start(&objects);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(LOADING_THREADS)
        .thread_name("loading")
        .on_thread_start(|| lower_this_thread(LOADING_NICE))
        .enable_all()
        .build()
        .expect("a runtime");
    let loading = runtime.handle().clone();
    let options = S3Options { anonymous: true, region: Some("us-east-1".to_owned()), ..S3Options::default() };
    let uri = store.uri.clone();
    let open = || {
        let uri = uri.parse().expect("a URI");
        let repository: Arc<dyn ModelRepository> =
            Arc::new(S3::open(&uri, options.clone(), loading.clone()).expect("S3"));
        let downloads = DownloadOptions { written: start_write_back, ..DownloadOptions::default() };
        Downloader::new(repository, downloads, loading.clone())
    };
    let downloader = open();
    let folder = root.join("cache");
    let _absent = std::fs::remove_dir_all(&folder);
    settle_disk(root);
    let disk = DiskOptions {
        directory: folder.clone(),
        capacity: 1 << 40,
        min_residency: Duration::from_millis(100),
        policy: Box::new(CostAware::default()),
        room_wait: Duration::ZERO,
        limits: Limits::default(),
        events: Arc::new(()),
    };
    let cache = DiskCache::open(disk, downloader.clone(), loading.clone()).expect("a cache");
    let choose: Arc<ChooseVersions> = Arc::new(|_, available| Ok(available.to_vec()));

    let (before, began) = (cpu_seconds(), Instant::now());
    let handle = runtime.block_on(async {
        let manifest = Arc::new(downloader.repository().resolve("model").await.expect("resolved"));
        cache.ensure(&manifest, &choose, &|_| {}).await.expect("the model on the disk")
    });
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - before);
    let (buffered, requests) = (downloader.buffered().most(), store.requests());
    drop(handle);
    check(&folder, &model);
    drop(cache);
    let _absent = std::fs::remove_dir_all(&folder);

    let network = network(&open(), &runtime);
    let decoder = format.map_or(0.0, |format| decoder(&root.join(format!("model.{name}")), format));
    settle_disk(root);
    let disk = write_to_disk(root, mib);
    runtime.shutdown_background();
    let gib = mib as f64 / 1024.0;
    Round { cpu: cpu / gib, wall, network, decoder, disk, buffered, requests }
}

/// Whether the bulk came as it is.
fn check(cache: &Path, model: &Path) {
    let entries = cache.join("entries").read_dir().expect("entries");
    let entry = entries.flatten().next().expect("an entry").path();
    let (here, there) = (find(&entry, "model.onnx.data").expect("the weights"), model.join("1/model.onnx.data"));
    let (mut here, mut there) = (File::open(here).expect("weights"), File::open(there).expect("weights"));
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let length = there.metadata().expect("a size").len();
    assert_eq!(here.metadata().expect("a size").len(), length, "the weights' size");
    for part in 0..16 {
        let at = length / 16 * part;
        for (file, bytes) in [(&mut here, &mut a), (&mut there, &mut b)] {
            file.seek(io::SeekFrom::Start(at)).expect("sought");
            let most = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
            file.read_exact(&mut bytes[..most]).expect("read");
        }
        assert!(a == b, "other weights came than were sent, at byte {at}");
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    folder.read_dir().ok()?.flatten().map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() {
            find(&path, name)
        } else {
            path.file_name().is_some_and(|last| last == name).then_some(path)
        }
    })
}

/// All objects to nowhere, as they come.
fn network(downloader: &Downloader, runtime: &tokio::runtime::Runtime) -> f64 {
    let manifest: Arc<ModelManifest> =
        Arc::new(runtime.block_on(downloader.repository().resolve("model")).expect("resolved"));
    let began = Instant::now();
    for (index, object) in manifest.objects.iter().enumerate() {
        let meter = Arc::new(Meter::new(object.size));
        let mut reader = downloader.reader(&manifest, index, &meter, &CancellationToken::new());
        while let count @ 1.. = reader.fill_buf().expect("bytes").len() {
            reader.consume(count);
        }
    }
    began.elapsed().as_secs_f64()
}

/// From the page cache to nowhere.
fn decoder(archive: &Path, format: Format) -> f64 {
    let began = Instant::now();
    let file = BufReader::with_capacity(CHUNK, File::open(archive).expect("an archive"));
    let mut decoder: Box<dyn Read> = match format {
        Format::TarGz => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Format::TarZst => Box::new(zstd::stream::read::Decoder::with_buffer(file).expect("a decoder")),
        Format::Tar | Format::Zip => Box::new(file),
    };
    let mut chunk = vec![0; CHUNK];
    while decoder.read(&mut chunk).expect("decoded") > 0 {}
    began.elapsed().as_secs_f64()
}

/// The same bytes from memory to the disk.
fn write_to_disk(root: &Path, mib: usize) -> f64 {
    let chunk: Vec<u8> = (0..CHUNK).map(|at| (at % 251) as u8).collect();
    let path = root.join("written");
    let mut file = File::create(&path).expect("a file");
    let began = Instant::now();
    for _ in 0..(mib << 20) / CHUNK {
        file.write_all(&chunk).expect("written");
    }
    file.sync_all().expect("on the disk");
    let took = began.elapsed().as_secs_f64();
    let _gone = std::fs::remove_file(&path);
    took
}

/// Waits until the disk has nothing left to do from before.
fn settle_disk(root: &Path) {
    let _settled = Command::new("sync").arg("-f").arg(root).status();
}

/// User and system time of this process, all threads, those that have ended included.
fn cpu_seconds() -> f64 {
    // In ticks of a hundredth of a second, behind the command's name: little beside a second.
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let fields = stat.rsplit(')').next().expect("fields").split_ascii_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / 100.0
}

fn report(name: &str, most: f64, rounds: &[Round]) -> usize {
    let median = |of: &dyn Fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let bound = ((WINDOW as u64 + 2) * PART) >> 20;
    let (cpu, ratio) = (median(&|round| round.cpu), median(&Round::over_slowest));
    let buffered = rounds.iter().map(|round| round.buffered).max().unwrap_or_default() >> 20;
    let missed = [cpu > most, ratio > WALL, buffered > bound];
    let mark = |missed: bool| if missed { "MISSED" } else { "" };
    println!(
        "{name:8} {cpu:9.2} {most:7.1} {:>7} | {:7.2} {:8.2} {:8.2} {:8.2} {ratio:9.2} {WALL:7.2} | {buffered:12} {bound:5} {:8} {} {}",
        mark(missed[0]),
        median(&|round| round.wall),
        median(&|round| round.network),
        median(&|round| round.decoder),
        median(&|round| round.disk),
        rounds.last().map_or(0, |round| round.requests),
        mark(missed[1]),
        mark(missed[2]),
    );
    missed.into_iter().filter(|missed| *missed).count()
}
