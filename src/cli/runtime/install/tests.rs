//! Installs through a fake Python whose pip copies a wheel made here, or fails as the real one does.

use super::*;
use std::io::Write;

use crate::backend::runtime_paths::{ONNXRUNTIME_INSTALL, ONNXRUNTIME_LIBRARY, onnxruntime_folder};
use crate::cli::runtime::Runtime;
use crate::cli::runtime::wheel::{PROVIDERS_SHARED, PinnedFile, packages};

const LIBRARY: &[u8] = b"not really a library";
const SHARED: &[u8] = b"nor this";

fn sha256(bytes: &[u8]) -> &'static str {
    copy_hashed(bytes, &mut io::sink(), |_| {}).unwrap().leak()
}

fn package(files: &'static [PinnedFile], trees: &'static [&'static str]) -> Package {
    let wheel = Wheel { name: "onnxruntime", version: "1.31.1", sha256: sha256(b"wheel"), files, trees, tree_bytes: 0 };
    Package {
        name: "onnxruntime",
        version: "1.31.1",
        install: ONNXRUNTIME_INSTALL,
        folder: onnxruntime_folder,
        arch: "any",
        python: ["3.12", "cp312"],
        platforms: &["any"],
        bytes: 1000,
        wheels: vec![wheel].leak(),
    }
}

/// A folder with a fake Python and a wheel, and the pins that fit them.
struct Bench {
    folder: tempfile::TempDir,
    package: Package,
}

impl Bench {
    /// `members` is what the wheel holds; the pins are those of the true contents.
    fn new(members: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = zip::ZipWriter::new(File::create(folder.path().join("onnxruntime-made.whl")).unwrap());
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in members {
            archive.start_file(format!("onnxruntime/capi/{name}"), stored).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
        let pin = |name: &'static str, bytes: &[u8]| PinnedFile {
            member: format!("onnxruntime/capi/{name}").leak(),
            name,
            bytes: bytes.len() as u64,
            sha256: sha256(bytes),
            replaced: None,
        };
        let files = vec![pin(ONNXRUNTIME_LIBRARY, LIBRARY), pin(PROVIDERS_SHARED, SHARED)].leak();
        Self { folder, package: package(files, &[]) }
    }

    fn sound() -> Self {
        Self::new(&[("other.so", b"left out"), (ONNXRUNTIME_LIBRARY, LIBRARY), (PROVIDERS_SHARED, SHARED)])
    }

    fn runtime_dir(&self) -> PathBuf {
        self.folder.path().join("runtime")
    }

    /// A Python that runs `body` in place of pip, with `$here` the bench's folder, and `$dest` set for a download.
    /// A child process writes it: a file that this process holds open for writing cannot be run by another thread.
    fn python(&self, body: &str) -> PathBuf {
        let path = self.folder.path().join("python");
        let parse = r#"asked=$3; while [ $# -gt 0 ]; do [ "$1" = --dest ] && dest=$2; shift; done"#;
        let here = self.folder.path().display();
        let script = format!("#!/bin/sh\nhere='{here}'\n{parse}\n{body}\n");
        let write = r#"printf %s "$1" > "$2"; chmod +x "$2""#;
        let status = Command::new("sh").args(["-c", write, "sh", &script]).arg(&path).status().unwrap();
        assert!(status.success());
        path
    }

    fn install(&self, python: &Path) -> Result<Outcome> {
        install(&self.runtime_dir(), python.as_os_str(), &self.package, &Progress::new())
    }

    fn error(&self, body: &str) -> Error {
        let error = self.install(&self.python(body)).unwrap_err();
        assert_eq!(state(&onnxruntime_folder(&self.runtime_dir()), &self.package).unwrap(), State::Absent);
        assert!(!self.runtime_dir().join(".partial-onnxruntime").exists(), "nothing half done stays behind");
        error
    }
}

const COPY: &str = r#"mkdir "$dest" && cp "$here/onnxruntime-made.whl" "$dest/" && echo called >> "$here/calls""#;

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_install_keeps_the_two_pinned_files_alone_and_a_second_one_does_nothing() {
    let bench = Bench::sound();
    let left_behind = bench.runtime_dir().join(".partial-onnxruntime/downloads");
    fs::create_dir_all(&left_behind).unwrap();

    assert_eq!(bench.install(&bench.python(COPY)).unwrap(), Outcome::Installed);
    let folder = onnxruntime_folder(&bench.runtime_dir());
    assert_eq!(names_in(&folder), [ONNXRUNTIME_LIBRARY, PROVIDERS_SHARED]);
    assert_eq!(names_in(&bench.runtime_dir()), [".install.lock", "onnxruntime-1.31.1"]);

    assert_eq!(bench.install(Path::new("/no/python/here")).unwrap(), Outcome::AlreadyThere);
}

#[test]
fn a_broken_install_is_seen_and_replaced() {
    let bench = Bench::sound();
    let python = bench.python(COPY);
    bench.install(&python).unwrap();
    let folder = onnxruntime_folder(&bench.runtime_dir());
    for spoil in [|path: &Path| fs::write(path, "short"), |path: &Path| fs::remove_file(path)] {
        spoil(&folder.join(ONNXRUNTIME_LIBRARY)).unwrap();
        assert_eq!(state(&folder, &bench.package).unwrap(), State::Broken(ONNXRUNTIME_LIBRARY, ONNXRUNTIME_INSTALL));
        assert_eq!(bench.install(&python).unwrap(), Outcome::Installed);
        assert_eq!(state(&folder, &bench.package).unwrap(), State::Installed);
    }
}

#[test]
fn two_installs_at_once_download_once() {
    let bench = Bench::sound();
    let python = bench.python(COPY);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| bench.install(&python).unwrap());
        }
    });
    assert_eq!(fs::read_to_string(bench.folder.path().join("calls")).unwrap(), "called\n");
}

