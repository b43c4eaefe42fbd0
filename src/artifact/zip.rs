//! Reading zip: the directory at the end says what there is, and each file's own header must say the same.

use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use ::zip::read::{ArchiveOffset, Config, ZipReadOptions};
use ::zip::result::ZipError;
use ::zip::{CompressionMethod, ZipArchive};

use super::path::{shown, wrong};
use super::source::{BUFFER, Source, Tally};
use super::{Limits, Selection, Unpacking};
use crate::error::{Error, Result};

/// The most bytes of the directory for each entry that may be, and for all of them together at least: it is in memory.
const DIRECTORY_ENTRY: u64 = 256;
const DIRECTORY_LEAST: u64 = 1 << 20;

/// The largest file that a selection may look into, in bytes.
const MAX_READ: u64 = 4 << 20;

/// The end record without its comment, and its first bytes.
const END: usize = 22;
const END_MAGIC: &[u8] = b"PK\x05\x06";

/// The same of a zip64, and what points to it.
const WIDE_END: usize = 56;
const WIDE_END_MAGIC: &[u8] = b"PK\x06\x06";
const WIDE_LOCATOR: usize = 20;
const WIDE_LOCATOR_MAGIC: &[u8] = b"PK\x06\x07";

/// A local header without its name.
const LOCAL_HEADER: u64 = 30;

const TYPE_MASK: u32 = 0o170_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_FOLDER: u32 = 0o040_000;

/// A file of the directory.
struct Item {
    index: usize,
    /// Where its header begins, and the next one or the directory.
    start: u64,
    limit: u64,
    packed: u64,
}

/// Unpacks the files that `selection` wants, in the order in which they lie.
pub(super) fn unpack<'a, R: Read + Seek>(
    mut source: Source<R>,
    limits: &Limits,
    mut unpacking: Unpacking<'a>,
    selection: &mut dyn Selection,
) -> Result<Unpacking<'a>> {
    let tally = source.tally();
    let length = source.seek(SeekFrom::End(0)).map_err(|error| tally.fault(error))?;
    let tail = tail(&mut source, length).map_err(|error| tally.fault(error))?;
    let mut zip = Zip { archive: open(source, &tally, limits)?, tally };
    check_end(&tail, length, zip.archive.comment())?;
    unpacking.guard.entries_fit(zip.archive.len() as u64)?;
    let mut folders = Vec::new();
    let (items, files) = zip.list(&mut unpacking, &mut folders)?;
    if files.is_empty() && folders.is_empty() {
        return Err(Error::invalid("the archive is empty: pack the model's folder"));
    }
    let wanted = selection.choose(&files, &mut |at| zip.content(&items, &files, at))?;
    if wanted.len() != files.len() {
        return Err(Error::internal("a selection did not answer for each file"));
    }
    if wanted.iter().all(|wanted| *wanted) {
        // A part of the files brings its own folders: an empty one would look like a version without a model.
        folders.iter().try_for_each(|path| unpacking.folder.folder(path))?;
    }
    let chosen = || items.iter().zip(&files).zip(&wanted).filter(|(_, wanted)| **wanted).map(|(pair, _)| pair);
    let declared = chosen().fold(0_u64, |sum, (_, (_, size))| sum.saturating_add(*size));
    unpacking.guard.ratio(declared, length)?;
    if declared > limits.bytes {
        return Err(Error::too_large(format!("the archive unpacks to more than {} bytes", limits.bytes)));
    }
    let (mut unpacked, mut packed) = (0, 0);
    let mut buffer = vec![0; BUFFER];
    for (item, (path, size)) in chosen() {
        let mut writing = unpacking.begin(path.clone(), *size)?;
        packed += item.packed;
        zip.read(item, path, *size, &mut buffer, &mut |bytes| {
            unpacked += bytes.len() as u64;
            unpacking.guard.ratio(unpacked, packed)?;
            unpacking.write(&mut writing, bytes)
        })?;
        unpacking.end(writing)?;
    }
    Ok(unpacking)
}

/// The last bytes, which the end record must begin in.
fn tail<R: Read + Seek>(source: &mut Source<R>, length: u64) -> io::Result<Vec<u8>> {
    let most = length.min((END + usize::from(u16::MAX)) as u64);
    source.seek(SeekFrom::Start(length - most))?;
    let mut tail = Vec::new();
    source.take(most).read_to_end(&mut tail)?;
    Ok(tail)
}

