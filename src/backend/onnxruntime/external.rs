//! Which files beside an ONNX model its weights lie in, read from the model's protobuf without decoding the rest.
//!
//! A model may come from anybody, and its `external_data` may name `../../etc/passwd`, or an address in memory, which
//! some versions of ONNX Runtime understand. So every location is checked before the runtime sees the model.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Component, Path};

use crate::error::{Error, ErrorKind, Result};

/// Messages inside messages, as protobuf's own parser has it.
const MOST_DEPTH: usize = 100;

/// The longest location, in bytes.
const LONGEST_LOCATION: u64 = 4096;

/// What a model's file says of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Whether weights lie in other files.
    pub(super) has_external_data: bool,
    /// How many operators there are, those of subgraphs and functions included.
    pub(super) operators: u64,
}

/// Reads what a model consists of, and checks that every file it names lies in its folder, links followed.
///
/// # Errors
/// `InvalidArgument` if the model names a file outside of its folder or is no protobuf, `NotFound` if a file it names is
/// missing, `RepositoryFailed` if the model cannot be read.
pub(super) fn check(file: &Path) -> Result<Contents> {
    let name = file.file_name().unwrap_or_default().display().to_string();
    let unreadable = |error: io::Error| {
        Error::new(ErrorKind::RepositoryFailed, format!("cannot read the model file {name}")).with_source(error)
    };
    let opened = File::open(file).map_err(unreadable)?;
    let length = opened.metadata().map_err(unreadable)?.len();
    let folder = file.parent().unwrap_or(Path::new("")).canonicalize().map_err(unreadable)?;
    let (mut refused, mut last) = (None, None);
    let walked = locations(BufReader::with_capacity(64 << 10, opened), length, &mut |location| {
        // Weights mostly share one file.
        if last.as_deref() != Some(location) {
            if let Err(error) = check_location(&folder, location) {
                refused = Some(error.wrap(format!("ONNX Runtime is not given {name}")));
                return false;
            }
            last = Some(location.to_owned());
        }
        true
    });
    match (refused, walked) {
        (Some(error), _) => Err(error),
        (None, Ok(operators)) => Ok(Contents { has_external_data: last.is_some(), operators }),
        (None, Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Error::invalid(format!("{name} is no ONNX model: {error}")))
        }
        (None, Err(error)) => Err(unreadable(error)),
    }
}

fn check_location(folder: &Path, location: &str) -> Result<()> {
    let outside = || Error::invalid(format!("its weights file '{}' is outside of its folder", location.escape_debug()));
    let path = Path::new(location);
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    // ONNX Runtime's own mark for an address in memory begins with `*/`.
    if location.is_empty() || !is_below || location.starts_with('*') || location.contains('\0') {
        return Err(outside());
    }
    match folder.join(path).canonicalize() {
        Ok(path) if path.starts_with(folder) => Ok(()),
        Ok(_) => Err(outside()),
        Err(error) => {
            let text = format!("its weights file '{}' cannot be read", location.escape_debug());
            Err(Error::not_found(text).with_source(error))
        }
    }
}

/// The messages of onnx.proto that a tensor can lie in.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
    Entry,
}

impl Message {
    /// The message in the field of that number, where it is one to look into.
    const fn field(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 20) => Self::Training,
            (Self::Model, 25) => Self::Function,
            (Self::Function, 7) | (Self::Graph, 1) => Self::Node,
            (Self::Function, 11) | (Self::Node, 5) => Self::Attribute,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::Sparse,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Self::Tensor,
            (Self::Tensor, 13) => Self::Entry,
            _ => return None,
        })
    }
}

/// Gives every location of external data to `found`, until that returns false. Returns the number of operators so far.
fn locations<R: BufRead + Seek>(reader: R, length: u64, found: &mut dyn FnMut(&str) -> bool) -> io::Result<u64> {
    let mut walk = Walk { reader, at: 0, operators: 0, found };
    walk.message(Message::Model, length, 0)?;
    Ok(walk.operators)
}

struct Walk<'a, R> {
    reader: R,
    at: u64,
    operators: u64,
    found: &'a mut dyn FnMut(&str) -> bool,
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: BufRead + Seek> Walk<'_, R> {
    /// Walks a message up to `end`; false where `found` had enough.
    fn message(&mut self, message: Message, end: u64, depth: usize) -> io::Result<bool> {
        if depth > MOST_DEPTH {
            return Err(malformed("it is nested too deep"));
        }
        self.operators += u64::from(matches!(message, Message::Node));
        let (mut key, mut value) = (String::new(), String::new());
        while self.at < end {
            // Protobuf's own parser keeps 32 bits of a tag: what it would take for another field is none.
            let tag = self.varint()?;
            if tag > u64::from(u32::MAX) {
                return Err(malformed("a field has no number"));
            }
            let length = match tag & 7 {
                0 => {
                    self.varint()?;
                    0
                }
                1 => 8,
                2 => self.varint()?,
                5 => 4,
                _ => return Err(malformed("a field is of a kind that ONNX has none of")),
            };
            let stop = self.at.checked_add(length).filter(|stop| *stop <= end);
            let stop = stop.ok_or_else(|| malformed("a field goes on past its end"))?;
            match (message, tag >> 3, message.field(tag >> 3)) {
                (_, _, Some(inner)) if tag & 7 == 2 => {
                    if !self.message(inner, stop, depth + 1)? {
                        return Ok(false);
                    }
                }
                (Message::Entry, 1, None) if tag & 7 == 2 => key = self.text(length)?,
                (Message::Entry, 2, None) if tag & 7 == 2 => value = self.text(length)?,
                _ => self.skip(length)?,
            }
        }
        Ok(key != "location" || (self.found)(&value))
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.reader.fill_buf()?.first().copied().ok_or_else(|| malformed("it is cut off"))?;
            self.reader.consume(1);
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(malformed("a number is too long"))
    }

    fn text(&mut self, length: u64) -> io::Result<String> {
        if length > LONGEST_LOCATION {
            return Err(malformed("the name of a weights file is too long"));
        }
        let mut bytes = Vec::new();
        (&mut self.reader).take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(malformed("it is cut off"));
        }
        self.at += length;
        String::from_utf8(bytes).map_err(|_| malformed("the name of a weights file is not UTF-8"))
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        self.at += length;
        self.reader.seek_relative(i64::try_from(length).map_err(|_| malformed("a field is too long"))?)
    }
}

#[cfg(test)]
mod tests;
