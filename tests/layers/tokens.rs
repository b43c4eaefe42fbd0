//! A small scanner of Rust sources: code without comments and literals.

/// An identifier, `::`, or one character of punctuation, with its line.
#[derive(Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    pub(crate) line: usize,
}

pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The end of the run of bytes from `at` that `inside` accepts.
fn run_end(bytes: &[u8], at: usize, inside: impl Fn(u8) -> bool) -> usize {
    bytes[at..].iter().position(|byte| !inside(*byte)).map_or(bytes.len(), |length| at + length)
}

/// The end of a literal that `quote` closes, `at` being its first byte inside; a backslash hides the byte after it.
fn quoted_end(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The end of a raw literal whose hashes begin at `at`, or `None` where there is no raw literal (a raw identifier).
fn raw_end(source: &str, at: usize) -> Option<usize> {
    let open = run_end(source.as_bytes(), at, |byte| byte == b'#');
    let close = format!("\"{}", &source[at..open]);
    let inside = source[open..].strip_prefix('"')?;
    Some(inside.find(&close).map_or(source.len(), |length| open + 1 + length + close.len()))
}

/// The end of a block comment that begins at `at`; they nest.
fn comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < bytes.len() {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" if depth == 1 => return at + 2,
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of a character literal or a lifetime that begins at `at`.
fn tick_end(source: &str, at: usize) -> usize {
    let mut rest = source[at + 1..].chars();
    match (rest.next(), rest.next()) {
        (Some('\\'), _) => quoted_end(source.as_bytes(), at + 1, b'\''),
        (Some(one), Some('\'')) => at + 2 + one.len_utf8(),
        _ => run_end(source.as_bytes(), at + 1, is_word),
    }
}

/// The code of a file: no comments, no literals, no white space.
pub(crate) fn tokens(source: &str) -> Vec<Token<'_>> {
    let bytes = source.as_bytes();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    while at < bytes.len() {
        let (start, next) = (at, bytes.get(at + 1).copied().unwrap_or(b' '));
        let mut is_code = false;
        at = match bytes[at] {
            b'/' if next == b'/' => run_end(bytes, at, |byte| byte != b'\n'),
            b'/' if next == b'*' => comment_end(bytes, at),
            b'"' => quoted_end(bytes, at + 1, b'"'),
            b'\'' => tick_end(source, at),
            byte if byte.is_ascii_whitespace() => at + 1,
            byte if byte.is_ascii_digit() => run_end(bytes, at, is_word),
            byte if is_word(byte) => {
                let end = run_end(bytes, at, is_word);
                let after = bytes.get(end).copied().unwrap_or(b' ');
                let raw = if after == b'"' || after == b'#' { raw_end(source, end) } else { None };
                match (&source[at..end], raw) {
                    ("r" | "br" | "cr", Some(end)) => end,
                    ("r", None) if after == b'#' => end + 1,
                    ("b" | "c", _) if after == b'"' => quoted_end(bytes, end + 1, b'"'),
                    ("b", _) if after == b'\'' => tick_end(source, end),
                    _ => {
                        is_code = true;
                        end
                    }
                }
            }
            byte => {
                is_code = true;
                if byte == b':' && next == b':' { at + 2 } else { at + 1 }
            }
        };
        at = at.min(bytes.len());
        if is_code {
            found.push(Token { text: &source[start..at], line });
        }
        line += bytes[start..at].iter().filter(|byte| **byte == b'\n').count();
    }
    found
}
