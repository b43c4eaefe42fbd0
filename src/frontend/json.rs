//! A pull cursor over JSON bytes: it walks a document once, in place, and hands out what the caller asks for.
//!
//! There is no tree and no recursion: nesting is a counter, so that no document can exhaust the stack. Text outside of
//! strings is ASCII by grammar; strings are checked to be UTF-8 as they are read. The grammar is that of RFC 8259,
//! except that values which are skipped may hold `NaN`, `Infinity` and `-Infinity`, which Python's `json.dumps` writes.
//!
//! ```text
//! cursor.enter_object()?;
//! while let Some(key) = cursor.next_key()? {
//!     match &*key {
//!         "shape" => { cursor.enter_array()?; while cursor.next_element()? { dims.push(cursor.number()?) } }
//!         _ => cursor.skip_value()?,
//!     }
//! }
//! cursor.end()?;
//! ```

pub mod numbers;
pub mod strings;

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::error::{Error, Result};

use self::numbers::scan_number;
use self::strings::{read_string, run_end};

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A digit or `-`, or one of the literals `NaN`, `Infinity`, `-Infinity`.
    Number,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
}

/// A number in the narrowest form that holds it exactly; `Double` for those with a fraction or an exponent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// An integer that fits 64 bits signed.
    Int(i64),
    /// An integer above that, up to 64 bits unsigned.
    Uint(u64),
    /// Any other number, correctly rounded.
    Double(f64),
}

