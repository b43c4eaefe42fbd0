//! Files of secrets: TOML with tables in double brackets, walked by hand, so that errors name a line and never repeat what
//! stands there.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// The largest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The most tables of one name.
const MAX_ENTRIES: usize = 1000;

/// The most patterns of one table.
const MAX_PATTERNS: usize = 100;

/// The longest value, in bytes.
const MAX_VALUE: usize = 1024;

/// A value, and where it stands.
pub type Value<'a> = Spanned<DeValue<'a>>;

/// Reads the file that `option` names. Warns if everybody on this machine can read it.
///
/// # Errors
/// `InvalidArgument` naming the option and the file.
pub fn read(option: &str, path: &Path) -> Result<String> {
    let cannot = |error| Error::invalid(format!("cannot read {option} {}", path.display())).with_source(error);
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::invalid(format!("{option} {} is larger than {MAX_FILE} bytes", path.display())));
    }
    if metadata.permissions().mode() & 0o004 != 0 {
        tracing::warn!(path = %path.display(), "everybody on this machine can read {option}: chmod o-r");
    }
    Ok(text)
}

/// The text, for the numbers of its lines.
#[derive(Clone, Copy)]
pub struct Place<'a>(pub &'a str);

impl<'a> Place<'a> {
    /// What is wrong behind so many bytes.
    #[must_use]
    pub fn wrong(self, at: usize, what: &str) -> Error {
        let before = self.0.as_bytes().iter().take(at);
        Error::invalid(format!("line {}: {what}", 1 + before.filter(|byte| **byte == b'\n').count()))
    }

    /// The text as TOML.
    ///
    /// # Errors
    /// `InvalidArgument` naming the line.
    pub fn parse(self) -> Result<Spanned<DeTable<'a>>> {
        // Only what the parser says: its display shows the line, secret and all.
        DeTable::parse(self.0).map_err(|error| self.wrong(error.span().map_or(0, |span| span.start), error.message()))
    }

    /// The tables of one name. `known` are the names there are, as they are written: `[[key]] or [[token]]`.
    ///
    /// # Errors
    /// `InvalidArgument` naming the line if they are none, or more than 1000.
    pub fn entries<'b>(self, name: &str, value: &'b Value<'a>, known: &str) -> Result<Vec<Entry<'b>>>
    where
        'a: 'b,
    {
        let no_tables = |at: usize| self.wrong(at, &format!("write {known}, in double brackets"));
        let at = value.span().start;
        let list = value.get_ref().as_array().ok_or_else(|| no_tables(at))?;
        if list.len() > MAX_ENTRIES {
            return Err(self.wrong(at, &format!("there are more than {MAX_ENTRIES} of [[{name}]]")));
        }
        let entry = |value: &'b Value<'a>| {
            let at = value.span().start;
            let table = value.get_ref().as_table().ok_or_else(|| no_tables(at))?;
            Ok(Entry { place: self, table, at })
        };
        list.iter().map(entry).collect()
    }

    /// A text of 1 to 1024 bytes.
    ///
    /// # Errors
    /// `InvalidArgument` naming the line.
    pub fn string<'b>(self, value: &'b Value<'_>, name: &str) -> Result<&'b str> {
        let wrong = |what: &str| self.wrong(value.span().start, &format!("{name} {what}"));
        let text = value.get_ref().as_str().ok_or_else(|| wrong("is no string: put it in quotes"))?;
        if text.is_empty() {
            return Err(wrong("is empty"));
        }
        if text.len() > MAX_VALUE {
            return Err(wrong(&format!("is longer than {MAX_VALUE} bytes")));
        }
        Ok(text)
    }
}

/// One table.
pub struct Entry<'a> {
    /// Where the file says what.
    pub place: Place<'a>,
    table: &'a DeTable<'a>,
    /// Where it begins.
    at: usize,
}

impl<'a> Entry<'a> {
    /// The value of a field, where it is there.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a Value<'a>> {
        self.table.get(name)
    }

    /// # Errors
    /// `InvalidArgument` naming the line of a field that is none of these.
    pub fn check_fields(&self, known: &[&str]) -> Result<()> {
        let mut unknown = self.table.keys().filter(|name| !known.contains(&name.get_ref().as_ref()));
        match unknown.next() {
            // The name itself may be a secret that was written in the wrong place.
            Some(name) => {
                Err(self.place.wrong(name.span().start, &format!("only {} may stand here", known.join(", "))))
            }
            None => Ok(()),
        }
    }

    /// A field that has to be there, and where it is: visible ASCII, since it comes in a header.
    ///
    /// # Errors
    /// `InvalidArgument` naming the line.
    pub fn text(&self, name: &str) -> Result<(&'a str, usize)> {
        let value = self.get(name).ok_or_else(|| self.place.wrong(self.at, &format!("{name} is missing")))?;
        let at = value.span().start;
        let text = self.place.string(value, name)?;
        if text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok((text, at))
        } else {
            Err(self.place.wrong(at, &format!("{name} has characters other than visible ASCII")))
        }
    }

    /// The field `models`: patterns of models' names; left out, all of them.
    ///
    /// # Errors
    /// `InvalidArgument` naming the line.
    pub fn models(&self) -> Result<Vec<String>> {
        let Some(value) = self.get("models") else { return Ok(vec!["*".to_owned()]) };
        let wrong = |at: usize, what: &str| self.place.wrong(at, what);
        let at = value.span().start;
        let list = value.get_ref().as_array().ok_or_else(|| wrong(at, "models is no list: write [\"team/*\"]"))?;
        if list.is_empty() || list.len() > MAX_PATTERNS {
            let what = format!("models has to have 1 to {MAX_PATTERNS} patterns; leave it out for all models");
            return Err(wrong(at, &what));
        }
        let mut models = Vec::with_capacity(list.len());
        for value in list.iter() {
            let pattern = self.place.string(value, "a pattern of models")?;
            if pattern.starts_with('/') {
                let what = "a pattern of models begins with a slash, and no model's name does";
                return Err(wrong(value.span().start, what));
            }
            models.push(pattern.to_owned());
        }
        Ok(models)
    }
}