/// The end record must be the archive's last bytes, right after the directory it tells of: what lies between or follows,
/// other programs take for the archive.
fn check_end(tail: &[u8], length: u64, comment: &[u8]) -> Result<()> {
    if ends(tail, length, comment).is_some() {
        return Ok(());
    }
    Err(Error::invalid("the zip archive goes on after its end, or ends early: pack and upload it again"))
}

fn ends(tail: &[u8], length: u64, comment: &[u8]) -> Option<()> {
    let (before, record) = tail.strip_suffix(comment)?.split_last_chunk::<END>()?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let is_end = record.starts_with(END_MAGIC) && number(&record[20..]) == comment.len() as u64;
    let first = length - tail.len() as u64;
    let end_at = first + before.len() as u64;
    let directory_end = number(&record[12..16]) + number(&record[16..20]);
    let wide = before.len().checked_sub(WIDE_LOCATOR).map(|at| &before[at..]);
    let Some(locator) = wide.filter(|wide| wide.starts_with(WIDE_LOCATOR_MAGIC)) else {
        return (is_end && directory_end == end_at).then_some(());
    };
    // A large archive has a second, wider end record before that one.
    let wide_at = number(&locator[8..16]);
    let wide = before.get(usize::try_from(wide_at.checked_sub(first)?).ok()?..)?.first_chunk::<WIDE_END>()?;
    let wide_end = wide_at.checked_add(12)?.checked_add(number(&wide[4..12]))?;
    let directory_end = number(&wide[40..48]).checked_add(number(&wide[48..56]))?;
    let is_wide = wide.starts_with(WIDE_END_MAGIC) && wide_end == end_at - WIDE_LOCATOR as u64;
    (is_end && is_wide && directory_end == wide_at).then_some(())
}

fn open<R: Read + Seek>(source: Source<R>, tally: &Rc<Tally>, limits: &Limits) -> Result<ZipArchive<Source<R>>> {
    tally.set_budget(Some(limits.entries.saturating_mul(DIRECTORY_ENTRY).saturating_add(DIRECTORY_LEAST)));
    let archive = ZipArchive::with_config(Config { archive_offset: ArchiveOffset::Known(0) }, source);
    tally.set_budget(None);
    archive.map_err(|error| {
        if tally.is_over_budget() {
            return Error::too_large(format!(
                "the zip's directory is too large, or not at its end: at most {} entries are taken",
                limits.entries
            ));
        }
        fault(tally, error)
    })
}

/// What an error of the zip crate means.
fn fault(tally: &Tally, error: ZipError) -> Error {
    match error {
        ZipError::Io(error) => tally.fault(error),
        error => tally.check().err().unwrap_or_else(|| {
            Error::invalid("the zip archive is damaged: pack and upload it again").with_source(error)
        }),
    }
}

struct Zip<R> {
    archive: ZipArchive<Source<R>>,
    tally: Rc<Tally>,
}

impl<R: Read + Seek> Zip<R> {
    /// Files and folders of the directory, in the order in which they lie; every name checked.
    #[expect(clippy::type_complexity, reason = "two lists of one order")]
    fn list(
        &self,
        unpacking: &mut Unpacking<'_>,
        folders: &mut Vec<String>,
    ) -> Result<(Vec<Item>, Vec<(String, u64)>)> {
        if self.archive.has_duplicate_names() {
            return Err(Error::invalid("the zip archive has two entries of one name: pack the folder again"));
        }
        let mut all = Vec::with_capacity(self.archive.len());
        for index in 0..self.archive.len() {
            let entry = self.archive.by_index_data(index).map_err(|error| fault(&self.tally, error))?;
            let least = LOCAL_HEADER + entry.name_raw().len() as u64;
            let end = entry.header_start().saturating_add(least).saturating_add(entry.compressed_size());
            all.push((entry.header_start(), end, index));
        }
        all.sort_unstable();
        let directory = self.archive.central_directory_start();
        let (mut items, mut files) = (Vec::new(), Vec::new());
        for (at, &(start, end, index)) in all.iter().enumerate() {
            let entry = self.archive.by_index_data(index).map_err(|error| fault(&self.tally, error))?;
            let raw = entry.name_raw();
            let limit = all.get(at + 1).map_or(directory, |next| next.0);
            if end > limit {
                return Err(wrong(raw, "lies over another entry", "pack the folder again"));
            }
            check_kind(&entry)?;
            if raw.ends_with(b"/") {
                folders.push(unpacking.paths.folder(raw)?);
                continue;
            }
            let path = unpacking.paths.file(raw)?;
            items.push(Item { index, start, limit, packed: entry.compressed_size() });
            files.push((path, entry.size()));
        }
        folders.retain(|path| !path.is_empty());
        Ok((items, files))
    }

