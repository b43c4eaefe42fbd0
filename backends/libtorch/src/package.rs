//! Packages of AOTInductor: a zip archive with a shared library that torch unpacks and opens.
//!
//! The library is C++ of one file, whose compiler marks some of its symbols as unique in the process. The loader keeps the
//! first library that has such a symbol for ever, with all its weights. So torch is given a copy in which these symbols are
//! ordinary ones, and the library goes when its model does.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use roundhouse_abi::plugin::Failure;

use crate::archive::{Place, central_directory, place_of_directory};

/// A copy of a package whose libraries can be unloaded; gone when this is dropped, torch having unpacked it.
#[derive(Debug)]
pub struct Unpinned(PathBuf);

impl Unpinned {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Unpinned {
    fn drop(&mut self) {
        // What cannot be removed is the temporary folder's to lose.
        let _ = fs::remove_file(&self.0);
    }
}

/// The largest library that is looked at: with its weights in it.
const MOST_BYTES: u64 = 64 << 30;

/// What a package holds besides: the file that says for which machine it was compiled.
const METADATA: &str = "_metadata.json";

/// Looks at the package at `package`, and copies it into `folder` with its symbols made ordinary.
///
/// # Errors
/// It has no library, one for processors unlike this, or cannot be read or copied.
pub fn unpin(package: &Path, folder: &Path) -> Result<Unpinned, Failure> {
    let name = package.file_name().unwrap_or_default().display().to_string();
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Failure::invalid(format!("{name} is no sound package: {error}")),
        io::ErrorKind::StorageFull => {
            Failure::failed(format!("no room for {name} in {}: free some, or set TMPDIR", folder.display()))
        }
        _ => Failure::failed(format!("cannot unpack {name} in {}: {error}", folder.display())),
    };
    let mut file = File::open(package).map_err(cannot)?;
    let directory = central_directory(&mut file).map_err(cannot)?.ok_or_else(|| cannot(torn("its end is missing")))?;
    let members = members(&directory).ok_or_else(|| cannot(torn("its list of members is torn")))?;
    let native = |ending: &str| {
        let ending = ending.to_owned();
        members
            .iter()
            .filter(move |member| member.name.contains("/data/aotinductor/") && member.name.ends_with(&ending))
    };
    if native(".so").next().is_none() {
        return Err(Failure::unsupported(format!(
            "{name} holds no shared library: package it with torch._inductor.aoti_compile_and_package, which compiles it"
        )));
    }
    for metadata in native(METADATA) {
        let text = String::from_utf8_lossy(&metadata.read(&mut file).map_err(cannot)?).into_owned();
        if let Some(lacking) = lacking_instructions(&text, has_instructions) {
            return Err(Failure::unsupported(format!(
                "{name} was compiled for processors with {lacking}, which this one has not: compile it on a machine like this"
            )));
        }
    }
    let copy = draft(folder).map_err(cannot)?;
    let unpinned = Unpinned(copy);
    fs::copy(package, unpinned.path()).map_err(cannot)?;
    let mut copy = File::options().read(true).write(true).open(unpinned.path()).map_err(cannot)?;
    for library in native(".so") {
        let mut bytes = library.read(&mut copy).map_err(cannot)?;
        if make_ordinary(&mut bytes) > 0 {
            library.replace(&mut copy, &bytes).map_err(cannot)?;
        }
    }
    Ok(unpinned)
}

