//! The C ABI between Roundhouse and a backend that is its own shared library.
//!
//! A backend is a library called `libroundhouse_NAME.so` that exports one function, [`RoundhouseEntry`] by the name of
//! [`ENTRY`], which returns a table of functions and constants that lives as long as the process. The server never
//! closes the library. `roundhouse_backend.h` beside this crate is this file for C; [`plugin`] makes the table out of
//! ordinary Rust types. This crate has no dependencies, so that a backend shares nothing with the server but C structs.
//!
//! # Rules
//!
//! - **Versions.** The server opens a table whose `abi_major` is its own and whose `abi_minor` is not above its own. What
//!   is added to the ABI is added at the end of [`RoundhouseBackend`], [`RoundhouseHost`] or [`RoundhouseLoadRequest`]
//!   and raises the minor number; every other change raises the major number. `struct_size` is what the maker of a struct
//!   knew of it: fields beyond it are absent.
//! - **Strings** are UTF-8 that ends with a NUL. Those the server passes live until the call returns.
//! - **Errors.** A function that can fail returns [`OK`] or a kind of error, and writes a text into
//!   [`RoundhouseError::message`]: lower case, no full stop, what is wrong and how to mend it.
//! - **Panics and exceptions** must not leave a function of the backend.
//! - **Threads.** Every function may be called by any thread, several at a time, with two exceptions: `initialize` is
//!   called once, before all others, and an instance is in one call at a time. The order of an end is: instances, in any
//!   order, then their model. Outputs may outlive both.
//! - **Pointers** of the server's are not null where a count beside them is not 0.
//! - A backend runs in the server's process: one that crashes takes the server with it.

pub mod plugin;

use std::ffi::{c_char, c_void};

/// The major number of this version of the ABI.
pub const ABI_MAJOR: u32 = 1;
/// The minor number of this version of the ABI.
pub const ABI_MINOR: u32 = 1;
/// The name of the function that a backend exports.
pub const ENTRY: &str = "roundhouse_backend";

/// What a function returns: [`OK`] or a kind of error. Another number than those here is taken for [`FAILED`].
pub type RoundhouseStatus = i32;
/// All went well.
pub const OK: i32 = 0;
/// A file of the model is missing.
pub const NOT_FOUND: i32 = 1;
/// The model, its configuration or the tensors of a request are wrong.
pub const INVALID_ARGUMENT: i32 = 2;
/// The backend cannot do what is asked.
pub const UNSUPPORTED: i32 = 3;
/// The device has no memory for it.
pub const OUT_OF_DEVICE_MEMORY: i32 = 4;
/// What the backend stands on is missing or of a wrong version; the text names the mend.
pub const NOT_READY: i32 = 5;
/// Everything else.
pub const FAILED: i32 = 6;

/// The type of a tensor's elements, which lie in the order of the machine (little-endian).
pub type RoundhouseDataType = i32;
/// One byte, 0 or 1.
pub const BOOL: i32 = 1;
/// Unsigned, one byte.
pub const UINT8: i32 = 2;
/// Unsigned, two bytes.
pub const UINT16: i32 = 3;
/// Unsigned, four bytes.
pub const UINT32: i32 = 4;
/// Unsigned, eight bytes.
pub const UINT64: i32 = 5;
/// Signed, one byte.
pub const INT8: i32 = 6;
/// Signed, two bytes.
pub const INT16: i32 = 7;
/// Signed, four bytes.
pub const INT32: i32 = 8;
/// Signed, eight bytes.
pub const INT64: i32 = 9;
/// IEEE 754, two bytes.
pub const FP16: i32 = 10;
/// IEEE 754, four bytes.
pub const FP32: i32 = 11;
/// IEEE 754, eight bytes.
pub const FP64: i32 = 12;
/// Strings of bytes, end to end in row-major order: each a length of four bytes, then so many bytes.
pub const BYTES: i32 = 13;
/// The upper half of an FP32.
pub const BF16: i32 = 14;

/// Where a model runs.
pub type RoundhouseDeviceKind = i32;
/// The processor, and host memory; the number of the device is 0.
pub const CPU: i32 = 0;
/// A GPU; the number of the device is CUDA's.
pub const GPU: i32 = 1;

/// How urgent a line of the log is.
pub type RoundhouseLogLevel = i32;
/// Something is broken.
pub const LOG_ERROR: i32 = 1;
/// Something is odd.
pub const LOG_WARN: i32 = 2;
/// Something happened.
pub const LOG_INFO: i32 = 3;
/// For those who look for a fault.
pub const LOG_DEBUG: i32 = 4;

/// An input need not be given (`flags` of [`RoundhouseTensorInfo`]).
pub const TENSOR_OPTIONAL: u32 = 1;
/// The model reads or maps its files while it lives ([`RoundhouseModelInfo::flags`]).
pub const MODEL_KEEPS_FILES: u32 = 1;

