//! Archives of models: unpacking what somebody else made, and making one.
//!
//! An archive is believed in nothing. Its format is read from its bytes; only files and folders come out of it, with
//! fixed modes, inside the target folder; what else it holds is refused by name and not skipped, since a model with a
//! piece missing is worse than none. What is checked is in `path` (names), `guard` (sizes) and `folder` (where
//! things are made); `tar` and `zip` read.
//!
//! *Architecture invariant:* no path, size or type of an archive reaches the disk unchecked, and nothing an archive holds
//! decides how much memory is taken.

mod folder;
mod guard;
pub mod pack;
mod path;
mod source;
mod tar;
#[cfg(test)]
mod tests;
mod writer;
mod zip;

use std::io::{Read, Seek};
use std::path::Path;

pub use self::folder::start_write_back;
use self::folder::{Folder, NewFile};
use self::guard::{Guard, Room};
use self::path::Paths;
use self::source::Source;
use crate::error::{Error, Result};

/// The bytes of an archive's head that [`Format::sniff`] wants to see.
pub const HEAD: usize = 512;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// tar in gzip, of one member or several.
    TarGz,
    /// tar in Zstandard, of one frame or several.
    TarZst,
    /// tar as it is.
    Tar,
    /// zip, stored or deflated.
    Zip,
}

impl Format {
    /// The format by the archive's first [`HEAD`] bytes; a name's ending says nothing. What is compressed is taken for
    /// a tar until it turns out to be none.
    #[must_use]
    pub fn sniff(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::TarGz),
            // A frame, or one that is to be skipped (pzstd begins with one).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::TarZst),
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Self::Zip),
            _ if head.get(257..262) == Some(b"ustar") => Some(Self::Tar),
            _ => None,
        }
    }

    /// The format that a file's ending asks for.
    #[must_use]
    pub fn of_ending(name: &str) -> Option<Self> {
        let endings =
            [(".tar.gz", Self::TarGz), (".tgz", Self::TarGz), (".tar.zst", Self::TarZst), (".tar", Self::Tar)];
        let endings = endings.into_iter().chain([(".zip", Self::Zip)]);
        endings.into_iter().find_map(|(ending, format)| name.ends_with(ending).then_some(format))
    }
}

/// How far an archive may go.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries, counting those that only describe others.
    pub entries: u64,
    /// Bytes of all files, unpacked.
    pub bytes: u64,
    /// Bytes that come out for each that goes in, beyond the first 64 MiB.
    pub ratio: u64,
    /// Parts of a path.
    pub depth: usize,
    /// Bytes of a part of a path.
    pub component: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 100_000, bytes: 1 << 40, ratio: 200, depth: 32, component: 255 }
    }
}

/// Asked before bytes are written; an error ends the unpacking. In sum it is asked for exactly the bytes of all files.
pub trait Space {
    /// Takes room for so many bytes more.
    ///
    /// # Errors
    /// Whatever the unpacking shall end with.
    fn take(&mut self, bytes: u64) -> Result<()>;
}

/// Which files are wanted, where they are known before any is unpacked: in a zip.
pub trait Selection {
    /// One answer for each of the files, given as path and size in bytes. `read` gives the content of a small one.
    ///
    /// # Errors
    /// Whatever the unpacking shall end with.
    fn choose(
        &mut self,
        entries: &[(String, u64)],
        read: &mut dyn FnMut(usize) -> Result<Vec<u8>>,
    ) -> Result<Vec<bool>>;
}

/// Room without end, and every file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everything;

impl Space for Everything {
    fn take(&mut self, _bytes: u64) -> Result<()> {
        Ok(())
    }
}

impl Selection for Everything {
    fn choose(
        &mut self,
        entries: &[(String, u64)],
        _read: &mut dyn FnMut(usize) -> Result<Vec<u8>>,
    ) -> Result<Vec<bool>> {
        Ok(vec![true; entries.len()])
    }
}

/// What came out of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Path below the target folder and bytes, in the archive's order.
    pub files: Vec<(String, u64)>,
    /// The sum of the files' bytes.
    pub bytes: u64,
}

/// Unpacks an archive of any [`Format`] into the empty folder `target`, and waits until all of it is on the disk.
/// `length` is the archive's in bytes, 0 where that is not known. Blocking. After an error the folder holds pieces: it is
/// the caller's to remove.
///
/// # Errors
/// `InvalidArgument` for an archive that is damaged, or holds what a model does not need; `TooLarge` beyond `limits`;
/// `OutOfDisk` when the disk is full; `RepositoryFailed` when `archive` cannot be read, with the `io::Error` as its source;
/// and what `space` and `selection` say.
pub fn unpack<R: Read + Seek>(
    archive: R,
    length: u64,
    target: &Path,
    limits: &Limits,
    space: &mut dyn Space,
    selection: &mut dyn Selection,
) -> Result<Unpacked> {
    let mut source = Source::new(archive);
    let tally = source.tally();
    let format = source.head(HEAD).map(Format::sniff).map_err(|error| tally.fault(error))?;
    let Some(format) = format else {
        return Err(Error::invalid(
            "the archive is neither gzip, Zstandard, tar nor zip by its first bytes: pack the model's folder with \
             `roundhouse pack`",
        ));
    };
    let unpacking = Unpacking {
        paths: Paths::new(limits),
        guard: Guard::new(limits, space),
        folder: Folder::open(target)?,
        files: Vec::new(),
    };
    let unpacking = match format {
        Format::Zip => zip::unpack(source, limits, unpacking, selection),
        Format::TarGz | Format::TarZst | Format::Tar => tar::unpack(source, length, format, unpacking),
    }
    // What a decoder says of bytes that never came is not the cause.
    .map_err(|error| tally.check().err().unwrap_or(error))?;
    tally.check()?;
    unpacking.finish()
}

/// Where both readers put what they find.
struct Unpacking<'a> {
    paths: Paths<'a>,
    guard: Guard<'a>,
    folder: Folder,
    files: Vec<(String, u64)>,
}

/// One file on its way.
struct Writing {
    path: String,
    size: u64,
    file: NewFile,
    room: Room,
}

impl Unpacking<'_> {
    /// Begins a file whose path was checked.
    fn begin(&mut self, path: String, size: u64) -> Result<Writing> {
        let room = self.guard.file(path.as_bytes(), size)?;
        let file = self.folder.file(&path)?;
        Ok(Writing { path, size, file, room })
    }

    fn write(&mut self, writing: &mut Writing, bytes: &[u8]) -> Result<()> {
        self.guard.cover(&mut writing.room, bytes.len() as u64)?;
        self.folder.write(&mut writing.file, writing.size, bytes)
    }

    /// Ends a file.
    fn end(&mut self, writing: Writing) -> Result<()> {
        if writing.file.written() != writing.size {
            return Err(path::wrong(writing.path.as_bytes(), "is shorter than it says", "pack and upload it again"));
        }
        self.files.push((writing.path, writing.size));
        Ok(())
    }

    fn finish(mut self) -> Result<Unpacked> {
        self.folder.sync(&self.files)?;
        let bytes = self.files.iter().map(|(_, bytes)| bytes).sum();
        Ok(Unpacked { files: self.files, bytes })
    }
}
