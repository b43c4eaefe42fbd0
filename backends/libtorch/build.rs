//! Compiles the C++ shim, where the backend itself is compiled and linked.

#![expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]

use std::path::{Path, PathBuf};

fn main() {
    for source in ["shim.cpp", "shim.hpp", "device.cpp"] {
        println!("cargo::rerun-if-changed=src/{source}");
    }
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let has = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    if !has("BACKEND") || has("CHECK") {
        return;
    }
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        fail("LIBTORCH is not set: run `make libtorch`, or set it to the folder of an installed torch 2.11");
    };
    for needed in ["include/ATen/ATen.h", "lib/libtorch_cpu.so"] {
        if !libtorch.join(needed).is_file() {
            fail(&format!(
                "there is no {needed} in LIBTORCH={}: it has to be the folder of a torch 2.11 with its headers",
                libtorch.display()
            ));
        }
    }
    compile(&libtorch);
    // A backend is never unloaded: torch's threads would run on in what is gone.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

fn compile(libtorch: &Path) {
    let mut cc = cc::Build::new();
    cc.cpp(true).std("c++17").files(["src/shim.cpp", "src/device.cpp"]);
    // Torch's headers are not ours to warn about.
    for include in ["include", "include/torch/csrc/api/include"] {
        cc.flag("-isystem").flag(libtorch.join(include).display().to_string());
    }
    cc.define("_GLIBCXX_USE_CXX11_ABI", "1").opt_level(1).debug(false).compile("roundhouse_shim");
    println!("cargo::rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo::rustc-link-lib=torch_cpu");
    println!("cargo::rustc-link-lib=c10");
}

fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    std::process::exit(1)
}
