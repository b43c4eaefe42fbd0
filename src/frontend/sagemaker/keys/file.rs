//! What stands in the file of keys.

use super::super::super::access::table::{Entry, Place};
use super::{Holder, Key, Keys, Token, fingerprint};
use crate::error::{Error, Result};

/// Fewer characters than this can be guessed from one signature that was overheard.
const LEAST_SECRET: usize = 8;

/// Fewer characters than this can be guessed by asking.
const LEAST_TOKEN: usize = 16;

pub(super) fn parse(text: &str) -> Result<Keys> {
    let place = Place(text);
    let document = place.parse()?;
    let mut keys = Keys::default();
    for (kind, entries) in document.get_ref() {
        let name: &str = kind.get_ref();
        if !matches!(name, "key" | "token") {
            return Err(place.wrong(kind.span().start, "only [[key]] and [[token]] may stand here"));
        }
        for entry in place.entries(name, entries, "[[key]] or [[token]]")? {
            if name == "key" { key(&entry, &mut keys)? } else { token(&entry, &mut keys)? }
        }
    }
    if keys.keys.is_empty() && keys.tokens.is_empty() {
        return Err(Error::invalid("there is no [[key]] and no [[token]]: nobody could ask"));
    }
    Ok(keys)
}

fn key(entry: &Entry<'_>, keys: &mut Keys) -> Result<()> {
    entry.check_fields(&["id", "secret", "models"])?;
    let (id, at) = entry.text("id")?;
    if id.contains(['/', ',', '=']) {
        let what = "id has '/', ',' or '=' in it, which the header Authorization needs for itself";
        return Err(entry.place.wrong(at, what));
    }
    let (secret, secret_at) = entry.text("secret")?;
    if secret.len() < LEAST_SECRET {
        return Err(entry.place.wrong(secret_at, &format!("secret has less than {LEAST_SECRET} characters")));
    }
    let holder = Holder { name: id.to_owned(), models: entry.models()? };
    if keys.keys.insert(id.to_owned(), Key { holder, secret: secret.to_owned() }).is_some() {
        return Err(entry.place.wrong(at, "another [[key]] has this id"));
    }
    Ok(())
}

fn token(entry: &Entry<'_>, keys: &mut Keys) -> Result<()> {
    entry.check_fields(&["name", "token", "models"])?;
    let (name, at) = entry.text("name")?;
    let (token, token_at) = entry.text("token")?;
    if token.len() < LEAST_TOKEN {
        return Err(entry.place.wrong(token_at, &format!("token has less than {LEAST_TOKEN} characters")));
    }
    let mac = fingerprint(token).ok_or_else(|| Error::internal("cannot hash a token"))?;
    if keys.tokens.iter().any(|other| other.holder.name == name) {
        return Err(entry.place.wrong(at, "another [[token]] has this name"));
    }
    if keys.tokens.iter().any(|other| other.mac == mac) {
        return Err(entry.place.wrong(token_at, "another [[token]] has this token"));
    }
    keys.tokens.push(Token { holder: Holder { name: name.to_owned(), models: entry.models()? }, mac });
    Ok(())
}
