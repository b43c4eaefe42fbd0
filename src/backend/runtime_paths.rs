//! Where the runtimes that are loaded at run time lie: their names and versions, and nothing that touches the disk.

use std::path::{Path, PathBuf};

/// The ONNX Runtime that this version of Roundhouse is tested against, and that the command below installs.
pub const ONNXRUNTIME_VERSION: &str = "1.31.1";

/// The file name of ONNX Runtime's library.
pub const ONNXRUNTIME_LIBRARY: &str = "libonnxruntime.so.1.31.1";

/// The command that puts the library in its place; for messages that name the mend.
pub const ONNXRUNTIME_INSTALL: &str = "roundhouse runtime install onnxruntime";

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
    fn the_library_lies_in_a_folder_of_its_version() {
        let path = onnxruntime_path(Path::new("runtime"));
        assert_eq!(path, Path::new("runtime/onnxruntime-1.31.1/libonnxruntime.so.1.31.1"));
        assert!(ONNXRUNTIME_LIBRARY.ends_with(ONNXRUNTIME_VERSION));
    }
}