/// [`RoundhouseModelMemory::bytes`] is all that the model holds on its device.
pub const MEMORY_EXACT: i32 = 0;
/// [`RoundhouseModelMemory::bytes`] is what runs have taken and keep, beyond what the load took.
pub const MEMORY_RUNS: i32 = 1;

/// Memory of a GPU that is no model's, since it is kept when the model goes that first needed it: a library's workspace.
pub const MEMORY_SHARED: u32 = 1;

/// The bytes of an error's text, the NUL included.
pub const ERROR_BYTES: usize = 2048;

/// Where a function that fails says why.
#[repr(C)]
pub struct RoundhouseError {
    /// The text, cut short if it is longer. Empty when a function is called.
    pub message: [c_char; ERROR_BYTES],
}

/// What the server tells a backend of itself; lives as long as the process.
#[repr(C)]
pub struct RoundhouseHost {
    /// The bytes of this struct, as the server knows it.
    pub struct_size: usize,
    /// The server's version of the ABI.
    pub abi_major: u32,
    /// The server's version of the ABI.
    pub abi_minor: u32,
    /// How many threads of the server run models on the CPU at a time, at least 1.
    pub executor_threads: u32,
    /// Writes a line to the server's log, from any thread.
    pub log: Option<unsafe extern "C" fn(level: RoundhouseLogLevel, message: *const c_char)>,
    /// What the operator set for this backend as a whole, by key.
    pub settings: *const RoundhouseParameter,
    /// How many there are.
    pub setting_count: usize,

    /// Since 1.1. Memory of a GPU, counted for the model that the thread's call is for. What is taken during `load` and
    /// `instantiate` is the model's: while the model sleeps it lies in host memory, and is back at the same address before the
    /// next call. What is taken during `infer` is for the run, on the stream that is named. `device_id` is CUDA's number;
    /// `flags` is [`MEMORY_SHARED`] or 0. Null where there is none: the server knows why, and answers so if the call then fails.
    pub device_allocate:
        Option<unsafe extern "C" fn(bytes: usize, device_id: u32, stream: *mut c_void, flags: u32) -> *mut c_void>,
    /// Since 1.1. Frees what `device_allocate` gave, from any thread, while the work of its stream may still use it: it is
    /// given to what comes later on that stream. Nothing for null.
    pub device_free: Option<unsafe extern "C" fn(at: *mut c_void)>,
    /// Since 1.1. A stream of a GPU for an instance (`cudaStream_t`), each in turn; it lives as long as the model that is being
    /// loaded or instantiated. Streams of the server's share what runs take. Null for a GPU that the server does not hand out.
    pub device_stream: Option<unsafe extern "C" fn(device_id: u32) -> *mut c_void>,
}

/// A tensor as a model or its configuration has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundhouseTensorInfo {
    /// Its name.
    pub name: *const c_char,
    /// The dimensions, a batch dimension included; -1 for any size.
    pub dims: *const i64,
    /// How many there are.
    pub rank: usize,
    /// The type of its elements.
    pub data_type: RoundhouseDataType,
    /// [`TENSOR_OPTIONAL`] or 0.
    pub flags: u32,
}

/// A key of the configuration's `parameters`, and what it is set to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundhouseParameter {
    /// The key.
    pub key: *const c_char,
    /// Its `string_value`.
    pub value: *const c_char,
}

/// One version of a model that is to be loaded.
#[repr(C)]
pub struct RoundhouseLoadRequest {
    /// The bytes of this struct, as the server knows it.
    pub struct_size: usize,
    /// The model's name, for messages.
    pub model_name: *const c_char,
    /// The version's number.
    pub version: u64,
    /// The model's folder.
    pub directory: *const c_char,
    /// The folder of this version.
    pub version_directory: *const c_char,
    /// The file to load, which exists; null where the backend has no usual file and the configuration names none.
    pub model_file: *const c_char,
    /// A folder where the backend may keep what it made of the files, made if it is not there; null for none.
    pub derived_directory: *const c_char,
    /// The device to load onto.
    pub device_kind: RoundhouseDeviceKind,
    /// Its number.
    pub device_id: u32,
    /// The largest batch; 0 where the tensors have no batch dimension of the server's.
    pub max_batch_size: u32,
    /// The instances that will be made, as far as it is known; 0 if not.
    pub instance_count: u32,
    /// The inputs in the configuration; none where it leaves them to the model.
    pub inputs: *const RoundhouseTensorInfo,
    /// How many there are.
    pub input_count: usize,
    /// The outputs in the configuration; none where it leaves them to the model.
    pub outputs: *const RoundhouseTensorInfo,
    /// How many there are.
    pub output_count: usize,
    /// The configuration's parameters, by key.
    pub parameters: *const RoundhouseParameter,
    /// How many there are.
    pub parameter_count: usize,
}

