//! What a backend gives: checked, taken without a copy, and handed back once.

use std::ffi::c_void;
use std::ptr;

use bytes::Bytes;
use roundhouse_abi as abi;

use super::broken;
use crate::error::Result;
use crate::tensor::{DataType, Shape, Tensor};

/// An output that nobody has filled.
pub(super) const NONE: abi::RoundhouseOutput = abi::RoundhouseOutput {
    owner: ptr::null_mut(),
    data: ptr::null(),
    bytes: 0,
    dims: ptr::null(),
    rank: 0,
    data_type: 0,
    reserved: 0,
};

/// More dimensions than this no tensor has.
pub(super) const MOST_DIMS: usize = 64;

/// The ABI's number of a type.
pub(super) const fn code(data_type: DataType) -> abi::RoundhouseDataType {
    match data_type {
        DataType::Bool => abi::BOOL,
        DataType::Uint8 => abi::UINT8,
        DataType::Uint16 => abi::UINT16,
        DataType::Uint32 => abi::UINT32,
        DataType::Uint64 => abi::UINT64,
        DataType::Int8 => abi::INT8,
        DataType::Int16 => abi::INT16,
        DataType::Int32 => abi::INT32,
        DataType::Int64 => abi::INT64,
        DataType::Fp16 => abi::FP16,
        DataType::Fp32 => abi::FP32,
        DataType::Fp64 => abi::FP64,
        DataType::Bytes => abi::BYTES,
        DataType::Bf16 => abi::BF16,
    }
}

/// The type of a number, if it is one.
pub(super) fn data_type(number: abi::RoundhouseDataType) -> Result<DataType> {
    let known = DataType::ALL.into_iter().find(|data_type| code(*data_type) == number);
    known.ok_or_else(|| broken(format_args!("{number} is no data type")))
}

/// Dimensions that a backend speaks of.
///
/// # Safety
/// `dims` is null or points to `rank` numbers.
pub(super) unsafe fn dims<'a>(dims: *const i64, rank: usize) -> Result<&'a [i64]> {
    match rank {
        0 => Ok(&[]),
        1..=MOST_DIMS if !dims.is_null() => {
            // SAFETY: the caller's promise.
            Ok(unsafe { std::slice::from_raw_parts(dims, rank) })
        }
        _ => Err(broken(format_args!("a tensor of rank {rank} has no dimensions, or too many"))),
    }
}

/// An output in our hands; goes back when it is dropped.
pub(super) struct Given {
    raw: abi::RoundhouseOutput,
    release: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: the ABI has outputs stay as they are and be handed back from any thread.
unsafe impl Send for Given {}
// SAFETY: as above; nobody writes to it.
unsafe impl Sync for Given {}

impl Drop for Given {
    fn drop(&mut self) {
        if !self.raw.owner.is_null() {
            // SAFETY: the owner came with this output and is handed back once.
            unsafe { (self.release)(self.raw.owner) };
        }
    }
}

impl AsRef<[u8]> for Given {
    fn as_ref(&self) -> &[u8] {
        if self.raw.bytes == 0 {
            return &[];
        }
        // SAFETY: not null, by the check of `into_tensor`; the backend promises so many bytes until the release.
        unsafe { std::slice::from_raw_parts(self.raw.data.cast(), self.raw.bytes) }
    }
}

impl Given {
    /// Takes an output, in whatever state it is.
    pub(super) fn new(raw: abi::RoundhouseOutput, release: unsafe extern "C" fn(*mut c_void)) -> Self {
        Self { raw, release }
    }

    /// The output as a tensor over the backend's own memory.
    ///
    /// # Errors
    /// `BackendFailed` where it is none.
    pub(super) fn into_tensor(self) -> Result<Tensor> {
        let data_type = data_type(self.raw.data_type)?;
        // SAFETY: null, or the dimensions that came with the output.
        let shape = Shape::new(unsafe { dims(self.raw.dims, self.raw.rank) }?);
        if self.raw.bytes > isize::MAX.unsigned_abs() || (self.raw.bytes > 0 && self.raw.data.is_null()) {
            return Err(broken(format_args!("{} bytes lie nowhere", self.raw.bytes)));
        }
        let data = if self.raw.bytes == 0 { Bytes::new() } else { Bytes::from_owner(self) };
        Tensor::new(data_type, shape, data).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    /// Counts in the place it is handed.
    unsafe extern "C" fn count(owner: *mut c_void) {
        // SAFETY: the tests below pass a counter of theirs.
        unsafe { &*owner.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn every_type_has_a_number_and_the_size_the_abi_says() {
        for known in DataType::ALL {
            assert_eq!(data_type(code(known)).unwrap(), known);
            assert_eq!(abi::element_size(code(known)), known.size().unwrap_or(0));
        }
        assert!(data_type(0).is_err() && data_type(15).is_err() && data_type(-1).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_given_is_a_tensor_or_an_error_and_goes_back_once(
            number in -1_i32..17,
            shape in proptest::collection::vec(prop_oneof![-2_i64..5, any::<i64>()], 0..4),
            length in 0_usize..80,
            (has_dims, has_data, has_owner) in any::<(bool, bool, bool)>(),
        ) {
            let (released, data) = (AtomicUsize::new(0), vec![1_u8; length]);
            let raw = abi::RoundhouseOutput {
                owner: if has_owner { (&raw const released).cast_mut().cast() } else { ptr::null_mut() },
                data: if has_data { data.as_ptr().cast() } else { ptr::null() },
                bytes: length,
                dims: if has_dims { shape.as_ptr() } else { ptr::null() },
                rank: shape.len(),
                data_type: number,
                reserved: 0,
            };
            match Given::new(raw, count).into_tensor() {
                Ok(tensor) => {
                    prop_assert_eq!(tensor.shape().dims(), shape.as_slice());
                    prop_assert_eq!(tensor.data().as_ref(), data.as_slice());
                    let other = tensor.clone();
                    drop(tensor);
                    prop_assert_eq!(released.load(Ordering::Relaxed), usize::from(has_owner && length == 0));
                    drop(other);
                }
                Err(error) => prop_assert_eq!(error.kind(), ErrorKind::BackendFailed),
            }
            prop_assert_eq!(released.load(Ordering::Relaxed), usize::from(has_owner));
        }
    }
}
