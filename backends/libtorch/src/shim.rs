//! The C++ shim's functions, and what keeps to their rules: owners that free once, errors with kinds.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};

use roundhouse_abi as abi;
use roundhouse_abi::plugin::Failure;
use torch_sys::C_tensor;

use crate::names::{Argument, Takes};

/// How a module is loaded and run; the shim's struct.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) device: i32,
    pub(crate) inference_mode: i32,
    pub(crate) optimized: i32,
    pub(crate) optimize: i32,
    pub(crate) threads: i32,
    pub(crate) restore_shapes: i32,
}

/// An input; the shim's struct.
#[repr(C)]
pub(crate) struct RawInput {
    pub(crate) data: *const c_void,
    pub(crate) dims: *const i64,
    pub(crate) rank: usize,
    pub(crate) scalar_type: i32,
    pub(crate) argument: i32,
    pub(crate) name: *const c_char,
}

/// A part that is wanted; the shim's struct.
#[repr(C)]
pub(crate) struct RawWanted {
    pub(crate) name: *const c_char,
    pub(crate) index: i64,
}

/// The server's memory of GPUs; the shim's struct.
#[repr(C)]
struct DeviceHost {
    allocate: unsafe extern "C" fn(usize, u32, *mut c_void, u32) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    stream: unsafe extern "C" fn(u32) -> *mut c_void,
}

#[repr(C)]
struct RawModule {
    _private: [u8; 0],
}

#[repr(C)]
struct RawInstance {
    _private: [u8; 0],
}

type Tell = unsafe extern "C" fn(*mut c_void, *const c_char, c_int, usize);

unsafe extern "C" {
    fn rh_load(path: *const c_char, options: *const Options, made: *mut *mut RawModule, error: *mut c_char) -> c_int;
    fn rh_load_package(
        path: *const c_char,
        options: *const Options,
        instances: usize,
        made: *mut *mut RawModule,
        error: *mut c_char,
    ) -> c_int;
    fn rh_unload(module: *mut RawModule);
    fn rh_argument_count(module: *const RawModule) -> usize;
    fn rh_argument_name(module: *const RawModule, at: usize) -> *const c_char;
    fn rh_argument_type(module: *const RawModule, at: usize) -> *const c_char;
    fn rh_argument_kind(module: *const RawModule, at: usize) -> c_int;
    fn rh_argument_has_default(module: *const RawModule, at: usize) -> c_int;
    fn rh_keeps_state(module: *const RawModule) -> c_int;
    fn rh_argument_example(module: *const RawModule, at: usize, dims: *mut *const i64, rank: *mut usize) -> c_int;
    fn rh_instantiate(module: *const RawModule, made: *mut *mut RawInstance, error: *mut c_char) -> c_int;
    fn rh_end_instance(instance: *mut RawInstance);
    fn rh_infer(
        instance: *mut RawInstance,
        inputs: *const RawInput,
        input_count: usize,
        wanted: *const RawWanted,
        count: usize,
        outputs: *mut *mut C_tensor,
        error: *mut c_char,
    ) -> c_int;
    fn rh_probe(
        instance: *mut RawInstance,
        inputs: *const RawInput,
        input_count: usize,
        tell: Tell,
        whom: *mut c_void,
        error: *mut c_char,
    ) -> c_int;
    fn rh_scalar_type(tensor: *const C_tensor) -> c_int;
    fn rh_device_memory(device: c_int, allocated: *mut u64, reserved: *mut u64, error: *mut c_char) -> c_int;
    fn rh_empty_cache(error: *mut c_char) -> c_int;
    fn rh_use_server(host: *const DeviceHost, used: *mut c_int, error: *mut c_char) -> c_int;
    fn rh_synchronize(device: c_int, error: *mut c_char) -> c_int;
}

/// Runs a function of the shim, which writes to the place it is given where it fails.
fn call(work: impl FnOnce(*mut c_char) -> c_int) -> Result<(), Failure> {
    let mut text = abi::RoundhouseError { message: [0; abi::ERROR_BYTES] };
    let kind = match work(text.message.as_mut_ptr()) {
        0 => return Ok(()),
        2 => abi::INVALID_ARGUMENT,
        3 => abi::OUT_OF_DEVICE_MEMORY,
        _ => abi::FAILED,
    };
    Err(Failure { kind, text: first_lines(&text.text()) })
}

/// The part of torch's message that says what is wrong: some go on with stacks and source for many lines.
fn first_lines(text: &str) -> String {
    const MOST_LINES: usize = 12;
    text.trim().lines().take(MOST_LINES).collect::<Vec<_>>().join("\n")
}