/// What a loaded model takes and gives. What its pointers point to lives as long as the model.
#[repr(C)]
pub struct RoundhouseModelInfo {
    /// The inputs.
    pub inputs: *const RoundhouseTensorInfo,
    /// How many there are.
    pub input_count: usize,
    /// The outputs, at least one.
    pub outputs: *const RoundhouseTensorInfo,
    /// How many there are.
    pub output_count: usize,
    /// [`MODEL_KEEPS_FILES`] or 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

/// What a loaded model holds on its device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundhouseModelMemory {
    /// How much.
    pub bytes: u64,
    /// [`MEMORY_EXACT`] or [`MEMORY_RUNS`].
    pub kind: i32,
    /// 0.
    pub reserved: u32,
}

/// What the backend's own allocator says of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundhouseDeviceMemory {
    /// Bytes that tensors and weights take.
    pub allocated: u64,
    /// Bytes that it took from the device, the free ones it keeps included.
    pub reserved: u64,
}

/// A tensor that a request brings, borrowed for the call. It lies in host memory, at a multiple of its element's size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundhouseInput {
    /// Its place among [`RoundhouseModelInfo::inputs`].
    pub index: usize,
    /// Its elements, dense and in row-major order.
    pub data: *const c_void,
    /// Their bytes.
    pub bytes: usize,
    /// Its dimensions.
    pub dims: *const i64,
    /// How many there are.
    pub rank: usize,
    /// The type of its elements: that of the model's input.
    pub data_type: RoundhouseDataType,
    /// 0.
    pub reserved: u32,
}

/// A tensor that a run gives. It stays as it is until `release` is called with its owner, and lies in host memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundhouseOutput {
    /// What `release` is called with, once. Null for a tensor that needs none.
    pub owner: *mut c_void,
    /// Its elements, dense and in row-major order.
    pub data: *const c_void,
    /// Their bytes.
    pub bytes: usize,
    /// Its dimensions.
    pub dims: *const i64,
    /// How many there are.
    pub rank: usize,
    /// The type of its elements.
    pub data_type: RoundhouseDataType,
    /// 0.
    pub reserved: u32,
}

/// A loaded model: the backend's own.
pub enum RoundhouseModel {}

/// Something that can run a model beside others: the backend's own.
pub enum RoundhouseInstance {}

/// The function that a backend exports. It may be called more than once and returns the same table.
pub type RoundhouseEntry = unsafe extern "C" fn() -> *const RoundhouseBackend;

/// A backend. The first three fields stay what they are in every version.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundhouseBackend {
    /// The bytes of this struct, as the backend knows it.
    pub struct_size: usize,
    /// The version of the ABI that it was built against.
    pub abi_major: u32,
    /// The version of the ABI that it was built against.
    pub abi_minor: u32,
    /// What `backend` is in `config.pbtxt`: the NAME of `libroundhouse_NAME.so`.
    pub name: *const c_char,
    /// What the backend is, with versions, for the log; may be null.
    pub description: *const c_char,
    /// The file in a version folder that is loaded where the configuration names none; null or empty for no file.
    pub default_model_file: *const c_char,
    /// The keys of `parameters` that mean something to the backend.
    pub parameters: *const *const c_char,
    /// How many there are.
    pub parameter_count: usize,

    /// Called once, before all others. Where it fails the backend is unavailable, and its text is the reason.
    pub initialize:
        Option<unsafe extern "C" fn(host: *const RoundhouseHost, error: *mut RoundhouseError) -> RoundhouseStatus>,
    /// Loads a model. Minutes are possible; other models run and load meanwhile.
    pub load: Option<
        unsafe extern "C" fn(
            request: *const RoundhouseLoadRequest,
            model: *mut *mut RoundhouseModel,
            error: *mut RoundhouseError,
        ) -> RoundhouseStatus,
    >,
    /// Says what a model takes and gives.
    pub describe: Option<
        unsafe extern "C" fn(
            model: *const RoundhouseModel,
            info: *mut RoundhouseModelInfo,
            error: *mut RoundhouseError,
        ) -> RoundhouseStatus,
    >,
    /// Makes an instance, which shares the model's weights where the backend can.
    pub instantiate: Option<
        unsafe extern "C" fn(
            model: *mut RoundhouseModel,
            instance: *mut *mut RoundhouseInstance,
            error: *mut RoundhouseError,
        ) -> RoundhouseStatus,
    >,
    /// Runs an instance: `inputs` in any order, optional ones left out; for each of the `wanted` places among the model's
    /// outputs one of `outputs`, in that order. Where it fails it has given nothing that is to be released.
    pub infer: Option<
        unsafe extern "C" fn(
            instance: *mut RoundhouseInstance,
            inputs: *const RoundhouseInput,
            input_count: usize,
            wanted: *const usize,
            outputs: *mut RoundhouseOutput,
            output_count: usize,
            error: *mut RoundhouseError,
        ) -> RoundhouseStatus,
    >,
    /// Takes back an output by its owner.
    pub release: Option<unsafe extern "C" fn(owner: *mut c_void)>,
    /// Ends an instance.
    pub end_instance: Option<unsafe extern "C" fn(instance: *mut RoundhouseInstance)>,
    /// Ends a model, whose instances have ended, and gives its memory back.
    pub unload: Option<unsafe extern "C" fn(model: *mut RoundhouseModel)>,
    /// What a model holds now. Cheap. Null where the backend cannot tell.
    pub model_memory: Option<
        unsafe extern "C" fn(model: *const RoundhouseModel, memory: *mut RoundhouseModelMemory) -> RoundhouseStatus,
    >,
    /// What the backend's allocator holds on a device. Null where it has none of its own.
    pub device_memory: Option<
        unsafe extern "C" fn(
            device_kind: RoundhouseDeviceKind,
            device_id: u32,
            memory: *mut RoundhouseDeviceMemory,
        ) -> RoundhouseStatus,
    >,
    /// Gives the device what the backend's allocator keeps without using it. Null where there is nothing to give.
    pub empty_cache: Option<unsafe extern "C" fn(device_kind: RoundhouseDeviceKind, device_id: u32)>,
}

