//! A bucket of models over the double, packed in every form, and servers over it.

use std::io::Write;
use std::path::{Path, PathBuf};

use roundhouse::config::ServerConfig;
use roundhouse::config::amount::{Amount, Limited, MemoryLimit};

use super::double::{Operation, S3Double};
use crate::support::client::{Response, infer};
use crate::support::server::TestServer;

/// The endings of archives.
pub(crate) const ENDINGS: [&str; 5] = [".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip"];

/// Files of a model: path and content.
pub(crate) type Files = Vec<(String, Vec<u8>)>;

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|_| random.next() as u8).collect()
}

/// Numbers that are the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// The next 31 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap() % end
    }
}

/// A configuration whose output is called `output`: by that one content is told from another.
pub(crate) fn config(name: &str, backend: &str, output: &str, more: &str) -> Vec<u8> {
    let tensor = |name| format!("[ {{ name: \"{name}\" data_type: TYPE_INT32 dims: [ -1 ] }} ]");
    format!("name: \"{name}\"\nbackend: \"{backend}\"\ninput {}\noutput {}\n{more}\n", tensor("x"), tensor(output))
        .into_bytes()
}

/// A gated model of one version with a file of `bytes`.
pub(crate) fn model(name: &str, bytes: usize) -> Files {
    model_with(name, "y", bytes, "")
}

/// The same with another output's name, and more in its configuration.
pub(crate) fn model_with(name: &str, output: &str, bytes: usize, more: &str) -> Files {
    let seed = name.bytes().chain(output.bytes()).fold(7, |seed, byte| seed * 31 % 1_000_003 + u64::from(byte));
    vec![("config.pbtxt".to_owned(), config(name, "gated", output, more)), ("1/weights".to_owned(), noise(seed, bytes))]
}

/// The files in a folder, or with another beginning of their paths.
pub(crate) fn below(prefix: &str, files: Files) -> Files {
    files.into_iter().map(|(path, content)| (format!("{prefix}{path}"), content)).collect()
}

