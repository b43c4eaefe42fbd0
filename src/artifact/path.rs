//! Which names an archive's entries may have, and that no two of them are one.

use std::collections::HashMap;

use super::Limits;
use crate::error::{Error, Result};

/// The longest path of an entry, in bytes: what an object's key may have.
const MAX_PATH_LENGTH: usize = 1024;

/// The root of the tree; its children name it as their parent.
const ROOT: u32 = 0;

/// What an archive holds so far, as a tree: a hundred thousand deep paths take no more room than their parts.
///
/// Spelling counts without case: two names that some file systems take for one are refused everywhere, so that an
/// archive means the same on every machine.
pub(super) struct Paths<'a> {
    limits: &'a Limits,
    nodes: HashMap<(u32, Box<str>), Node>,
}

struct Node {
    id: u32,
    spelling: Box<str>,
    is_folder: bool,
}

impl<'a> Paths<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        Self { limits, nodes: HashMap::new() }
    }

    /// The path of a file, checked: parts joined by single slashes.
    pub(super) fn file(&mut self, raw: &[u8]) -> Result<String> {
        let path = clean(raw, self.limits)?;
        if path.is_empty() || path.ends_with('/') {
            return Err(wrong(
                raw,
                "is a file and has a folder's name",
                "pack the folder again with a current tar or zip",
            ));
        }
        self.add(raw, path, false)?;
        Ok(path.to_owned())
    }

    /// The path of a folder, checked; empty for the root itself.
    pub(super) fn folder(&mut self, raw: &[u8]) -> Result<String> {
        let path = clean(raw, self.limits)?.trim_end_matches('/');
        if !path.is_empty() {
            self.add(raw, path, true)?;
        }
        Ok(path.to_owned())
    }

    fn add(&mut self, raw: &[u8], path: &str, is_folder: bool) -> Result<()> {
        let mut parent = ROOT;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            let next = self.nodes.len() as u64 + 1;
            let key = (parent, part.to_lowercase().into_boxed_str());
            if let Some(node) = self.nodes.get(&key) {
                if *node.spelling != *part {
                    return Err(wrong(raw, "differs from another one only in case", "rename one of them"));
                }
                if is_last && !(node.is_folder && is_folder) {
                    return Err(wrong(raw, "is in the archive twice", "pack the folder again"));
                }
                if !node.is_folder {
                    return Err(wrong(raw, "lies below a file of the archive", "pack the folder again"));
                }
                parent = node.id;
                continue;
            }
            // The folders that no entry names are made all the same, so they count.
            if next > self.limits.entries.saturating_mul(2) {
                return Err(Error::too_large(format!(
                    "the archive has more than {} entries and the folders above them",
                    self.limits.entries
                )));
            }
            let id = u32::try_from(next).map_err(|_| Error::too_large("the archive has too many entries"))?;
            self.nodes.insert(key, Node { id, spelling: part.into(), is_folder: is_folder || !is_last });
            parent = id;
        }
        Ok(())
    }
}

/// The name without leading `./`, once every part of it is one that stays inside the folder.
fn clean<'n>(raw: &'n [u8], limits: &Limits) -> Result<&'n str> {
    let Ok(name) = std::str::from_utf8(raw) else {
        return Err(wrong(raw, "has a name that is not UTF-8", "rename the file"));
    };
    if name.is_empty() {
        return Err(wrong(raw, "has no name", "pack the folder again"));
    }
    if name.chars().any(|character| character.is_control() || character == '\\') {
        return Err(wrong(raw, "has a control character or a backslash in its name", "rename the file"));
    }
    let mut path = name;
    while let Some(rest) = path.strip_prefix("./") {
        path = rest;
    }
    if path.starts_with('/') {
        return Err(wrong(raw, "has an absolute path", "pack the folder by a relative path"));
    }
    if path.len() > MAX_PATH_LENGTH {
        return Err(too_long(raw, format_args!("has a path longer than {MAX_PATH_LENGTH} bytes")));
    }
    if path.is_empty() || path == "." {
        return Ok("");
    }
    let mut depth = 0;
    for part in path.strip_suffix('/').unwrap_or(path).split('/') {
        depth += 1;
        match part {
            ".." => return Err(wrong(raw, "leaves its folder through '..'", "pack the folder from inside")),
            "" | "." => return Err(wrong(raw, "has an empty part or '.' in its path", "pack the folder again")),
            part if part.len() > limits.component => {
                return Err(too_long(raw, format_args!("has a name longer than {} bytes", limits.component)));
            }
            _ => {}
        }
    }
    if depth > limits.depth {
        return Err(too_long(raw, format_args!("lies more than {} folders deep", limits.depth)));
    }
    Ok(path)
}

