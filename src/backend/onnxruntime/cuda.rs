//! CUDA's and TensorRT's execution providers: whether they are there, and telling a session of them.
#![expect(
    unsafe_code,
    reason = "calls through the C API of ONNX Runtime, and opens the libraries that its providers need"
)]

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use ort::AsPointer;
use ort::session::builder::SessionBuilder;

use super::ffi::check;
use super::provider::{Options, Providers};
use crate::backend::runtime_paths::ONNXRUNTIME_GPU_INSTALL;
use crate::error::{Error, ErrorKind, Result};

/// What the providers need, in the order they are opened: being open they are found by their names, wherever they lie. The
/// system's loader finds none of them beside the providers. cuDNN opens its parts by itself, from where it lies.
const LIBRARIES: [&str; 8] = [
    "libcudart.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libnvJitLink.so.13",
    "libcufft.so.12",
    "libnvrtc.so.13",
    "libcudnn.so.9",
];

/// TensorRT's own libraries, which come with no wheel that fits.
const TENSORRT: [&str; 2] = ["libnvinfer.so.10", "libnvonnxparser.so.10"];

/// Whether CUDA's provider can be used, asked once: it takes a second and 140 MB.
///
/// # Errors
/// `Unsupported` where this ONNX Runtime is without it, `NotReady` where a library or the driver is missing or too old; both
/// with the mend.
pub(super) fn find(onnxruntime: &Path) -> Result<()> {
    if !has_provider(c"CUDAExecutionProvider")? {
        return Err(Error::unsupported(format!(
            "{} is without CUDA: run `{ONNXRUNTIME_GPU_INSTALL}`, or name a libonnxruntime.so for GPUs with \
             --onnxruntime-library",
            onnxruntime.display()
        )));
    }
    let places = places(onnxruntime);
    for library in LIBRARIES {
        open_in(&places, library);
    }
    // Makes the provider's library be loaded, with all that it is linked to, and looks for a device.
    CudaOptions::new().and_then(|options| options.update(&[("device_id".to_owned(), "0".to_owned())])).map_err(|error| {
        let mend = format!(
            "run `{ONNXRUNTIME_GPU_INSTALL}`, which brings the libraries of CUDA 13 and cuDNN 9, on a machine with NVIDIA's \
             driver 580 or newer"
        );
        Error::new(ErrorKind::NotReady, format!("ONNX Runtime's CUDA provider does not start: {mend}")).with_source(error)
    })
}

/// Whether TensorRT can be used.
pub(super) fn has_tensorrt(onnxruntime: &Path) -> bool {
    let places = places(onnxruntime);
    let opened = TENSORRT.iter().all(|library| open_in(&places, library));
    opened && has_provider(c"TensorrtExecutionProvider").unwrap_or(false)
}

/// Where libraries may lie: beside ONNX Runtime, as they are installed, or in the packages of a Python beside its own.
fn places(onnxruntime: &Path) -> Vec<PathBuf> {
    let beside = onnxruntime.parent().map(Path::to_owned);
    let python = onnxruntime.ancestors().nth(3).map(|packages| packages.join("nvidia"));
    let python = python.into_iter().flat_map(|nvidia| ["cu13/lib", "cudnn/lib"].map(|folder| nvidia.join(folder)));
    beside.into_iter().chain(python).collect()
}

/// Opens a library for good from the first of the places that has it, else from where the system's loader finds it.
fn open_in(places: &[PathBuf], library: &str) -> bool {
    let path = places.iter().map(|place| place.join(library)).find(|path| path.is_file());
    let path = path.unwrap_or_else(|| PathBuf::from(library));
    // SAFETY: the operator vouches for NVIDIA's libraries, whose initialisers run here.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
        Ok(opened) => {
            std::mem::forget(opened);
            true
        }
        Err(error) => {
            tracing::debug!(%error, library = %path.display(), "a library of CUDA cannot be opened");
            false
        }
    }
}

/// Whether the library was built with a provider.
fn has_provider(name: &CStr) -> Result<bool> {
    let api = ort::api();
    let (mut names, mut count) = (ptr::null_mut(), 0);
    // SAFETY: out-pointers are valid.
    check(unsafe { (api.GetAvailableProviders)(&raw mut names, &raw mut count) })?;
    let all = 0..usize::try_from(count).unwrap_or(0);
    // SAFETY: so many strings that end with a NUL, which are given back once, after they were looked at.
    unsafe {
        let found = all.into_iter().any(|at| CStr::from_ptr(*names.add(at)) == name);
        let _given_back = check((api.ReleaseAvailableProviders)(names, count));
        Ok(found)
    }
}