    /// A small file as a whole.
    fn content(&mut self, items: &[Item], files: &[(String, u64)], at: usize) -> Result<Vec<u8>> {
        let (Some(item), Some((path, size))) = (items.get(at), files.get(at)) else {
            return Err(Error::internal("a selection asked for a file that is not in the archive"));
        };
        if *size > MAX_READ {
            return Err(Error::too_large(format!(
                "archive entry '{}' is larger than {MAX_READ} bytes",
                shown(path.as_bytes())
            )));
        }
        let mut content = Vec::new();
        let mut buffer = vec![0; usize::try_from(*size).unwrap_or(BUFFER).clamp(1, BUFFER)];
        self.read(item, path, *size, &mut buffer, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(content)
    }

    /// Hands on exactly `size` bytes of a file, whose checksum is right then.
    fn read(
        &mut self,
        item: &Item,
        path: &str,
        size: u64,
        buffer: &mut [u8],
        give: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let Self { archive, tally } = self;
        let raw = path.as_bytes();
        let options = ZipReadOptions::new().enforce_header_consistency(true);
        let damaged =
            |error: ZipError| fault(tally, error).wrap(format!("archive entry '{}' cannot be read", shown(raw)));
        let mut file = archive.by_index_with_options(item.index, options).map_err(damaged)?;
        let fits = file.data_start().and_then(|at| at.checked_add(item.packed)).is_some_and(|end| end <= item.limit);
        if !fits || file.header_start() != item.start {
            return Err(wrong(raw, "lies over another entry", "pack the folder again"));
        }
        let mut left = size;
        loop {
            // One byte more than there should be: asking for it checks the end and the checksum.
            let most = usize::try_from(left).unwrap_or(usize::MAX).clamp(1, buffer.len());
            let filled = fill(&mut file, &mut buffer[..most]).map_err(|error| damaged(ZipError::Io(error)))?;
            match (filled as u64, left) {
                (0, 0) => return Ok(()),
                (0, _) => return Err(wrong(raw, "is shorter than it says", "pack and upload it again")),
                (_, 0) => return Err(wrong(raw, "is longer than it says", "pack and upload it again")),
                (count, _) => left -= count,
            }
            give(&buffer[..filled])?;
        }
    }
}

/// Reads until the buffer is full or the file at its end.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Only plain files and folders under the one name that the bytes spell.
fn check_kind(entry: &::zip::read::ZipFileEntry<'_>) -> Result<()> {
    let raw = entry.name_raw();
    let is_folder = raw.ends_with(b"/");
    if entry.name().map_or(true, |name| name.as_bytes() != raw) {
        return Err(wrong(raw, "has a name that is not UTF-8, or a second one", "rename the file"));
    }
    if entry.encrypted() {
        return Err(wrong(raw, "is encrypted", "pack without a password"));
    }
    match entry.compression() {
        CompressionMethod::Stored | CompressionMethod::Deflated => {}
        other => {
            let what = format!("is compressed by {other}");
            return Err(wrong(raw, &what, "pack it stored or deflated"));
        }
    }
    match entry.unix_mode().unwrap_or_default() & TYPE_MASK {
        0 => {}
        TYPE_FILE if !is_folder => {}
        TYPE_FOLDER if is_folder => {}
        _ => return Err(wrong(raw, "is neither a file nor a folder", "pack what a link means: zip without -y")),
    }
    if is_folder && entry.size() > 0 {
        return Err(wrong(raw, "is a folder with data", "pack the folder again"));
    }
    Ok(())
}
