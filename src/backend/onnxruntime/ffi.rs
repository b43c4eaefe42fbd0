//! The calls into ONNX Runtime that ort does not offer in the form we need: `Run` on a shared session, tensors over
//! borrowed bytes of any type, and string tensors of any bytes.
//!
//! ort's own `Session::run` takes `&mut self`, since some execution providers are not thread-safe; the CPU provider is,
//! and ONNX Runtime documents `Run` as callable from several threads. Going through it directly lets the instances of a
//! model share one session, and saves a name allocation a tensor (1.25 us a call against 1.80).
#![expect(unsafe_code, reason = "calls through the C API of ONNX Runtime")]

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use bytes::Bytes;
use ort::AsPointer;
use ort::session::Session;
use ort_sys::{ONNXTensorElementDataType as Onnx, OrtValue};
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{DataType, Shape, Tensor, push_string};

/// Turns a status into our error; the status is released.
pub(super) fn check(status: ort_sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: every caller passes the status an API function has just returned, once.
    unsafe { ort::Error::result_from_status(status) }.map_err(|error| {
        let kind = match error.code() {
            ort::ErrorCode::InvalidArgument => ErrorKind::InvalidArgument,
            ort::ErrorCode::NotImplemented => ErrorKind::Unsupported,
            _ => ErrorKind::BackendFailed,
        };
        Error::new(kind, error.message().to_owned())
    })
}

/// An `OrtValue` that is ours, over bytes that live as long as `'a`.
pub(super) struct Value<'a> {
    pointer: NonNull<OrtValue>,
    /// The addresses it was made over, where they are not ONNX Runtime's own.
    borrowed: Range<usize>,
    /// Keeps a copy made for alignment.
    _aligned: Option<Vec<u64>>,
    _borrowed: PhantomData<&'a [u8]>,
}

// SAFETY: an OrtValue is plain data with reference-counted buffers; ONNX Runtime has no thread affinity for it, and
// after it is made we only read it.
unsafe impl Send for Value<'_> {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Value<'_> {}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours and is released once.
        unsafe { (ort::api().ReleaseValue)(self.pointer.as_ptr()) };
    }
}

pub(super) fn owned<'a>(pointer: *mut OrtValue) -> Result<Value<'a>> {
    let pointer = NonNull::new(pointer)
        .ok_or_else(|| Error::new(ErrorKind::BackendFailed, "ONNX Runtime gave no value and no error"))?;
    Ok(Value { pointer, borrowed: 0..0, _aligned: None, _borrowed: PhantomData })
}

impl<'a> Value<'a> {
    /// The tensor as a value: over its own bytes where they lie aligned, over an aligned copy where they do not, filled
    /// string by string for BYTES.
    pub(super) fn of(tensor: &'a Tensor) -> Result<Self> {
        let Some(size) = tensor.data_type().size() else { return Self::of_strings(tensor) };
        check_bools(tensor)?;
        let data: &[u8] = tensor.data();
        if (data.as_ptr() as usize).is_multiple_of(size) {
            return Self::over(tensor, data.as_ptr(), None);
        }
        let mut aligned = vec![0_u64; data.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut aligned)[..data.len()].copy_from_slice(data);
        let address = aligned.as_ptr().cast();
        Self::over(tensor, address, Some(aligned))
    }

