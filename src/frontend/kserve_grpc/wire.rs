//! Protobuf's wire format, read from a slice and written to a vector: for the messages on the path of an inference, which
//! become tensors without a struct in between. Source: the encoding chapter of protobuf's documentation.

use crate::error::{Error, Result};

/// The value of a field, as far as the wire format tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// `bool`, an integer or an enum.
    Varint(u64),
    /// `double`, or an integer of fixed size.
    Fixed64([u8; 8]),
    /// `float`, or an integer of fixed size.
    Fixed32([u8; 4]),
    /// A string, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// A length-delimited value.
    pub(super) fn bytes(self, field: &str) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(wrong_type(field)),
        }
    }

    /// A string.
    pub(super) fn text(self, field: &str) -> Result<&'a str> {
        simdutf8::basic::from_utf8(self.bytes(field)?)
            .map_err(|_| malformed(&format!("field '{field}' is not valid UTF-8")))
    }

    /// An integer or a bool.
    pub(super) fn varint(self, field: &str) -> Result<u64> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(wrong_type(field)),
        }
    }
}

/// The fields of a message, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next field's number and value; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number != 0);
        let number = number.ok_or_else(|| malformed("a field has no valid number"))?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.fixed()?),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                let (value, rest) = self.0.split_at_checked(length).ok_or_else(cut)?;
                self.0 = rest;
                Value::Bytes(value)
            }
            5 => Value::Fixed32(self.fixed()?),
            other => return Err(malformed(&format!("field {number} has the unknown wire type {other}"))),
        };
        Ok(Some((number, value)))
    }

    /// A number of up to ten bytes, seven bits each, the lowest first.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64> {
        if let [byte @ 0..0x80, rest @ ..] = self.0 {
            self.0 = rest;
            return Ok(u64::from(*byte));
        }
        let mut value = 0_u64;
        for (at, &byte) in self.0.iter().take(10).enumerate() {
            // Of the tenth byte, the bits above the 64th fall off, as in protobuf's own readers.
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = self.0.get(at + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(if self.0.len() < 10 { cut() } else { malformed("a number is longer than ten bytes") })
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk::<N>().ok_or_else(cut)?;
        self.0 = rest;
        Ok(*value)
    }
}

/// What is wrong with a message as a whole.
#[cold]
pub(super) fn malformed(what: &str) -> Error {
    Error::invalid(format!("the message is no valid protobuf: {what}"))
}

#[cold]
fn cut() -> Error {
    malformed("it ends in the middle of a field")
}

#[cold]
pub(super) fn wrong_type(field: &str) -> Error {
    malformed(&format!("field '{field}' has the wire type of another kind of field"))
}

/// How many bytes [`put_varint`] writes.
pub(super) const fn varint_length(value: u64) -> usize {
    // Seven bits a byte; 0 takes one.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a number.
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends an integer field or a bool, where it is not 0.
pub(super) fn put_integer(out: &mut Vec<u8>, number: u32, value: u64) {
    if value != 0 {
        put_varint(out, u64::from(number) << 3);
        put_varint(out, value);
    }
}

/// Appends a length-delimited field.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_length(out, number, value.len());
    out.extend_from_slice(value);
}

/// Appends the head of a length-delimited field, whose bytes follow.
pub(super) fn put_length(out: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, length as u64);
}

/// Appends a string field, where it is not empty.
pub(super) fn put_text(out: &mut Vec<u8>, number: u32, value: &str) {
    if !value.is_empty() {
        put_bytes(out, number, value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_at_every_length() {
        for bit in 0..64 {
            for value in [(1_u64 << bit) - 1, 1 << bit, u64::MAX >> bit] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_length(value));
                let mut fields = Fields(&out);
                assert_eq!(fields.varint().unwrap(), value);
                assert!(fields.0.is_empty());
            }
        }
    }

    #[test]
    fn what_is_cut_or_malformed_is_refused() {
        for wrong in [&[0x0a, 5, b'x'][..], &[0x08], &[0x08, 0x80], &[0x00, 0], &[0x0b], &[0x0d, 1, 2], &[0xff; 11]] {
            assert!(Fields(wrong).next().is_err(), "{wrong:?}");
        }
    }
}
