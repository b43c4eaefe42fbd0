//! What stands in the file of tokens.

use super::table::{Entry, Place};
use super::{Class, Classes, Fingerprint, Holder, Rights};
use crate::error::{Error, Result};

pub(super) fn parse(text: &str) -> Result<Rights> {
    let place = Place(text);
    let document = place.parse()?;
    let mut rights = Rights { anonymous: Classes::of(&[Class::Health]), holders: Vec::new() };
    for (field, value) in document.get_ref() {
        match field.get_ref().as_ref() {
            "anonymous" => rights.anonymous = classes(place, value, "anonymous")?,
            "token" => {
                for entry in place.entries("token", value, "[[token]]")? {
                    token(&entry, &mut rights)?;
                }
            }
            _ => return Err(place.wrong(field.span().start, "only anonymous and [[token]] may stand here")),
        }
    }
    if rights.holders.is_empty() {
        return Err(Error::invalid("there is no [[token]]: nobody could ask"));
    }
    Ok(rights)
}

fn token(entry: &Entry<'_>, rights: &mut Rights) -> Result<()> {
    entry.check_fields(&["name", "sha256", "allow", "models"])?;
    let (name, at) = entry.text("name")?;
    let (hex, hex_at) = entry.text("sha256")?;
    let fingerprint = fingerprint(hex).ok_or_else(|| {
        let what = "sha256 is not 64 hexadecimal digits: printf %s TOKEN | sha256sum prints them";
        entry.place.wrong(hex_at, what)
    })?;
    let Some(allow) = entry.get("allow") else {
        return Err(entry.place.wrong(at, &format!("allow is missing: a list of {}", Class::names())));
    };
    let classes = classes(entry.place, allow, "allow")?;
    if rights.holders.iter().any(|other| other.name == name) {
        return Err(entry.place.wrong(at, "another [[token]] has this name"));
    }
    if rights.holders.iter().any(|other| other.fingerprint == fingerprint) {
        return Err(entry.place.wrong(hex_at, "another [[token]] has this sha256"));
    }
    rights.holders.push(Holder { name: name.to_owned(), fingerprint, classes, models: entry.models()? });
    Ok(())
}

fn classes(place: Place<'_>, value: &super::table::Value<'_>, field: &str) -> Result<Classes> {
    let at = value.span().start;
    let list = value.get_ref().as_array();
    let list = list.ok_or_else(|| place.wrong(at, &format!("{field} is no list: write [\"inference\"]")))?;
    let mut classes = Classes::default();
    for value in list.iter() {
        let word = place.string(value, "a right")?;
        let right = match word {
            "all" => Classes::ALL,
            word => Class::named(word).map(|class| Classes::of(&[class])).ok_or_else(|| {
                place.wrong(value.span().start, &format!("no such right; there are {} and all", Class::names()))
            })?,
        };
        classes = classes.and(right);
    }
    Ok(classes)
}

fn fingerprint(hex: &str) -> Option<Fingerprint> {
    let bytes = hex.as_bytes();
    if bytes.len() != 64 || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut digest = [0_u8; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Fingerprint::new(digest.into()))
}
