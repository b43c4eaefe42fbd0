//! Where the runtimes that are loaded at run time lie: their names and versions, and nothing that touches the disk.

use std::path::{Path, PathBuf};

/// The ONNX Runtime that this version of Roundhouse is tested against, and that the command below installs.
pub const ONNXRUNTIME_VERSION: &str = "1.31.1";

/// The file name of ONNX Runtime's library.
pub const ONNXRUNTIME_LIBRARY: &str = "libonnxruntime.so.1.31.1";

/// The command that puts the library in its place; for messages that name the mend.
pub const ONNXRUNTIME_INSTALL: &str = "roundhouse runtime install onnxruntime";

/// The command that installs ONNX Runtime for GPUs; for messages that name the mend.
pub const ONNXRUNTIME_GPU_INSTALL: &str = "roundhouse runtime install onnxruntime-gpu";

/// The folder of the installed ONNX Runtime for GPUs below the runtime folder: with the libraries of CUDA that it needs.
#[must_use]
pub fn onnxruntime_gpu_folder(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(format!("onnxruntime-gpu-{ONNXRUNTIME_VERSION}"))
}

/// The library to load of those `installed` below the runtime folder: the one for GPUs, which runs models on the CPU too, where
/// GPUs may be used; else the one for the CPU, or the other where only that is there.
#[must_use]
pub fn onnxruntime_choice(runtime_dir: &Path, may_use_gpus: bool, is_installed: impl Fn(&Path) -> bool) -> PathBuf {
    let cpu = onnxruntime_path(runtime_dir);
    let gpu = onnxruntime_gpu_folder(runtime_dir).join(ONNXRUNTIME_LIBRARY);
    let takes_gpu = is_installed(&gpu) && (may_use_gpus || !is_installed(&cpu));
    if takes_gpu { gpu } else { cpu }
}

/// The folder of the installed ONNX Runtime below the runtime folder.
#[must_use]
pub fn onnxruntime_folder(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(format!("onnxruntime-{ONNXRUNTIME_VERSION}"))
}

/// The library of the installed ONNX Runtime below the runtime folder, whether or not it is there.
#[must_use]
pub fn onnxruntime_path(runtime_dir: &Path) -> PathBuf {
    onnxruntime_folder(runtime_dir).join(ONNXRUNTIME_LIBRARY)
}

/// The libtorch that the pytorch backend is built for; another one has another C++ interface.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// The command that installs it; for messages that name the mend.
pub const LIBTORCH_INSTALL: &str = "roundhouse runtime install libtorch";

/// The folder of the installed libtorch below the runtime folder: with its `torch/`, and what that needs beside it.
#[must_use]
pub fn libtorch_folder(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(format!("libtorch-{LIBTORCH_VERSION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_for_gpus_is_taken_where_gpus_may_be_used_or_nothing_else_is_there() {
        let chosen = |may_use_gpus, cpu, gpu| {
            let is_there = |path: &Path| if path.starts_with("rt/onnxruntime-gpu-1.31.1") { gpu } else { cpu };
            onnxruntime_choice(Path::new("rt"), may_use_gpus, is_there).starts_with("rt/onnxruntime-gpu-1.31.1")
        };
        assert!(chosen(true, true, true) && chosen(true, false, true) && chosen(false, false, true));
        assert!(!chosen(true, true, false) && !chosen(false, true, true) && !chosen(true, false, false));
    }

    #[test]
    fn the_library_lies_in_a_folder_of_its_version() {
        let path = onnxruntime_path(Path::new("runtime"));
        assert_eq!(path, Path::new("runtime/onnxruntime-1.31.1/libonnxruntime.so.1.31.1"));
        assert!(ONNXRUNTIME_LIBRARY.ends_with(ONNXRUNTIME_VERSION));
    }
}
