//! Reading tar: blocks of 512 bytes, behind gzip, Zstandard or nothing.
//!
//! The headers are taken apart by the `tar` crate and walked here: records that describe the next entry are bounded, what
//! two parsers could read in two ways is refused, and the end must be one.

use std::io::{self, Read};
use std::rc::Rc;

use ::tar::{EntryType, Header};

use super::path::{shown, wrong};
use super::source::{BUFFER, Source, Tally};
use super::{Format, Unpacking};
use crate::error::{Error, Result};

mod records;

use self::records::{Described, MAX_RECORD};

const BLOCK: usize = 512;

/// The largest window a Zstandard frame may ask for: 128 MiB, what `zstd --long` makes and every decoder takes.
const WINDOW_LOG: u32 = 27;

/// The most zeros after the last entry, in bytes: `tar` fills up to a record, at most some MiB.
const MAX_PADDING: u64 = 64 << 20;

/// Unpacks all of a tar. `length` as in [`super::unpack`].
pub(super) fn unpack<'a, R: Read>(
    source: Source<R>,
    length: u64,
    format: Format,
    mut unpacking: Unpacking<'a>,
) -> Result<Unpacking<'a>> {
    let tally = source.tally();
    let input: Box<dyn Read + '_> = match format {
        Format::TarGz => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Format::TarZst => {
            let decoder = zstd::stream::read::Decoder::with_buffer(source).and_then(|mut decoder| {
                decoder.window_log_max(WINDOW_LOG)?;
                Ok(decoder)
            });
            Box::new(decoder.map_err(|error| Error::internal("cannot start the Zstandard decoder").with_source(error))?)
        }
        Format::Tar | Format::Zip => Box::new(source),
    };
    let mut blocks = Blocks { input, tally, buffer: vec![0; BUFFER], start: 0, end: 0, taken: 0 };
    let is_ended = entries(&mut blocks, &mut unpacking)?;
    end(&mut blocks, &unpacking, is_ended, format)?;
    if format == Format::Tar && length > 0 && blocks.tally.consumed() != length {
        return Err(Error::invalid("the archive ends early: upload it again"));
    }
    Ok(unpacking)
}

/// Unpacks entry by entry; whether a block of zeros ended them, and not the end of the bytes.
fn entries(blocks: &mut Blocks<'_>, unpacking: &mut Unpacking<'_>) -> Result<bool> {
    let mut described = Described::default();
    let mut is_first = true;
    loop {
        let Some(block) = blocks.block(unpacking)? else {
            described.check_spent()?;
            return if is_first { Err(empty()) } else { Ok(false) };
        };
        if block.iter().all(|byte| *byte == 0) {
            described.check_spent()?;
            return if is_first { Err(empty()) } else { Ok(true) };
        }
        let header = Header::from_byte_slice(&block);
        if !is_sound(header) {
            return Err(Error::invalid(if is_first {
                "the archive is compressed and holds no tar: pack the model's folder with tar, or `roundhouse pack`"
            } else {
                "the archive is damaged, or goes on after its end: pack and upload it again"
            }));
        }
        is_first = false;
        unpacking.guard.entry()?;
        entry(header, blocks, unpacking, &mut described)?;
    }
}

/// One header and what follows it.
fn entry(
    header: &Header,
    blocks: &mut Blocks<'_>,
    unpacking: &mut Unpacking<'_>,
    described: &mut Described,
) -> Result<()> {
    let raw = header.path_bytes();
    let own_size = header
        .entry_size()
        .map_err(|error| wrong(&raw, "has a size that is no number", "pack the folder again").with_source(error))?;
    let kind = header.entry_type();
    if matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader) {
        if own_size > MAX_RECORD {
            return Err(Error::too_large(format!(
                "archive entry '{}' describes another one in more than {MAX_RECORD} bytes",
                shown(&raw)
            )));
        }
        let record = blocks.record(own_size, unpacking)?;
        return described.take_record(kind, &record);
    }
    let described = std::mem::take(described);
    let raw = described.name.as_deref().unwrap_or(&raw);
    let size = described.size.unwrap_or(own_size);
    if described.is_sparse {
        return Err(wrong(raw, "is sparse", "pack without --sparse"));
    }
    match kind {
        // Before POSIX a slash at the end was all that told a folder.
        EntryType::Regular if raw.ends_with(b"/") && header.as_bytes()[156] == 0 && size == 0 => {
            make_folder(raw, unpacking)
        }
        EntryType::Regular => {
            let path = unpacking.paths.file(raw)?;
            let mut writing = unpacking.begin(path, size)?;
            let mut left = size;
            while left > 0 {
                let bytes = blocks.data(left, unpacking)?;
                if bytes.is_empty() {
                    return Err(wrong(raw, "is cut off", "upload the archive again"));
                }
                unpacking.write(&mut writing, bytes)?;
                let count = bytes.len();
                left -= count as u64;
                blocks.consume(count);
            }
            unpacking.end(writing)?;
            blocks.skip_padding(size, unpacking)
        }
        EntryType::Directory if size > 0 => Err(wrong(raw, "is a folder with data", "pack the folder again")),
        EntryType::Directory => make_folder(raw, unpacking),
        kind => Err(refused(raw, kind)),
    }
}

