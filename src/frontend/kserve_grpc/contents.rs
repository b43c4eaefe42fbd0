//! Typed contents: the elements of an input as protobuf's repeated fields (`InferTensorContents`), made the bytes of a
//! tensor.

use bytes::Bytes;
use smallvec::SmallVec;

use super::wire::{Fields, Value, wrong_type};
use crate::error::{Error, Result};
use crate::tensor::{DataType, Element, bytes_of_vec, push_string};

/// The field of `InferTensorContents` for elements of a type; none for those that go raw alone.
const fn field_of(data_type: DataType) -> Option<(u32, &'static str)> {
    match data_type {
        DataType::Bool => Some((1, "bool_contents")),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Some((2, "int_contents")),
        DataType::Int64 => Some((3, "int64_contents")),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => Some((4, "uint_contents")),
        DataType::Uint64 => Some((5, "uint64_contents")),
        DataType::Fp32 => Some((6, "fp32_contents")),
        DataType::Fp64 => Some((7, "fp64_contents")),
        DataType::Bytes => Some((8, "bytes_contents")),
        DataType::Fp16 | DataType::Bf16 => None,
    }
}

/// The type that Triton names in errors for a field of `InferTensorContents`.
const fn type_of(field: u32) -> &'static str {
    match field {
        1 => "BOOL",
        2 => "INT32",
        3 => "INT64",
        4 => "UINT32",
        5 => "UINT64",
        6 => "FP32",
        7 => "FP64",
        _ => "BYTES",
    }
}

/// Whose contents are read, for the errors.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) input: &'a str,
    pub(super) model: &'a str,
}

/// The elements of one `InferTensorContents`, which may have come in several parts, as a tensor's bytes. Packed floats
/// are a slice of `message`, everything else is converted. `limit` is the most elements.
pub(super) fn read(
    message: &Bytes,
    parts: &[&[u8]],
    data_type: DataType,
    place: Place<'_>,
    limit: usize,
) -> Result<Bytes> {
    let Some((wanted, name)) = field_of(data_type) else {
        return Err(Error::invalid(format!(
            "input '{}': {data_type} has no typed contents, send it in raw_input_contents",
            place.input
        )));
    };
    let mut values = SmallVec::<[Value<'_>; 1]>::new();
    for part in parts {
        let mut fields = Fields(part);
        while let Some((number, value)) = fields.next()? {
            if number == wanted {
                values.push(value);
            } else if number <= 8 {
                return Err(Error::invalid(format!(
                    "unexpected explicit tensor data for input tensor '{}' for model '{}' of type '{}', expected \
                     datatype '{data_type}'",
                    place.input,
                    place.model,
                    type_of(number),
                )));
            }
        }
    }
    let reader = Reader { values: &values, name, place, limit };
    match data_type {
        DataType::Bool => reader.numbers(|value| Some(u8::from(value != 0))),
        // A negative int32 is sign-extended to 64 bits on the wire.
        DataType::Int8 => reader.numbers(|value| i8::try_from(value as i32).ok()),
        DataType::Int16 => reader.numbers(|value| i16::try_from(value as i32).ok()),
        DataType::Int32 => reader.numbers(|value| Some(value as i32)),
        DataType::Int64 => reader.numbers(|value| Some(value as i64)),
        DataType::Uint8 => reader.numbers(|value| u8::try_from(value as u32).ok()),
        DataType::Uint16 => reader.numbers(|value| u16::try_from(value as u32).ok()),
        DataType::Uint32 => reader.numbers(|value| Some(value as u32)),
        DataType::Uint64 => reader.numbers(Some),
        DataType::Fp32 => reader.fixed::<4>(message),
        DataType::Fp64 => reader.fixed::<8>(message),
        DataType::Bytes => reader.strings(),
        DataType::Fp16 | DataType::Bf16 => Err(Error::internal("an element type without contents got here")),
    }
}

struct Reader<'a> {
    values: &'a [Value<'a>],
    name: &'static str,
    place: Place<'a>,
    limit: usize,
}

impl Reader<'_> {
    /// Integers and bools, packed or one by one.
    fn numbers<T: Element>(&self, convert: impl Fn(u64) -> Option<T>) -> Result<Bytes> {
        let mut elements = Vec::<T>::new();
        let mut push = |value: u64| {
            if elements.len() == self.limit {
                return Err(self.too_many());
            }
            elements.push(convert(value).ok_or_else(|| {
                Error::invalid(format!(
                    "input '{}': an element of {} is out of range for {}",
                    self.place.input,
                    self.name,
                    T::DATA_TYPE
                ))
            })?);
            Ok(())
        };
        for value in self.values {
            match *value {
                Value::Varint(value) => push(value)?,
                Value::Bytes(packed) => {
                    let mut rest = Fields(packed);
                    while !rest.0.is_empty() {
                        push(rest.varint()?)?;
                    }
                }
                Value::Fixed32(_) | Value::Fixed64(_) => return Err(wrong_type(self.name)),
            }
        }
        Ok(bytes_of_vec(elements))
    }

    /// Floats of `N` bytes, which stand on the wire as they do in a tensor.
    fn fixed<const N: usize>(&self, message: &Bytes) -> Result<Bytes> {
        let length = |value: &Value<'_>| match value {
            Value::Bytes(packed) if packed.len().is_multiple_of(N) => Ok(packed.len()),
            Value::Fixed32(_) if N == 4 => Ok(N),
            Value::Fixed64(_) if N == 8 => Ok(N),
            _ => Err(wrong_type(self.name)),
        };
        let total = self.values.iter().try_fold(0_usize, |total, value| Ok::<_, Error>(total + length(value)?))?;
        if total / N > self.limit {
            return Err(self.too_many());
        }
        if let [Value::Bytes(packed)] = self.values {
            return Ok(message.slice_ref(packed));
        }
        let mut bytes = Vec::with_capacity(total);
        for value in self.values {
            match value {
                Value::Bytes(packed) => bytes.extend_from_slice(packed),
                Value::Fixed32(one) => bytes.extend_from_slice(one),
                Value::Fixed64(one) => bytes.extend_from_slice(one),
                Value::Varint(_) => {}
            }
        }
        Ok(bytes.into())
    }

    fn strings(&self) -> Result<Bytes> {
        if self.values.len() > self.limit {
            return Err(self.too_many());
        }
        let mut bytes = Vec::new();
        for value in self.values {
            push_string(&mut bytes, value.bytes(self.name)?)?;
        }
        Ok(bytes.into())
    }

    #[cold]
    fn too_many(&self) -> Error {
        Error::too_large(format!(
            "input '{}' has more typed elements than the limit of {} (elements): send it in raw_input_contents",
            self.place.input, self.limit
        ))
    }
}
