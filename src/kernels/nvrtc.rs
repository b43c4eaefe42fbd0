//! NVRTC, NVIDIA's compiler at run time: from the text of a kernel to machine code, on the machine that runs it, which needs
//! no GPU for that.
#![expect(unsafe_code, reason = "calls through the C API of NVRTC")]

use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::ptr;

use super::source::{self, Architecture};
use crate::error::{Error, Result};

/// NVRTC's opaque program.
type Program = *mut std::ffi::c_void;

/// The names that NVRTC's library goes by, the newest first.
const NVRTC_NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// NVIDIA's compiler at run time, loaded from its library. Stays loaded.
pub struct Nvrtc {
    version: (c_int, c_int),
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvrtc").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Nvrtc {
    /// Loads the library at `path`, or the first of its usual names that is found.
    ///
    /// # Errors
    /// `Unsupported` where there is none, or it lacks a function.
    pub fn load(path: Option<PathBuf>) -> Result<Self> {
        let names = path.map_or_else(|| NVRTC_NAMES.map(PathBuf::from).to_vec(), |path| vec![path]);
        let mut last = None;
        for name in &names {
            // SAFETY: NVRTC's initialisers only set up the library itself.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Self::from_library(library),
                Err(error) => last = Some(error),
            }
        }
        let looked: Vec<_> = names.iter().map(|name| name.display().to_string()).collect();
        let text = format!(
            "NVRTC, which compiles the kernels, cannot be loaded as {}: install the CUDA toolkit or \
             `pip install nvidia-cuda-nvrtc` and name its library",
            looked.join(" or ")
        );
        let error = Error::unsupported(text);
        Err(match last {
            Some(source) => error.with_source(source),
            None => error,
        })
    }

    fn from_library(library: libloading::Library) -> Result<Self> {
        // It keeps threads and memory of its own: what is taken from it must stay valid, so it is never unloaded.
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is the one that nvrtc.h declares for this name, the same since CUDA 11.1.
                *unsafe { library.get($name) }.map_err(|error| {
                    Error::unsupported("the library is no NVRTC, or one before CUDA 11.1").with_source(error)
                })?
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = function!(b"nvrtcVersion");
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to integers that outlive the call.
        checked("nvrtcVersion", unsafe { version(&raw mut major, &raw mut minor) })?;
        Ok(Self {
            version: (major, minor),
            create: function!(b"nvrtcCreateProgram"),
            destroy: function!(b"nvrtcDestroyProgram"),
            compile: function!(b"nvrtcCompileProgram"),
            log_size: function!(b"nvrtcGetProgramLogSize"),
            log: function!(b"nvrtcGetProgramLog"),
            cubin_size: function!(b"nvrtcGetCUBINSize"),
            cubin: function!(b"nvrtcGetCUBIN"),
        })
    }

    /// Its version, major and minor.
    #[must_use]
    pub const fn version(&self) -> (i32, i32) {
        self.version
    }

    /// A kernel's text as machine code for one architecture, and what the compiler remarked. Machine code rather than PTX,
    /// since a driver takes no PTX of a toolkit newer than itself.
    ///
    /// # Errors
    /// `Internal` with the compiler's words for a text that does not compile, `Unsupported` for an architecture that this
    /// NVRTC does not know.
    pub fn compile(&self, name: &str, text: &str, architecture: Architecture) -> Result<(Vec<u8>, String)> {
        let c_string = |text: String| CString::new(text).map_err(|_| Error::internal("a kernel's text has a NUL byte"));
        let (file, text) = (c_string(format!("{name}.cu"))?, c_string(text.to_owned())?);
        let options = source::options(architecture).into_iter().map(c_string).collect::<Result<Vec<_>>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: the strings end with NUL and outlive the call; no headers are given.
        let created =
            unsafe { (self.create)(&raw mut program, text.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null()) };
        checked("nvrtcCreateProgram", created)?;
        let program = Owned { nvrtc: self, program };
        let count = c_int::try_from(options.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program is alive, and so are the options, of which there are `count`.
        let compiled = unsafe { (self.compile)(program.program, count, options.as_ptr()) };
        let log = program.bytes(self.log_size, self.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
        match compiled {
            0 => Ok((program.bytes(self.cubin_size, self.cubin)?, log)),
            // NVRTC_ERROR_INVALID_OPTION: every option but the architecture is as old as the library may be.
            5 => Err(Error::unsupported(format!(
                "NVRTC {}.{} does not know {architecture}: install a newer one",
                self.version.0, self.version.1
            ))),
            code => {
                Err(Error::internal(format!("kernel '{name}' does not compile for {architecture} ({code}): {log}")))
            }
        }
    }
}

/// A program that is destroyed with its handle.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Owned<'_> {
    /// What NVRTC has under a size and a copy of so many bytes.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        copy: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>> {
        let mut length = 0;
        // SAFETY: the program is alive, the size a valid place to write to.
        checked("the size of a result of NVRTC", unsafe { size(self.program, &raw mut length) })?;
        let mut bytes = vec![0_u8; length];
        // SAFETY: the program is alive, and there is room for as many bytes as NVRTC has just said it writes.
        checked("a result of NVRTC", unsafe { copy(self.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: it is alive and destroyed once.
        let _code = unsafe { (self.nvrtc.destroy)(&raw mut self.program) };
    }
}

fn checked(what: &str, code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::internal(format!("{what} failed with NVRTC's code {code}"))) }
}