fn torn(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A name for a copy that nothing has yet, with an empty file of that name.
fn draft(folder: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("roundhouse-{}-{number}.pt2", std::process::id()));
        match File::options().write(true).create_new(true).open(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// A member of an archive.
struct Member {
    name: String,
    method: u16,
    size: u64,
    /// Where its own head is in the file.
    head: u64,
    /// Where its entry is in the list of members.
    entry: u64,
}

/// The members of a central directory; `None` where it is torn.
fn members(directory: &[u8]) -> Option<Vec<Member>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < directory.len() {
        let head = directory.get(at..at + 46).filter(|head| head.starts_with(b"PK\x01\x02"))?;
        let short = |place: usize| u16::from_le_bytes([head[place], head[place + 1]]);
        let (name, extra, comment) = (usize::from(short(28)), usize::from(short(30)), usize::from(short(32)));
        let bytes = directory.get(at + 46..at + 46 + name)?;
        let extras = directory.get(at + 46 + name..at + 46 + name + extra)?;
        let (compressed, size, offset) = sizes(head, extras)?;
        // What is stored is as long as what it is made of.
        let method = if compressed == size { short(10) } else { u16::MAX };
        found.push(Member {
            name: String::from_utf8_lossy(bytes).into_owned(),
            method,
            size,
            head: offset,
            entry: at as u64,
        });
        at += 46 + name + extra + comment;
    }
    Some(found)
}

/// The bytes of a member in the archive and unpacked, and its place: in the head, or in the extra field for large ones.
fn sizes(head: &[u8], mut extras: &[u8]) -> Option<(u64, u64, u64)> {
    let long =
        |place: usize| head.get(place..place + 4)?.try_into().ok().map(|four| u64::from(u32::from_le_bytes(four)));
    let (mut compressed, mut size, mut offset) = (long(20)?, long(24)?, long(42)?);
    while let [a, b, c, d, rest @ ..] = extras {
        let (kind, length) = (u16::from_le_bytes([*a, *b]), usize::from(u16::from_le_bytes([*c, *d])));
        let mut field = rest.get(..length)?;
        extras = &rest[length..];
        if kind == 1 {
            for value in [&mut size, &mut compressed, &mut offset] {
                if *value == 0xffff_ffff {
                    let (eight, rest) = field.split_first_chunk::<8>()?;
                    (*value, field) = (u64::from_le_bytes(*eight), rest);
                }
            }
        }
    }
    Some((compressed, size, offset))
}

impl Member {
    /// Where the member's bytes begin.
    fn start(&self, file: &mut File) -> io::Result<u64> {
        let mut head = [0_u8; 30];
        file.seek(SeekFrom::Start(self.head))?;
        file.read_exact(&mut head)?;
        if !head.starts_with(b"PK\x03\x04") {
            return Err(torn(&format!("{} is not where the list of members says", self.name)));
        }
        let short = |place: usize| u64::from(u16::from_le_bytes([head[place], head[place + 1]]));
        Ok(self.head + 30 + short(26) + short(28))
    }

    fn read(&self, file: &mut File) -> io::Result<Vec<u8>> {
        if self.method != 0 || self.size > MOST_BYTES {
            return Err(torn(&format!("{} is compressed, which torch does not do", self.name)));
        }
        let start = self.start(file)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(self.size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != self.size {
            return Err(torn(&format!("{} ends early", self.name)));
        }
        Ok(bytes)
    }

    /// Puts other bytes of the same length in its place.
    fn replace(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let start = self.start(file)?;
        file.seek(SeekFrom::Start(start))?;
        file.write_all(bytes)?;
        let Place::At(directory, _) = place_of_directory(file)? else {
            return Err(torn("its list of members is torn"));
        };
        let checksum = checksum(bytes).to_le_bytes();
        for place in [self.head + 14, directory + self.entry + 16] {
            file.seek(SeekFrom::Start(place))?;
            file.write_all(&checksum)?;
        }
        Ok(())
    }
}

/// The CRC-32 of zip archives.
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let (mut value, mut bit) = (at as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |sum, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ (sum >> 8))
}

/// Makes the symbols of a 64-bit ELF library that are unique in the process weak ones, and says how many there were. What
/// is no such library, or has no list of sections, is left as it is.
fn make_ordinary(library: &mut [u8]) -> usize {
    const DYNAMIC_SYMBOLS: u64 = 11;
    const SYMBOL_BYTES: usize = 24;
    const UNIQUE: u8 = 10;
    const WEAK: u8 = 2;
    let number = |library: &[u8], at: usize, bytes: usize| -> Option<u64> {
        let mut eight = [0; 8];
        eight[..bytes].copy_from_slice(library.get(at..at.checked_add(bytes)?)?);
        Some(u64::from_le_bytes(eight))
    };
    let place = |value: u64| usize::try_from(value).ok();
    let is_elf = library.starts_with(b"\x7fELF\x02\x01");
    let symbols = |library: &[u8]| -> Option<(usize, usize)> {
        let (sections, size, count) = (number(library, 40, 8)?, number(library, 58, 2)?, number(library, 60, 2)?);
        (0..count).find_map(|section| {
            let at = place(sections.checked_add(section.checked_mul(size)?)?)?;
            (number(library, at.checked_add(4)?, 4)? == DYNAMIC_SYMBOLS).then(|| {
                Some((
                    place(number(library, at.checked_add(24)?, 8)?)?,
                    place(number(library, at.checked_add(32)?, 8)?)?,
                ))
            })?
        })
    };
    let Some((start, bytes)) = is_elf.then(|| symbols(library)).flatten() else { return 0 };
    let table = start.checked_add(bytes).and_then(|end| library.get_mut(start..end)).unwrap_or_default();
    let kinds = table.chunks_exact_mut(SYMBOL_BYTES).map(|symbol| &mut symbol[4]);
    kinds.filter(|kind| **kind >> 4 == UNIQUE).map(|kind| *kind = WEAK << 4 | *kind & 15).count()
}

/// What the metadata of a package asks of a processor that this one has not.
fn lacking_instructions(metadata: &str, has: impl Fn(&str) -> bool) -> Option<String> {
    let value = |key: &str| {
        let after = metadata.split_once(&format!("\"{key}\""))?.1.trim_start().strip_prefix(':')?.trim_start();
        after.strip_prefix('"')?.split_once('"').map(|(value, _)| value)
    };
    let machine = value("AOTI_MACHINE").unwrap_or_default();
    if !machine.is_empty() && machine != std::env::consts::ARCH {
        return Some(format!("the instructions of {machine}"));
    }
    let named = value("AOTI_CPU_ISA").unwrap_or_default().split_whitespace();
    let (mut flags, known) = (Vec::new(), [("AVX2", "avx2"), ("AVX512", "avx512f"), ("AMX_TILE", "amx_tile")]);
    for name in named {
        flags.extend(known.iter().filter(|(known, _)| *known == name));
    }
    flags.into_iter().find(|(_, flag)| !has(flag)).map(|(name, _)| name.to_string())
}

/// Whether this machine's processors have what the system calls so; yes where it does not say what they have.
fn has_instructions(flag: &str) -> bool {
    let Ok(text) = fs::read_to_string("/proc/cpuinfo") else { return true };
    let mut flags = text.lines().filter(|line| line.starts_with("flags"));
    flags.next().is_none_or(|line| line.split_whitespace().any(|known| known == flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of stored members, as torch writes them: with a place for large ones in the list where `large`.
    fn archive(members: &[(&str, &[u8])], large: bool) -> Vec<u8> {
        let (mut made, mut directory) = (Vec::new(), Vec::new());
        let short = |number: usize| u16::try_from(number).unwrap().to_le_bytes();
        let long = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
        for (name, bytes) in members {
            let at = made.len();
            let mut head = [0; 30];
            head[..4].copy_from_slice(b"PK\x03\x04");
            head[14..18].copy_from_slice(&checksum(bytes).to_le_bytes());
            head[26..28].copy_from_slice(&short(name.len()));
            head[28..30].copy_from_slice(&short(6));
            made.extend([&head[..], name.as_bytes(), b"FB\x02\0ZZ", bytes].concat());
            let mut entry = vec![0; 46];
            entry[..4].copy_from_slice(b"PK\x01\x02");
            entry[16..20].copy_from_slice(&checksum(bytes).to_le_bytes());
            entry[20..24].copy_from_slice(&long(bytes.len()));
            entry[24..28].copy_from_slice(&long(bytes.len()));
            entry[28..30].copy_from_slice(&short(name.len()));
            entry[42..46].copy_from_slice(&long(at));
            let mut extra = Vec::new();
            if large {
                entry[42..46].copy_from_slice(&[0xff; 4]);
                entry[30..32].copy_from_slice(&short(12));
                extra = [&[1, 0, 8, 0][..], &(at as u64).to_le_bytes()].concat();
            }
            directory.extend([entry, name.as_bytes().to_vec(), extra].concat());
        }
        let mut end = [0_u8; 22];
        end[..4].copy_from_slice(b"PK\x05\x06");
        end[12..16].copy_from_slice(&long(directory.len()));
        end[16..20].copy_from_slice(&long(made.len()));
        [made, directory, end.to_vec()].concat()
    }

    /// A library of two symbols, one of them unique in the process.
    fn library() -> Vec<u8> {
        let mut made = vec![0; 64 + 64 + 48];
        made[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (made[40], made[58], made[60]) = (64, 64, 1);
        (made[64 + 4], made[64 + 24], made[64 + 32]) = (11, 128, 48);
        (made[128 + 4], made[128 + 24 + 4]) = (0x12, 0xa1);
        made
    }

    fn unpinned(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("model.pt2");
        fs::write(&package, bytes).unwrap();
        let copy = unpin(&package, folder.path())?;
        let read = fs::read(copy.path()).unwrap();
        drop(copy);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the copy is gone");
        assert_eq!(fs::read(&package).unwrap(), bytes, "the package is as it was");
        Ok(read)
    }

    #[test]
    fn unique_symbols_of_a_packages_library_become_ordinary_ones_and_nothing_else_changes() {
        let mut ordinary = library();
        assert_eq!((make_ordinary(&mut ordinary), make_ordinary(&mut ordinary)), (1, 0));
        assert_eq!((ordinary[128 + 4], ordinary[128 + 24 + 4]), (0x12, 0x21));
        for large in [false, true] {
            let with = |library: &[u8]| {
                archive(
                    &[("m/version", b"1"), ("m/data/aotinductor/model/x.so", library), ("m/data/weights/w", b"w")],
                    large,
                )
            };
            assert_eq!(unpinned(&with(&library())).unwrap(), with(&ordinary), "checksums included");
            assert_eq!(unpinned(&with(b"no library")).unwrap(), with(b"no library"));
        }
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_cannot_run_here_is_told_before_torch_opens_it() {
        let metadata = |isa: &str, machine: &str| format!(r#"{{"AOTI_MACHINE": "{machine}", "AOTI_CPU_ISA":"{isa}"}}"#);
        let (here, has) = (std::env::consts::ARCH, |flag: &str| flag == "avx2");
        let lacking = |isa: &str, machine: &str| lacking_instructions(&metadata(isa, machine), has);
        assert_eq!(lacking("AVX2", here), None);
        assert_eq!(lacking("AVX512 AMX_TILE", here).as_deref(), Some("AVX512"));
        assert_eq!(lacking("", "pdp11").as_deref(), Some("the instructions of pdp11"));
        assert_eq!(lacking_instructions("{ torn", has), None);
        let so = ("m/data/aotinductor/model/x.so", &b"so"[..]);
        let text = metadata("", "pdp11");
        let foreign = archive(&[so, ("m/data/aotinductor/model/x_metadata.json", text.as_bytes())], false);
        assert!(unpinned(&foreign).unwrap_err().text.contains("compile it on a machine like this"));
        let source = archive(&[("m/data/aotinductor/model/x.cpp", b"int main() {}")], false);
        assert!(unpinned(&source).unwrap_err().text.contains("torch._inductor.aoti_compile_and_package"));
        let whole = archive(&[so], false);
        for torn in [&whole[1..], &whole[..whole.len() - 30]] {
            assert_eq!(unpinned(torn).unwrap_err().kind, roundhouse_abi::INVALID_ARGUMENT);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_within_bounds(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400), as_elf in proptest::prelude::any::<bool>()) {
            if as_elf && bytes.len() > 6 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            }
            let _ = members(&bytes);
            let _ = make_ordinary(&mut bytes);
        }
    }
}
