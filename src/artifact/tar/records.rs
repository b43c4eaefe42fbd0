//! What a tar says of an entry before the entry comes: GNU's long names, and POSIX's extended headers.

use ::tar::EntryType;

use crate::error::{Error, Result};

/// The longest such record, in bytes. Names are far shorter; this leaves room for attributes that are not looked at.
pub(super) const MAX_RECORD: u64 = 1 << 20;

/// What is known of the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) is_sparse: bool,
    is_long_named: bool,
    is_extended: bool,
}

impl Described {
    pub(super) fn take_record(&mut self, kind: EntryType, record: &[u8]) -> Result<()> {
        match kind {
            EntryType::GNULongName => {
                if std::mem::replace(&mut self.is_long_named, true) || self.name.is_some() {
                    return Err(twofold());
                }
                self.name = Some(record.strip_suffix(&[0]).unwrap_or(record).to_owned());
                Ok(())
            }
            // A link follows, which is refused by its own name.
            EntryType::GNULongLink => Ok(()),
            EntryType::XGlobalHeader => check_global(record),
            _ if std::mem::replace(&mut self.is_extended, true) => Err(twofold()),
            _ => self.take_extended(record),
        }
    }

    fn take_extended(&mut self, record: &[u8]) -> Result<()> {
        for pair in Pairs(record) {
            match pair? {
                (b"path", _) if self.name.is_some() => return Err(twofold()),
                (b"path", value) => self.name = Some(value.to_owned()),
                (b"size", _) if self.size.is_some() => return Err(twofold()),
                (b"size", value) => self.size = Some(number(value).ok_or_else(malformed)?),
                (key, _) if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the entry that was described came.
    pub(super) fn check_spent(&self) -> Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        Err(Error::invalid("the archive ends early, before an entry it announced: upload it again"))
    }
}

/// Global headers carry comments (git writes one). One that renames or resizes all that follows is nothing a model needs.
fn check_global(record: &[u8]) -> Result<()> {
    for pair in Pairs(record) {
        let (key, _) = pair?;
        if matches!(key, b"path" | b"size" | b"linkpath") || key.starts_with(b"GNU.sparse.") {
            return Err(Error::invalid(format!(
                "the archive sets '{}' for all its entries: pack the folder again",
                key.escape_ascii()
            )));
        }
    }
    Ok(())
}

fn twofold() -> Error {
    Error::invalid("the archive describes one entry twice: pack the folder again")
}

fn malformed() -> Error {
    Error::invalid("the archive has an extended header that cannot be read: pack the folder again")
}

fn number(digits: &[u8]) -> Option<u64> {
    // `parse` would take a sign.
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// The pairs of an extended header: `LENGTH KEY=VALUE\n`, the length counting itself.
struct Pairs<'a>(&'a [u8]);

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let pair = self.cut();
        if pair.is_none() {
            self.0 = &[];
        }
        Some(pair.ok_or_else(malformed))
    }
}

impl<'a> Pairs<'a> {
    fn cut(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(number(&self.0[..space])?).ok()?;
        let line = self.0.get(space + 1..length)?.strip_suffix(b"\n")?;
        self.0 = &self.0[length..];
        let equals = line.iter().position(|byte| *byte == b'=')?;
        Some((&line[..equals], &line[equals + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extended(record: &[u8]) -> Result<Described> {
        let mut described = Described::default();
        described.take_record(EntryType::XHeader, record).map(|()| described)
    }

    #[test]
    fn an_extended_header_is_read_by_its_lengths() {
        let described = extended(b"12 path=a\nb\n11 size=42\n20 SCHILY.xattr.x=\0\n").unwrap();
        assert_eq!((described.name.as_deref(), described.size), (Some(&b"a\nb"[..]), Some(42)));
        assert!(extended(b"22 GNU.sparse.major=1\n").unwrap().is_sparse);
        assert!(extended(b"").unwrap().check_spent().is_err(), "an entry must follow");
        for record in [
            &b"9 path=ab\n"[..],
            b"12 path=ab\n",
            b"10 path=a",
            b" path=a\n",
            b"-9 path=a\n",
            b"0 \n",
            b"3 \n",
            b"8 patha\n",
            b"99999999999999999999999 path=a\n",
            b"18446744073709551615 p=a\n",
            b"9 path=a\n9 path=a\n",
            b"10 size=4\n10 size=4\n",
            b"11 size=-4\n",
            b"11 size=+4\n",
            b"29 size=99999999999999999999\n",
            b"path=a",
        ] {
            assert!(extended(record).is_err(), "{}", record.escape_ascii());
        }
    }

    #[test]
    fn an_entry_is_described_once() {
        let mut described = Described::default();
        described.take_record(EntryType::GNULongName, b"long\0").unwrap();
        assert!(described.take_record(EntryType::GNULongName, b"other\0").is_err());
        assert!(described.take_record(EntryType::XHeader, b"10 path=a\n").is_err());
        assert_eq!(described.name.as_deref(), Some(&b"long"[..]));
    }

    #[test]
    fn a_global_header_may_comment_and_no_more() {
        let mut described = Described::default();
        described.take_record(EntryType::XGlobalHeader, b"13 comment=ab\n".as_slice()).unwrap_err();
        described.take_record(EntryType::XGlobalHeader, b"14 comment=ab\n").unwrap();
        assert!(described.check_spent().is_ok());
        assert!(described.take_record(EntryType::XGlobalHeader, b"10 size=4\n").is_err());
    }
}
