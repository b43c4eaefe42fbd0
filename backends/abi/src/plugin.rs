//! The table of a backend out of ordinary Rust types: implement [`Backend`], [`Model`] and [`Instance`], and write
//! [`export_backend!`](crate::export_backend) once. Panics stop here and become errors.

mod entries;

use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::path::Path;

use crate::{
    ABI_MAJOR, ABI_MINOR, FAILED, INVALID_ARGUMENT, MODEL_KEEPS_FILES, NOT_FOUND, NOT_READY, OUT_OF_DEVICE_MEMORY,
    RoundhouseBackend, RoundhouseDeviceKind, RoundhouseDeviceMemory, RoundhouseHost, RoundhouseInput,
    RoundhouseLoadRequest, RoundhouseLogLevel, RoundhouseModelMemory, RoundhouseOutput, RoundhouseStatus,
    RoundhouseTensorInfo, TENSOR_OPTIONAL, UNSUPPORTED,
};

/// Why something did not work: a kind of the crate's root, and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub kind: RoundhouseStatus,
    /// What is wrong, and the mend.
    pub text: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident => $kind:expr),* $(,)?) => {
        impl Failure {
            $($(#[$doc])* pub fn $name(text: impl Into<String>) -> Self { Self { kind: $kind, text: text.into() } })*
        }
    };
}

kinds! {
    /// [`NOT_FOUND`].
    not_found => NOT_FOUND,
    /// [`INVALID_ARGUMENT`].
    invalid => INVALID_ARGUMENT,
    /// [`UNSUPPORTED`].
    unsupported => UNSUPPORTED,
    /// [`NOT_READY`].
    not_ready => NOT_READY,
    /// [`OUT_OF_DEVICE_MEMORY`].
    out_of_device_memory => OUT_OF_DEVICE_MEMORY,
    /// [`FAILED`].
    failed => FAILED,
}

/// A backend.
pub trait Backend: 'static {
    /// Its models.
    type Model: Model;

    /// Called once, before all else.
    ///
    /// # Errors
    /// Why the backend cannot be used.
    fn initialize(host: Host) -> Result<(), Failure>;

    /// Loads a model.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    fn load(request: &LoadRequest<'_>) -> Result<Self::Model, Failure>;

    /// What the backend's allocator holds on a device; `None` where it has none of its own there.
    #[must_use]
    fn device_memory(_kind: RoundhouseDeviceKind, _id: u32) -> Option<RoundhouseDeviceMemory> {
        None
    }

    /// Gives the device what the allocator keeps without using it.
    fn empty_cache(_kind: RoundhouseDeviceKind, _id: u32) {}
}

/// A loaded model.
pub trait Model: Send + Sync + 'static {
    /// Its instances.
    type Instance: Instance;

    /// What it takes and gives; the same at every call.
    fn signature(&self) -> &Signature;

    /// Makes an instance.
    ///
    /// # Errors
    /// Why there can be none.
    fn instance(&self) -> Result<Self::Instance, Failure>;

    /// What it holds now; `None` where that cannot be told.
    fn memory(&self) -> Option<RoundhouseModelMemory> {
        None
    }
}

/// Something that runs a model.
pub trait Instance: Send + 'static {
    /// What its runs give.
    type Output: Output;

    /// Runs: pushes an output for each of `wanted`, in that order.
    ///
    /// # Errors
    /// Why it did not work.
    fn infer(
        &mut self,
        inputs: &[Input<'_>],
        wanted: &[usize],
        outputs: &mut Outputs<'_, Self::Output>,
    ) -> Result<(), Failure>;
}

/// A tensor that a run gave: dense, in row-major order, at one place in memory as long as it lives.
pub trait Output: Send + 'static {
    /// The type of its elements.
    fn data_type(&self) -> i32;
    /// Its dimensions, which stay where they are.
    fn dims(&self) -> &[i64];
    /// Its elements, which stay where they are.
    fn data(&self) -> &[u8];
}

