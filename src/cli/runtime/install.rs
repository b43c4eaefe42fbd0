//! The work of `roundhouse runtime install`.
//!
//! *Invariant:* the folder of a runtime is whole or absent. All work happens in a folder beside it, under a lock, and one
//! rename ends it; what an interrupted install left behind is removed by the next one.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::wheel::{PROVIDERS_SHARED, Wheel};
use crate::backend::runtime_paths::{
    ONNXRUNTIME_INSTALL, ONNXRUNTIME_LIBRARY, ONNXRUNTIME_VERSION, onnxruntime_folder,
};
use crate::cli::progress::Progress;
use crate::error::{Error, ErrorKind, Result};

/// What lies in the folder of a runtime.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    Installed,
    Absent,
    /// A pinned file is missing or is another one.
    Broken(&'static str),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Installed => f.pad("installed"),
            Self::Absent => f.pad("absent"),
            Self::Broken(name) => write!(f, "broken: {name} is not the pinned file; run `{ONNXRUNTIME_INSTALL}` "),
        }
    }
}

pub(super) fn state(folder: &Path, wheel: &Wheel) -> Result<State> {
    if !folder.exists() {
        return Ok(State::Absent);
    }
    for file in &wheel.files {
        let path = folder.join(file.name);
        let sha256 = File::open(&path).and_then(|open| copy_hashed(open, &mut io::sink(), |_| {}));
        match sha256 {
            Ok(sha256) if sha256 == file.sha256 => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(disk_error("read", &path, wheel, error));
            }
            _ => return Ok(State::Broken(file.name)),
        }
    }
    Ok(State::Installed)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Installed,
    AlreadyThere,
}

pub(super) fn install(runtime_dir: &Path, python: &OsStr, wheel: &Wheel, progress: &Progress) -> Result<Outcome> {
    let folder = onnxruntime_folder(runtime_dir);
    if state(&folder, wheel)? == State::Installed {
        return Ok(Outcome::AlreadyThere);
    }
    fs::create_dir_all(runtime_dir).map_err(|error| disk_error("create", runtime_dir, wheel, error))?;
    let lock = lock(runtime_dir, wheel, progress)?;
    if state(&folder, wheel)? == State::Installed {
        return Ok(Outcome::AlreadyThere); // by the one that held the lock
    }
    let partial = Partial::create(runtime_dir.join(".partial-onnxruntime"), wheel)?;
    let archive = download(python, wheel, &partial.0, &folder, progress)?;
    let ready = partial.0.join("ready");
    fs::create_dir(&ready).map_err(|error| disk_error("create", &ready, wheel, error))?;
    extract(&archive, wheel, &ready, progress)?;
    move_in(&ready, &folder, &partial.0.join("old"), runtime_dir)
        .map_err(|error| disk_error("put the runtime into", &folder, wheel, error))?;
    drop((partial, lock)); // the lock goes last
    Ok(Outcome::Installed)
}

/// One install at a time works in a runtime folder; a second one waits and then finds the work done.
fn lock(runtime_dir: &Path, wheel: &Wheel, progress: &Progress) -> Result<File> {
    let path = runtime_dir.join(".install.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let locked = file.and_then(|file| match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            progress.step("waiting for another install in this folder", 0);
            file.lock().map(|()| file)
        }
        Err(TryLockError::Error(error)) => Err(error),
    });
    locked.map_err(|error| disk_error("lock", &path, wheel, error))
}

/// The folder an install works in; gone when this is dropped.
struct Partial(PathBuf);