    fn over(tensor: &Tensor, address: *const u8, aligned: Option<Vec<u64>>) -> Result<Self> {
        let dims = tensor.shape().dims();
        let mut pointer = ptr::null_mut();
        // SAFETY: the bytes are `tensor.data().len()` long, checked against shape and type when the tensor was made, and
        // outlive the value: they are borrowed for 'a or kept in `_aligned` (moving a Vec does not move its buffer).
        // Inputs are not written by `Run`.
        check(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                cpu_memory()?.pointer(),
                address.cast_mut().cast::<c_void>(),
                tensor.data().len(),
                dims.as_ptr(),
                dims.len(),
                onnx_type(tensor.data_type()),
                &raw mut pointer,
            )
        })?;
        let mut value = owned(pointer)?;
        value.borrowed = address as usize..(address as usize).saturating_add(tensor.data().len());
        value._aligned = aligned;
        Ok(value)
    }

    /// The addresses the value was made over; empty where they are ONNX Runtime's own.
    pub(super) fn borrowed(&self) -> Range<usize> {
        self.borrowed.clone()
    }

    fn of_strings(tensor: &Tensor) -> Result<Self> {
        let dims = tensor.shape().dims();
        let api = ort::api();
        let mut allocator = ptr::null_mut();
        let mut pointer = ptr::null_mut();
        // SAFETY: out-pointers are valid; the default allocator lives as long as the library.
        check(unsafe { (api.GetAllocatorWithDefaultOptions)(&raw mut allocator) })?;
        // SAFETY: `dims` has `dims.len()` elements; the allocator was just given.
        check(unsafe {
            (api.CreateTensorAsOrtValue)(
                allocator,
                dims.as_ptr(),
                dims.len(),
                Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
                &raw mut pointer,
            )
        })?;
        let value = owned(pointer)?;
        for (index, string) in tensor.strings().enumerate() {
            let mut buffer: *mut c_char = ptr::null_mut();
            // SAFETY: the value is a string tensor with as many elements as the tensor; the buffer it gives holds
            // `string.len()` bytes and is written within that. An empty string needs no write.
            unsafe {
                check((api.GetResizedStringTensorElementBuffer)(
                    value.pointer.as_ptr(),
                    index,
                    string.len(),
                    &raw mut buffer,
                ))?;
                if !string.is_empty() {
                    ptr::copy_nonoverlapping(string.as_ptr().cast::<c_char>(), buffer, string.len());
                }
            }
        }
        Ok(value)
    }

    /// Type and shape, read in place.
    fn describe(&self) -> Result<(Onnx, Shape)> {
        let mut element = Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let mut dims: *const i64 = ptr::null();
        let mut rank = 0_usize;
        // SAFETY: out-pointers are valid; the function fails for values that are not tensors.
        check(unsafe {
            (ort::api().GetTensorElementTypeAndShapeDataReference)(
                self.pointer.as_ptr(),
                &raw mut element,
                &raw mut dims,
                &raw mut rank,
            )
        })?;
        let shape = if rank == 0 || dims.is_null() {
            Shape::default()
        } else {
            // SAFETY: the call gave `rank` dimensions that live in the value, which we hold.
            Shape::new(unsafe { std::slice::from_raw_parts(dims, rank) })
        };
        Ok((element, shape))
    }
}

/// A C++ bool that is neither 0 nor 1 is undefined behaviour in the kernels.
pub(super) fn check_bools(tensor: &Tensor) -> Result<()> {
    let data: &[u8] = tensor.data();
    match tensor.data_type() {
        DataType::Bool => match data.iter().position(|&byte| byte > 1) {
            Some(index) => Err(Error::invalid(format!("BOOL element {index} is {}, expected 0 or 1", data[index]))),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

impl Value<'_> {
    /// The value, for calls.
    pub(super) const fn pointer(&self) -> *const OrtValue {
        self.pointer.as_ptr().cast_const()
    }

    /// Type and shape, in our words.
    pub(super) fn described(&self) -> Result<(DataType, Shape)> {
        let (element, shape) = self.describe()?;
        let data_type = data_type(element)
            .ok_or_else(|| Error::unsupported(format!("elements of ONNX type {} are not served", element as i32)))?;
        Ok((data_type, shape))
    }

    /// Where a tensor of numbers lies, and how many bytes it has; `None` for strings, which are in host memory always.
    pub(super) fn place(&self) -> Result<Option<(u64, usize)>> {
        let (data_type, shape) = self.described()?;
        let Some(size) = data_type.size() else { return Ok(None) };
        let bytes = shape.element_count().and_then(|count| count.checked_mul(size));
        let bytes = bytes.ok_or_else(|| Error::internal(format!("ONNX Runtime gave a tensor of shape {shape}")))?;
        let mut data: *mut c_void = ptr::null_mut();
        // SAFETY: the value is a tensor of numbers; the out-pointer is valid.
        check(unsafe { (ort::api().GetTensorMutableData)(self.pointer.as_ptr(), &raw mut data) })?;
        Ok(Some((data as u64, bytes)))
    }
}

impl Value<'static> {
    /// The value as a tensor: its own buffer, given back to ONNX Runtime when the last slice of it is dropped.
    ///
    /// `given` are the addresses of the inputs, which must still live: where a graph's output is one of its inputs, ONNX
    /// Runtime hands back the very buffer it was given, which is copied then, since it ends with the request.
    pub(super) fn into_tensor(self, given: &[Range<usize>]) -> Result<Tensor> {
        let (data_type, shape) = self.described()?;
        let Some(count) = shape.element_count() else {
            return Err(Error::internal(format!("ONNX Runtime gave a tensor of shape {shape}")));
        };
        let Some(size) = data_type.size() else { return self.read_strings(shape, count) };
        let length = count * size;
        if length == 0 {
            return Tensor::new(data_type, shape, Bytes::new());
        }
        let mut data: *mut c_void = ptr::null_mut();
        // SAFETY: the value is a tensor of numbers; the out-pointer is valid.
        check(unsafe { (ort::api().GetTensorMutableData)(self.pointer.as_ptr(), &raw mut data) })?;
        let Some(data) = NonNull::new(data.cast::<u8>()) else {
            return Err(Error::internal("ONNX Runtime gave a tensor without data"));
        };
        // Small answers are copied, so that their arena block is free again before the response is written.
        let is_ours = given.iter().any(|range| range.contains(&(data.as_ptr() as usize)));
        if length <= SMALL || is_ours {
            // SAFETY: the tensor holds `length` bytes (count times size), alive while `self` is.
            let bytes = Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(data.as_ptr(), length) });
            return Tensor::new(data_type, shape, bytes);
        }
        Tensor::new(data_type, shape, Bytes::from_owner(OutputBuffer { data, length, _value: self }))
    }

    fn read_strings(&self, shape: Shape, count: usize) -> Result<Tensor> {
        let mut length = 0_usize;
        // SAFETY: the value is a string tensor; the out-pointer is valid.
        check(unsafe { (ort::api().GetStringTensorDataLength)(self.pointer.as_ptr(), &raw mut length) })?;
        let mut content = vec![0_u8; length];
        let mut offsets = vec![0_usize; count];
        // SAFETY: the buffers have the lengths given: the sum of all strings, and one offset a string.
        check(unsafe {
            (ort::api().GetStringTensorContent)(
                self.pointer.as_ptr(),
                content.as_mut_ptr().cast::<c_void>(),
                length,
                offsets.as_mut_ptr(),
                count,
            )
        })?;
        let mut data = Vec::with_capacity(length + 4 * count);
        for (index, &start) in offsets.iter().enumerate() {
            let end = offsets.get(index + 1).copied().unwrap_or(length);
            let string = content
                .get(start..end)
                .ok_or_else(|| Error::internal("ONNX Runtime gave string offsets out of order"))?;
            push_string(&mut data, string)?;
        }
        Tensor::new(DataType::Bytes, shape, data.into())
    }
}