/// A string of the shim's, copied.
///
/// # Safety
/// A string that ends with a NUL.
unsafe fn string(text: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A loaded module.
pub(crate) struct Module(NonNull<RawModule>);

// SAFETY: the shim reads a module from any thread; torch's own module may run in several at a time.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module is ours and is freed once; instances hold a reference to their module.
        unsafe { rh_unload(self.0.as_ptr()) };
    }
}

/// The tensor that an argument was traced with.
pub(crate) struct Example {
    pub(crate) scalar_type: i32,
    pub(crate) dims: Vec<i64>,
}

impl Module {
    /// Loads a module of TorchScript.
    pub(crate) fn load(path: &Path, options: Options) -> Result<Self, Failure> {
        // SAFETY: a string, options, and room for the answers, all of which live through the call.
        Self::made(path, path, |path, made, error| unsafe { rh_load(path, &raw const options, made, error) })
    }

    /// Loads a package of AOTInductor, which so many `instances` run at a time, from a copy of it.
    pub(crate) fn load_package(path: &Path, copy: &Path, options: Options, instances: usize) -> Result<Self, Failure> {
        // SAFETY: as above.
        Self::made(path, copy, |path, made, error| unsafe {
            rh_load_package(path, &raw const options, instances, made, error)
        })
    }

    /// What `load` makes of the file `path`; messages name `model`.
    fn made(
        model: &Path,
        path: &Path,
        load: impl FnOnce(*const c_char, *mut *mut RawModule, *mut c_char) -> c_int,
    ) -> Result<Self, Failure> {
        let name = model.file_name().unwrap_or_default().display().to_string();
        let path =
            CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Failure::invalid("the path has a NUL"))?;
        let mut made = ptr::null_mut();
        call(|error| load(path.as_ptr(), &raw mut made, error)).map_err(|failure| {
            // What cannot be read is the model's fault.
            let kind = if failure.kind == abi::FAILED { abi::INVALID_ARGUMENT } else { failure.kind };
            let folder = path.to_string_lossy().replace(&name, "");
            Failure { kind, text: format!("libtorch cannot load {name}: {}", failure.text.replace(&folder, "")) }
        })?;
        NonNull::new(made).map(Self).ok_or_else(|| Failure::failed("libtorch gave no module"))
    }

    pub(crate) fn arguments(&self) -> Vec<Argument> {
        let module = self.0.as_ptr();
        // SAFETY: a module that lives, here and below; places below the count.
        let count = unsafe { rh_argument_count(module) };
        let argument = |at| Argument {
            // SAFETY: as above; the strings live as long as the module.
            name: unsafe { string(rh_argument_name(module, at)) },
            // SAFETY: as above.
            type_name: unsafe { string(rh_argument_type(module, at)) },
            // SAFETY: as above.
            takes: match unsafe { rh_argument_kind(module, at) } {
                0 => Takes::Tensor,
                1 => Takes::OptionalTensor,
                2 => Takes::Dictionary,
                _ => Takes::Other,
            },
            // SAFETY: as above.
            has_default: unsafe { rh_argument_has_default(module, at) } != 0,
        };
        (0..count).map(argument).collect()
    }

    /// Whether a run changes the module itself.
    pub(crate) fn keeps_state(&self) -> bool {
        // SAFETY: a module that lives.
        unsafe { rh_keeps_state(self.0.as_ptr()) != 0 }
    }

    /// What the argument was traced with, where the file says so.
    pub(crate) fn example(&self, at: usize) -> Option<Example> {
        let (mut dims, mut rank) = (ptr::null(), 0);
        // SAFETY: a module that lives, a place below the count, and room for the answers.
        let scalar_type = unsafe { rh_argument_example(self.0.as_ptr(), at, &raw mut dims, &raw mut rank) };
        if scalar_type < 0 {
            return None;
        }
        let dims = match rank {
            0 => Vec::new(),
            // SAFETY: so many sizes, which live as long as the module.
            rank => unsafe { std::slice::from_raw_parts(dims, rank) }.to_vec(),
        };
        Some(Example { scalar_type, dims })
    }
}

/// Something that runs a module, with a stream of its own on a GPU.
pub(crate) struct Runner {
    instance: NonNull<RawInstance>,
    _module: std::sync::Arc<Module>,
}

// SAFETY: an instance is bound to one call at a time, not to a thread.
unsafe impl Send for Runner {}