/// The server, for its log.
#[derive(Clone, Copy)]
pub struct Host(&'static RoundhouseHost);

// SAFETY: it is constant, lives as long as the process, and the server's function may be called from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// Writes a line to the server's log.
    pub fn log(self, level: RoundhouseLogLevel, text: &str) {
        if let (Some(log), Ok(text)) = (self.0.log, CString::new(text)) {
            // SAFETY: the server's function takes a string for the length of the call, from any thread.
            unsafe { log(level, text.as_ptr()) };
        }
    }

    /// What the operator set for this backend as a whole.
    pub fn settings(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        // SAFETY: the server's arrays and strings, which live as long as the process.
        let settings = unsafe { slice(self.0.settings, self.0.setting_count) };
        // SAFETY: as above.
        settings.iter().map(|setting| unsafe { (text(setting.key), text(setting.value)) })
    }

    /// How many threads of the server run models on the CPU at a time.
    #[must_use]
    pub const fn executor_threads(self) -> u32 {
        self.0.executor_threads
    }

    /// The server's memory of GPUs, where it hands that out.
    #[must_use]
    pub fn device(self) -> Option<DeviceHost> {
        // A server that does not know these fields does not open a backend that does.
        let (allocate, free, stream) = (self.0.device_allocate?, self.0.device_free?, self.0.device_stream?);
        Some(DeviceHost { allocate, free, stream })
    }
}

/// The server's memory of GPUs. Its functions are plain, so that they can be handed on to a runtime in C or C++.
#[derive(Clone, Copy, Debug)]
pub struct DeviceHost {
    /// `device_allocate` of [`RoundhouseHost`].
    pub allocate: unsafe extern "C" fn(usize, u32, *mut c_void, u32) -> *mut c_void,
    /// `device_free`.
    pub free: unsafe extern "C" fn(*mut c_void),
    /// `device_stream`.
    pub stream: unsafe extern "C" fn(u32) -> *mut c_void,
}

/// A tensor of a configuration or a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub data_type: i32,
    /// Its dimensions, a batch dimension included; -1 for any size.
    pub dims: Vec<i64>,
    /// Whether a request may leave it out.
    pub optional: bool,
}

/// What a model takes and gives, in the form that C reads.
#[derive(Debug)]
pub struct Signature {
    inputs: Vec<RawTensor>,
    outputs: Vec<RawTensor>,
    flags: u32,
    _kept: Vec<(CString, Box<[i64]>)>,
}

/// The same layout as the C struct, so that a vector of them is C's array.
#[repr(transparent)]
struct RawTensor(RoundhouseTensorInfo);

// SAFETY: it points into the boxes of the signature that it is a part of, which never change.
unsafe impl Send for RawTensor {}
// SAFETY: as above.
unsafe impl Sync for RawTensor {}

impl std::fmt::Debug for RawTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "type {} of rank {}", self.0.data_type, self.0.rank)
    }
}

impl Signature {
    /// A signature of these tensors.
    ///
    /// # Errors
    /// [`INVALID_ARGUMENT`] for a name with a NUL in it.
    pub fn new(inputs: &[TensorInfo], outputs: &[TensorInfo], keeps_files: bool) -> Result<Self, Failure> {
        let mut kept = Vec::new();
        let mut raw = |tensors: &[TensorInfo]| {
            let raw = tensors.iter().map(|tensor| {
                let name = CString::new(tensor.name.as_str())
                    .map_err(|_| Failure::invalid(format!("a tensor is called {:?}", tensor.name)))?;
                let dims: Box<[i64]> = tensor.dims.as_slice().into();
                let raw = RoundhouseTensorInfo {
                    name: name.as_ptr(),
                    dims: dims.as_ptr(),
                    rank: dims.len(),
                    data_type: tensor.data_type,
                    flags: if tensor.optional { TENSOR_OPTIONAL } else { 0 },
                };
                kept.push((name, dims));
                Ok(RawTensor(raw))
            });
            raw.collect::<Result<Vec<_>, Failure>>()
        };
        let (inputs, outputs) = (raw(inputs)?, raw(outputs)?);
        Ok(Self { inputs, outputs, flags: if keeps_files { MODEL_KEEPS_FILES } else { 0 }, _kept: kept })
    }
}

