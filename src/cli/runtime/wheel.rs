//! The wheels that `roundhouse runtime install` takes a runtime from, pinned with what is kept of them.

use crate::backend::runtime_paths::{ONNXRUNTIME_LIBRARY, ONNXRUNTIME_VERSION};
use crate::error::{Error, Result};

/// A wheel on the package index, pinned.
pub(super) struct Wheel {
    pub(super) arch: &'static str,
    pub(super) platform: &'static str,
    pub(super) bytes: u64,
    pub(super) sha256: &'static str,
    /// What is kept of it, all from `onnxruntime/capi/`; the library comes first.
    pub(super) files: [PinnedFile; 2],
}

pub(super) struct PinnedFile {
    pub(super) name: &'static str,
    pub(super) bytes: u64,
    pub(super) sha256: &'static str,
}

pub(super) const PROVIDERS_SHARED: &str = "libonnxruntime_providers_shared.so";

pub(super) static WHEELS: [Wheel; 2] = [
    Wheel {
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        bytes: 23_760_988,
        sha256: "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
        files: [
            PinnedFile {
                name: ONNXRUNTIME_LIBRARY,
                bytes: 29_352_200,
                sha256: "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
            },
            PinnedFile {
                name: PROVIDERS_SHARED,
                bytes: 14_632,
                sha256: "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d",
            },
        ],
    },
    Wheel {
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        bytes: 21_420_803,
        sha256: "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
        files: [
            PinnedFile {
                name: ONNXRUNTIME_LIBRARY,
                bytes: 25_265_040,
                sha256: "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467",
            },
            PinnedFile {
                name: PROVIDERS_SHARED,
                bytes: 198_792,
                sha256: "3b6be288fbfb7dff8770d08a23defdde18e8f7e0f5a2b344a0e5e238c999ea88",
            },
        ],
    },
];

impl Wheel {
    pub(super) fn for_this_machine() -> Result<&'static Self> {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let wheel = WHEELS.iter().find(|wheel| os == "linux" && wheel.arch == arch);
        wheel.ok_or_else(|| {
            Error::unsupported(format!(
                "no onnxruntime {ONNXRUNTIME_VERSION} is pinned for {os} on {arch} (linux on x86_64 and aarch64 are)"
            ))
        })
    }

    pub(super) fn bytes_kept(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The disk space that an install takes at its peak.
    pub(super) fn peak_megabytes(&self) -> u64 {
        (self.bytes + self.bytes_kept()).div_ceil(1_000_000)
    }
}
