//! The `data` of a tensor: nested or flat arrays of elements, read into the tensor's own memory in one pass.

use bytes::Bytes;

use super::Limits;
use super::numbers::{self, Fault, Integer, Parsed};
use crate::error::{Error, Result};
use crate::frontend::json::{self, Cursor};
use crate::tensor::{DataType, bytes_of_vec};

/// The elements of a tensor and their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements {
    /// As on the wire: little-endian, row-major, BYTES with length prefixes.
    pub data: Bytes,
    /// How many.
    pub count: usize,
}

/// Reads a tensor's elements from the JSON value at `cursor`: an array, nested in any way (only the order of the
/// elements matters, as for Triton), or a bare scalar.
///
/// `expected` is the element count that the shape asks for, if it is known; memory is set aside for that many at most,
/// and for no more than the text can hold, so that a lying shape costs nothing.
///
/// # Errors
/// `InvalidArgument` naming the input and the element that does not fit the type, or the count if it is not as
/// expected; for malformed JSON, the byte offset. `TooLarge` for more elements than `limits` allows.
pub fn read_elements(
    cursor: &mut Cursor<'_>,
    name: &str,
    data_type: DataType,
    expected: Option<usize>,
    limits: &Limits,
) -> Result<Elements> {
    let mut reader = Reader { cursor, name, data_type, expected, limit: limits.elements };
    match data_type {
        DataType::Bool => reader.values(|_| None, numbers::parse_bool),
        DataType::Uint8 => reader.integers::<u8>(),
        DataType::Uint16 => reader.integers::<u16>(),
        DataType::Uint32 => reader.integers::<u32>(),
        DataType::Uint64 => reader.integers::<u64>(),
        DataType::Int8 => reader.integers::<i8>(),
        DataType::Int16 => reader.integers::<i16>(),
        DataType::Int32 => reader.integers::<i32>(),
        DataType::Int64 => reader.integers::<i64>(),
        DataType::Fp16 => reader.values(|_| None, numbers::parse_f16),
        DataType::Bf16 => reader.values(|_| None, numbers::parse_bf16),
        DataType::Fp32 => reader.values(numbers::parse_usual_f32, numbers::parse_f32),
        DataType::Fp64 => reader.values(|_| None, numbers::parse_f64),
        DataType::Bytes => reader.strings(),
    }
}

/// Where elements go.
trait Sink {
    /// Takes the element at the start of `text` if it is one of the usual kind, and returns its length. Small enough
    /// to become part of the loop. It may take too little of a number that is not usual (`1` of `1.5e3`): who finds
    /// more of it behind the length asks `any` for the same index.
    fn usual(&mut self, index: usize, text: &[u8]) -> Option<usize>;
    /// Takes any element.
    fn any(&mut self, index: usize, text: &[u8]) -> Result<usize, Fault>;
}

/// Elements of a fixed size, in memory that is there before the first of them is read.
struct Values<T, U, A> {
    values: Vec<T>,
    usual: U,
    any: A,
}

impl<T: Copy, U: Fn(&[u8]) -> Option<(T, usize)>, A: Fn(&[u8]) -> Parsed<T>> Sink for Values<T, U, A> {
    #[inline(always)]
    fn usual(&mut self, index: usize, text: &[u8]) -> Option<usize> {
        let (value, length) = (self.usual)(text)?;
        *self.values.get_mut(index)? = value;
        Some(length)
    }

    #[inline(never)]
    fn any(&mut self, index: usize, text: &[u8]) -> Result<usize, Fault> {
        let (value, length) = (self.any)(text)?;
        *self.values.get_mut(index).ok_or(Fault::TooMany)? = value;
        Ok(length)
    }
}

/// BYTES elements, each with its length before it.
struct Strings {
    data: Vec<u8>,
    most: usize,
}

impl Sink for Strings {
    #[inline(always)]
    fn usual(&mut self, _: usize, _: &[u8]) -> Option<usize> {
        None
    }