/// Tells a session that is to be made which providers compute it.
///
/// # Errors
/// What a provider finds wrong with its options.
pub(super) fn append(builder: &SessionBuilder, providers: &Providers) -> Result<()> {
    if let Some(options) = &providers.tensorrt {
        append_tensorrt(builder, options).map_err(|error| error.wrap("TensorRT does not start"))?;
    }
    let options = CudaOptions::new()?;
    options.update(&providers.cuda).map_err(|error| error.wrap("CUDA does not start"))?;
    let session = builder.ptr().cast_mut();
    // SAFETY: both live through the call, which copies the options.
    check(unsafe { (ort::api().SessionOptionsAppendExecutionProvider_CUDA_V2)(session, options.0) })
}

/// Options of CUDA's provider, given back when dropped.
struct CudaOptions(*mut ort_sys::OrtCUDAProviderOptionsV2);

impl CudaOptions {
    fn new() -> Result<Self> {
        let mut options = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        check(unsafe { (ort::api().CreateCUDAProviderOptions)(&raw mut options) })?;
        Ok(Self(options))
    }

    fn update(&self, options: &[(String, String)]) -> Result<()> {
        let pairs = Pairs::new(options)?;
        let (keys, values) = pairs.pointers();
        // SAFETY: the options are ours; as many keys as values, strings that live through the call.
        check(unsafe { (ort::api().UpdateCUDAProviderOptions)(self.0, keys.as_ptr(), values.as_ptr(), keys.len()) })
    }
}

impl Drop for CudaOptions {
    fn drop(&mut self) {
        // SAFETY: made once, given back once.
        unsafe { (ort::api().ReleaseCUDAProviderOptions)(self.0) };
    }
}

fn append_tensorrt(builder: &SessionBuilder, options: &Options) -> Result<()> {
    struct TensorrtOptions(*mut ort_sys::OrtTensorRTProviderOptionsV2);
    impl Drop for TensorrtOptions {
        fn drop(&mut self) {
            // SAFETY: made once, given back once.
            unsafe { (ort::api().ReleaseTensorRTProviderOptions)(self.0) };
        }
    }
    let api = ort::api();
    let mut made = ptr::null_mut();
    // SAFETY: the out-pointer is valid.
    check(unsafe { (api.CreateTensorRTProviderOptions)(&raw mut made) })?;
    let made = TensorrtOptions(made);
    let pairs = Pairs::new(options)?;
    let (keys, values) = pairs.pointers();
    // SAFETY: the options are ours; as many keys as values, strings that live through the call; the session's are copied to.
    unsafe {
        check((api.UpdateTensorRTProviderOptions)(made.0, keys.as_ptr(), values.as_ptr(), keys.len()))?;
        check((api.SessionOptionsAppendExecutionProvider_TensorRT_V2)(builder.ptr().cast_mut(), made.0))
    }
}

/// Names and values as strings of C.
struct Pairs(Vec<(CString, CString)>);

impl Pairs {
    fn new(options: &[(String, String)]) -> Result<Self> {
        let string = |text: &str| {
            CString::new(text)
                .map_err(|_| Error::invalid(format!("the option '{}' has a NUL in it", text.escape_debug())))
        };
        options.iter().map(|(key, value)| Ok((string(key)?, string(value)?))).collect::<Result<_>>().map(Self)
    }

    fn pointers(&self) -> (Vec<*const c_char>, Vec<*const c_char>) {
        self.0.iter().map(|(key, value)| (key.as_ptr(), value.as_ptr())).unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_looked_for_beside_onnxruntime_and_in_the_packages_of_its_python() {
        let installed = places(Path::new("/rt/onnxruntime-gpu-1.31.1/libonnxruntime.so"));
        assert_eq!(installed[0], Path::new("/rt/onnxruntime-gpu-1.31.1"));
        let python = places(Path::new("/py/site-packages/onnxruntime/capi/libonnxruntime.so"));
        assert!(python.contains(&PathBuf::from("/py/site-packages/nvidia/cudnn/lib")), "{python:?}");
        assert!(!open_in(&installed, "libno-such-library.so.99"));
    }

    #[test]
    fn without_cuda_the_mend_is_told() {
        let _environment = super::super::tests::backend();
        let error = find(Path::new("/rt/libonnxruntime.so")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error
                .report()
                .contains("/rt/libonnxruntime.so is without CUDA: run `roundhouse runtime install onnxruntime-gpu`")
        );
        assert!(has_provider(c"CPUExecutionProvider").unwrap());
        assert!(Pairs::new(&[("a\0".to_owned(), String::new())]).is_err());
    }
}