/// A model that is to be loaded.
pub struct LoadRequest<'a>(&'a RoundhouseLoadRequest);

impl<'a> LoadRequest<'a> {
    /// The model's name.
    #[must_use]
    pub fn model_name(&self) -> &'a str {
        // SAFETY: the strings of a request are such for the length of the call, which 'a does not outlive.
        unsafe { text(self.0.model_name) }
    }

    /// The version's number.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.0.version
    }

    /// The file to load, if there is one.
    #[must_use]
    pub fn model_file(&self) -> Option<&'a Path> {
        // SAFETY: as in `model_name`.
        (!self.0.model_file.is_null()).then(|| Path::new(unsafe { text(self.0.model_file) }))
    }

    /// The device: its kind and its number.
    #[must_use]
    pub const fn device(&self) -> (RoundhouseDeviceKind, u32) {
        (self.0.device_kind, self.0.device_id)
    }

    /// The largest batch, 0 for none.
    #[must_use]
    pub const fn max_batch_size(&self) -> u32 {
        self.0.max_batch_size
    }

    /// The inputs of the configuration.
    #[must_use]
    pub fn inputs(&self) -> Vec<TensorInfo> {
        // SAFETY: as in `model_name`, for the array and all that it points to.
        unsafe { infos(self.0.inputs, self.0.input_count) }
    }

    /// The outputs of the configuration.
    #[must_use]
    pub fn outputs(&self) -> Vec<TensorInfo> {
        // SAFETY: as in `inputs`.
        unsafe { infos(self.0.outputs, self.0.output_count) }
    }

    /// The configuration's parameters.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        // SAFETY: as in `inputs`.
        let parameters = unsafe { slice(self.0.parameters, self.0.parameter_count) };
        // SAFETY: as in `model_name`.
        parameters.iter().map(|parameter| unsafe { (text(parameter.key), text(parameter.value)) })
    }

    /// What a parameter is set to.
    #[must_use]
    pub fn parameter(&self, key: &str) -> Option<&'a str> {
        self.parameters().find(|(known, _)| *known == key).map(|(_, value)| value)
    }
}

/// A tensor that a request brings.
#[repr(transparent)]
pub struct Input<'a>(RoundhouseInput, PhantomData<&'a [u8]>);

impl<'a> Input<'a> {
    /// Its place among the model's inputs.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.0.index
    }

    /// The type of its elements.
    #[must_use]
    pub const fn data_type(&self) -> i32 {
        self.0.data_type
    }

    /// Its dimensions.
    #[must_use]
    pub fn dims(&self) -> &'a [i64] {
        // SAFETY: the server's arrays are such for the length of the call, which 'a does not outlive.
        unsafe { slice(self.0.dims, self.0.rank) }
    }

    /// Its elements, at a multiple of their size.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        // SAFETY: as in `dims`.
        unsafe { slice(self.0.data.cast(), self.0.bytes) }
    }
}

/// Where a run puts what it gives.
pub struct Outputs<'a, T> {
    room: &'a mut [RoundhouseOutput],
    given: usize,
    owners: PhantomData<T>,
}

impl<T: Output> Outputs<'_, T> {
    /// The output for the next of the wanted places. One more than was wanted is dropped.
    pub fn push(&mut self, output: T) {
        let Some(slot) = self.room.get_mut(self.given) else { return };
        let output = Box::new(output);
        let (dims, data) = (output.dims(), output.data());
        *slot = RoundhouseOutput {
            owner: std::ptr::null_mut(),
            data: data.as_ptr().cast(),
            bytes: data.len(),
            dims: dims.as_ptr(),
            rank: dims.len(),
            data_type: output.data_type(),
            reserved: 0,
        };
        slot.owner = Box::into_raw(output).cast();
        self.given += 1;
    }

    /// Takes back what was given.
    fn clear(&mut self) {
        for slot in &self.room[..self.given] {
            // SAFETY: the owner is a box of this type that `push` put there, and nobody else has seen it.
            drop(unsafe { Box::<T>::from_raw(slot.owner.cast()) });
        }
        self.given = 0;
    }
}