/// A place in a JSON text. Cloning it remembers the place, so that a value can be skipped now and read later.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    max_depth: usize,
    /// Whether an object or array was entered and nothing of it read yet: no comma stands before its first member.
    first: bool,
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `text`, which may nest objects and arrays `max_depth` deep.
    #[must_use]
    pub const fn new(text: &'a [u8], max_depth: usize) -> Self {
        Self { text, at: 0, depth: 0, max_depth, first: false }
    }

    /// The whole text.
    #[must_use]
    pub const fn text(&self) -> &'a [u8] {
        self.text
    }

    /// The byte offset at which the cursor stands.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    /// How many more levels may be entered here.
    #[must_use]
    pub const fn depth_left(&self) -> usize {
        self.max_depth.saturating_sub(self.depth)
    }

    /// Sets the cursor behind a value that the caller read from [`Cursor::text`] itself.
    pub const fn set_position(&mut self, at: usize) {
        self.at = at;
        self.first = false;
    }

    /// An `InvalidArgument` error for what stands at the cursor.
    #[cold]
    #[must_use]
    pub fn fault(&self, what: &str) -> Error {
        fault_at(what, self.at)
    }

    /// The error for a document nested deeper than the limit.
    #[cold]
    #[must_use]
    pub fn too_deep(&self) -> Error {
        self.fault(&format!("JSON nesting depth exceeds maximum allowed limit ({})", self.max_depth))
    }

    /// Skips white space and says what comes next.
    ///
    /// # Errors
    /// `InvalidArgument` if no value starts here.
    #[inline]
    pub fn kind(&mut self) -> Result<Kind> {
        self.skip_space();
        match self.text.get(self.at) {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9' | b'N' | b'I') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(_) => Err(self.fault("expected a value")),
            None => Err(self.fault("unexpected end of text, expected a value")),
        }
    }

    /// Enters an object; [`Cursor::next_key`] walks its members.
    ///
    /// # Errors
    /// `InvalidArgument` if no object stands here or it nests too deep.
    pub fn enter_object(&mut self) -> Result<()> {
        self.enter(b'{', "expected an object")
    }

    /// Enters an array; [`Cursor::next_element`] walks its elements.
    ///
    /// # Errors
    /// `InvalidArgument` if no array stands here or it nests too deep.
    pub fn enter_array(&mut self) -> Result<()> {
        self.enter(b'[', "expected an array")
    }

    /// The next key of the object that was entered, with the cursor at its value; `None` at the object's end, which is
    /// left then. The value must be read or skipped before the next call.
    ///
    /// # Errors
    /// `InvalidArgument` if the text is not a member or the end of an object.
    #[inline(always)]
    pub fn next_key(&mut self) -> Result<Option<Cow<'a, str>>> {
        if !self.next_member(b'}', "expected ',' or '}'")? {
            return Ok(None);
        }
        if self.text.get(self.at) != Some(&b'"') {
            return Err(self.fault("expected a key in quotes"));
        }
        let key = self.string()?;
        self.skip_space();
        if self.text.get(self.at) != Some(&b':') {
            return Err(self.fault("expected ':'"));
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Whether another element of the array that was entered follows, with the cursor at it; `false` at the array's
    /// end, which is left then. The element must be read or skipped before the next call.
    ///
    /// # Errors
    /// `InvalidArgument` if the text is neither.
    pub fn next_element(&mut self) -> Result<bool> {
        self.next_member(b']', "expected ',' or ']'")
    }

    /// Reads a string; borrowed from the text unless it has escapes.
    ///
    /// # Errors
    /// `InvalidArgument` if no well-formed string stands here.
    #[inline(always)]
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.skip_space();
        match self.plain_string() {
            Some(string) => Ok(Cow::Borrowed(string)),
            None => self.string_with_escapes().map(Cow::Owned),
        }
    }

    /// A string without escapes, as all keys and most names are.
    #[inline(always)]
    fn plain_string(&mut self) -> Option<&'a str> {
        let [b'"', rest @ ..] = self.text.get(self.at..)? else { return None };
        let end = run_end(rest, 0);
        let (run, [b'"', ..]) = rest.split_at_checked(end)? else { return None };
        let string = simdutf8::basic::from_utf8(run).ok()?;
        self.set_position(self.at + end + 2);
        Some(string)
    }

    #[cold]
    fn string_with_escapes(&mut self) -> Result<String> {
        if self.text.get(self.at) != Some(&b'"') {
            return Err(self.fault("expected a string"));
        }
        let mut bytes = Vec::new();
        let end = read_string(self.text, self.at, &mut bytes).map_err(|fault| fault_at(fault.what, fault.at))?;
        // Checked run by run already; once more keeps this file free of unsafe, off the common way.
        let string = String::from_utf8(bytes).map_err(|_| self.fault("a string is not valid UTF-8"))?;
        self.set_position(end);
        Ok(string)
    }

    /// Reads `true` or `false`.
    ///
    /// # Errors
    /// `InvalidArgument` if neither stands here.
    pub fn bool(&mut self) -> Result<bool> {
        self.skip_space();
        if self.literal(b"true") {
            Ok(true)
        } else if self.literal(b"false") {
            Ok(false)
        } else {
            Err(self.fault("expected true or false"))
        }
    }

    /// Reads `null`.
    ///
    /// # Errors
    /// `InvalidArgument` if something else stands here.
    pub fn null(&mut self) -> Result<()> {
        self.skip_space();
        if self.literal(b"null") { Ok(()) } else { Err(self.fault("expected null")) }
    }

    /// Reads a number.
    ///
    /// # Errors
    /// `InvalidArgument` if no number stands here, or it is `NaN`, infinite, or too large for an FP64.
    pub fn number(&mut self) -> Result<Number> {
        self.skip_space();
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(token) = scan_number(rest) else {
            let non_finite = matches!(rest, [b'N', ..] | [b'I', ..] | [b'-', b'I', ..]);
            return Err(self.fault(if non_finite { "expected a finite number" } else { "expected a number" }));
        };
        let digits = rest.get(..token.length).unwrap_or_default();
        let integer = std::str::from_utf8(digits).ok().filter(|_| token.is_integer);
        let number = if let Some(int) = integer.and_then(|text| text.parse().ok()) {
            Number::Int(int)
        } else if let Some(uint) = integer.and_then(|text| text.parse().ok()) {
            Number::Uint(uint)
        } else {
            match fast_float2::parse::<f64, _>(digits) {
                Ok(double) if double.is_finite() => Number::Double(double),
                _ => return Err(self.fault("a number is too large for 64 bits")),
            }
        };
        self.set_position(self.at + token.length);
        Ok(number)
    }

    /// Reads past a value of any kind, checking that it is well formed.
    ///
    /// # Errors
    /// `InvalidArgument` where it is not, or where it nests too deep.
    pub fn skip_value(&mut self) -> Result<()> {
        // One entry for each level entered here, `true` for an object; bounded by the depth limit.
        let mut objects: SmallVec<[bool; 64]> = SmallVec::new();
        loop {
            match self.kind()? {
                Kind::Object => {
                    self.enter_object()?;
                    objects.push(true);
                }
                Kind::Array => {
                    self.enter_array()?;
                    objects.push(false);
                }
                Kind::String => self.skip_string()?,
                Kind::Number => self.skip_number()?,
                Kind::Bool => _ = self.bool()?,
                Kind::Null => self.null()?,
            }
            loop {
                let more = match objects.last() {
                    None => return Ok(()),
                    Some(true) => self.next_key()?.is_some(),
                    Some(false) => self.next_element()?,
                };
                if more {
                    break;
                }
                objects.pop();
            }
        }
    }

    /// Reads past an array by its brackets and strings alone, several bytes a cycle, for a caller that will come back
    /// and read it in earnest: what stands between them is not looked at. Any other value is skipped as
    /// [`Cursor::skip_value`] does.
    ///
    /// # Errors
    /// `InvalidArgument` if the array does not end, nests too deep, or holds a malformed string.
    pub fn skip_array_unchecked(&mut self) -> Result<()> {
        if self.kind()? != Kind::Array {
            return self.skip_value();
        }
        let mut depth = 0;
        loop {
            // A block without quotes that cannot close the array is passed in one go.
            while let Some(block) = self.text.get(self.at..).and_then(<[u8]>::first_chunk::<BLOCK>) {
                let counts = count_brackets(block);
                if counts.quotes != 0 || counts.closing >= depth || depth + counts.opening > self.depth_left() {
                    break;
                }
                depth = depth + counts.opening - counts.closing;
                self.at += BLOCK;
            }
            let limit = self.at + BLOCK;
            while self.at < limit {
                match self.text.get(self.at) {
                    Some(b'[') if depth == self.depth_left() => return Err(self.too_deep()),
                    Some(b'[') => depth += 1,
                    Some(b']') => depth -= 1,
                    Some(b'"') => {
                        self.skip_string()?;
                        continue;
                    }
                    Some(_) => {}
                    None => return Err(self.fault("unexpected end of text, expected ']'")),
                }
                self.at += 1;
                if depth == 0 {
                    self.first = false;
                    return Ok(());
                }
            }
        }
    }

    /// Checks that nothing but white space follows.
    ///
    /// # Errors
    /// `InvalidArgument` if something does.
    pub fn end(&mut self) -> Result<()> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.fault("unexpected text after the document")) }
    }

    #[inline]
    fn skip_space(&mut self) {
        self.at = skip_space(self.text, self.at);
    }

    fn enter(&mut self, open: u8, what: &str) -> Result<()> {
        self.skip_space();
        if self.text.get(self.at) != Some(&open) {
            return Err(self.fault(what));
        }
        if self.depth >= self.max_depth {
            return Err(self.too_deep());
        }
        self.at += 1;
        self.depth += 1;
        self.first = true;
        Ok(())
    }

    #[inline]
    fn next_member(&mut self, close: u8, what: &str) -> Result<bool> {
        self.skip_space();
        match self.text.get(self.at) {
            Some(&byte) if byte == close => {
                self.at += 1;
                self.depth = self.depth.saturating_sub(1);
                self.first = false;
                return Ok(false);
            }
            Some(b',') if !self.first => {
                self.at += 1;
                self.skip_space();
            }
            Some(_) if self.first => {}
            Some(_) => return Err(self.fault(what)),
            None => return Err(self.fault("unexpected end of text")),
        }
        self.first = false;
        Ok(true)
    }

    #[inline]
    fn literal(&mut self, literal: &[u8]) -> bool {
        let found = self.text.get(self.at..).is_some_and(|rest| rest.starts_with(literal));
        if found {
            self.set_position(self.at + literal.len());
        }
        found
    }

    fn skip_string(&mut self) -> Result<()> {
        let mut at = self.at + 1;
        loop {
            at = run_end(self.text, at);
            match self.text.get(at) {
                Some(b'"') => break,
                Some(b'\\') => at += 2,
                // Also names a string that does not end; escapes are left to whoever reads the string.
                _ => return Err(fault_at("a control character in a string, or a string that does not end", at)),
            }
        }
        if simdutf8::basic::from_utf8(self.text.get(self.at..at).unwrap_or_default()).is_err() {
            return Err(self.fault("a string is not valid UTF-8"));
        }
        self.set_position(at + 1);
        Ok(())
    }

    fn skip_number(&mut self) -> Result<()> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if let Some(token) = scan_number(rest) {
            self.set_position(self.at + token.length);
            return Ok(());
        }
        let found = self.literal(b"NaN") || self.literal(b"Infinity") || self.literal(b"-Infinity");
        if found { Ok(()) } else { Err(self.fault("expected a number")) }
    }
}

/// The error for what stands `at` bytes into a request's JSON. The first words are Triton's, which clients match.
#[cold]
#[must_use]
pub fn fault_at(what: &str, at: usize) -> Error {
    Error::invalid(format!("failed to parse the request JSON buffer: {what} at {at}"))
}

/// The first offset from `at` on that is not JSON white space.
#[inline]
#[must_use]
pub fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

const BLOCK: usize = 64;

struct Brackets {
    opening: usize,
    closing: usize,
    quotes: usize,
}

/// Counts in bytes, which the compiler turns into vector instructions; 64 fit a byte.
#[inline]
fn count_brackets(block: &[u8; BLOCK]) -> Brackets {
    let count = |wanted: u8| usize::from(block.iter().map(|&byte| u8::from(byte == wanted)).sum::<u8>());
    Brackets { opening: count(b'['), closing: count(b']'), quotes: count(b'"') }
}

#[cfg(test)]
mod tests;
