//! Tensors as KServe v2 knows them: a data type, a shape, and bytes that are a slice of whatever held them first.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::error::{Error, Result};

/// The element types of the KServe v2 protocol (and Triton's `BF16`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 1 byte.
    Uint8,
    /// Unsigned, 2 bytes.
    Uint16,
    /// Unsigned, 4 bytes.
    Uint32,
    /// Unsigned, 8 bytes.
    Uint64,
    /// Signed, 1 byte.
    Int8,
    /// Signed, 2 bytes.
    Int16,
    /// Signed, 4 bytes.
    Int32,
    /// Signed, 8 bytes.
    Int64,
    /// IEEE half precision, 2 bytes.
    Fp16,
    /// The upper half of an FP32, 2 bytes.
    Bf16,
    /// IEEE single precision, 4 bytes.
    Fp32,
    /// IEEE double precision, 8 bytes.
    Fp64,
    /// Byte strings: each element a 4-byte little-endian length, then that many bytes.
    Bytes,
}

impl DataType {
    /// Every data type.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The name on the wire (`FP32`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The name in `config.pbtxt` (`TYPE_FP32`; BYTES is `TYPE_STRING` there).
    #[must_use]
    pub const fn config_name(self) -> &'static str {
        match self {
            Self::Bool => "TYPE_BOOL",
            Self::Uint8 => "TYPE_UINT8",
            Self::Uint16 => "TYPE_UINT16",
            Self::Uint32 => "TYPE_UINT32",
            Self::Uint64 => "TYPE_UINT64",
            Self::Int8 => "TYPE_INT8",
            Self::Int16 => "TYPE_INT16",
            Self::Int32 => "TYPE_INT32",
            Self::Int64 => "TYPE_INT64",
            Self::Fp16 => "TYPE_FP16",
            Self::Bf16 => "TYPE_BF16",
            Self::Fp32 => "TYPE_FP32",
            Self::Fp64 => "TYPE_FP64",
            Self::Bytes => "TYPE_STRING",
        }
    }

    /// The data type of a `config.pbtxt` name, if it is one (`TYPE_INVALID` is not).
    #[must_use]
    pub fn from_config_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|data_type| data_type.config_name() == name)
    }

    /// Bytes an element takes; `None` for BYTES, whose elements differ.
    #[must_use]
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|data_type| data_type.name() == name).ok_or_else(|| {
            Error::invalid(format!(
                "unknown datatype '{}', expected one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, \
                 FP16, BF16, FP32, FP64, BYTES",
                name.chars().take(32).collect::<String>()
            ))
        })
    }
}

/// The dimensions of a tensor, or of what a model accepts (where -1 stands for any size). Up to six live inline.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[i64; 6]>);

impl Shape {
    /// A shape of the given dimensions.
    #[must_use]
    pub fn new(dims: &[i64]) -> Self {
        Self(SmallVec::from_slice(dims))
    }

    /// The dimensions.
    #[must_use]
    pub fn dims(&self) -> &[i64] {
        &self.0
    }

    /// The number of dimensions; 0 for a scalar.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Appends a dimension.
    pub fn push(&mut self, dim: i64) {
        self.0.push(dim);
    }

    /// The number of elements: the product of the dimensions, 1 for a scalar. `None` if a dimension is negative or the
    /// product does not fit.
    #[must_use]
    pub fn element_count(&self) -> Option<usize> {
        self.0.iter().try_fold(1_usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?))
    }

    /// Whether a tensor of this shape may stand where `pattern` is expected: same rank, and each dimension equal to
    /// the pattern's or the pattern's -1.
    #[must_use]
    pub fn matches(&self, pattern: &[i64]) -> bool {
        self.rank() == pattern.len()
            && self.0.iter().zip(pattern).all(|(dim, expected)| *expected == -1 || dim == expected)
    }

    /// The shape a runtime is given for a tensor of this one, which matches `dims`: the batch dimension where `batched`,
    /// then `reshape` with each -1 taking, in order, what stands at the -1s of `dims`. `None` if the element counts differ.
    #[must_use]
    pub fn through_reshape(&self, dims: &[i64], reshape: &[i64], batched: bool) -> Option<Self> {
        let skip = usize::from(batched);
        let mut free = self.0.iter().zip(dims).skip(skip).filter(|(_, dim)| **dim == -1).map(|(size, _)| *size);
        let mut result: Self = self.0.iter().take(skip).copied().collect();
        for &dim in reshape {
            result.push(if dim == -1 { free.next()? } else { dim });
        }
        (result.element_count() == self.element_count()).then_some(result)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromIterator<i64> for Shape {
    fn from_iter<I: IntoIterator<Item = i64>>(dims: I) -> Self {
        Self(dims.into_iter().collect())
    }
}

/// A tensor: row-major little-endian elements in a reference-counted slice, often of the request body itself. The
/// slice may lie at any address; who needs alignment asks for it with [`Tensor::elements`].
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    data_type: DataType,
    shape: Shape,
    data: Bytes,
}

