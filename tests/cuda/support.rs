//! Machines of one's own: the doubles in a folder, and a process that loads them from there.
#![expect(unsafe_code, reason = "calls of the double, and looks at what is in its memory")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};

use roundhouse::device::cuda::context::Context;
use roundhouse::device::cuda::driver::Driver;
use roundhouse::device::cuda::pinned::PinnedPool;
use roundhouse::device::cuda::pool::{PoolLimits, VramPool};
use roundhouse::device::cuda::stream::Stream;

pub(crate) const MIB: u64 = 1 << 20;
/// The granularity of the double.
pub(crate) const PAGE: u64 = 2 * MIB;

const INSIDE: &str = "ROUNDHOUSE_TEST_MACHINE";

/// A test in a process of its own, on the machine that the text describes (the words are explained in the double's
/// `control.rs`).
macro_rules! alone {
    ($(#[$attribute:meta])* on $machine:expr; fn $name:ident() $body:block) => {
        $(#[$attribute])*
        #[test]
        fn $name() {
            if $crate::support::folder_inside().is_some() {
                $body
            } else {
                $crate::support::run_inside(module_path!(), stringify!($name), $machine).expect_success();
            }
        }
    };
}

/// The machine's folder, where this is the process inside.
#[expect(clippy::disallowed_methods, reason = "how a test tells its other half what it is")]
pub(crate) fn folder_inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// How the process inside ended.
pub(crate) struct Ended(pub(crate) Output);

impl Ended {
    pub(crate) fn expect_success(&self) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&self.0.stdout), text(&self.0.stderr));
        // A name that is none runs nothing, and well.
        let fine = self.0.status.success() && out.contains("1 passed");
        assert!(fine, "{}\n{out}\n{err}", self.0.status);
    }
}

/// Runs a test of this binary in a process of its own.
pub(crate) fn run_inside(module: &str, test: &str, machine: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let (cuda, nvml) = libraries();
    std::fs::copy(cuda, folder.path().join("libcuda.so.1")).unwrap();
    std::fs::copy(nvml, folder.path().join("libnvidia-ml.so.1")).unwrap();
    std::fs::write(folder.path().join("cuda"), machine).unwrap();
    std::fs::write(folder.path().join("state"), "cuda\n").unwrap();
    run_in(folder.path(), module, test)
}

/// The same in a folder that is prepared.
pub(crate) fn run_in(folder: &Path, module: &str, test: &str) -> Ended {
    let name = format!("{module}::{test}");
    let name = name.split_once("::").map_or(name.as_str(), |(_, name)| name);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"]);
    Ended(command.env("LD_LIBRARY_PATH", folder).env(INSIDE, folder).output().unwrap())
}

/// The doubles, built into the folder this test was built to: cargo builds no shared library for a test by itself.
pub(crate) fn libraries() -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--offline", "--locked", "--package", "fake-cuda", "--package", "fake-nvml"]);
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).status().unwrap();
        assert!(built.success(), "the doubles cannot be built");
        (profile.join("libfake_cuda.so"), profile.join("libfake_nvml.so"))
    })
}

pub(crate) fn function(name: &str) -> *mut c_void {
    let name = CString::new(name).unwrap();
    // SAFETY: both names end in a zero; the library is the double, which this process has loaded or loads now.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "the double cannot be loaded");
        let found = libc::dlsym(library, name.as_ptr());
        assert!(!found.is_null(), "libcuda.so.1 is not the double");
        found
    }
}

/// Changes the machine.
pub(crate) fn say(text: &str) {
    let said = CString::new(text).unwrap();
    // SAFETY: the function's type is what the double says; the text ends in a zero.
    let code = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_int>(function("fake_cuda_say"))(
            said.as_ptr(),
        )
    };
    assert_eq!(code, 0, "{text}");
}

/// How much there is of something.
pub(crate) fn count(what: &str) -> u64 {
    let asked = CString::new(what).unwrap();
    // SAFETY: as above.
    let count = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> u64>(function("fake_cuda_count"))(
            asked.as_ptr(),
        )
    };
    assert_ne!(count, u64::MAX, "{what}");
    count
}

/// Nothing of the driver is held any more.
pub(crate) fn assert_nothing_is_left() {
    for what in ["mappings", "handles", "physical", "reservations", "plain", "pinned", "streams", "events", "used 0"] {
        assert_eq!(count(what), 0, "{what}");
    }
    assert_eq!(count("contexts 0"), 0);
}

pub(crate) fn context() -> Arc<Context> {
    Driver::open().unwrap().context(0).unwrap()
}

/// A pool of `memory` bytes in pieces of four pages.
pub(crate) fn pool(context: &Arc<Context>, memory: u64, spare: u64) -> Arc<VramPool> {
    VramPool::new(context, PoolLimits { memory, spare, piece: 4 * PAGE })
}

/// What is at an address of the device: the double's memory is the host's.
pub(crate) fn read(address: u64, len: u64) -> Vec<u8> {
    // SAFETY: the tests read what they have allocated; anything else is found out by a fault.
    unsafe { std::slice::from_raw_parts(address as *const u8, len as usize) }.to_vec()
}

/// Writes bytes to the device through a stream, as a runtime would.
pub(crate) fn write(context: &Arc<Context>, address: u64, bytes: &[u8]) {
    let pool = PinnedPool::new(context, 64 * MIB, MIB);
    let mut buffer = pool.buffer(bytes.len() as u64).unwrap();
    buffer.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    let stream = Stream::new(context, 0).unwrap();
    // SAFETY: the buffer lives until the stream was waited for; the address is one that the test has allocated.
    unsafe { stream.copy_to_device(address, buffer.part().start(bytes.len())).unwrap() };
    stream.synchronize().unwrap();
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len as usize);
    bytes
}