    fn any(&mut self, index: usize, text: &[u8]) -> Result<usize, Fault> {
        if text.first() != Some(&b'"') {
            return Err(Fault::Malformed);
        }
        if index >= self.most {
            return Err(Fault::TooMany);
        }
        // The length goes in front once it is known.
        let start = self.data.len();
        self.data.extend_from_slice(&[0; 4]);
        let length = json::strings::read_string(text, 0, &mut self.data).map_err(Fault::String)?;
        let bytes = u32::try_from(self.data.len() - start - 4).map_err(|_| Fault::OutOfRange)?;
        if let Some(prefix) = self.data.get_mut(start..start + 4) {
            prefix.copy_from_slice(&bytes.to_le_bytes());
        }
        Ok(length)
    }
}

/// Why a walk ended before the end of the data.
enum Stop {
    TooDeep { at: usize },
    Syntax { at: usize },
    Element { fault: Fault, at: usize, index: usize },
}

/// Walks the array at `at` and those within it, gives `sink` the text from each element on, and returns the number of
/// elements and the offset behind the array. A function of its own for each type, so that its loop has the registers
/// for itself.
#[inline(never)]
fn walk(text: &[u8], at: usize, depth_limit: usize, sink: &mut impl Sink) -> Result<(usize, usize), Stop> {
    let mut at = at;
    let mut depth = 0;
    let mut count = 0;
    loop {
        // Here an element or an array must begin.
        let Some(rest) = text.get(at..) else { return Err(Stop::Syntax { at }) };
        let usual = sink.usual(count, rest).and_then(|length| Some((length, rest.get(length..)?)));
        match (usual, rest.first()) {
            // The way Python and most others write it: one look at two bytes, which the processor foresees.
            (Some((length, [b',', b' ', ..])), _) => {
                count += 1;
                at += length + 2;
                continue;
            }
            (Some((length, [b',' | b']', ..])), _) => {
                count += 1;
                at += length;
            }
            (_, Some(b'[')) => {
                if depth == depth_limit {
                    return Err(Stop::TooDeep { at });
                }
                depth += 1;
                at = json::skip_space(text, at + 1);
                if text.get(at) != Some(&b']') {
                    continue;
                }
            }
            (_, Some(b' ' | b'\n' | b'\r' | b'\t')) => {
                at = json::skip_space(text, at);
                continue;
            }
            _ => {
                at += sink.any(count, rest).map_err(|fault| Stop::Element { fault, at, index: count })?;
                count += 1;
            }
        }
        // Here arrays may end, and a comma leads to the next element or array.
        loop {
            match text.get(at) {
                Some(b',') => {
                    at = json::skip_space(text, at + 1);
                    break;
                }
                Some(b']') => {
                    at += 1;
                    depth -= 1;
                    if depth == 0 {
                        return Ok((count, at));
                    }
                }
                Some(b' ' | b'\n' | b'\r' | b'\t') => at += 1,
                _ => return Err(Stop::Syntax { at }),
            }
        }
    }
}

struct Reader<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    name: &'c str,
    data_type: DataType,
    expected: Option<usize>,
    limit: usize,
}

impl Reader<'_, '_> {
    fn integers<T: Integer + bytemuck::Pod + Send + Sync>(&mut self) -> Result<Elements> {
        self.values(numbers::parse_short_integer::<T>, numbers::parse_integer::<T>)
    }