/// Outputs up to this many bytes are copied out of the arena.
const SMALL: usize = 16 << 10;

struct OutputBuffer {
    data: NonNull<u8>,
    length: usize,
    _value: Value<'static>,
}

// SAFETY: the buffer belongs to the value, which is Send and Sync, and is only read.
unsafe impl Send for OutputBuffer {}
// SAFETY: as above.
unsafe impl Sync for OutputBuffer {}

impl AsRef<[u8]> for OutputBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `data` points to `length` bytes inside the value, which lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.length) }
    }
}

/// Runs the session. May be called from several threads at once: the CPU provider allows it.
pub(super) fn run(
    session: &Session,
    input_names: &[*const c_char],
    inputs: &[Value<'_>],
    output_names: &[*const c_char],
) -> Result<SmallVec<[Value<'static>; 4]>> {
    let pointers: SmallVec<[*const OrtValue; 4]> =
        inputs.iter().map(|value| value.pointer.as_ptr().cast_const()).collect();
    let mut results: SmallVec<[*mut OrtValue; 4]> = SmallVec::from_elem(ptr::null_mut(), output_names.len());
    // SAFETY: names are NUL-terminated and live in the model; inputs live for the call; as many result slots as output
    // names, null so that ONNX Runtime allocates; the session is only read by `Run`.
    let status = unsafe {
        (ort::api().Run)(
            session.inner().ptr().cast_mut(),
            ptr::null(),
            input_names.as_ptr(),
            pointers.as_ptr(),
            pointers.len(),
            output_names.as_ptr(),
            output_names.len(),
            results.as_mut_ptr(),
        )
    };
    // Owned before anything can fail, so that all are released.
    let values: SmallVec<[Result<Value<'static>>; 4]> =
        results.into_iter().filter(|pointer| status.0.is_null() || !pointer.is_null()).map(owned).collect();
    check(status)?;
    values.into_iter().collect()
}

pub(super) struct CpuMemory(NonNull<ort_sys::OrtMemoryInfo>);

impl CpuMemory {
    pub(super) const fn pointer(&self) -> *const ort_sys::OrtMemoryInfo {
        self.0.as_ptr().cast_const()
    }
}

// SAFETY: a memory info is an immutable description.
unsafe impl Send for CpuMemory {}
// SAFETY: as above.
unsafe impl Sync for CpuMemory {}

/// The description of host memory, made once and never released.
pub(super) fn cpu_memory() -> Result<&'static CpuMemory> {
    static MEMORY: OnceLock<Result<CpuMemory>> = OnceLock::new();
    MEMORY
        .get_or_init(|| {
            let mut info = ptr::null_mut();
            // SAFETY: the out-pointer is valid.
            check(unsafe {
                (ort::api().CreateCpuMemoryInfo)(
                    ort_sys::OrtAllocatorType::OrtDeviceAllocator,
                    ort_sys::OrtMemType::OrtMemTypeDefault,
                    &raw mut info,
                )
            })?;
            NonNull::new(info).map(CpuMemory).ok_or_else(|| Error::internal("ONNX Runtime gave no memory info"))
        })
        .as_ref()
        .map_err(Clone::clone)
}

pub(super) const fn onnx_type(data_type: DataType) -> Onnx {
    match data_type {
        DataType::Bool => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Bf16 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Fp32 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => Onnx::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

fn data_type(element: Onnx) -> Option<DataType> {
    DataType::ALL.into_iter().find(|data_type| onnx_type(*data_type) == element)
}