/// One entry of a tar; the name goes in as it is.
pub(crate) fn tar_entry(out: &mut Vec<u8>, path: &str, kind: u8, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// Packs as the ending says.
pub(crate) fn packed(ending: &str, files: &Files) -> Vec<u8> {
    if ending == ".zip" {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (path, content) in files {
            zip.start_file(path, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        return zip.finish().unwrap().into_inner();
    }
    let mut tar = Vec::new();
    for (path, content) in files {
        tar_entry(&mut tar, path, b'0', "", content);
    }
    tar.resize(tar.len() + 1024, 0);
    compressed(ending, &tar)
}

/// A tar as the ending says.
pub(crate) fn compressed(ending: &str, tar: &[u8]) -> Vec<u8> {
    match ending {
        ".tar" => tar.to_vec(),
        ".tar.zst" => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        ".tar.gz" | ".tgz" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        other => panic!("{other}"),
    }
}

/// Models below `bucket/models` of a double.
pub(crate) struct Bucket {
    pub(crate) double: S3Double,
}

impl Bucket {
    pub(crate) async fn start() -> Self {
        Self { double: S3Double::start().await }
    }

    /// The object's key in the double, for faults.
    pub(crate) fn key(&self, path: &str) -> String {
        format!("bucket/models/{path}")
    }

    pub(crate) fn put(&self, path: &str, content: impl Into<bytes::Bytes>) {
        self.double.put(&self.key(path), content);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.double.remove(&self.key(path));
    }

    /// A model as a folder of objects.
    pub(crate) fn folder(&self, name: &str, files: Files) {
        for (path, content) in files {
            self.put(&format!("{name}/{path}"), content);
        }
    }

    /// A model as an archive, the ending of whose key says how it is packed.
    pub(crate) fn archive(&self, key: &str, files: &Files) {
        let ending = ENDINGS.into_iter().find(|ending| key.ends_with(ending)).unwrap();
        self.put(key, packed(ending, files));
    }

    /// Gated models of so many bytes, as tar.
    pub(crate) fn models(&self, models: &[(&str, usize)]) {
        for (name, bytes) in models {
            self.archive(&format!("{name}.tar"), &model(name, *bytes));
        }
    }

    pub(crate) fn uri(&self) -> String {
        self.double.uri("bucket/models")
    }

    /// A server over it with a cache folder of its own.
    pub(crate) async fn serve(&self, change: impl FnOnce(&mut ServerConfig)) -> TestServer {
        TestServer::start_uri(&self.uri(), change).await
    }

    pub(crate) fn lists(&self) -> usize {
        self.double.count(Operation::List)
    }

    pub(crate) fn gets(&self) -> usize {
        self.double.count(Operation::Get)
    }

    /// How many requests for bytes of this object there were.
    pub(crate) fn gets_of(&self, path: &str) -> usize {
        let key = self.key(path);
        let is_it = |asked: &&super::double::Asked| asked.operation == Operation::Get && asked.key == key;
        self.double.requests().iter().filter(is_it).count()
    }
}

/// A disk cache of so many KiB in which the young are not protected.
pub(crate) fn disk(kib: u64) -> impl FnOnce(&mut ServerConfig) {
    move |config| {
        config.cache.capacity = Amount::Bytes(kib << 10);
        config.cache.min_residency = std::time::Duration::ZERO;
    }
}

/// Memory for models of so many KiB.
pub(crate) fn memory(config: &mut ServerConfig, kib: u64) {
    config.cache.memory_limits = vec![MemoryLimit { device: Limited::Cpu, amount: Amount::Bytes(kib << 10) }];
    config.cache.min_residency = std::time::Duration::ZERO;
}

/// Asks a model and checks its answer.
pub(crate) async fn ask(server: &TestServer, model: &str, tag: i32) -> Response {
    let answer = server.ask(&infer(model, tag)).await;
    assert_eq!(answer.tag(), tag, "{model}");
    answer
}

/// The state header of an answer.
pub(crate) fn state(answer: &Response) -> &str {
    answer.header("x-model-state").unwrap_or_default()
}

/// The name of the output of an answer: which content it came from.
pub(crate) fn output(answer: &Response) -> String {
    answer.json()["outputs"][0]["name"].as_str().unwrap().to_owned()
}

/// The paths below a folder, ascending; folders end with a slash.
pub(crate) fn paths(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        // What is just being deleted is not there.
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{path}/"), found);
                found.push(format!("{path}/"));
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort();
    found
}

/// What the folder of a disk cache holds.
pub(crate) struct CacheFolder(pub(crate) PathBuf);

impl CacheFolder {
    pub(crate) fn of(server: &TestServer) -> Self {
        Self(server.repository.path().join(".cache"))
    }

    /// What lies where nothing may lie while nothing is fetched.
    pub(crate) fn litter(&self) -> Vec<String> {
        [paths(&self.0.join("temp")), paths(&self.0.join("trash"))].concat()
    }

    /// The files of the models, without the folder of their entry.
    pub(crate) fn files(&self) -> Vec<String> {
        let paths = paths(&self.0.join("entries"));
        let mut files: Vec<_> =
            paths.iter().filter_map(|path| path.split_once("/files/")).map(|(_, file)| file.to_owned()).collect();
        files.retain(|file| !file.is_empty() && !file.ends_with('/'));
        files.sort();
        files
    }

    /// How many entries there are.
    pub(crate) fn entries(&self) -> usize {
        self.0.join("entries").read_dir().unwrap().count()
    }

    /// Bytes of all files in whole blocks.
    pub(crate) fn bytes(&self) -> u64 {
        let entries = self.0.join("entries");
        let files = paths(&entries).into_iter().filter(|path| !path.ends_with('/'));
        files.map(|path| entries.join(path).metadata().map_or(0, |file| file.len()).next_multiple_of(4096)).sum()
    }
}
