//! The folder an archive is unpacked to: nothing is made outside of it, whatever the names say and whatever lies in it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};

const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);

/// A file's bytes start on their way to the disk whenever so many have come, so that the `fsync` at the end is short.
const WRITE_BACK: u64 = 8 << 20;

/// Files of fewer bytes are written at once: to hand them to another thread takes longer.
const LARGE: u64 = 1 << 20;

/// The folder, open, and the folders made in it.
pub(super) struct Folder {
    root: OwnedFd,
    folders: Vec<String>,
    writer: Writer,
}

/// A file being written.
pub(super) struct NewFile {
    file: Arc<File>,
    written: u64,
    on_its_way: u64,
}

impl Folder {
    /// Opens a folder that is there and empty.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open the target folder", error))?;
        let is_empty = path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty {
            return Err(Error::internal("the folder to unpack to is not empty"));
        }
        Ok(Self { root, folders: Vec::new(), writer: Writer::default() })
    }

    /// Makes a file that is not there yet, and the folders above it.
    pub(super) fn file(&mut self, path: &str) -> Result<NewFile> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY;
        let fd = match open_beneath(&self.root, path, flags, FILE_MODE) {
            Err(Errno::NOENT) => {
                self.folder_above(path)?;
                open_beneath(&self.root, path, flags, FILE_MODE)
            }
            opened => opened,
        };
        let fd = fd
            // Past the umask: what one process unpacks, another serves.
            .and_then(|fd| rustix::fs::fchmod(&fd, FILE_MODE).map(|()| fd))
            .map_err(|error| failed(format!("create '{path}'"), error))?;
        Ok(NewFile { file: Arc::new(File::from(fd)), written: 0, on_its_way: 0 })
    }

    /// Makes a folder, and those above it; one that is there is fine.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let made = (|| {
            let opened;
            let above = if above.is_empty() {
                self.root.as_fd()
            } else {
                opened = open_beneath(&self.root, above, flags, Mode::empty())?;
                opened.as_fd()
            };
            let is_new = match rustix::fs::mkdirat(above, name, FOLDER_MODE) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(error),
            };
            let folder = open_beneath(&self.root, path, flags, Mode::empty())?;
            if is_new {
                rustix::fs::fchmod(&folder, FOLDER_MODE)?;
            }
            Ok(is_new)
        })();
        match made {
            Ok(true) => self.folders.push(path.to_owned()),
            Ok(false) => {}
            Err(Errno::NOENT) if !above.is_empty() => {
                self.folder_above(path)?;
                return self.folder(path);
            }
            Err(error) => return Err(failed(format!("create the folder '{path}'"), error)),
        }
        Ok(())
    }

    fn folder_above(&mut self, path: &str) -> Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(above, _)| self.folder(above))
    }

    /// Appends to a file that will have `size` bytes; one of many bytes gets them a little later.
    pub(super) fn write(&mut self, file: &mut NewFile, size: u64, bytes: &[u8]) -> Result<()> {
        if size < LARGE {
            return file.write(bytes);
        }
        let write_back = file.passed(bytes.len());
        self.writer.write(&file.file, bytes, write_back)
    }

    /// Waits until `files`, the folders made here, and the folder itself are on the disk.
    pub(super) fn sync(&mut self, files: &[(String, u64)]) -> Result<()> {
        let sync = |path: &str, flags| {
            open_beneath(&self.root, path, flags, Mode::empty())
                .and_then(rustix::fs::fsync)
                .map_err(|error| failed(format!("write '{path}' to the disk"), error))
        };
        self.writer.finish()?;
        files.iter().try_for_each(|(path, _)| sync(path, OFlags::RDONLY | OFlags::NOFOLLOW))?;
        self.folders.iter().rev().try_for_each(|path| sync(path, OFlags::RDONLY | OFlags::DIRECTORY))?;
        rustix::fs::fsync(&self.root).map_err(|error| failed("write the target folder to the disk", error))
    }
}

impl NewFile {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        (&*self.file).write_all(bytes).map_err(|error| disk_error("write an unpacked file", error))?;
        if let Some((from, length)) = self.passed(bytes.len()) {
            start_write_back(&self.file, from, length);
        }
        Ok(())
    }

    /// Counts bytes; where many have come, the range that should start on its way to the disk.
    fn passed(&mut self, bytes: usize) -> Option<(u64, u64)> {
        self.written += bytes as u64;
        let range = (self.on_its_way, self.written - self.on_its_way);
        (range.1 >= WRITE_BACK).then(|| {
            self.on_its_way = self.written;
            range
        })
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }
}

