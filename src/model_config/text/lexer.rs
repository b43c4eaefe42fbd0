//! The words of protobuf's text format: identifiers, numbers, strings and signs, each with its place.

use crate::model_config::diagnostic::{ConfigError, Position, quoted};

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Identifier(&'a str),
    Number(Number<'a>),
    /// A string literal, its escapes resolved. Escapes can make any bytes, so this is not yet a text.
    Literal(Vec<u8>),
    Sign(char),
    End,
}

/// A number without its sign, its form checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Number<'a> {
    /// As it was written, without the suffix `f`.
    pub(super) text: &'a str,
    /// 8, 10 or 16 for an integer.
    pub(super) radix: Option<u32>,
}

impl Number<'_> {
    /// The value of an integer; `None` if this is a fraction or beyond 64 bits.
    pub(super) fn integer(self) -> Option<u64> {
        let radix = self.radix?;
        let digits = if radix == 16 { self.text.get(2..)? } else { self.text };
        u64::from_str_radix(digits, radix).ok()
    }
}

impl Token<'_> {
    /// The word as an error message names it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Identifier(name) => quoted(name),
            Self::Number(number) => quoted(number.text),
            Self::Literal(bytes) => format!("the string {}", quoted(&String::from_utf8_lossy(bytes))),
            Self::Sign(sign) => format!("'{}'", sign.escape_debug()),
            Self::End => "the end of the text".to_owned(),
        }
    }
}