/// An entry's name as it may stand in a message: short, and harmless on a terminal.
pub(super) fn shown(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(&raw[..raw.len().min(400)]);
    text.chars().take(96).collect::<String>().escape_debug().to_string()
}

/// What is wrong with an entry, and the mend.
pub(super) fn wrong(raw: &[u8], what: &str, mend: &str) -> Error {
    Error::invalid(format!("archive entry '{}' {what}: {mend}", shown(raw)))
}

fn too_long(raw: &[u8], what: std::fmt::Arguments<'_>) -> Error {
    Error::too_large(format!("archive entry '{}' {what}: shorten it", shown(raw)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        let limits = Limits::default();
        for raw in [
            &b"../x"[..],
            b"a/../../x",
            b"a/..",
            b"/etc/passwd",
            b".//etc",
            b"a//b",
            b"a/./b",
            b"",
            b"./",
            b".",
            b"a/",
            b"a\\b",
            b"a\nb",
            b"a\0b",
            b"\x1b[2J",
            b"\xff\xfe",
            b"..",
            b"./../x",
            b"a\x7f",
        ] {
            let error = Paths::new(&limits).file(raw).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", raw.escape_ascii());
            assert!(error.to_string().starts_with("archive entry '"), "{error}");
        }
        for (raw, clean) in [("a", "a"), ("./a/b", "a/b"), ("././a", "a"), ("größe/ß", "größe/ß"), ("..a", "..a")]
        {
            assert_eq!(Paths::new(&limits).file(raw.as_bytes()).unwrap(), clean);
        }
    }

    #[test]
    fn a_path_is_as_long_and_as_deep_as_the_limits_say() {
        let limits = Limits::default();
        let deep = |parts: usize| vec!["d"; parts].join("/");
        for (path, fits) in [
            (deep(32), true),
            (deep(33), false),
            ("x".repeat(255), true),
            ("x".repeat(256), false),
            (vec!["x".repeat(255); 4].join("/"), true),
            (format!("{}/y", vec!["x".repeat(255); 4].join("/")), false),
        ] {
            let result = Paths::new(&limits).file(path.as_bytes());
            assert_eq!(result.is_ok(), fits, "{path}");
            assert!(fits || result.unwrap_err().kind() == ErrorKind::TooLarge);
        }
    }

    #[test]
    fn no_two_entries_are_one() {
        let limits = Limits::default();
        let pairs: [(&[u8], &[u8]); 9] = [
            (b"a", b"a"),
            (b"a", b"A"),
            (b"a", b"./a"),
            (b"a/b", b"a"),
            (b"a", b"a/b"),
            (b"a/x", b"A/y"),
            ("Ä".as_bytes(), "ä".as_bytes()),
            (b"a/", b"a"),
            (b"a", b"a/"),
        ];
        for (first, second) in pairs {
            let mut paths = Paths::new(&limits);
            let mut add = |raw: &[u8]| if raw.ends_with(b"/") { paths.folder(raw) } else { paths.file(raw) };
            add(first).unwrap();
            let error = add(second).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", second.escape_ascii());
        }
        let mut paths = Paths::new(&limits);
        // An archive that was appended to names a folder again.
        assert!(paths.folder(b"a/").is_ok() && paths.folder(b"./a").is_ok() && paths.file(b"a/b").is_ok());
        assert!(paths.folder(b"a").is_ok() && paths.file(b"b").is_ok() && paths.file(b"a/c").is_ok());
        assert_eq!(paths.folder(b"./").unwrap(), "");
    }

    #[test]
    fn folders_that_no_entry_names_count_as_well() {
        let limits = Limits { entries: 4, ..Limits::default() };
        let mut paths = Paths::new(&limits);
        assert!(paths.file(b"a/b/c/d/e/f/g/h").is_ok());
        assert_eq!(paths.file(b"i").unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
