//! The file of keys: TOML, walked by hand, so that errors name a line and never repeat a secret.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Holder, Key, Keys, Token, fingerprint};
use crate::error::{Error, Result};

/// The most keys, and the most tokens.
const MAX_ENTRIES: usize = 1000;

/// The most patterns of one key.
const MAX_PATTERNS: usize = 100;

/// The longest value, in bytes.
const MAX_VALUE: usize = 1024;

/// Fewer characters than this can be guessed from one signature that was overheard.
const LEAST_SECRET: usize = 8;

/// Fewer characters than this can be guessed by asking.
const LEAST_TOKEN: usize = 16;

type Table<'a> = DeTable<'a>;
type Value<'a> = Spanned<DeValue<'a>>;

pub(super) fn parse(text: &str) -> Result<Keys> {
    let place = Place(text);
    let document = DeTable::parse(text).map_err(|error| {
        // Only what the parser says: its display shows the line, secret and all.
        place.wrong(error.span().map_or(0, |span| span.start), error.message())
    })?;
    let mut keys = Keys::default();
    for (kind, entries) in document.get_ref() {
        let kind_text: &str = kind.get_ref();
        if !matches!(kind_text, "key" | "token") {
            return Err(place.wrong(kind.span().start, "only [[key]] and [[token]] may stand here"));
        }
        let at = entries.span().start;
        let list = entries
            .get_ref()
            .as_array()
            .ok_or_else(|| place.wrong(at, "write [[key]] or [[token]], in double brackets"))?;
        if list.len() > MAX_ENTRIES {
            return Err(place.wrong(at, &format!("there are more than {MAX_ENTRIES} of [[{kind_text}]]")));
        }
        for value in list.iter() {
            let table = value.get_ref().as_table();
            let table = table
                .ok_or_else(|| place.wrong(value.span().start, "write [[key]] or [[token]], in double brackets"))?;
            let entry = Entry { place, table, at: value.span().start };
            if kind_text == "key" { entry.key(&mut keys)? } else { entry.token(&mut keys)? }
        }
    }
    if keys.keys.is_empty() && keys.tokens.is_empty() {
        return Err(Error::invalid("there is no [[key]] and no [[token]]: nobody could ask"));
    }
    Ok(keys)
}

/// The text, for the numbers of its lines.
#[derive(Clone, Copy)]
struct Place<'a>(&'a str);

impl Place<'_> {
    fn wrong(self, at: usize, what: &str) -> Error {
        let before = self.0.as_bytes().iter().take(at);
        Error::invalid(format!("line {}: {what}", 1 + before.filter(|byte| **byte == b'\n').count()))
    }
}

/// One `[[key]]` or `[[token]]`.
struct Entry<'a> {
    place: Place<'a>,
    table: &'a Table<'a>,
    /// Where it begins.
    at: usize,
}

impl Entry<'_> {
    fn key(&self, keys: &mut Keys) -> Result<()> {
        self.check_fields(&["id", "secret", "models"])?;
        let (id, at) = self.text("id")?;
        if id.contains(['/', ',', '=']) {
            return Err(self
                .place
                .wrong(at, "id has '/', ',' or '=' in it, which the header Authorization needs for itself"));
        }
        let (secret, secret_at) = self.text("secret")?;
        if secret.len() < LEAST_SECRET {
            return Err(self.place.wrong(secret_at, &format!("secret has less than {LEAST_SECRET} characters")));
        }
        let holder = Holder { name: id.to_owned(), models: self.models()? };
        if keys.keys.insert(id.to_owned(), Key { holder, secret: secret.to_owned() }).is_some() {
            return Err(self.place.wrong(at, "another [[key]] has this id"));
        }
        Ok(())
    }

    fn token(&self, keys: &mut Keys) -> Result<()> {
        self.check_fields(&["name", "token", "models"])?;
        let (name, at) = self.text("name")?;
        let (token, token_at) = self.text("token")?;
        if token.len() < LEAST_TOKEN {
            return Err(self.place.wrong(token_at, &format!("token has less than {LEAST_TOKEN} characters")));
        }
        let mac = fingerprint(token).ok_or_else(|| Error::internal("cannot hash a token"))?;
        if keys.tokens.iter().any(|other| other.holder.name == name) {
            return Err(self.place.wrong(at, "another [[token]] has this name"));
        }
        if keys.tokens.iter().any(|other| other.mac == mac) {
            return Err(self.place.wrong(token_at, "another [[token]] has this token"));
        }
        keys.tokens.push(Token { holder: Holder { name: name.to_owned(), models: self.models()? }, mac });
        Ok(())
    }

    fn check_fields(&self, known: &[&str]) -> Result<()> {
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
    fn text(&self, name: &str) -> Result<(&str, usize)> {
        let value = self.table.get(name).ok_or_else(|| self.place.wrong(self.at, &format!("{name} is missing")))?;
        let at = value.span().start;
        let text = self.string(value, name)?;
        if text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok((text, at))
        } else {
            Err(self.place.wrong(at, &format!("{name} has characters other than visible ASCII")))
        }
    }

    fn string<'b>(&self, value: &'b Value<'_>, name: &str) -> Result<&'b str> {
        let wrong = |what: &str| self.place.wrong(value.span().start, &format!("{name} {what}"));
        let text = value.get_ref().as_str().ok_or_else(|| wrong("is no string: put it in quotes"))?;
        if text.is_empty() {
            return Err(wrong("is empty"));
        }
        if text.len() > MAX_VALUE {
            return Err(wrong(&format!("is longer than {MAX_VALUE} bytes")));
        }
        Ok(text)
    }

    fn models(&self) -> Result<Vec<String>> {
        let Some(value) = self.table.get("models") else { return Ok(vec!["*".to_owned()]) };
        let wrong = |at: usize, what: &str| self.place.wrong(at, what);
        let at = value.span().start;
        let list = value.get_ref().as_array().ok_or_else(|| wrong(at, "models is no list: write [\"team/*\"]"))?;
        if list.is_empty() || list.len() > MAX_PATTERNS {
            return Err(wrong(
                at,
                &format!("models has to have 1 to {MAX_PATTERNS} patterns; leave it out for all models"),
            ));
        }
        let mut models = Vec::with_capacity(list.len());
        for value in list.iter() {
            let pattern = self.string(value, "a pattern of models")?;
            if pattern.starts_with('/') {
                return Err(wrong(
                    value.span().start,
                    "a pattern of models begins with a slash, and no model's name does",
                ));
            }
            models.push(pattern.to_owned());
        }
        Ok(models)
    }
}