/// Opens below `root` without following a link, or leaving it in any other way.
fn open_beneath(root: &OwnedFd, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
        // Sandboxes that do not know the call (gVisor, old seccomp lists).
        Err(Errno::NOSYS | Errno::PERM) => open_by_parts(root, path, flags, mode),
        opened => opened,
    }
}

/// The same without `openat2`: one part after the other, none of them a link. Paths have no `..`.
fn open_by_parts(root: &OwnedFd, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let step = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here: Option<OwnedFd> = None;
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let from = here.as_ref().unwrap_or(root);
        here = Some(rustix::fs::openat(from, part, step, Mode::empty())?);
    }
    rustix::fs::openat(here.as_ref().unwrap_or(root), name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)
}

/// Asks the kernel to begin writing a range of a file, offset and length in bytes; what comes of it, `fsync` says.
#[expect(unsafe_code, reason = "rustix has no sync_file_range")]
pub fn start_write_back(file: &File, from: u64, length: u64) {
    let (Ok(from), Ok(length)) = (i64::try_from(from), i64::try_from(length)) else { return };
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the call touches no memory of ours.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), from, length, libc::SYNC_FILE_RANGE_WRITE);
    }
}

fn failed(what: impl std::fmt::Display, error: Errno) -> Error {
    disk_error(what, error.into())
}

/// A full disk, or a disk that fails.
pub(super) fn disk_error(what: impl std::fmt::Display, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfDisk,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("cannot {what}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_and_folders_are_made_with_fixed_modes_and_once() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(root.path()).unwrap();
        folder.file("a/b/c").unwrap().write(b"hello").unwrap();
        folder.folder("a/d/e").unwrap();
        folder.folder("a/d").unwrap();
        assert_eq!(folder.folders, ["a", "a/b", "a/d", "a/d/e"]);
        folder.sync(&[("a/b/c".to_owned(), 5)]).unwrap();
        assert!(folder.file("a/b/c").is_err() && folder.folder("a/b/c").is_err() && folder.file("a/b/c/d").is_err());
        assert!(folder.sync(&[("gone".to_owned(), 5)]).is_err());
        let mode = |path: &str| root.path().join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a/b/c"), mode("a"), mode("a/d/e")), (0o644, 0o755, 0o755));
        assert_eq!(std::fs::read(root.path().join("a/b/c")).unwrap(), b"hello");
        assert!(Folder::open(root.path()).is_err(), "not empty");
    }

    #[test]
    fn no_link_is_followed_with_openat2_or_without() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut folder = Folder::open(root.path()).unwrap();
        symlink(outside.path(), root.path().join("way")).unwrap();
        symlink(outside.path().join("x"), root.path().join("file")).unwrap();
        assert!(folder.file("way/x").is_err() && folder.file("file").is_err());
        assert!(folder.folder("way/x").is_err() && folder.folder("way").is_err());
        let flags = OFlags::CREATE | OFlags::WRONLY;
        for path in ["way/x", "file"] {
            assert!(open_by_parts(&folder.root, path, flags, FILE_MODE).is_err(), "{path}");
        }
        folder.folder("a/b").unwrap();
        assert!(open_by_parts(&folder.root, "a/b/c", flags | OFlags::EXCL, FILE_MODE).is_ok());
        assert_eq!(open_by_parts(&folder.root, "a/x/c", flags, FILE_MODE).unwrap_err(), Errno::NOENT);
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let full = disk_error("write", Errno::NOSPC.into());
        assert_eq!(full.kind(), ErrorKind::OutOfDisk);
        assert_eq!(disk_error("write", Errno::DQUOT.into()).kind(), ErrorKind::OutOfDisk);
        assert_eq!(disk_error("write", Errno::IO.into()).kind(), ErrorKind::Internal);
        let file = File::options().write(true).open("/dev/full").unwrap();
        let error = NewFile { file: Arc::new(file), written: 0, on_its_way: 0 }.write(b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfDisk);
    }
}
