//! Strings of JSON: found, unescaped, checked and written.

/// What is wrong with a piece of JSON, and where, in bytes from the start of the text that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The failure in words.
    pub what: &'static str,
    /// The byte offset.
    pub at: usize,
}

/// Appends the string whose opening quote is `text[at]` to `out`, unescaped and checked to be UTF-8, and returns the
/// offset behind its closing quote. What was appended before a fault stays.
///
/// # Errors
/// The fault, with its offset in `text`.
#[inline]
pub fn read_string(text: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Fault> {
    let mut at = at + 1;
    loop {
        let end = run_end(text, at);
        // A run ends at an ASCII byte, so that it is UTF-8 by itself if the whole string is.
        let run = text.get(at..end).unwrap_or_default();
        if simdutf8::basic::from_utf8(run).is_err() {
            return Err(Fault { what: "a string is not valid UTF-8", at });
        }
        out.extend_from_slice(run);
        match text.get(end) {
            Some(b'"') => return Ok(end + 1),
            Some(b'\\') => at = read_escape(text, end, out)?,
            Some(_) => return Err(Fault { what: "a control character in a string", at: end }),
            None => return Err(Fault { what: "a string does not end", at: end }),
        }
    }
}

fn read_escape(text: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Fault> {
    let plain = match text.get(at + 1) {
        Some(&byte @ (b'"' | b'\\' | b'/')) => byte,
        Some(b'b') => 8,
        Some(b'f') => 12,
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'u') => return read_unicode_escape(text, at, out),
        _ => return Err(Fault { what: "an unknown escape in a string", at }),
    };
    out.push(plain);
    Ok(at + 2)
}

fn read_unicode_escape(text: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Fault> {
    let hex = |at: usize| {
        text.get(at..at + 4)?.iter().try_fold(0_u32, |code, &byte| Some(code * 16 + char::from(byte).to_digit(16)?))
    };
    let Some(code) = hex(at + 2) else {
        return Err(Fault { what: "\\u without four hexadecimal digits", at });
    };
    let (code, length) = match code {
        0xd800..=0xdbff if text.get(at + 6..at + 8) == Some(b"\\u") => match hex(at + 8) {
            Some(low @ 0xdc00..=0xdfff) => (0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00), 12),
            _ => (code, 6),
        },
        _ => (code, 6),
    };
    // A surrogate that found no partner is no character.
    let Some(character) = char::from_u32(code) else {
        return Err(Fault { what: "half of a surrogate pair in a string", at });
    };
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(at + length)
}

/// The offset of the first quote, backslash or control character from `at` on, eight bytes at a time.
#[inline]
pub(super) fn run_end(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        // Each term has the high bit set in the first byte that is it; borrows can only spoil bytes after that.
        let quote = (word ^ (ONES * 0x22)).wrapping_sub(ONES) & !(word ^ (ONES * 0x22));
        let backslash = (word ^ (ONES * 0x5c)).wrapping_sub(ONES) & !(word ^ (ONES * 0x5c));
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let found = (quote | backslash | control) & HIGH;
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(&byte) = text.get(at)
        && byte >= 0x20
        && byte != b'"'
        && byte != b'\\'
    {
        at += 1;
    }
    at
}

/// Appends `text` as a JSON string with its quotes. Quotes, backslashes and control characters are escaped; all else
/// stays as it is.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let end = run_end(bytes, at);
        out.extend_from_slice(bytes.get(at..end).unwrap_or_default());
        let Some(&byte) = bytes.get(end) else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                let hex = |digit: u8| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
            }
        }
        at = end + 1;
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        let end = read_string(text.as_bytes(), 0, &mut out)?;
        assert_eq!(end, text.len());
        Ok(out)
    }

    #[test]
    fn escapes_and_surrogate_pairs_become_utf_8() {
        assert_eq!(read(r#""plain""#).unwrap(), b"plain");
        assert_eq!(read(r#""\"\\\/\b\f\n\r\t\u0000""#).unwrap(), b"\"\\/\x08\x0c\n\r\t\0");
        assert_eq!(read("\"\\u00e9 \\ud83d\\ude00 \\u20AC é\"").unwrap(), "é 😀 € é".as_bytes());
    }

    #[test]
    fn half_surrogates_and_bad_escapes_are_named_with_their_offset() {
        for (text, what, at) in [
            (r#""ab\ud83d""#, "half of a surrogate pair in a string", 3),
            (r#""\ud83d\u0041""#, "half of a surrogate pair in a string", 1),
            (r#""\ude00""#, "half of a surrogate pair in a string", 1),
            (r#""\u12g4""#, "\\u without four hexadecimal digits", 1),
            (r#""\u12"#, "\\u without four hexadecimal digits", 1),
            (r#""\x""#, "an unknown escape in a string", 1),
            ("\"a\nb\"", "a control character in a string", 2),
            ("\"abc", "a string does not end", 4),
            ("\"", "a string does not end", 1),
        ] {
            assert_eq!(read(text), Err(Fault { what, at }), "{text}");
        }
        assert!(read_string(b"\"\xff\"", 0, &mut Vec::new()).is_err());
        assert!(read_string(b"\"\xc3\\u00a9\"", 0, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_run_ends_at_the_first_special_byte_wherever_it_stands() {
        for length in 0..40 {
            for special in [b'"', b'\\', 0, 1, 0x1f, b'\n'] {
                let mut text = vec![b'a'; length];
                text.extend([special, special, b'"', 0xff, 0x80, b'!', b'#', b'[', b']', b' ']);
                assert_eq!(run_end(&text, 0), length);
            }
            // None of these neighbours of the special bytes ends a run.
            let text = [b'!', b'#', b'[', b']', b' ', 0x7f, 0x80, 0xa2, 0xdc, 0xff].repeat(4);
            assert_eq!(run_end(&text[..length], 0), length);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let every_ascii: String = (0..128_u8).map(char::from).collect();
        for text in ["", "plain", "\"quoted\" back\\slash", every_ascii.as_str(), "é 😀 \u{7f}\u{80}\u{2028}"] {
            let mut out = Vec::new();
            write_string(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            assert_eq!(read(std::str::from_utf8(&out).unwrap()).unwrap(), text.as_bytes());
        }
    }
}
