//! Where in a configuration something stands, and what is said about it.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// A place in a configuration text. Line and column count from 1, the column in characters; both are 0 where the value
/// came without a text (JSON, or filled in by the server).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The character in the line.
    pub column: u32,
}

impl Position {
    /// Of a value that stands in no text.
    pub const UNKNOWN: Self = Self { line: 0, column: 0 };

    /// Whether the value stands in a text.
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.line > 0
    }
}

/// Why a configuration is refused. `Display` names the file as `config.pbtxt`; [`ConfigError::in_file`] takes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, from 1; 0 if unknown.
    pub line: u32,
    /// The character in the line, from 1; 0 if unknown.
    pub column: u32,
    /// What is wrong, naming the field and the mend.
    pub message: String,
    /// `InvalidArgument` for a wrong configuration, `Unsupported` for a right one that asks for what is not offered
    /// yet, `TooLarge` for one over a limit.
    pub kind: ErrorKind,
}

impl ConfigError {
    /// A wrong configuration.
    pub(super) fn invalid(position: Position, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, position, message)
    }

    /// A right configuration that asks for what is not offered.
    pub(super) fn unsupported(position: Position, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, position, message)
    }

    /// A configuration over a limit.
    pub(super) fn too_large(position: Position, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::TooLarge, position, message)
    }

    fn new(kind: ErrorKind, position: Position, message: impl Into<String>) -> Self {
        Self { line: position.line, column: position.column, message: message.into(), kind }
    }

    /// `file:line:column: message`, without the place where it is not known.
    #[must_use]
    pub fn in_file(&self, file: &str) -> String {
        place(file, self.line, self.column, &self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_file("config.pbtxt"))
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::new(error.kind, error.to_string())
    }
}

/// Something in a configuration that is accepted but will not do what its author may expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// The line, from 1; 0 if unknown.
    pub line: u32,
    /// The character in the line, from 1; 0 if unknown.
    pub column: u32,
    /// What is ignored, and what happens instead.
    pub message: String,
}

impl ConfigWarning {
    pub(super) fn new(position: Position, message: impl Into<String>) -> Self {
        Self { line: position.line, column: position.column, message: message.into() }
    }

    /// `file:line:column: message`, without the place where it is not known.
    #[must_use]
    pub fn in_file(&self, file: &str) -> String {
        place(file, self.line, self.column, &self.message)
    }
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_file("config.pbtxt"))
    }
}

fn place(file: &str, line: u32, column: u32, message: &str) -> String {
    if line > 0 { format!("{file}:{line}:{column}: {message}") } else { message.to_owned() }
}

/// `text` in quotes, cut to what an error message can bear.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 64;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("'{}...'", text[..end].escape_debug()),
        None => format!("'{}'", text.escape_debug()),
    }
}

/// The candidate that `name` was probably meant to be, if one is near.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer names are no typing mistakes, and the comparison costs the product of both lengths.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_ascii_lowercase();
    candidates
        .map(|candidate| (edits(name.as_bytes(), candidate.to_ascii_lowercase().as_bytes()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many insertions, deletions and replacements lie between two names.
fn edits(left: &[u8], right: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.iter().enumerate() {
        let mut diagonal = index;
        let mut before = index + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(right) {
            let replaced = diagonal + usize::from(from != to);
            diagonal = *cell;
            before = replaced.min(before + 1).min(diagonal + 1);
            *cell = before;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or(left.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_printed_where_it_is_known() {
        let known = ConfigError::invalid(Position { line: 12, column: 3 }, "no");
        assert_eq!(known.to_string(), "config.pbtxt:12:3: no");
        assert_eq!(known.in_file("configs/a.pbtxt"), "configs/a.pbtxt:12:3: no");
        assert_eq!(ConfigError::invalid(Position::UNKNOWN, "no").to_string(), "no");
    }

    #[test]
    fn the_kind_goes_into_the_error() {
        let error: Error = ConfigError::unsupported(Position { line: 1, column: 1 }, "later").into();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "config.pbtxt:1:1: later");
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits(b"kitten", b"sitting"), 3);
        assert_eq!(edits(b"", b"abc"), 3);
        assert_eq!(edits(b"abc", b""), 3);
        assert_eq!(edits(b"same", b"same"), 0);
    }

    #[test]
    fn a_near_name_is_found_and_a_far_one_is_not() {
        let names = ["max_batch_size", "name", "input"];
        assert_eq!(nearest("max_batchsize", names.into_iter()), Some("max_batch_size"));
        assert_eq!(nearest("Input", names.into_iter()), Some("input"));
        assert_eq!(nearest("something_else", names.into_iter()), None);
    }
}
