//! The memory of GPUs for ONNX Runtime: an allocator of ours for each device, registered with the environment, which
//! sessions take in the place of the CUDA provider's own arena.
//!
//! The provider's options for functions of others (`gpu_external_alloc`) are no way: through the C API they are lost
//! (`OrtCUDAProviderOptionsV2` has no place for them), and together with a stream the provider refuses them.
#![expect(unsafe_code, reason = "what the C API of ONNX Runtime calls")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use ort::AsPointer;
use ort::environment::Environment;
use ort_sys::{OrtAllocator, OrtMemoryInfo};
use parking_lot::Mutex;

use super::ffi::check;
use crate::device::cuda::hooks::{onnxruntime_alloc, onnxruntime_free};
use crate::error::{Error, Result};

/// The name of the memory of NVIDIA's GPUs.
pub(super) const CUDA: &CStr = c"Cuda";

/// The name of the host's memory, which stands in for a device's in tests.
pub(super) const HOST: &CStr = c"Cpu";

/// The version of `OrtAllocator` with the fields that are filled in: none that came later is asked for.
const VERSION: u32 = 18;

type Alloc = unsafe extern "C-unwind" fn(*const OrtAllocator, usize) -> *mut c_void;
type Allocate = unsafe extern "system" fn(*mut OrtAllocator, usize) -> *mut c_void;
type Reserve = unsafe extern "system" fn(*const OrtAllocator, usize) -> *mut c_void;

/// An allocator as ONNX Runtime calls it, its first field being what it knows.
#[repr(C)]
struct Allocator {
    base: OrtAllocator,
    info: *const OrtMemoryInfo,
}

/// A description of memory, made once and never given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryInfo {
    raw: *const OrtMemoryInfo,
    is_host: bool,
}

// SAFETY: it is an immutable description that lives as long as the process.
unsafe impl Send for MemoryInfo {}
// SAFETY: as above.
unsafe impl Sync for MemoryInfo {}

impl MemoryInfo {
    /// Memory of a device, by ONNX Runtime's name for its kind and the device's number.
    pub(super) fn new(name: &CStr, id: u32) -> Result<Self> {
        let mut info = ptr::null_mut();
        let id = i32::try_from(id).map_err(|_| Error::internal(format!("device number {id} is too large")))?;
        // SAFETY: a string that lives through the call; the out-pointer is valid.
        check(unsafe {
            (ort::api().CreateMemoryInfo)(
                name.as_ptr(),
                ort_sys::OrtAllocatorType::OrtDeviceAllocator,
                id,
                ort_sys::OrtMemType::OrtMemTypeDefault,
                &raw mut info,
            )
        })?;
        Ok(Self { raw: info, is_host: name == HOST })
    }

    pub(super) const fn pointer(self) -> *const OrtMemoryInfo {
        self.raw
    }

    /// Whether it is the host's.
    pub(super) const fn is_host(self) -> bool {
        self.is_host
    }
}

/// Has sessions of the environment that say `session.use_env_allocators` take the memory of a kind and a device from us, and
/// describes that memory. Registered once a process, for good.
pub(super) fn serve(environment: &Environment, name: &'static CStr, id: u32) -> Result<MemoryInfo> {
    static SERVED: Mutex<BTreeMap<(&CStr, u32), MemoryInfo>> = Mutex::new(BTreeMap::new());
    let mut served = SERVED.lock();
    if let Some(info) = served.get(&(name, id)) {
        return Ok(*info);
    }
    throw()?;
    let info = MemoryInfo::new(name, id)?;
    // SAFETY: its functions are optional, and null is none.
    let base = unsafe { OrtAllocator::default() };
    let base = OrtAllocator {
        version: VERSION,
        // SAFETY: the functions differ in whether they may unwind, which matters to callers in Rust, of which there are none,
        // and in whether what they never look at may be changed.
        Alloc: Some(unsafe { std::mem::transmute::<Alloc, Allocate>(alloc as Alloc) }),
        Free: Some(free),
        Info: Some(describe),
        // Weights are asked for by this, so that an arena would not mix them with the rest.
        // SAFETY: as above.
        Reserve: Some(unsafe { std::mem::transmute::<Alloc, Reserve>(alloc as Alloc) }),
        ..base
    };
    let allocator = Box::leak(Box::new(Allocator { base, info: info.raw }));
    // SAFETY: the environment lives as long as the process, and so does the allocator.
    check(unsafe { (ort::api().RegisterAllocator)(environment.ptr().cast_mut(), &raw mut allocator.base) })?;
    served.insert((name, id), info);
    Ok(info)
}

/// What C++ throws where there is no memory: `std::__throw_bad_alloc()`.
const THROW: &CStr = c"_ZSt17__throw_bad_allocv";

type Throw = unsafe extern "C-unwind" fn() -> !;

/// The C++ library's function that throws `std::bad_alloc`. ONNX Runtime is linked to that library, so it is there.
fn throw() -> Result<Throw> {
    static FOUND: OnceLock<Option<Throw>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        // SAFETY: the library is open already; by its name the symbol is a function that takes nothing and throws.
        unsafe {
            let library = Library::open(Some("libstdc++.so.6"), RTLD_NOW | RTLD_LOCAL).ok()?;
            let throw = library.get::<Throw>(THROW.to_bytes_with_nul()).ok().map(|symbol| *symbol);
            std::mem::forget(library);
            throw
        }
    });
    found.ok_or_else(|| {
        Error::internal("libstdc++.so.6 does not throw std::bad_alloc, so that memory cannot be refused")
    })
}

/// Memory of the thread's scope. Where there is none it throws, as C++ does: ONNX Runtime does not look whether it was given
/// null, and has kernels write there, which a process or a GPU does not survive. What it catches it tells as an error.
unsafe extern "C-unwind" fn alloc(_this: *const OrtAllocator, bytes: usize) -> *mut c_void {
    if bytes == 0 {
        return ptr::null_mut();
    }
    let at = onnxruntime_alloc(bytes);
    if at.is_null()
        && let Ok(throw) = throw()
    {
        // SAFETY: no value of this function needs a destructor, and its callers are C++.
        unsafe { throw() };
    }
    at
}

unsafe extern "system" fn free(_this: *mut OrtAllocator, at: *mut c_void) {
    onnxruntime_free(at);
}

unsafe extern "system" fn describe(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: ONNX Runtime passes the allocator that it was given, which is the first field of ours.
    unsafe { (*this.cast::<Allocator>()).info }
}
