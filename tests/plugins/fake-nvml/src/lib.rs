//! A stand-in for NVIDIA's management library: the functions Roundhouse calls, answering from a text file.
//!
//! The file is called `state` and lies in the folder of the library, so a test copies the library into a folder of its
//! own. It is read at each call. One statement a line, words between spaces:
//!
//! ```text
//! init CODE                        what nvmlInit_v2 returns; 0 where not said
//! gpu TOTAL USED RESERVED [CODE]   one GPU, bytes; CODE is what asking for its memory returns
//! process GPU PID BYTES            a process on a GPU; PID `self` is the caller, BYTES `-` is "not available"
//! processes CODE                   what asking for processes returns; 0 where not said
//! ```

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::PathBuf;

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const INSUFFICIENT_SIZE: c_int = 7;
const UNKNOWN: c_int = 999;

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlProcessInfo_t`.
#[repr(C)]
pub struct Process {
    pid: c_uint,
    used_memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// Where this library was loaded from: the mapping of our own code.
fn own_path() -> Option<PathBuf> {
    let own = own_path as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        range.contains(&own).then(|| PathBuf::from(line.splitn(6, ' ').last().unwrap_or_default().trim()))
    })
}

/// The words of every line of the state.
fn state() -> Option<Vec<Vec<String>>> {
    let text = std::fs::read_to_string(own_path()?.with_file_name("state")).ok()?;
    Some(text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
}

fn statements(name: &str) -> Option<Vec<Vec<String>>> {
    let named = |words: &Vec<String>| words.first().is_some_and(|word| word == name);
    Some(state()?.into_iter().filter(named).map(|words| words[1..].to_vec()).collect())
}

fn number(words: &[String], at: usize) -> u64 {
    words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn code(words: Option<&Vec<String>>, at: usize) -> c_int {
    words.map_or(SUCCESS, |words| c_int::try_from(number(words, at)).unwrap_or(UNKNOWN))
}

/// Handles are indexes, one up so that none is null.
fn index(device: *mut c_void) -> usize {
    (device as usize).wrapping_sub(1)
}

/// Begins; fails with the state's code.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    statements("init").map_or(UNKNOWN, |lines| code(lines.first(), 0))
}

/// Ends.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

/// The text of a code.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(_code: c_int) -> *const c_char {
    c"an error of the fake".as_ptr()
}

/// How many GPUs.
///
/// # Safety
/// `count` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    // SAFETY: as the caller promises.
    let (Some(gpus), Some(count)) = (statements("gpu"), unsafe { count.as_mut() }) else { return INVALID_ARGUMENT };
    *count = c_uint::try_from(gpus.len()).unwrap_or(c_uint::MAX);
    SUCCESS
}

/// The handle of a GPU.
///
/// # Safety
/// `device` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> c_int {
    // SAFETY: as the caller promises.
    let (Some(gpus), Some(device)) = (statements("gpu"), unsafe { device.as_mut() }) else { return INVALID_ARGUMENT };
    if index as usize >= gpus.len() {
        return INVALID_ARGUMENT;
    }
    *device = (index as usize + 1) as *mut c_void;
    SUCCESS
}

/// The identifier of a GPU: `GPU-fake-` and its index.
///
/// # Safety
/// `uuid` is null or has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, uuid: *mut c_char, length: c_uint) -> c_int {
    let text = format!("GPU-fake-{}\0", index(device));
    if uuid.is_null() || text.len() > length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller promises room for `length` bytes, and there are no more than that.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), uuid, text.len()) };
    SUCCESS
}

/// The memory of a GPU.
///
/// # Safety
/// `memory` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, memory: *mut Memory) -> c_int {
    // SAFETY: as the caller promises.
    let (Some(gpus), Some(memory)) = (statements("gpu"), unsafe { memory.as_mut() }) else { return INVALID_ARGUMENT };
    let Some(gpu) = gpus.get(index(device)) else { return INVALID_ARGUMENT };
    (memory.total, memory.used, memory.reserved) = (number(gpu, 0), number(gpu, 1), number(gpu, 2));
    memory.free = memory.total.saturating_sub(memory.used + memory.reserved);
    code(Some(gpu), 3)
}

/// The processes on a GPU: how many there are where there is no room for them.
///
/// # Safety
/// `count` is null or can be written, and `processes` has room for as many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: *mut c_uint,
    processes: *mut Process,
) -> c_int {
    // SAFETY: as the caller promises.
    let (Some(all), Some(count)) = (statements("process"), unsafe { count.as_mut() }) else { return INVALID_ARGUMENT };
    let failure = code(statements("processes").unwrap_or_default().first(), 0);
    if failure != SUCCESS {
        return failure;
    }
    let here: Vec<_> = all.iter().filter(|words| number(words, 0) as usize == index(device)).collect();
    let room = std::mem::replace(count, c_uint::try_from(here.len()).unwrap_or(c_uint::MAX)) as usize;
    if room < here.len() {
        return INSUFFICIENT_SIZE;
    }
    for (at, words) in here.into_iter().enumerate() {
        let is_own = words.get(1).is_some_and(|pid| pid == "self");
        let process = Process {
            pid: if is_own { std::process::id() } else { c_uint::try_from(number(words, 1)).unwrap_or(0) },
            used_memory: if words.get(2).is_some_and(|bytes| bytes == "-") {
                c_ulonglong::MAX
            } else {
                number(words, 2)
            },
            gpu_instance: c_uint::MAX,
            compute_instance: c_uint::MAX,
        };
        // SAFETY: `at` is below the room that the caller says there is.
        unsafe { processes.add(at).write(process) };
    }
    SUCCESS
}
