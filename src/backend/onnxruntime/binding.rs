//! Inputs and outputs bound to a session where they lie, so that ONNX Runtime copies none of them.
#![expect(unsafe_code, reason = "calls through the C API of ONNX Runtime")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::session::Session;
use ort_sys::{OrtIoBinding, OrtRunOptions, OrtValue};
use smallvec::SmallVec;

use super::allocator::MemoryInfo;
use super::ffi::{self, Value, check};
use crate::error::{Error, ErrorKind, Result};

/// What a session is to read from and write to in one run.
pub(super) struct Binding<'a> {
    session: &'a Session,
    raw: NonNull<OrtIoBinding>,
}

impl Drop for Binding<'_> {
    fn drop(&mut self) {
        // SAFETY: made once, given back once.
        unsafe { (ort::api().ReleaseIoBinding)(self.raw.as_ptr()) };
    }
}

impl<'a> Binding<'a> {
    pub(super) fn new(session: &'a Session) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the session lives; the out-pointer is valid.
        check(unsafe { (ort::api().CreateIoBinding)(session.inner().ptr().cast_mut(), &raw mut raw) })?;
        let raw = NonNull::new(raw)
            .ok_or_else(|| Error::new(ErrorKind::BackendFailed, "ONNX Runtime gave no binding and no error"))?;
        Ok(Self { session, raw })
    }

    /// Binds an input. Its bytes are read until the device has done the run.
    pub(super) fn input(&mut self, name: &CStr, value: &Value<'_>) -> Result<()> {
        // SAFETY: a string and a value that live through the call; the value's reference count is raised.
        check(unsafe { (ort::api().BindInput)(self.raw.as_ptr(), name.as_ptr(), value.pointer()) })
    }

    /// Has an output be made in this memory.
    pub(super) fn output_in(&mut self, name: &CStr, memory: *const ort_sys::OrtMemoryInfo) -> Result<()> {
        // SAFETY: a string that lives through the call; descriptions of memory live as long as the process.
        check(unsafe { (ort::api().BindOutputToDevice)(self.raw.as_ptr(), name.as_ptr(), memory) })
    }

    /// Asks for the run, and does not wait until the device is done with it.
    pub(super) fn run(&mut self, options: &RunOptions) -> Result<()> {
        let session = self.session.inner().ptr().cast_mut();
        // SAFETY: all three live; runs of one session take turns.
        check(unsafe { (ort::api().RunWithBinding)(session, options.0.as_ptr(), self.raw.as_ptr()) })
    }

    /// The outputs of the run, in the order they were bound.
    pub(super) fn outputs(&self) -> Result<SmallVec<[Value<'static>; 4]>> {
        let api = ort::api();
        let (mut allocator, mut values, mut count) = (ptr::null_mut(), ptr::null_mut::<*mut OrtValue>(), 0);
        // SAFETY: out-pointers are valid; the default allocator lives as long as the library, and frees the array that it
        // was asked for, once; each value is ours.
        unsafe {
            check((api.GetAllocatorWithDefaultOptions)(&raw mut allocator))?;
            check((api.GetBoundOutputValues)(self.raw.as_ptr(), allocator, &raw mut values, &raw mut count))?;
            if values.is_null() {
                return Ok(SmallVec::new());
            }
            let all: SmallVec<[_; 4]> =
                std::slice::from_raw_parts(values, count).iter().map(|value| ffi::owned(*value)).collect();
            let _given_back = check((api.AllocatorFree)(allocator, values.cast::<c_void>()));
            all.into_iter().collect()
        }
    }
}

/// The description of host memory, for outputs that are made there.
pub(super) fn host_memory() -> Result<*const ort_sys::OrtMemoryInfo> {
    Ok(ffi::cpu_memory()?.pointer())
}

/// A tensor of numbers over memory of a device.
///
/// # Safety
/// `bytes` are at `address` in the memory that is described, for as long as the value is used.
pub(super) unsafe fn over_device(
    memory: MemoryInfo,
    address: u64,
    bytes: usize,
    dims: &[i64],
    data_type: crate::tensor::DataType,
) -> Result<Value<'static>> {
    let mut pointer = ptr::null_mut();
    // SAFETY: the caller's promise; dims has as many elements as is said.
    check(unsafe {
        (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.pointer(),
            address as *mut c_void,
            bytes,
            dims.as_ptr(),
            dims.len(),
            ffi::onnx_type(data_type),
            &raw mut pointer,
        )
    })?;
    ffi::owned(pointer)
}

/// How a run is done.
pub(super) struct RunOptions(NonNull<OrtRunOptions>);

// SAFETY: they are read by runs and written to by nobody.
unsafe impl Send for RunOptions {}
// SAFETY: as above.
unsafe impl Sync for RunOptions {}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: made once, given back once.
        unsafe { (ort::api().ReleaseRunOptions)(self.0.as_ptr()) };
    }
}

impl RunOptions {
    /// Runs whose end nobody waits for within, with more entries by their names.
    pub(super) fn new(entries: &[(&CStr, &str)]) -> Result<Self> {
        let mut made = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        check(unsafe { (ort::api().CreateRunOptions)(&raw mut made) })?;
        let made = NonNull::new(made).map(Self);
        let made =
            made.ok_or_else(|| Error::new(ErrorKind::BackendFailed, "ONNX Runtime gave no options and no error"))?;
        let unsynchronised = [(c"disable_synchronize_execution_providers", "1")];
        for (key, value) in unsynchronised.iter().chain(entries) {
            let value = CString::new(*value).map_err(|_| Error::internal("a run option has a NUL in it"))?;
            made.set(key, value.as_ptr())?;
        }
        Ok(made)
    }

    fn set(&self, key: &CStr, value: *const c_char) -> Result<()> {
        // SAFETY: strings that live through the call, and options that are ours.
        check(unsafe { (ort::api().AddRunConfigEntry)(self.0.as_ptr(), key.as_ptr(), value) })
    }
}
