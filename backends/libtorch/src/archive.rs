//! What a model's file is, by the names in its zip archive, before torch reads it: so that a file of another kind is
//! refused with the mend. Reads the end of the file and the central directory, within limits, whatever the bytes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use roundhouse_abi::plugin::Failure;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TorchScript: what this backend runs.
    TorchScript,
    /// Weights, or a whole pickled module, of `torch.save`.
    Weights,
    /// A graph of `torch.export.save`.
    Export,
    /// Native code of AOTInductor.
    AotInductor,
    /// A zip archive of something else.
    OtherZip,
    /// No zip archive.
    NoZip,
}

/// The longest central directory that is read.
const MOST_BYTES: u64 = 64 << 20;

/// The end record is in the last bytes: 22, and a comment.
const TAIL: u64 = 22 + 65_535;

/// What the file at `path` is.
///
/// # Errors
/// It cannot be read, or its archive is torn.
pub fn kind_of(path: &Path) -> Result<Kind, Failure> {
    let name = path.file_name().unwrap_or_default().display().to_string();
    let directory = File::open(path).and_then(|mut file| central_directory(&mut file));
    match directory {
        Ok(Some(directory)) => kind_of_directory(&directory)
            .ok_or_else(|| Failure::invalid(format!("{name} is no whole zip archive: its list of members is torn"))),
        Ok(None) => Ok(Kind::NoZip),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::not_found(format!("there is no {name}"))),
        Err(error) => Err(Failure::failed(format!("cannot read {name}: {error}"))),
    }
}

/// What this backend runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// A module of TorchScript.
    TorchScript,
    /// A package of AOTInductor.
    Package,
}

/// Refuses what this backend does not run, with the mend. Packages of AOTInductor are native code, which is run only where
/// the operator allows it.
///
/// # Errors
/// What the file is instead, and how to make what is wanted.
pub fn check(path: &Path, allows_packages: bool) -> Result<Runs, Failure> {
    let name = path.file_name().unwrap_or_default().display().to_string();
    let refuse = |what: &str| {
        Err(Failure::invalid(format!(
            "{name} {what}: save the model as TorchScript with torch.jit.trace(model, example).save(path) or \
             torch.jit.script(model).save(path)"
        )))
    };
    match kind_of(path)? {
        Kind::TorchScript => Ok(Runs::TorchScript),
        Kind::AotInductor if allows_packages => Ok(Runs::Package),
        Kind::Weights => {
            refuse("holds weights or a pickled module of torch.save, which no server can run without its Python code")
        }
        Kind::Export => refuse("is a graph of torch.export.save, which only Python can run"),
        Kind::AotInductor => Err(Failure::unsupported(format!(
            "{name} is native code of AOTInductor, which can do to this machine what the server can: start it with \
             --allow-aotinductor if all who write to the repository are trusted with that, or save the model as TorchScript"
        ))),
        Kind::OtherZip => refuse("is a zip archive of something else"),
        Kind::NoZip => refuse("is no zip archive, which a TorchScript file is"),
    }
}

/// Where the central directory of a zip archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file is no archive.
    Nowhere,
    /// The record that says so is torn.
    Torn,
    /// From this byte of the file on, so many.
    At(u64, u64),
}

/// The central directory of a zip archive; `None` where there is none. One that is torn is no directory.
///
/// # Errors
/// What reading fails with.
pub fn central_directory(file: &mut (impl Read + Seek)) -> io::Result<Option<Vec<u8>>> {
    match place_of_directory(file)? {
        Place::Nowhere => Ok(None),
        Place::Torn => Ok(Some(vec![0])),
        Place::At(offset, size) => {
            let mut directory = Vec::new();
            file.seek(SeekFrom::Start(offset))?;
            file.take(size).read_to_end(&mut directory)?;
            Ok(Some(directory))
        }
    }
}

/// Where the central directory is.
///
/// # Errors
/// What reading fails with.
pub fn place_of_directory(file: &mut (impl Read + Seek)) -> io::Result<Place> {
    let length = file.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let Some(end) = tail.windows(4).rposition(|word| word == b"PK\x05\x06").and_then(|at| tail.get(at..at + 22)) else {
        return Ok(Place::Nowhere);
    };
    let (mut size, mut offset) = (u64::from(le32(&end[12..])), u64::from(le32(&end[16..])));
    if size == 0xffff_ffff || offset == 0xffff_ffff {
        // The 64-bit record stands where the locator before the end record says.
        let at = tail.windows(4).rposition(|word| word == b"PK\x06\x07").and_then(|at| tail.get(at..at + 20));
        let Some(locator) = at else { return Ok(Place::Torn) };
        let mut record = Vec::new();
        file.seek(SeekFrom::Start(le64(&locator[8..])))?;
        file.take(56).read_to_end(&mut record)?;
        if record.len() < 56 || !record.starts_with(b"PK\x06\x06") {
            return Ok(Place::Torn);
        }
        (size, offset) = (le64(&record[40..]), le64(&record[48..]));
    }
    if size > MOST_BYTES || offset.checked_add(size).is_none_or(|end| end > length) {
        return Ok(Place::Torn);
    }
    Ok(Place::At(offset, size))
}