#[test]
fn another_library_than_the_pinned_one_is_refused() {
    let error = Bench::new(&[(ONNXRUNTIME_LIBRARY, b"something else"), (PROVIDERS_SHARED, SHARED)]).error(COPY);
    assert!(error.report().contains("not the pinned"), "{error:?}");
    let error = Bench::new(&[(ONNXRUNTIME_LIBRARY, &[0; 4096]), (PROVIDERS_SHARED, SHARED)]).error(COPY);
    assert!(error.report().contains("not the pinned"), "{error:?}");
}

#[test]
fn a_wheel_that_cannot_be_read_is_refused() {
    let error = Bench::new(&[(ONNXRUNTIME_LIBRARY, LIBRARY)]).error(COPY);
    assert!(error.report().contains("cannot read the wheel"), "{error:?}");
    let error = Bench::sound().error(r#"mkdir "$dest" && echo no zip > "$dest/onnxruntime-x.whl""#);
    assert!(error.report().contains("cannot read the wheel"), "{error:?}");
    let error = Bench::sound().error("true");
    assert!(error.report().contains("left no wheel"), "{error:?}");
}

#[test]
fn an_error_names_the_mend() {
    let bench = Bench::sound();
    let error = bench.install(Path::new("/no/python/here")).unwrap_err();
    assert!(error.report().contains("install Python 3 with pip"), "{error:?}");

    let error = bench.error("echo No module named pip >&2; exit 1");
    assert!(error.report().contains("has no pip"), "{error:?}");

    let cases = [
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
            "another file than the pinned one",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "free 1 MB"),
        ("Could not fetch URL: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate", "in PIP_CERT"),
        ("ERROR: Could not find a version that satisfies the requirement", "reaches the package index"),
        ("", "reaches the package index"),
    ];
    for (said, mend) in cases {
        let report = bench.error(&format!("[ $asked = --version ] && exit 0; echo '{said}' >&2; exit 1")).report();
        assert!(report.contains(mend) && report.contains(said), "{report}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_the_callers_to_mend() {
    let bench = Bench::sound();
    fs::write(bench.runtime_dir(), "a file").unwrap();
    let error = bench.install(&bench.python(COPY)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.report().contains("choose a folder that can be written with --dir"), "{error:?}");

    let full = disk_error("write", Path::new("x"), &bench.package, io::ErrorKind::StorageFull.into());
    assert_eq!(full.kind(), ErrorKind::OutOfDisk);
}

#[test]
fn folders_are_kept_whole_and_a_text_is_replaced_before_the_file_is_checked() {
    let file = PinnedFile {
        member: "onnxruntime/capi/a.so",
        name: "lib/a.so",
        bytes: 19,
        sha256: sha256(b"needs libx_cpu.so\0\0"),
        replaced: Some([b"libx_cuda.so\0", b"libx_cpu.so\0\0"]),
    };
    let members = [("a.so", &b"needs libx_cuda.so\0"[..]), ("include/x/y.h", b"int y;"), ("other.h", b"")];
    let package = package(vec![file].leak(), &["onnxruntime/capi/include/"]);
    let bench = Bench { package, ..Bench::new(&members) };
    assert_eq!(bench.install(&bench.python(COPY)).unwrap(), Outcome::Installed);
    let folder = onnxruntime_folder(&bench.runtime_dir());
    assert_eq!(fs::read(folder.join("lib/a.so")).unwrap(), b"needs libx_cpu.so\0\0");
    assert_eq!(fs::read(folder.join("onnxruntime/capi/include/x/y.h")).unwrap(), b"int y;");
    assert_eq!(names_in(&folder.join("onnxruntime/capi")), ["include"]);
    assert_eq!(state(&folder, &bench.package).unwrap(), State::Installed);
}

#[test]
fn the_pins_are_whole() {
    let is_hash = |hash: &str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    for package in [packages(Runtime::Onnxruntime), packages(Runtime::Libtorch)].into_iter().flatten() {
        assert!(package.platforms.iter().all(|platform| platform.ends_with(package.arch)));
        assert!(package.wheels.iter().all(|wheel| is_hash(wheel.sha256)));
        assert!(package.files().all(|file| is_hash(file.sha256)));
        assert!(package.files().all(|file| file.replaced.is_none_or(|[from, to]| from.len() == to.len())));
    }
}
