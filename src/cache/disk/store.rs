//! `Store`: the folder on the disk. What is below `entries/` under its final name is complete; everything else is not
//! believed in and goes at the next start. Blocking.
//!
//! ```text
//! VERSION                     of this layout
//! LOCK                        held by the one server that uses the folder
//! entries/<id>/manifest.json  what the entry is; its time is that of the last use
//! entries/<id>/files/...      the model
//! entries/<id>/derived/...    what a backend made of it, to be thrown away at any time
//! temp/<id>.<n>/              an entry on its way
//! trash/<n>/                  an entry on its way out
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::record::{EntryId, Record, on_disk};
use crate::error::{Error, Result};

const VERSION: &str = "1\n";
const MANIFEST: &str = "manifest.json";
const FILES: &str = "files";
const DERIVED: &str = "derived";

/// The largest `manifest.json` that is read, in bytes: 100,000 files of the longest paths.
const MAX_MANIFEST: u64 = 256 << 20;

/// See the module.
pub(super) struct Store {
    entries: PathBuf,
    temp: PathBuf,
    trash: PathBuf,
    /// Makes names below `temp` and `trash` unique.
    counter: AtomicU64,
    /// Its lock goes with the process, however that ends.
    _lock: File,
}

/// A complete entry of an earlier run.
pub(super) struct Adopted {
    pub(super) id: EntryId,
    pub(super) record: Record,
    /// On the disk, with `derived/`.
    pub(super) bytes: u64,
    pub(super) last_use: SystemTime,
}

impl Store {
    /// Takes the folder, making it where it is absent.
    ///
    /// # Errors
    /// `InvalidArgument` where it cannot be made or written, another server has it, or a newer one has written it.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let shown = root.display();
        let unusable = |error: io::Error| {
            Error::invalid(format!(
                "cannot use the cache folder {shown}: give a folder that can be written with --cache-dir"
            ))
            .with_source(error)
        };
        fs::create_dir_all(root).map_err(unusable)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(root.join("LOCK")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::invalid(format!(
                    "another server uses the cache folder {shown}: give each server its own with --cache-dir"
                )));
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        let [entries, temp, trash] = ["entries", "temp", "trash"].map(|folder| root.join(folder));
        let version = root.join("VERSION");
        match fs::read_to_string(&version) {
            Ok(text) if text == VERSION => {}
            Ok(text) => {
                let text: String = text.trim().chars().take(32).collect();
                return Err(Error::invalid(format!(
                    "the cache folder {shown} is of version '{}', this server knows 1: give another folder with \
                     --cache-dir, or delete this one",
                    text.escape_debug()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What no server of ours has written is not ours to sweep.
                if [&entries, &temp, &trash].into_iter().any(|folder| folder.exists()) {
                    return Err(Error::invalid(format!(
                        "the folder {shown} is no cache of this server, but holds folders of the names it needs: give \
                         another one with --cache-dir"
                    )));
                }
                write_file(root, "VERSION", VERSION.as_bytes()).map_err(unusable)?;
            }
            Err(error) => return Err(unusable(error)),
        }
        for folder in [&entries, &temp, &trash] {
            fs::create_dir_all(folder).map_err(unusable)?;
        }
        sync_folder(root).map_err(unusable)?;
        Ok(Self { entries, temp, trash, counter: AtomicU64::new(0), _lock: lock })
    }

    /// Takes over every complete entry and deletes all else. The number is of what was deleted.
    ///
    /// # Errors
    /// `Internal` if the folders cannot be read.
    pub(super) fn adopt(&self) -> Result<(Vec<Adopted>, usize)> {
        let unreadable = |error| Error::internal("cannot read the cache folder").with_source(error);
        let (mut adopted, mut broken) = (Vec::new(), Vec::new());
        for entry in self.entries.read_dir().map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            match adopt_one(&path) {
                Some(entry) => adopted.push(entry),
                None => broken.push(path),
            }
        }
        for folder in [&self.temp, &self.trash] {
            for entry in folder.read_dir().map_err(unreadable)? {
                broken.push(entry.map_err(unreadable)?.path());
            }
        }
        for path in &broken {
            remove(path);
        }
        Ok((adopted, broken.len()))
    }

    /// Makes the folder of an entry on its way.
    pub(super) fn draft(&self, id: EntryId) -> io::Result<PathBuf> {
        let folder = self.temp.join(format!("{id}.{}", self.next()));
        fs::create_dir(&folder)?;
        fs::create_dir(folder.join(FILES))?;
        Ok(folder)
    }

    /// Makes a draft the entry: everything of it is on the disk before its name is.
    pub(super) fn commit(&self, draft: &Path, id: EntryId, record: &Record) -> io::Result<()> {
        write_file(draft, MANIFEST, &record.to_json()?)?;
        sync_folder(draft)?;
        fs::rename(draft, self.entry(id))?;
        sync_folder(&self.entries)
    }

    /// Deletes an entry. It is none any more as soon as it is renamed; unlinking large files takes its time.
    pub(super) fn discard(&self, id: EntryId) {
        let entry = self.entry(id);
        let trash = self.trash.join(self.next().to_string());
        match fs::rename(&entry, &trash) {
            Ok(()) => remove(&trash),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => remove(&entry),
        }
    }

    /// The folder of an entry's files.
    pub(super) fn files(&self, id: EntryId) -> PathBuf {
        files_of(&self.entry(id))
    }

    pub(super) fn derived(&self, id: EntryId) -> PathBuf {
        self.entry(id).join(DERIVED)
    }

    /// Bytes of what backends made.
    pub(super) fn derived_bytes(&self, id: EntryId) -> u64 {
        derived_bytes(&self.entry(id))
    }

    /// Deletes what backends made.
    pub(super) fn discard_derived(&self, id: EntryId) {
        let trash = self.trash.join(self.next().to_string());
        if fs::rename(self.derived(id), &trash).is_ok() {
            remove(&trash);
        }
    }

    /// Writes an entry's record anew.
    pub(super) fn update(&self, id: EntryId, record: &Record) -> io::Result<()> {
        write_file(&self.entry(id), MANIFEST, &record.to_json()?)
    }

    /// Remembers a use beyond this run.
    pub(super) fn mark_used(&self, id: EntryId, at: SystemTime) -> io::Result<()> {
        File::options().append(true).open(self.entry(id).join(MANIFEST))?.set_modified(at)
    }

    fn entry(&self, id: EntryId) -> PathBuf {
        self.entries.join(id.to_string())
    }

    fn next(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }
}

/// Where in an entry, or one on its way, the model's files are.
pub(super) fn files_of(entry: &Path) -> PathBuf {
    entry.join(FILES)
}

/// Deletes a file or folder that nothing names any more. What cannot be deleted stays for the next start.
pub(super) fn remove(path: &Path) {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot delete what the disk cache needs no more");
    }
}