/// What an archive with this central directory is; `None` where it is torn.
#[must_use]
pub fn kind_of_directory(directory: &[u8]) -> Option<Kind> {
    let (mut has_code, mut has_constants, mut has_pickle, mut has_export, mut has_native) = Default::default();
    let mut rest = directory;
    while !rest.is_empty() {
        let head = rest.get(..46).filter(|head| head.starts_with(b"PK\x01\x02"))?;
        let length = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let (name, extra, comment) = (length(28), length(30), length(32));
        let member = rest.get(46..46 + name)?;
        rest = rest.get(46 + name + extra + comment..)?;
        // The first folder is the archive's name, which is anything.
        let Some(at) = member.iter().position(|byte| *byte == b'/') else { continue };
        let path = &member[at + 1..];
        has_code |= path.starts_with(b"code/");
        has_constants |= path == b"constants.pkl";
        has_pickle |= path == b"data.pkl";
        has_native |= path.starts_with(b"data/aotinductor/");
        has_export |= path.starts_with(b"models/") || path == b"archive_format";
    }
    Some(match (has_native, has_code || has_constants, has_export, has_pickle) {
        (true, ..) => Kind::AotInductor,
        (_, true, _, true) => Kind::TorchScript,
        (_, _, true, _) => Kind::Export,
        (_, _, _, true) => Kind::Weights,
        _ => Kind::OtherZip,
    })
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// A central directory of these members, as an archive without contents.
    fn directory(members: &[&str]) -> Vec<u8> {
        let mut made = Vec::new();
        for member in members {
            let mut head = [0_u8; 46];
            head[..4].copy_from_slice(b"PK\x01\x02");
            head[28..30].copy_from_slice(&u16::try_from(member.len()).unwrap().to_le_bytes());
            made.extend_from_slice(&head);
            made.extend_from_slice(member.as_bytes());
        }
        made
    }

    fn archive(directory: &[u8]) -> Vec<u8> {
        let mut made = b"contents".to_vec();
        made.extend_from_slice(directory);
        let mut end = [0_u8; 22];
        end[..4].copy_from_slice(b"PK\x05\x06");
        end[12..16].copy_from_slice(&u32::try_from(directory.len()).unwrap().to_le_bytes());
        end[16..20].copy_from_slice(&8_u32.to_le_bytes());
        made.extend_from_slice(&end);
        made
    }

    #[test]
    fn files_are_told_apart_by_what_is_in_them() {
        let cases = [
            (&["m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version"][..], Kind::TorchScript),
            (&["m/data.pkl", "m/data/0", "m/version"], Kind::Weights),
            (&["m/archive_format", "m/models/model.json"], Kind::Export),
            (&["m/archive_format", "m/data/aotinductor/model/x.so"], Kind::AotInductor),
            (&["word/document.xml"], Kind::OtherZip),
            (&[], Kind::OtherZip),
        ];
        for (members, kind) in cases {
            let directory = directory(members);
            assert_eq!(kind_of_directory(&directory), Some(kind), "{members:?}");
            let read = central_directory(&mut Cursor::new(archive(&directory))).unwrap();
            assert_eq!(read.as_deref(), Some(directory.as_slice()));
        }
        assert_eq!(central_directory(&mut Cursor::new(b"\x80\x02pickle".to_vec())).unwrap(), None);
        assert_eq!(kind_of_directory(&directory(&["m/data.pkl"])[..40]), None);
    }

    #[test]
    fn a_refusal_names_the_mend() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refusal = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            check(file.path(), true).unwrap_err().text
        };
        assert!(refusal(b"not a zip").contains("is no zip archive"));
        assert!(refusal(&archive(&directory(&["m/data.pkl"]))).contains("weights or a pickled module"));
        assert!(refusal(&archive(&directory(&["m/archive_format"]))).contains("torch.jit.trace"));
        assert!(refusal(&archive(b"torn")).contains("torn"));
        std::fs::write(file.path(), archive(&directory(&["m/data/aotinductor/model/x.so"]))).unwrap();
        assert!(check(file.path(), false).unwrap_err().text.contains("start it with --allow-aotinductor if all"));
        assert_eq!(check(file.path(), true), Ok(Runs::Package));
        assert_eq!(check(Path::new("/no/such.pt"), true).unwrap_err().kind, roundhouse_abi::NOT_FOUND);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..300), as_directory in any::<bool>()) {
            let bytes = if as_directory { archive(&bytes) } else { bytes };
            let _ = central_directory(&mut Cursor::new(&bytes)).map(|found| found.map(|directory| kind_of_directory(&directory)));
            let _ = kind_of_directory(&bytes);
        }
    }
}
