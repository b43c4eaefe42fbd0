//! Numbers of JSON, by their grammar alone.

/// A number's extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberToken {
    /// Its length in bytes.
    pub length: usize,
    /// Whether it has neither fraction nor exponent.
    pub is_integer: bool,
}

/// The number at the start of `text` by the grammar of JSON (no `+1`, `01`, `.5`, `1.`), if there is one.
#[must_use]
pub fn scan_number(text: &[u8]) -> Option<NumberToken> {
    let digits = |from: usize| text.iter().skip(from).take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(text.first() == Some(&b'-'));
    let whole = digits(at);
    if whole == 0 || (whole > 1 && text.get(at) == Some(&b'0')) {
        return None;
    }
    at += whole;
    let mut is_integer = true;
    if text.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
        is_integer = false;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at + 1 + sign);
        if exponent == 0 {
            return None;
        }
        at += 1 + sign + exponent;
        is_integer = false;
    }
    Some(NumberToken { length: at, is_integer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_ends_where_the_grammar_says() {
        for (text, length, is_integer) in [
            ("0", 1, true),
            ("-12,", 3, true),
            ("1.50]", 4, false),
            ("2e-07 ", 5, false),
            ("-0.0E+1x", 7, false),
            ("1-", 1, true),
        ] {
            assert_eq!(scan_number(text.as_bytes()), Some(NumberToken { length, is_integer }), "{text}");
        }
        for text in ["", "-", "+1", "01", "-00", ".5", "1.", "1.e1", "1e", "1e+", "NaN", "x"] {
            assert_eq!(scan_number(text.as_bytes()), None, "{text}");
        }
    }
}