/// Forces every file and folder below `folder` to the disk and lists the files, by path, with their bytes.
///
/// # Errors
/// What the disk says; `InvalidData` for what is neither file nor folder.
pub(super) fn settle(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    walk(folder, &mut |path, size| {
        let file = File::open(folder.join(&path))?;
        file.sync_all()?;
        files.push((path, size));
        Ok(())
    })?;
    files.sort_unstable();
    Ok(files)
}

/// Visits every file below `folder` with its relative path and bytes, and syncs every folder after its files.
fn walk(folder: &Path, visit: &mut dyn FnMut(String, u64) -> io::Result<()>) -> io::Result<()> {
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in folder.read_dir()? {
            let entry = entry?;
            let name = entry.file_name().into_string();
            let name = name.map_err(|_name| io::Error::new(io::ErrorKind::InvalidData, "a file name is not UTF-8"))?;
            let metadata = entry.path().symlink_metadata()?;
            if metadata.is_dir() {
                folders.push((entry.path(), format!("{prefix}{name}/")));
            } else if metadata.is_file() {
                visit(format!("{prefix}{name}"), metadata.len())?;
            } else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "neither a file nor a folder"));
            }
        }
        sync_folder(&folder)?;
    }
    Ok(())
}

fn derived_bytes(entry: &Path) -> u64 {
    let mut bytes = 0_u64;
    let walked = walk(&entry.join(DERIVED), &mut |_, size| {
        bytes = bytes.saturating_add(on_disk(size));
        Ok(())
    });
    // Absent, usually.
    walked.map_or(0, |()| bytes)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes a file so that it is the old one or the new one, never a part.
fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temp = folder.join(format!("{name}.new"));
    let mut file = File::create(&temp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temp, folder.join(name))?;
    sync_folder(folder)
}

/// The entry in this folder, where it is complete: its manifest can be read and every file of it has its size.
fn adopt_one(folder: &Path) -> Option<Adopted> {
    let manifest = folder.join(MANIFEST);
    let metadata = manifest.metadata().ok().filter(|metadata| metadata.len() <= MAX_MANIFEST)?;
    let record = Record::parse(&fs::read(&manifest).ok()?)?;
    let id = record.id().filter(|id| folder.file_name().is_some_and(|name| *name == *id.to_string()))?;
    let files = files_of(folder);
    let is_whole = |(path, size): &(String, u64)| {
        let metadata = files.join(path).symlink_metadata();
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == *size)
    };
    if !files.is_dir() || !record.files.iter().all(is_whole) {
        return None;
    }
    // An update that was cut off.
    let _absent = fs::remove_file(folder.join(format!("{MANIFEST}.new")));
    let bytes = record.bytes().saturating_add(derived_bytes(folder));
    Some(Adopted { id, record, bytes, last_use: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
}
