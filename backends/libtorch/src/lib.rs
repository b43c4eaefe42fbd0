//! The `pytorch` backend: TorchScript models and packages of AOTInductor through libtorch, as a library that the server opens at run time.
//!
//! [`archive`] tells what a file is before torch reads it; `names` decides which tensor of a request is which argument of
//! `forward`, and which part of what it gives is which output; `options` reads Triton's parameters; `package` makes
//! packages fit to be unloaded; `model` is the rest,
//! over tch's tensors and a small C++ shim for what tch lacks. Without the feature `backend` there is only what needs no
//! libtorch.

pub mod archive;
pub mod names;
pub mod options;
pub mod package;

#[cfg(feature = "backend")]
pub mod model;
#[cfg(feature = "backend")]
mod shim;

#[cfg(feature = "backend")]
roundhouse_abi::export_backend!(
    model::Pytorch,
    c"pytorch",
    c"TorchScript through libtorch 2.11",
    c"model.pt",
    [
        c"INFERENCE_MODE",
        c"DISABLE_OPTIMIZED_EXECUTION",
        c"ENABLE_NVFUSER",
        c"ENABLE_WEIGHT_SHARING",
        c"ENABLE_CACHE_CLEANING",
        c"ENABLE_JIT_EXECUTOR",
        c"ENABLE_JIT_PROFILING",
        c"ENABLE_TENSOR_FUSION",
        c"INTRA_OP_THREAD_COUNT",
        c"INTER_OP_THREAD_COUNT",
        c"optimize",
        c"warmup",
    ]
);