impl Partial {
    fn create(path: PathBuf, wheel: &Wheel) -> Result<Self> {
        let cleared = match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(&path),
        };
        cleared.map_err(|error| disk_error("create", &path, wheel, error))?;
        Ok(Self(path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next install.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Lets pip fetch the wheel into `into`, and returns where it lies. The growth of the folder is the progress.
fn download(python: &OsStr, wheel: &Wheel, into: &Path, folder: &Path, progress: &Progress) -> Result<PathBuf> {
    let (requirements, downloads) = (into.join("requirements.txt"), into.join("downloads"));
    fs::write(&requirements, format!("onnxruntime=={ONNXRUNTIME_VERSION} --hash=sha256:{}\n", wheel.sha256))
        .map_err(|error| disk_error("write", &requirements, wheel, error))?;
    progress.step(&format!("downloading onnxruntime {ONNXRUNTIME_VERSION} through pip"), wheel.bytes);

    let mut command = Command::new(python);
    command.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]);
    command.args(["--implementation", "cp", "--abi", "cp312", "--platform", wheel.platform, "--require-hashes"]);
    command.args(["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]);
    command.args(["--retries", "2", "--timeout", "30"]);
    command.arg("--requirement").arg(&requirements).arg("--dest").arg(&downloads).env("TMPDIR", into);
    let output = output_of(command, || progress.reach(bytes_below(into))).map_err(|error| {
        Error::new(
            ErrorKind::BackendFailed,
            format!(
                "cannot run '{}': install Python 3 with pip (Debian: apt-get install python3-pip), or name another one \
                 with --python",
                python.display()
            ),
        )
        .with_source(error)
    })?;
    if !output.status.success() {
        return Err(pip_error(python, wheel, folder, &String::from_utf8_lossy(&output.stderr)));
    }
    let wheels = fs::read_dir(&downloads).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut wheels = wheels.filter(|path| path.extension() == Some(OsStr::new("whl")));
    wheels.next().ok_or_else(|| Error::new(ErrorKind::BackendFailed, "pip ended well, yet left no wheel"))
}

/// The output of a command; `tick` runs several times a second until it has ended.
fn output_of(mut command: Command, tick: impl Fn()) -> io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let (sender, ended) = mpsc::channel();
    std::thread::Builder::new().name("pip".to_owned()).spawn(move || sender.send(child.wait_with_output()))?;
    loop {
        match ended.recv_timeout(Duration::from_millis(100)) {
            Ok(output) => return output,
            Err(mpsc::RecvTimeoutError::Timeout) => tick(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(io::Error::other("nobody waits for the command")),
        }
    }
}

/// Why pip failed, as far as it can be told, with the mend. Its words choose the advice alone, never the kind.
fn pip_error(python: &OsStr, wheel: &Wheel, folder: &Path, said: &str) -> Error {
    let has_pip = Command::new(python).args(["-m", "pip", "--version"]).output();
    if !has_pip.is_ok_and(|output| output.status.success()) {
        return Error::new(
            ErrorKind::BackendFailed,
            format!(
                "'{}' has no pip: install it (Debian: apt-get install python3-pip), or name another Python with --python",
                python.display()
            ),
        );
    }
    let mend = if said.contains("DO NOT MATCH THE HASHES") {
        "the package index serves another file than the pinned one: see `pip config list` for which index that is"
            .to_owned()
    } else if said.contains("No space left on device") {
        format!("free {} MB there, or choose another folder with --dir", wheel.peak_megabytes())
    } else {
        format!(
            "check that this machine reaches the package index that pip is set to (`pip config list`), or copy \
             {ONNXRUNTIME_LIBRARY} and {PROVIDERS_SHARED} from another machine into {}",
            folder.display()
        )
    };
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let errors: Vec<_> = lines().filter(|line| line.starts_with("ERROR")).collect();
    let last = if errors.is_empty() { lines().next_back().unwrap_or("nothing").to_owned() } else { errors.join(" ") };
    Error::new(ErrorKind::BackendFailed, format!("pip cannot download onnxruntime {ONNXRUNTIME_VERSION}: {mend}"))
        .with_source(io::Error::other(format!("pip said: {last}")))
}

/// Takes the pinned files out of the wheel, each checked before it counts.
fn extract(archive: &Path, wheel: &Wheel, into: &Path, progress: &Progress) -> Result<()> {
    progress.step("extracting and checking the library", wheel.bytes_kept());
    let unreadable = || Error::new(ErrorKind::BackendFailed, "cannot read the wheel that pip downloaded; try again");
    let open = File::open(archive).map_err(|error| disk_error("read", archive, wheel, error))?;
    let mut archive = ZipArchive::new(io::BufReader::new(open)).map_err(|error| unreadable().with_source(error))?;
    let mut before = 0;
    for file in &wheel.files {
        let member = format!("onnxruntime/capi/{}", file.name);
        let member = archive.by_name(&member).map_err(|error| unreadable().with_source(error))?;
        let path = into.join(file.name);
        let sha256 = File::create(&path).and_then(|mut target| {
            let sha256 = copy_hashed(member.take(file.bytes + 1), &mut target, |bytes| progress.reach(before + bytes))?;
            target.sync_all().map(|()| sha256)
        });
        let sha256 = sha256.map_err(|error| disk_error("write", &path, wheel, error))?;
        if sha256 != file.sha256 {
            let name = file.name;
            return Err(Error::new(
                ErrorKind::BackendFailed,
                format!("{name} has sha256 {sha256}, not the pinned {}: nothing was installed; try again", file.sha256),
            ));
        }
        before += file.bytes;
    }
    Ok(())
}

/// Copies all bytes, and returns their sha256 in hexadecimal.
fn copy_hashed(mut from: impl Read, to: &mut impl Write, mut copied: impl FnMut(u64)) -> io::Result<String> {
    let (mut hash, mut buffer, mut total) = (Sha256::new(), vec![0; 256 * 1024], 0);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            Ok(bytes) => {
                hash.update(&buffer[..bytes]);
                to.write_all(&buffer[..bytes])?;
                total += bytes as u64;
                copied(total);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Puts `ready` at `folder`; a broken one there goes to `old`. A crash between the two renames leaves it absent.
fn move_in(ready: &Path, folder: &Path, old: &Path, parent: &Path) -> io::Result<()> {
    File::open(ready)?.sync_all()?;
    if folder.exists() {
        fs::rename(folder, old)?;
    }
    fs::rename(ready, folder)?;
    File::open(parent)?.sync_all()
}

/// The bytes of all files below a folder that others write to: what vanishes meanwhile counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

fn disk_error(action: &str, path: &Path, wheel: &Wheel, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let (kind, mend) = match error.kind() {
        Io::StorageFull | Io::QuotaExceeded => {
            let megabytes = wheel.peak_megabytes();
            (ErrorKind::OutOfDisk, format!("; free {megabytes} MB there, or choose another folder with --dir"))
        }
        Io::PermissionDenied | Io::ReadOnlyFilesystem | Io::NotADirectory | Io::AlreadyExists => {
            (ErrorKind::InvalidArgument, "; choose a folder that can be written with --dir".to_owned())
        }
        _ => (ErrorKind::Internal, String::new()),
    };
    Error::new(kind, format!("cannot {action} {}{mend}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests;