fn make_folder(raw: &[u8], unpacking: &mut Unpacking<'_>) -> Result<()> {
    let path = unpacking.paths.folder(raw)?;
    if path.is_empty() { Ok(()) } else { unpacking.folder.folder(&path) }
}

fn refused(raw: &[u8], kind: EntryType) -> Error {
    let (what, mend) = match kind {
        EntryType::Symlink => ("is a symbolic link", "pack the file it means: tar --dereference"),
        EntryType::Link => ("is a hard link", "pack it as a file: tar --hard-dereference"),
        EntryType::GNUSparse => ("is sparse", "pack without --sparse"),
        EntryType::Fifo => ("is a pipe", "leave it out"),
        EntryType::Char | EntryType::Block => ("is a device", "leave it out"),
        _ => ("is neither a file nor a folder", "leave it out"),
    };
    wrong(raw, what, mend)
}

fn empty() -> Error {
    Error::invalid("the archive is empty: pack the model's folder")
}

fn is_sound(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
    header.cksum().is_ok_and(|said| said == sum + 8 * u32::from(b' '))
}

/// Reads to the end, so that gzip's and Zstandard's checksums are held against the bytes, and nothing but zeros follows.
fn end(blocks: &mut Blocks<'_>, unpacking: &Unpacking<'_>, is_ended: bool, format: Format) -> Result<()> {
    let mut zeros = if is_ended { BLOCK as u64 } else { 0 };
    while let Some(block) = blocks.block(unpacking)? {
        if block.iter().any(|byte| *byte != 0) {
            return Err(Error::invalid(
                "the archive goes on after its end, perhaps with a second archive: pack the model's folder again",
            ));
        }
        zeros += BLOCK as u64;
        if zeros > MAX_PADDING {
            return Err(Error::too_large(format!("the archive ends in more than {MAX_PADDING} zeros")));
        }
    }
    // No checksum says that a plain tar came whole; its two blocks of zeros do.
    if format == Format::Tar && zeros < 2 * BLOCK as u64 {
        return Err(Error::invalid("the archive ends early, without the zeros that end a tar: upload it again"));
    }
    Ok(())
}

/// The unpacked stream, in a buffer that files are written from without another copy.
struct Blocks<'s> {
    input: Box<dyn Read + 's>,
    tally: Rc<Tally>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that came out of the decoder.
    taken: u64,
}

impl Blocks<'_> {
    /// Makes at least `want` bytes lie in the buffer, or all that are left. Fills it whole where it reads at all, so that
    /// writes are large.
    fn fill(&mut self, want: usize, unpacking: &Unpacking<'_>) -> Result<()> {
        if self.end - self.start >= want {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < BUFFER {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(read) => {
                    self.end += read;
                    self.taken += read as u64;
                    unpacking.guard.ratio(self.taken, self.tally.consumed())?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.tally.fault(error)),
            }
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// The next block, or `None` at the end.
    fn block(&mut self, unpacking: &Unpacking<'_>) -> Result<Option<[u8; BLOCK]>> {
        self.fill(BLOCK, unpacking)?;
        let bytes = &self.buffer[self.start..self.end];
        match bytes.first_chunk::<BLOCK>() {
            Some(block) => {
                let block = *block;
                self.consume(BLOCK);
                Ok(Some(block))
            }
            None if bytes.is_empty() => Ok(None),
            None => Err(Error::invalid("the archive ends early, inside a block: upload it again")),
        }
    }

    /// At most `most` bytes of a file, to be consumed by the caller; none at the end.
    fn data(&mut self, most: u64, unpacking: &Unpacking<'_>) -> Result<&[u8]> {
        self.fill(1, unpacking)?;
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.end - self.start);
        Ok(&self.buffer[self.start..self.start + count])
    }

    fn skip_padding(&mut self, size: u64, unpacking: &Unpacking<'_>) -> Result<()> {
        let padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.fill(padding, unpacking)?;
        if self.end - self.start < padding {
            return Err(Error::invalid("the archive ends early, inside a block: upload it again"));
        }
        self.consume(padding);
        Ok(())
    }

    /// The data of an entry that describes another one.
    fn record(&mut self, size: u64, unpacking: &Unpacking<'_>) -> Result<Vec<u8>> {
        let mut record = Vec::new();
        while (record.len() as u64) < size {
            let bytes = self.data(size - record.len() as u64, unpacking)?;
            if bytes.is_empty() {
                return Err(Error::invalid("the archive ends early, inside a block: upload it again"));
            }
            record.extend_from_slice(bytes);
            let count = bytes.len();
            self.consume(count);
        }
        self.skip_padding(size, unpacking)?;
        Ok(record)
    }
}