/// The table of a backend.
///
/// `parameters` and the strings live as long as the process.
#[must_use]
pub const fn table<B: Backend>(
    name: &'static CStr,
    description: &'static CStr,
    default_model_file: &'static CStr,
    parameters: &'static [*const c_char],
) -> RoundhouseBackend {
    RoundhouseBackend {
        struct_size: size_of::<RoundhouseBackend>(),
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        name: name.as_ptr(),
        description: description.as_ptr(),
        default_model_file: default_model_file.as_ptr(),
        parameters: parameters.as_ptr(),
        parameter_count: parameters.len(),
        initialize: Some(entries::initialize::<B>),
        load: Some(entries::load::<B>),
        describe: Some(entries::describe::<B>),
        instantiate: Some(entries::instantiate::<B>),
        infer: Some(entries::infer::<B>),
        release: Some(entries::release::<B>),
        end_instance: Some(entries::end_instance::<B>),
        unload: Some(entries::unload::<B>),
        model_memory: Some(entries::model_memory::<B>),
        device_memory: Some(entries::device_memory::<B>),
        empty_cache: Some(entries::empty_cache::<B>),
    }
}

/// A table in a `static`: its pointers are to constants.
#[doc(hidden)]
#[repr(transparent)]
pub struct Table(pub RoundhouseBackend);

// SAFETY: the table is constant, and so is all that it points to.
unsafe impl Sync for Table {}

/// Exports a type that implements [`Backend`]: its name, what it is, its usual file, and the keys it knows.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty, $name:literal, $description:literal, $file:literal, [$($key:literal),* $(,)?]) => {
        /// The table of this backend.
        #[unsafe(no_mangle)]
        pub extern "C" fn roundhouse_backend() -> *const $crate::RoundhouseBackend {
            static TABLE: $crate::plugin::Table =
                $crate::plugin::Table($crate::plugin::table::<$backend>($name, $description, $file, {
                    struct Keys([*const std::ffi::c_char; 0 $(+ { let _ = $key; 1 })*]);
                    // SAFETY: pointers to constants.
                    unsafe impl Sync for Keys {}
                    static KEYS: Keys = Keys([$($key.as_ptr()),*]);
                    &KEYS.0
                }));
            &TABLE.0
        }
    };
}

/// An array of C's; of none the pointer may be null.
///
/// # Safety
/// `count` elements at `data`, for as long as the answer is used.
unsafe fn slice<'a, T>(data: *const T, count: usize) -> &'a [T] {
    // SAFETY: the caller's promise.
    if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data, count) } }
}

/// A string of C's; what is no UTF-8 reads as empty, which the server never passes.
///
/// # Safety
/// A string that ends with a NUL, for as long as the answer is used.
unsafe fn text<'a>(data: *const c_char) -> &'a str {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(data) }.to_str().unwrap_or_default()
}

/// Tensors of C's, copied.
///
/// # Safety
/// `count` of them at `data`, each with a name and dimensions.
unsafe fn infos(data: *const RoundhouseTensorInfo, count: usize) -> Vec<TensorInfo> {
    // SAFETY: the caller's promise, here and below.
    let tensors = unsafe { slice(data, count) };
    let tensors = tensors.iter().map(|tensor| TensorInfo {
        // SAFETY: as above.
        name: unsafe { text(tensor.name) }.to_owned(),
        data_type: tensor.data_type,
        // SAFETY: as above.
        dims: unsafe { slice(tensor.dims, tensor.rank) }.to_vec(),
        optional: tensor.flags & TENSOR_OPTIONAL != 0,
    });
    tensors.collect()
}