impl Drop for Runner {
    fn drop(&mut self) {
        // SAFETY: the instance is ours and ends once.
        unsafe { rh_end_instance(self.instance.as_ptr()) };
    }
}

impl Runner {
    pub(crate) fn new(module: std::sync::Arc<Module>) -> Result<Self, Failure> {
        let mut made = ptr::null_mut();
        // SAFETY: a module that lives as long as the instance, and room for the answers.
        call(|error| unsafe { rh_instantiate(module.0.as_ptr(), &raw mut made, error) })?;
        let instance = NonNull::new(made).ok_or_else(|| Failure::failed("libtorch gave no instance"))?;
        Ok(Self { instance, _module: module })
    }

    /// Runs `forward`, and gives each wanted part as a tensor that is dense and in host memory.
    ///
    /// # Safety
    /// What the inputs point to lives through the call and is as large as they say.
    pub(crate) unsafe fn infer(
        &mut self,
        inputs: &[RawInput],
        wanted: &[RawWanted],
        room: &mut Vec<*mut C_tensor>,
        error: &mut abi::RoundhouseError,
    ) -> Result<(), Failure> {
        room.clear();
        room.resize(wanted.len(), ptr::null_mut());
        error.message[0] = 0;
        // SAFETY: the caller's promise; the arrays are as long as is said.
        let status = unsafe {
            rh_infer(
                self.instance.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                wanted.as_ptr(),
                wanted.len(),
                room.as_mut_ptr(),
                error.message.as_mut_ptr(),
            )
        };
        match status {
            0 => Ok(()),
            status => call(|place| {
                // SAFETY: both have room for so many bytes and are apart.
                unsafe { ptr::copy_nonoverlapping(error.message.as_ptr(), place, abi::ERROR_BYTES) };
                status
            }),
        }
    }

    /// Runs `forward`, and says of each part of what it gives its name, type and rank.
    ///
    /// # Safety
    /// As [`Runner::infer`].
    pub(crate) unsafe fn probe(&mut self, inputs: &[RawInput]) -> Result<Vec<(String, i32, usize)>, Failure> {
        unsafe extern "C" fn tell(whom: *mut c_void, name: *const c_char, scalar_type: c_int, rank: usize) {
            // SAFETY: the vector below, and a string that lives through the call.
            unsafe { (*whom.cast::<Vec<(String, i32, usize)>>()).push((string(name), scalar_type, rank)) };
        }
        let mut parts = Vec::<(String, i32, usize)>::new();
        // SAFETY: the caller's promise; `tell` is given the vector that it expects.
        call(|error| unsafe {
            let whom = (&raw mut parts).cast();
            rh_probe(self.instance.as_ptr(), inputs.as_ptr(), inputs.len(), tell, whom, error)
        })?;
        Ok(parts)
    }
}

/// The number of a tensor's type.
pub(crate) fn scalar_type(tensor: &tch::Tensor) -> i32 {
    // SAFETY: a tensor that lives.
    unsafe { rh_scalar_type(tensor.as_ptr()) }
}

/// What CUDA's allocator holds on a device: in use, and in all.
pub(crate) fn device_memory(device: u32) -> Option<(u64, u64)> {
    let (mut allocated, mut reserved) = (0, 0);
    let device = c_int::try_from(device).ok()?;
    // SAFETY: room for the answers.
    call(|error| unsafe { rh_device_memory(device, &raw mut allocated, &raw mut reserved, error) }).ok()?;
    Some((allocated, reserved))
}

/// Gives the GPUs what CUDA's allocator keeps without using it.
pub(crate) fn empty_cache() -> Result<(), Failure> {
    // SAFETY: it takes nothing but room for an error.
    call(|error| unsafe { rh_empty_cache(error) })
}

/// Has CUDA's part of torch take its memory from the server, before it takes any. Whether it does: not where there is no such part.
pub(crate) fn use_server(host: abi::plugin::DeviceHost) -> Result<bool, Failure> {
    let abi::plugin::DeviceHost { allocate, free, stream } = host;
    let (host, mut used) = (DeviceHost { allocate, free, stream }, 0);
    // SAFETY: the struct is copied, and its functions are the server's, which live as long as the process; room for the answer.
    call(|error| unsafe { rh_use_server(&raw const host, &raw mut used, error) })?;
    Ok(used != 0)
}

/// Waits for all that a GPU was asked for; for the CPU, -1, there is nothing to wait for.
pub(crate) fn synchronize(device: i32) -> Result<(), Failure> {
    // SAFETY: it takes numbers and room for an error.
    call(|error| unsafe { rh_synchronize(device, error) })
}