/// Whether a server of this version can open a backend that was built against version `major`.`minor`.
#[must_use]
pub const fn accepts(major: u32, minor: u32) -> bool {
    major == ABI_MAJOR && minor < ABI_MINOR + 1
}

/// The bytes of an element; 0 for [`BYTES`] and for what is no type.
#[must_use]
pub const fn element_size(data_type: RoundhouseDataType) -> usize {
    match data_type {
        BOOL | UINT8 | INT8 => 1,
        UINT16 | INT16 | FP16 | BF16 => 2,
        UINT32 | INT32 | FP32 => 4,
        UINT64 | INT64 | FP64 => 8,
        _ => 0,
    }
}

impl RoundhouseError {
    /// No text.
    #[must_use]
    pub const fn empty() -> Self {
        Self { message: [0; ERROR_BYTES] }
    }

    /// Writes a text, cut at a letter's end where it is too long.
    pub fn set(&mut self, text: &str) {
        let mut length = text.len().min(ERROR_BYTES - 1);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        let bytes = text.bytes().take(length).map(|byte| if byte == 0 { b' ' } else { byte });
        for (to, byte) in self.message.iter_mut().zip(bytes.chain([0])) {
            *to = c_char::from_ne_bytes([byte]);
        }
    }

    /// The text; bytes that are no UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes: Vec<u8> =
            self.message.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_minors_are_accepted_and_newer_ones_and_other_majors_are_not() {
        assert!(accepts(ABI_MAJOR, ABI_MINOR) && accepts(ABI_MAJOR, 0));
        assert!(!accepts(ABI_MAJOR, ABI_MINOR + 1));
        assert!(!accepts(ABI_MAJOR + 1, 0) && !accepts(ABI_MAJOR - 1, 0));
    }

    #[test]
    fn a_text_is_cut_between_letters_and_ends_with_a_nul() {
        let mut error = RoundhouseError::empty();
        error.set(&"é".repeat(ERROR_BYTES));
        assert_eq!(error.text(), "é".repeat((ERROR_BYTES - 1) / 2));
        error.set("a\0b");
        assert_eq!(error.text(), "a b");
        error.message.fill(c_char::from_ne_bytes([0xff]));
        assert_eq!(error.text().chars().count(), ERROR_BYTES, "a text without an end is read to the end of its room");
    }

    #[test]
    fn the_layout_is_that_of_the_first_version() {
        use std::mem::{offset_of, size_of};
        assert_eq!(offset_of!(RoundhouseBackend, abi_major), size_of::<usize>());
        assert_eq!(offset_of!(RoundhouseBackend, abi_minor), size_of::<usize>() + 4);
        if cfg!(target_pointer_width = "64") {
            assert_eq!(size_of::<RoundhouseInput>(), 48);
            assert_eq!(size_of::<RoundhouseOutput>(), 48);
            assert_eq!(size_of::<RoundhouseTensorInfo>(), 32);
            assert_eq!(size_of::<RoundhouseModelInfo>(), 40);
            assert_eq!(size_of::<RoundhouseLoadRequest>(), 120);
            assert_eq!(size_of::<RoundhouseBackend>(), 144);
        }
    }
}