impl Tensor {
    /// A tensor over `data`, checked: fixed-size types need exactly `elements * size` bytes; BYTES needs exactly
    /// `elements` well-formed length-prefixed strings.
    ///
    /// # Errors
    /// `InvalidArgument` naming what was expected and what was found.
    pub fn new(data_type: DataType, shape: Shape, data: Bytes) -> Result<Self> {
        let Some(elements) = shape.element_count() else {
            return Err(Error::invalid(format!("shape {shape} has a negative dimension or too many elements")));
        };
        match data_type.size() {
            Some(size) => {
                if elements.checked_mul(size) != Some(data.len()) {
                    return Err(Error::invalid(format!(
                        "shape {shape} of {data_type} needs {} bytes, got {}",
                        (elements as u128) * (size as u128),
                        data.len()
                    )));
                }
            }
            None => {
                let found = count_strings(&data)?;
                if found != elements {
                    return Err(Error::invalid(format!(
                        "shape {shape} of BYTES needs {elements} elements, got {found}"
                    )));
                }
            }
        }
        Ok(Self { data_type, shape, data })
    }

    /// A tensor that takes over a vector of elements without copying it.
    ///
    /// # Errors
    /// `InvalidArgument` if the vector's length is not the shape's element count.
    pub fn from_vec<T: Element>(shape: Shape, elements: Vec<T>) -> Result<Self> {
        Self::new(T::DATA_TYPE, shape, bytes_of_vec(elements))
    }

    /// A BYTES tensor of the given strings.
    ///
    /// # Errors
    /// `InvalidArgument` if their number is not the shape's element count, or one is longer than 4 GiB.
    pub fn from_strings<S: AsRef<[u8]>>(shape: Shape, strings: &[S]) -> Result<Self> {
        let mut data = Vec::with_capacity(strings.iter().map(|string| 4 + string.as_ref().len()).sum());
        for string in strings {
            push_string(&mut data, string.as_ref())?;
        }
        Self::new(DataType::Bytes, shape, data.into())
    }

    /// The element type.
    #[must_use]
    pub const fn data_type(&self) -> DataType {
        self.data_type
    }

    /// The dimensions.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The elements as they stand on the wire.
    #[must_use]
    pub const fn data(&self) -> &Bytes {
        &self.data
    }

    /// The elements as they stand on the wire, taken over.
    #[must_use]
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// The number of elements.
    #[must_use]
    pub fn element_count(&self) -> usize {
        // Checked when the tensor was made.
        self.shape.element_count().unwrap_or(0)
    }

    /// The same elements under another shape of as many elements.
    ///
    /// # Errors
    /// `InvalidArgument` if the element counts differ.
    pub fn reshaped(self, shape: Shape) -> Result<Self> {
        if shape.element_count() != Some(self.element_count()) {
            return Err(Error::invalid(format!("cannot see shape {} as {shape}: other element counts", self.shape)));
        }
        Ok(Self { shape, ..self })
    }

    /// The elements as a typed slice, without a copy; `None` if the type is another or the bytes do not lie at a
    /// multiple of its alignment.
    #[must_use]
    pub fn elements<T: Element>(&self) -> Option<&[T]> {
        if T::DATA_TYPE != self.data_type {
            return None;
        }
        if self.data.is_empty() {
            // Where nothing is, no address is wrong.
            return Some(&[]);
        }
        bytemuck::try_cast_slice(&self.data).ok()
    }

    /// The elements of a BYTES tensor in row-major order; nothing for other types.
    pub fn strings(&self) -> impl Iterator<Item = &[u8]> {
        let data: &[u8] = if self.data_type == DataType::Bytes { &self.data } else { &[] };
        Strings { rest: data }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} ({} bytes)", self.data_type, self.shape, self.data.len())
    }
}

/// A Rust type whose memory is that of a tensor element on a little-endian machine.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Its data type.
    const DATA_TYPE: DataType;
}

macro_rules! elements {
    ($($rust:ty => $data_type:ident),* $(,)?) => {
        $(impl Element for $rust { const DATA_TYPE: DataType = DataType::$data_type; })*
    };
}

elements! {
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    half::f16 => Fp16, half::bf16 => Bf16, f32 => Fp32, f64 => Fp64,
}

#[cfg(not(target_endian = "little"))]
compile_error!("tensors on the wire are little-endian and used in place: big-endian machines are not supported");