pub(super) struct Lexer<'a> {
    rest: &'a str,
    position: Position,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        // Editors on Windows put a byte order mark first.
        Self { rest: text.strip_prefix('\u{feff}').unwrap_or(text), position: Position { line: 1, column: 1 } }
    }

    /// The next word and where it begins.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, Position), ConfigError> {
        self.skip_blanks();
        let position = self.position;
        let token = match self.peek() {
            None => Token::End,
            Some(first) if first.is_ascii_alphabetic() || first == '_' => {
                Token::Identifier(self.take_while(|next| next.is_ascii_alphanumeric() || next == '_'))
            }
            Some(first) if first.is_ascii_digit() => self.number()?,
            Some('.') if self.rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit) => self.number()?,
            Some(quote @ ('"' | '\'')) => Token::Literal(self.literal(quote)?),
            Some(sign) if sign.is_ascii_punctuation() => {
                self.advance();
                Token::Sign(sign)
            }
            Some(other) => {
                return Err(ConfigError::invalid(
                    position,
                    format!("unexpected character {}", quoted(other.encode_utf8(&mut [0; 4]))),
                ));
            }
        };
        Ok((token, position))
    }

    fn skip_blanks(&mut self) {
        while let Some(next) = self.peek() {
            if next == '#' {
                self.take_while(|next| next != '\n');
            } else if matches!(next, ' ' | '\t' | '\r' | '\n' | '\u{b}' | '\u{c}') {
                self.advance();
            } else {
                break;
            }
        }
    }

    fn number(&mut self) -> Result<Token<'a>, ConfigError> {
        let position = self.position;
        let start = self.rest;
        let mut before = ' ';
        let is_hex = start.starts_with("0x") || start.starts_with("0X");
        while let Some(next) = self.peek() {
            let is_exponent_sign = matches!(next, '+' | '-') && matches!(before, 'e' | 'E') && !is_hex;
            if !(next.is_ascii_alphanumeric() || matches!(next, '.' | '_') || is_exponent_sign) {
                break;
            }
            before = next;
            self.advance();
        }
        let text = &start[..start.len() - self.rest.len()];
        let number = classify(text)
            .ok_or_else(|| ConfigError::invalid(position, format!("{} is not a number", quoted(text))))?;
        Ok(Token::Number(number))
    }

    fn literal(&mut self, quote: char) -> Result<Vec<u8>, ConfigError> {
        let start = self.position;
        self.advance();
        let mut bytes = Vec::new();
        loop {
            let position = self.position;
            match self.advance() {
                Some(next) if next == quote => return Ok(bytes),
                Some('\\') => self.escape(position, &mut bytes)?,
                Some('\n') | None => {
                    return Err(ConfigError::invalid(
                        start,
                        format!("the string that begins here has no closing {quote}"),
                    ));
                }
                Some(next) => bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self, position: Position, bytes: &mut Vec<u8>) -> Result<(), ConfigError> {
        let bad = |what: &str| Err(ConfigError::invalid(position, what));
        let simple = match self.peek() {
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 0x0b,
            Some(same @ ('\\' | '\'' | '"' | '?')) => same as u8,
            Some('0'..='7') => {
                return match u8::try_from(self.digits(8, 3).0) {
                    Ok(byte) => {
                        bytes.push(byte);
                        Ok(())
                    }
                    Err(_) => bad("an octal escape goes up to \\377"),
                };
            }
            Some('x' | 'X') => {
                self.advance();
                return match self.digits(16, 2) {
                    (_, 0) => bad("\\x needs one or two hexadecimal digits"),
                    (byte, _) => {
                        // Two digits fit a byte.
                        bytes.push(byte as u8);
                        Ok(())
                    }
                };
            }
            Some('u') => return self.unicode(position, 4, bytes),
            Some('U') => return self.unicode(position, 8, bytes),
            _ => return bad("unknown escape in a string; write \\\\ for a backslash"),
        };
        self.advance();
        bytes.push(simple);
        Ok(())
    }

    fn unicode(&mut self, position: Position, length: usize, bytes: &mut Vec<u8>) -> Result<(), ConfigError> {
        let bad = || {
            ConfigError::invalid(
                position,
                format!(
                    "\\{} needs {length} hexadecimal digits of a Unicode character",
                    if length == 4 { 'u' } else { 'U' }
                ),
            )
        };
        self.advance();
        let (mut code, found) = self.digits(16, length);
        if found != length {
            return Err(bad());
        }
        // Characters beyond 16 bits may come as a pair of surrogates.
        if (0xd800..0xdc00).contains(&code) && length == 4 && self.rest.starts_with("\\u") {
            self.advance();
            self.advance();
            let (low, found) = self.digits(16, 4);
            if found != 4 || !(0xdc00..0xe000).contains(&low) {
                return Err(bad());
            }
            code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        let character = char::from_u32(code).ok_or_else(bad)?;
        bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// Up to `most` digits: their value, and how many there were.
    fn digits(&mut self, radix: u32, most: usize) -> (u32, usize) {
        let mut value = 0_u32;
        let mut found = 0;
        while found < most
            && let Some(digit) = self.peek().and_then(|next| next.to_digit(radix))
        {
            value = (value << if radix == 16 { 4 } else { 3 }) | digit;
            found += 1;
            self.advance();
        }
        (value, found)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn advance(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let next = characters.next()?;
        self.rest = characters.as_str();
        if next == '\n' {
            self.position.line += 1;
            self.position.column = 1;
        } else {
            self.position.column += 1;
        }
        Some(next)
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let start = self.rest;
        while self.peek().is_some_and(&belongs) {
            self.advance();
        }
        &start[..start.len() - self.rest.len()]
    }
}

/// Which form of number this is, if it is one.
fn classify(text: &str) -> Option<Number<'_>> {
    let is_all = |digits: &str, radix| !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return is_all(digits, 16).then_some(Number { text, radix: Some(16) });
    }
    if is_all(text, 10) {
        let radix = if text.len() > 1 && text.starts_with('0') { 8 } else { 10 };
        return is_all(text, radix).then_some(Number { text, radix: Some(radix) });
    }
    let text = text.strip_suffix(['f', 'F']).unwrap_or(text);
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    (is_plain && text.parse::<f64>().is_ok()).then_some(Number { text, radix: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<Token<'_>>, ConfigError> {
        let mut lexer = Lexer::new(text);
        let mut words = Vec::new();
        loop {
            match lexer.next()? {
                (Token::End, _) => return Ok(words),
                (word, _) => words.push(word),
            }
        }
    }

    fn integer(text: &str) -> Option<u64> {
        match words(text).unwrap().as_slice() {
            [Token::Number(number)] => number.integer(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn integers_come_in_three_bases() {
        assert_eq!(integer("0"), Some(0));
        assert_eq!(integer("42"), Some(42));
        assert_eq!(integer("0x2A"), Some(42));
        assert_eq!(integer("052"), Some(42));
        assert_eq!(integer("18446744073709551615"), Some(u64::MAX));
        assert_eq!(integer("18446744073709551616"), None);
        assert_eq!(integer("1.0"), None);
    }

    #[test]
    fn fractions_may_lack_a_side_and_bear_a_suffix() {
        for text in ["1.5", ".5", "5.", "1e3", "1E-3", "2.5e+10", "1.5f", "10F"] {
            assert!(matches!(words(text).unwrap().as_slice(), [Token::Number(Number { radix: None, .. })]), "{text}");
        }
        for text in ["08", "0x", "1abc", "1.2.3", "1e", "0xfg", "1_000", "1e+-5"] {
            assert!(words(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_escape_is_resolved() {
        let text = r#"'\a\b\f\n\r\t\v\\\'\"\?\101\x42\x4\u0043\U0001F600\ud83d\ude00\0'"#;
        let expected = "\u{7}\u{8}\u{c}\n\r\t\u{b}\\'\"?AB\u{4}C\u{1F600}\u{1F600}\0";
        assert_eq!(words(text).unwrap(), [Token::Literal(expected.as_bytes().to_vec())]);
        assert_eq!(words(r"'\377'").unwrap(), [Token::Literal(vec![0xff])]);
        for bad in [r"'\400'", r"'\x'", r"'\u12'", r"'\ud83d'", r"'\ud83dA'", r"'\U00110000'", r"'\q'", "'\\"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn places_are_counted_in_characters_past_comments() {
        let mut lexer = Lexer::new("# é comment\n  'é'  x\r\n\ty");
        assert_eq!(lexer.next().unwrap().1, Position { line: 2, column: 3 });
        assert_eq!(lexer.next().unwrap().1, Position { line: 2, column: 8 });
        assert_eq!(lexer.next().unwrap(), (Token::Identifier("y"), Position { line: 3, column: 2 }));
        assert_eq!(lexer.next().unwrap().0, Token::End);
    }

    #[test]
    fn an_open_string_and_a_strange_character_are_errors_at_their_place() {
        let error = words("a: \"b\nc").unwrap_err();
        assert_eq!((error.line, error.column), (1, 4));
        let error = words("a: é").unwrap_err();
        assert_eq!(error.to_string(), "config.pbtxt:1:4: unexpected character 'é'");
    }
}
