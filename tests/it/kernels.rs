//! The kernels through NVRTC, which compiles without a GPU: `make rust-test` gets it from PyPI and runs these.

use std::path::PathBuf;

use roundhouse::error::ErrorKind;
use roundhouse::kernels::cache::Compiler;
use roundhouse::kernels::nvrtc::Nvrtc;
use roundhouse::kernels::source::{ALL, Architecture, program};

/// A100, A10 and its kin, H100.
const ARCHITECTURES: [(u32, u32); 3] = [(8, 0), (8, 6), (9, 0)];

fn library() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "the Makefile says where the library is")]
    let path = std::env::var_os("ROUNDHOUSE_NVRTC");
    path.expect("ROUNDHOUSE_NVRTC must name NVRTC's library; `make rust-test` gets one").into()
}

#[test]
#[ignore = "needs NVRTC's library in ROUNDHOUSE_NVRTC: make rust-test gets and runs it"]
fn every_kernel_compiles_without_a_remark_for_every_gpu() {
    let nvrtc = Nvrtc::load(Some(library())).unwrap();
    for kernel in ALL {
        for (major, minor) in ARCHITECTURES {
            let architecture = Architecture { major, minor };
            let (image, remarks) = nvrtc.compile(kernel.name, &program(&kernel), architecture).unwrap();
            assert_eq!(remarks, "", "{} for {architecture}", kernel.name);
            assert!(image.starts_with(b"\x7fELF"), "{} for {architecture} is no machine code", kernel.name);
            for function in kernel.functions {
                let is_there = image.windows(function.len()).any(|window| window == function.as_bytes());
                assert!(is_there, "{function} is missing for {architecture}");
            }
        }
    }
}

#[test]
#[ignore = "needs NVRTC's library in ROUNDHOUSE_NVRTC: make rust-test gets and runs it"]
fn a_fault_in_any_kernel_is_told_with_its_file_and_line() {
    let nvrtc = Nvrtc::load(Some(library())).unwrap();
    let architecture = Architecture { major: 8, minor: 0 };
    for kernel in ALL {
        // One parameter more than its type has, in the line after the last.
        let broken = format!("{}\n__device__ int broken( {{ return 1; }}\n", program(&kernel));
        let error = nvrtc.compile(kernel.name, &broken, architecture).unwrap_err();
        let line = kernel.text.lines().count() + 2;
        assert!(error.to_string().contains(&format!("{}.cu({line}): error: ", kernel.name)), "{error}");
    }
    let unknown = nvrtc.compile("gather", &program(&ALL[0]), Architecture { major: 99, minor: 9 }).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unsupported, "{unknown}");
}

#[test]
#[ignore = "needs NVRTC's library in ROUNDHOUSE_NVRTC: make rust-test gets and runs it"]
fn what_was_compiled_is_kept_and_what_is_damaged_is_compiled_again() {
    let root = tempfile::tempdir().unwrap();
    // Of an architecture that no build compiles for, so that NVRTC has to.
    let architecture = Architecture { major: 8, minor: 9 };
    let image = || {
        let mut compiler = Compiler::new(Some(library()), Some(root.path().to_owned()));
        compiler.image(&ALL[0], architecture).unwrap()
    };
    let compiled = image();
    let files: Vec<_> = root.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("one file, not {files:?}") };
    // Another code under its right digest shows that it is read, not made.
    let whole = std::fs::read(file).unwrap();
    std::fs::write(file, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(image(), compiled);
    assert_eq!(std::fs::read(file).unwrap(), whole, "what was damaged was not written again");
}