/// A vector's memory as bytes, taken over without a copy.
#[must_use]
pub fn bytes_of_vec<T: bytemuck::Pod + Send + Sync>(elements: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: bytemuck::Pod> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    if elements.is_empty() { Bytes::new() } else { Bytes::from_owner(Owner(elements)) }
}

/// Appends one BYTES element: a 4-byte little-endian length, then the bytes.
///
/// # Errors
/// `InvalidArgument` for a string longer than 4 GiB.
pub fn push_string(data: &mut Vec<u8>, string: &[u8]) -> Result<()> {
    let length = u32::try_from(string.len()).map_err(|_| Error::invalid("a BYTES element is longer than 4 GiB"))?;
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(string);
    Ok(())
}

struct Strings<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        let (string, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.rest = rest;
        Some(string)
    }
}

fn count_strings(data: &[u8]) -> Result<usize> {
    let mut strings = Strings { rest: data };
    let count = strings.by_ref().count();
    if strings.rest.is_empty() {
        Ok(count)
    } else {
        Err(Error::invalid(format!(
            "BYTES element {count} is cut short: {} bytes are left, which hold no 4-byte length with its bytes",
            strings.rest.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reshape_keeps_the_batch_and_hands_on_free_dimensions() {
        let shape = Shape::new(&[8, 5, 1]);
        assert_eq!(shape.through_reshape(&[-1, -1, 1], &[-1], true), Some(Shape::new(&[8, 5])));
        assert_eq!(Shape::new(&[4, 1]).through_reshape(&[-1, 1], &[], true), Some(Shape::new(&[4])));
        assert_eq!(Shape::new(&[6]).through_reshape(&[6], &[2, 3], false), Some(Shape::new(&[2, 3])));
        assert_eq!(Shape::new(&[6]).through_reshape(&[6], &[2, 2], false), None);
    }

    #[test]
    fn a_vector_becomes_a_tensor_and_is_seen_again_without_a_copy() {
        let elements = vec![1.5_f32, -2.0, 3.25, 0.0];
        let address = elements.as_ptr();
        let tensor = Tensor::from_vec(Shape::new(&[2, 2]), elements).unwrap();
        assert_eq!(tensor.elements::<f32>().unwrap().as_ptr(), address);
        assert!(tensor.elements::<i32>().is_none());
    }

    #[test]
    fn a_slice_at_an_odd_address_is_refused_as_typed_elements() {
        let body = Bytes::from_owner(vec![0_u8; 17]);
        let offset = usize::from((body.as_ptr() as usize).is_multiple_of(4));
        let tensor = Tensor::new(DataType::Fp32, Shape::new(&[2]), body.slice(offset..offset + 8)).unwrap();
        assert!(tensor.elements::<f32>().is_none());
    }

    #[test]
    fn wrong_lengths_are_named() {
        let error = Tensor::new(DataType::Fp32, Shape::new(&[2, 3]), Bytes::from_static(&[0; 20])).unwrap_err();
        assert_eq!(error.to_string(), "shape [2,3] of FP32 needs 24 bytes, got 20");
        let huge = Shape::new(&[i64::MAX, i64::MAX]);
        assert!(Tensor::new(DataType::Uint8, huge, Bytes::new()).is_err());
        assert!(Tensor::new(DataType::Uint8, Shape::new(&[-1]), Bytes::new()).is_err());
    }

    #[test]
    fn strings_are_counted_and_a_lying_length_is_caught() {
        let tensor = Tensor::from_strings(Shape::new(&[2]), &["abc", ""]).unwrap();
        assert_eq!(tensor.strings().collect::<Vec<_>>(), [b"abc".as_slice(), b""]);
        let cut = tensor.data().slice(..6);
        assert!(Tensor::new(DataType::Bytes, Shape::new(&[1]), cut).is_err());
        assert!(Tensor::new(DataType::Bytes, Shape::new(&[1]), tensor.into_data()).is_err());
    }

    #[test]
    fn an_empty_tensor_is_a_tensor() {
        let tensor = Tensor::from_vec::<f32>(Shape::new(&[0, 4]), Vec::new()).unwrap();
        assert_eq!(tensor.element_count(), 0);
        assert_eq!(tensor.elements::<f32>(), Some(&[][..]));
    }

    #[test]
    fn names_round_trip() {
        for data_type in DataType::ALL {
            assert_eq!(data_type.name().parse::<DataType>().unwrap(), data_type);
            assert_eq!(DataType::from_config_name(data_type.config_name()), Some(data_type));
        }
        assert!("FP8".parse::<DataType>().is_err());
    }
}
