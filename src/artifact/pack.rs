//! Packing a model's folder: the same folder gives the same bytes, whoever packs it and when.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ::tar::{Builder, EntryType, Header};

use super::path::{Paths, wrong};
use super::source::BUFFER;
use super::{Format, Limits};
use crate::error::{Error, ErrorKind, Result};

/// zstd's own default; weights gain next to nothing from more.
const ZSTD_LEVEL: i32 = 3;
/// gzip's own default.
const GZIP_LEVEL: u32 = 6;
/// gzip's word for an unknown operating system.
const UNKNOWN_SYSTEM: u8 = 255;

/// What went into an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Files, without folders.
    pub files: u64,
    /// Their bytes, unpacked.
    pub bytes: u64,
}

/// One file or folder that goes into the archive.
struct Item {
    path: String,
    from: PathBuf,
    /// Bytes, or `None` for a folder.
    size: Option<u64>,
}

/// Packs all that is in `folder`, by name, with fixed modes and without times and owners.
///
/// # Errors
/// `InvalidArgument` for links, devices and names that [`super::unpack`] would refuse, and for a folder without a file;
/// `Unsupported` for zip; `RepositoryFailed` if a file cannot be read, `OutOfDisk` or `Internal` if `out` cannot be
/// written.
pub fn pack(folder: &Path, out: impl Write, format: Format) -> Result<Packed> {
    pack_with(folder, out, format, &mut |_, _| {})
}

/// As [`pack`], telling `progress` how many bytes of how many went in.
///
/// # Errors
/// As [`pack`].
pub fn pack_with(folder: &Path, out: impl Write, format: Format, progress: &mut dyn FnMut(u64, u64)) -> Result<Packed> {
    let items = list(folder)?;
    let sizes = || items.iter().filter_map(|item| item.size);
    let packed = Packed { files: sizes().count() as u64, bytes: sizes().sum() };
    if packed.files == 0 {
        return Err(Error::invalid("the folder holds no file to pack"));
    }
    let mut progress = |done| progress(done, packed.bytes);
    match format {
        Format::Tar => {
            write_tar(&items, out, &mut progress)?;
        }
        Format::TarGz => {
            let level = flate2::Compression::new(GZIP_LEVEL);
            let gzip = flate2::GzBuilder::new().mtime(0).operating_system(UNKNOWN_SYSTEM).write(out, level);
            write_tar(&items, gzip, &mut progress)?.finish().map_err(unwritten)?;
        }
        Format::TarZst => {
            let mut zstd = zstd::Encoder::new(out, ZSTD_LEVEL).map_err(unwritten)?;
            zstd.include_checksum(true).map_err(unwritten)?;
            write_tar(&items, zstd, &mut progress)?.finish().map_err(unwritten)?;
        }
        Format::Zip => return Err(Error::unsupported("zip is read and not written: pack as .tar.zst or .tar")),
    }
    Ok(packed)
}

/// The tree below `folder`, folders before what is in them, each by its bytes.
fn list(folder: &Path) -> Result<Vec<Item>> {
    let limits = Limits::default();
    let mut paths = Paths::new(&limits);
    let (mut items, mut waiting) = (Vec::new(), vec![(String::new(), folder.to_owned())]);
    while let Some((prefix, folder)) = waiting.pop() {
        for entry in folder.read_dir().map_err(|error| unread(&prefix, error))? {
            let entry = entry.map_err(|error| unread(&prefix, error))?;
            let name = entry.file_name();
            let raw = [prefix.as_bytes(), name.as_encoded_bytes()].concat();
            let kind = entry.file_type().map_err(|error| unread(&prefix, error))?;
            let path = if kind.is_dir() {
                paths.folder(&raw)?
            } else if kind.is_file() {
                paths.file(&raw)?
            } else {
                let what = if kind.is_symlink() { "is a link" } else { "is neither a file nor a folder" };
                return Err(wrong(&raw, what, "copy what it means into the folder, or leave it out"));
            };
            let size = match kind.is_dir() {
                true => None,
                false => Some(entry.metadata().map_err(|error| unread(&path, error))?.len()),
            };
            if size.is_none() {
                waiting.push((format!("{path}/"), entry.path()));
            }
            items.push(Item { path, from: entry.path(), size });
            if items.len() as u64 > limits.entries {
                return Err(Error::too_large(format!("the folder holds more than {} entries", limits.entries)));
            }
        }
    }
    items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(items)
}

fn write_tar<W: Write>(items: &[Item], out: W, progress: &mut dyn FnMut(u64)) -> Result<W> {
    let mut builder = Builder::new(Output(out));
    let mut done = 0;
    for item in items {
        let mut header = Header::new_gnu();
        header.set_size(item.size.unwrap_or(0));
        header.set_mode(if item.size.is_some() { 0o644 } else { 0o755 });
        header.set_entry_type(if item.size.is_some() { EntryType::Regular } else { EntryType::Directory });
        header.set_mtime(0);
        let appended = match item.size {
            None => builder.append_data(&mut header, format!("{}/", item.path), io::empty()),
            Some(size) => {
                let file = File::open(&item.from).map_err(|error| unread(&item.path, error))?;
                let input = Input { file, left: size, done: &mut done, progress };
                let input = io::BufReader::with_capacity(BUFFER, input);
                builder.append_data(&mut header, &item.path, input)
            }
        };
        appended.map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Unwritten>()) {
            Some(_) => unwritten(error),
            None => unread(&item.path, error),
        })?;
    }
    builder.into_inner().map(|output| output.0).map_err(unwritten)
}

/// A file as long as it was when it was listed: the header has gone out already.
struct Input<'a> {
    file: File,
    left: u64,
    done: &'a mut u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut into[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was packed"));
        }
        self.left -= read as u64;
        *self.done += read as u64;
        if read > 0 {
            (self.progress)(*self.done);
        }
        Ok(read)
    }
}

/// Marks failures of the archive being written: tar's builder mixes them with those of the files it reads.
struct Output<W>(W);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unwritten(#[source] io::Error);

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

fn mark(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::Interrupted { error } else { io::Error::new(error.kind(), Unwritten(error)) }
}

fn unwritten(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfDisk,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, "cannot write the archive").with_source(error)
}

fn unread(path: &str, error: io::Error) -> Error {
    let shown = if path.is_empty() { "the folder" } else { path };
    Error::new(ErrorKind::RepositoryFailed, format!("cannot read {shown} to pack it")).with_source(error)
}
