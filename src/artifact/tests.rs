//! Archives as somebody hostile would make them, byte by byte, since no packer makes them.

mod hostile;
mod properties;

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use super::{Everything, Limits, Unpacked, unpack};
use crate::error::Result;

/// A folder to unpack to with a sibling that nothing may touch.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("target")).unwrap();
        std::fs::create_dir(root.path().join("canary")).unwrap();
        std::fs::write(root.path().join("canary/bird"), "alive").unwrap();
        Self { root }
    }

    fn target(&self) -> PathBuf {
        self.root.path().join("target")
    }

    /// Unpacks, and holds that nothing beside the target changed and that nothing in it is a link.
    fn unpack(&self, archive: &[u8], limits: &Limits) -> Result<Unpacked> {
        let length = archive.len() as u64;
        let result = unpack(Cursor::new(archive), length, &self.target(), limits, &mut Everything, &mut Everything);
        assert_eq!(std::fs::read_to_string(self.root.path().join("canary/bird")).unwrap(), "alive");
        assert_eq!(names(&self.root.path().join("canary")), ["bird"]);
        assert_eq!(names(self.root.path()), ["canary", "target"]);
        tree(&self.target());
        result
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every path below a folder, with a file's content; a folder's is `None`.
fn tree(folder: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<(String, Option<Vec<u8>>)>) {
        for name in names(folder) {
            let (path, below) = (folder.join(&name), format!("{prefix}{name}"));
            let kind = path.symlink_metadata().unwrap().file_type();
            assert!(kind.is_dir() || kind.is_file(), "{below} is neither a file nor a folder");
            if kind.is_dir() {
                found.push((below.clone(), None));
                walk(&path, &format!("{below}/"), found);
            } else {
                found.push((below, Some(std::fs::read(&path).unwrap())));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort();
    found
}

fn unpack_alone(archive: &[u8]) -> Result<Unpacked> {
    Place::new().unpack(archive, &Limits::default())
}

/// A tar, block by block.
#[derive(Clone, Default)]
struct Tar(Vec<u8>);

impl Tar {
    /// A header alone. The name is what lies in the field, up to 100 bytes.
    fn header(mut self, name: &[u8], kind: u8, size: u64) -> Self {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000777\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"00000000000\0");
        block[148..156].copy_from_slice(b"        ");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(block);
        self
    }

    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, name: &[u8], kind: u8, data: &[u8]) -> Self {
        self.header(name, kind, data.len() as u64).data(data)
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name.as_bytes(), b'0', data)
    }

    /// A link of some kind.
    fn link(self, name: &str, kind: u8, to: &str) -> Self {
        let at = self.0.len();
        let mut tar = self.header(name.as_bytes(), kind, 0);
        tar.0[at + 157..at + 157 + to.len()].copy_from_slice(to.as_bytes());
        tar.sum_again(at)
    }

    fn sum_again(mut self, at: usize) -> Self {
        self.0[at + 148..at + 156].copy_from_slice(b"        ");
        let sum: u32 = self.0[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        self.0[at + 148..at + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self
    }

    fn extended(self, pairs: &[(&str, &str)]) -> Self {
        let line = |(key, value): &(&str, &str)| {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|digits| format!("{}", rest + digits).len() == *digits).unwrap() + rest;
            format!("{length} {key}={value}\n")
        };
        let record: String = pairs.iter().map(line).collect();
        self.entry(b"PaxHeaders/x", b'x', record.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A zip's entry as its two headers tell of it.
#[derive(Clone)]
struct Zipped {
    name: Vec<u8>,
    local_name: Vec<u8>,
    data: Vec<u8>,
    size: u32,
    packed: u32,
    crc: u32,
    method: u16,
    flags: u16,
    mode: u32,
    /// Where the directory says that the local header begins, if not where it does.
    start: Option<u32>,
}

impl Zipped {
    fn stored(name: &str, data: &[u8]) -> Self {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let (name, data, size) = (name.as_bytes().to_owned(), data.to_owned(), u32::try_from(data.len()).unwrap());
        let local_name = name.clone();
        let flags = if name.is_ascii() { 0 } else { 1 << 11 };
        Self {
            name,
            local_name,
            data,
            size,
            packed: size,
            crc: crc.sum(),
            method: 0,
            flags,
            mode: 0o100_644,
            start: None,
        }
    }

    fn deflated(name: &str, data: &[u8]) -> Self {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        let packed = encoder.finish().unwrap();
        let length = u32::try_from(packed.len()).unwrap();
        Self { data: packed, packed: length, method: 8, ..Self::stored(name, data) }
    }

    fn fields(&self) -> Vec<u8> {
        let mut fields = [20_u16, self.flags, self.method, 0, 33].map(u16::to_le_bytes).concat();
        fields.extend([self.crc, self.packed, self.size].map(u32::to_le_bytes).concat());
        fields
    }
}

fn zip_of(entries: &[Zipped]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let start = u32::try_from(bytes.len()).unwrap();
        bytes.extend(b"PK\x03\x04");
        bytes.extend(entry.fields());
        bytes.extend([entry.local_name.len() as u16, 0].map(u16::to_le_bytes).concat());
        bytes.extend(&entry.local_name);
        bytes.extend(&entry.data);
        directory.extend(b"PK\x01\x02\x14\x03");
        directory.extend(entry.fields());
        directory.extend([entry.name.len() as u16, 0, 0, 0, 0].map(u16::to_le_bytes).concat());
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(entry.start.unwrap_or(start).to_le_bytes());
        directory.extend(&entry.name);
    }
    let (at, count) = (u32::try_from(bytes.len()).unwrap(), entries.len() as u16);
    let length = u32::try_from(directory.len()).unwrap();
    bytes.extend(directory);
    bytes.extend(b"PK\x05\x06");
    bytes.extend([0, 0, count, count].map(u16::to_le_bytes).concat());
    bytes.extend([length, at].map(u32::to_le_bytes).concat());
    bytes.extend([0, 0]);
    bytes
}