    fn values<T: bytemuck::Pod + Send + Sync>(
        &mut self,
        usual: impl Fn(&[u8]) -> Option<(T, usize)>,
        any: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<Elements> {
        let values = vec![T::zeroed(); self.most()];
        let mut sink = Values { values, usual, any };
        let count = self.read(&mut sink)?;
        // Only where no count was expected is there more than was needed.
        sink.values.truncate(count);
        Ok(Elements { data: bytes_of_vec(sink.values), count })
    }

    fn strings(&mut self) -> Result<Elements> {
        let possible = self.cursor.text().len() - self.cursor.position();
        let capacity = self.expected.unwrap_or(1).saturating_mul(16).min(possible);
        let mut sink = Strings { data: Vec::with_capacity(capacity), most: self.most() };
        let count = self.read(&mut sink)?;
        Ok(Elements { data: sink.data.into(), count })
    }

    /// How many elements to make room for: what is expected, and no more than the text can hold, where an element
    /// takes at least its own byte and a separator.
    fn most(&self) -> usize {
        let possible = (self.cursor.text().len() - self.cursor.position()) / 2 + 1;
        self.expected.unwrap_or(usize::MAX).min(possible).min(self.limit)
    }

    fn read(&mut self, sink: &mut impl Sink) -> Result<usize> {
        let text = self.cursor.text();
        let start = json::skip_space(text, self.cursor.position());
        let (count, end) = if text.get(start) == Some(&b'[') {
            let walked = walk(text, start, self.cursor.depth_left(), sink);
            walked.map_err(|stop| self.stopped(stop))?
        } else {
            let length = sink.any(0, text.get(start..).unwrap_or_default());
            (1, start + length.map_err(|fault| self.fault(fault, start, 0))?)
        };
        self.cursor.set_position(end);
        match self.expected {
            Some(expected) if expected != count => Err(Error::invalid(format!(
                "unexpected number of elements in 'data' of input '{}': the shape asks for {expected}, got {count}",
                self.name
            ))),
            _ => Ok(count),
        }
    }

    #[cold]
    fn stopped(&mut self, stop: Stop) -> Error {
        match stop {
            Stop::TooDeep { at } => {
                self.cursor.set_position(at);
                self.cursor.too_deep()
            }
            Stop::Syntax { at } if at >= self.cursor.text().len() => json::fault_at("unexpected end of text", at),
            Stop::Syntax { at } => json::fault_at("expected ',' or ']'", at),
            Stop::Element { fault, at, index } => self.fault(fault, at, index),
        }
    }

    #[cold]
    fn fault(&self, fault: Fault, at: usize, index: usize) -> Error {
        let text = self.cursor.text().get(at..).unwrap_or_default();
        let is_delimiter = |byte: &u8| byte.is_ascii_whitespace() || b",[]{}:\"".contains(byte);
        let value = text.split(is_delimiter).next().unwrap_or_default();
        // Enough of it to be found again, however long it is.
        let shown = String::from_utf8_lossy(value.get(..value.len().min(40)).unwrap_or_default());
        let (name, data_type) = (self.name, self.data_type);
        match fault {
            Fault::TooMany if index == self.limit => Error::too_large(format!(
                "input '{name}' has more elements as JSON than the limit of {index} (elements); send it as binary data"
            )),
            Fault::TooMany => Error::invalid(format!(
                "unexpected number of elements in 'data' of input '{name}': the shape asks for {index}, got more"
            )),
            Fault::String(fault) => json::fault_at(fault.what, at + fault.at),
            Fault::Malformed => match text.first() {
                None => json::fault_at("unexpected end of text", at),
                // A well-formed value of another kind is a matter of types, not of grammar.
                Some(b'"' | b'{') => {
                    self.wrong_kind(index, if text.first() == Some(&b'"') { "a string" } else { "an object" })
                }
                Some(_) if matches!(value, b"true" | b"false" | b"null" | b"NaN" | b"Infinity" | b"-Infinity") => {
                    self.wrong_kind(index, &shown)
                }
                Some(_) if json::numbers::scan_number(text).is_some() => self.wrong_kind(index, &shown),
                Some(_) => json::fault_at("expected a value", at),
            },
            Fault::OutOfRange => Error::invalid(format!(
                "element {index} of input '{name}' is {shown}, which is out of range for {data_type}"
            )),
            Fault::NotInteger => Error::invalid(format!(
                "element {index} of input '{name}' is {shown}, but {data_type} takes only integers without fraction \
                 or exponent"
            )),
            Fault::NotFinite => {
                Error::invalid(format!("element {index} of input '{name}' is {shown}, which {data_type} cannot hold"))
            }
        }
    }

    fn wrong_kind(&self, index: usize, found: &str) -> Error {
        let wanted = match self.data_type {
            DataType::Bool => "true or false",
            DataType::Bytes => "a string",
            _ => "a number",
        };
        Error::invalid(format!(
            "element {index} of input '{}' is {found}, but {} takes {wanted}",
            self.name, self.data_type
        ))
    }
}
