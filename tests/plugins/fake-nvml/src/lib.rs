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
//! cuda                             GPUs, and what this process holds, as the double of CUDA in the same folder says
//! utilization GPU SM MEMORY        in percent; what is not said of a GPU is "not supported"
//! power GPU USAGE LIMIT            in milliwatts
//! energy GPU MILLIJOULES
//! temperature GPU CELSIUS
//! ecc GPU COUNT                    uncorrectable errors of its memory since the driver was loaded
//! retiring GPU FLAG                1 where pages wait to be retired
//! xid GPU CODE                     an event, told once for each such line
//! mig GPU TOTAL USED               a MIG device of a GPU
//! ```

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::PathBuf;

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const NOT_FOUND: c_int = 6;
const TIMED_OUT: c_int = 10;
/// Handles of MIG devices begin here.
const FIRST_MIG: usize = 1_000;
const XID_EVENT: c_ulonglong = 8;
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

/// The GPUs, one a line: those that are said, or those of the double of CUDA.
fn gpus() -> Option<Vec<Vec<String>>> {
    if statements("cuda")?.is_empty() {
        return statements("gpu");
    }
    let rows = cuda_usage()?.into_iter();
    Some(rows.map(|[total, ours, others]| [total, ours + others, 0].map(|bytes| bytes.to_string()).to_vec()).collect())
}

/// Total, ours and others' bytes of each GPU of the double of CUDA.
fn cuda_usage() -> Option<Vec<[u64; 3]>> {
    let bytes = std::fs::read(own_path()?.with_file_name("cuda-usage")).ok()?;
    let (numbers, _) = bytes.as_chunks::<8>();
    let (count, rows) = numbers.split_first()?;
    let (rows, _) = rows.as_chunks::<3>();
    let count = usize::try_from(u64::from_ne_bytes(*count)).ok()?;
    Some(rows.iter().take(count).map(|row| row.map(u64::from_ne_bytes)).collect())
}

/// What is said of one GPU, or the code for what is not.
fn said(name: &str, device: *mut c_void) -> Result<Vec<String>, c_int> {
    let gpu = index(device);
    let of_gpu = gpus().unwrap_or_default().get(gpu).map_or(SUCCESS, |words| code(Some(words), 3));
    if of_gpu != SUCCESS {
        return Err(of_gpu);
    }
    let lines = statements(name).unwrap_or_default();
    lines.into_iter().find(|words| number(words, 0) as usize == gpu).ok_or(NOT_SUPPORTED)
}

/// Writes a number that is said of a GPU.
fn tell<T>(name: &str, device: *mut c_void, place: *mut T, number: impl Fn(&[String]) -> T) -> c_int {
    match said(name, device) {
        Ok(_) if place.is_null() => INVALID_ARGUMENT,
        Ok(words) => {
            // SAFETY: whoever calls the library promises that what is not null can be written.
            unsafe { place.write(number(&words)) };
            SUCCESS
        }
        Err(code) => code,
    }
}

fn small(words: &[String], at: usize) -> c_uint {
    c_uint::try_from(number(words, at)).unwrap_or(c_uint::MAX)
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
    let (Some(gpus), Some(count)) = (gpus(), unsafe { count.as_mut() }) else { return INVALID_ARGUMENT };
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
    let (Some(gpus), Some(device)) = (gpus(), unsafe { device.as_mut() }) else { return INVALID_ARGUMENT };
    if index as usize >= gpus.len() {
        return INVALID_ARGUMENT;
    }
    *device = (index as usize + 1) as *mut c_void;
    SUCCESS
}

/// The identifier of a GPU: `GPU-fake-` and its index; that of the double of CUDA, where GPUs are its.
///
/// # Safety
/// `uuid` is null or has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, uuid: *mut c_char, length: c_uint) -> c_int {
    let is_cuda = statements("cuda").is_some_and(|lines| !lines.is_empty());
    let text = match index(device).checked_sub(FIRST_MIG) {
        Some(mig) => format!("MIG-fake-{mig}\0"),
        None if is_cuda => format!("GPU-face6661-6b65-2d63-7564-612d677075{:02x}\0", index(device)),
        None => format!("GPU-fake-{}\0", index(device)),
    };
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
    let (Some(gpus), Some(memory)) = (gpus(), unsafe { memory.as_mut() }) else { return INVALID_ARGUMENT };
    if let Some(mig) = index(device).checked_sub(FIRST_MIG) {
        let Some(words) = statements("mig").and_then(|lines| lines.get(mig).cloned()) else { return INVALID_ARGUMENT };
        (memory.total, memory.used, memory.reserved) = (number(&words, 1), number(&words, 2), 0);
        return SUCCESS;
    }
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
    let (Some(mut all), Some(count)) = (statements("process"), unsafe { count.as_mut() }) else {
        return INVALID_ARGUMENT;
    };
    if !statements("cuda").unwrap_or_default().is_empty() {
        let ours = cuda_usage().unwrap_or_default().into_iter().enumerate();
        all.extend(ours.map(|(gpu, [_, ours, _])| vec![gpu.to_string(), "self".to_owned(), ours.to_string()]));
    }
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

/// `nvmlUtilization_t`.
#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlEventData_t`.
#[repr(C)]
pub struct EventData {
    device: *mut c_void,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// How busy a GPU is.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUtilizationRates(device: *mut c_void, rates: *mut Utilization) -> c_int {
    tell("utilization", device, rates, |words| Utilization { gpu: small(words, 1), memory: small(words, 2) })
}

/// What a GPU takes.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPowerUsage(device: *mut c_void, milliwatts: *mut c_uint) -> c_int {
    tell("power", device, milliwatts, |words| small(words, 1))
}

/// What a GPU may take.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: *mut c_void, milliwatts: *mut c_uint) -> c_int {
    tell("power", device, milliwatts, |words| small(words, 2))
}

/// What a GPU has taken since the driver was loaded.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTotalEnergyConsumption(device: *mut c_void, millijoules: *mut c_ulonglong) -> c_int {
    tell("energy", device, millijoules, |words| number(words, 1))
}

/// How warm a GPU is.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTemperature(device: *mut c_void, _sensor: c_uint, celsius: *mut c_uint) -> c_int {
    tell("temperature", device, celsius, |words| small(words, 1))
}

/// Errors of a GPU's memory: those that were not corrected, whatever is asked for.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: *mut c_void,
    _kind: c_uint,
    _counter: c_uint,
    count: *mut c_ulonglong,
) -> c_int {
    tell("ecc", device, count, |words| number(words, 1))
}

/// Whether pages of a GPU's memory wait to be retired.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetRetiredPagesPendingStatus(device: *mut c_void, pending: *mut c_uint) -> c_int {
    tell("retiring", device, pending, |words| small(words, 1))
}

/// MIG is on where a MIG device is said.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigMode(device: *mut c_void, now: *mut c_uint, later: *mut c_uint) -> c_int {
    let on = tell("mig", device, now, |_words| 1);
    if on == SUCCESS { tell("mig", device, later, |_words| 1) } else { on }
}

/// The most MIG devices that a GPU may have.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: *mut c_void, count: *mut c_uint) -> c_int {
    tell("mig", device, count, |_words| 7)
}

/// A MIG device of a GPU; there may be gaps.
///
/// # Safety
/// `mig` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: *mut c_void,
    at: c_uint,
    mig: *mut *mut c_void,
) -> c_int {
    let lines = statements("mig").unwrap_or_default();
    let mut of_gpu = lines.iter().enumerate().filter(|(_, words)| number(words, 0) as usize == index(device));
    // SAFETY: as the caller promises.
    let Some(mig) = (unsafe { mig.as_mut() }) else { return INVALID_ARGUMENT };
    // Every second place is empty, as where instances were destroyed.
    let place = if at.is_multiple_of(2) { of_gpu.nth(at as usize / 2) } else { None };
    let Some((line, _)) = place else { return NOT_FOUND };
    *mig = (FIRST_MIG + line + 1) as *mut c_void;
    SUCCESS
}

/// A set of events, of one GPU: its handle says which, once it is registered for.
struct EventSet {
    device: *mut c_void,
    told: usize,
}

/// A set without a GPU.
///
/// # Safety
/// `set` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut *mut c_void) -> c_int {
    // SAFETY: as the caller promises.
    let Some(set) = (unsafe { set.as_mut() }) else { return INVALID_ARGUMENT };
    *set = Box::into_raw(Box::new(EventSet { device: std::ptr::null_mut(), told: 0 })).cast();
    SUCCESS
}

/// Adds a GPU.
///
/// # Safety
/// `set` is one that was made and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceRegisterEvents(device: *mut c_void, _kinds: c_ulonglong, set: *mut c_void) -> c_int {
    // SAFETY: as the caller promises.
    let Some(set) = (unsafe { set.cast::<EventSet>().as_mut() }) else { return INVALID_ARGUMENT };
    set.device = device;
    SUCCESS
}

/// The next event that was not told yet; waits for none.
///
/// # Safety
/// `set` is one that was made and not freed; `data` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(set: *mut c_void, data: *mut EventData, _milliseconds: c_uint) -> c_int {
    // SAFETY: as the caller promises.
    let Some(set) = (unsafe { set.cast::<EventSet>().as_mut() }) else { return INVALID_ARGUMENT };
    let lines = statements("xid").unwrap_or_default();
    let mut of_gpu = lines.iter().filter(|words| number(words, 0) as usize == index(set.device));
    let Some(words) = of_gpu.nth(set.told) else { return TIMED_OUT };
    set.told += 1;
    if data.is_null() {
        return INVALID_ARGUMENT;
    }
    let event = EventData {
        device: set.device,
        kind: XID_EVENT,
        data: number(words, 1),
        gpu_instance: c_uint::MAX,
        compute_instance: c_uint::MAX,
    };
    // SAFETY: it can be written, as the caller promises.
    unsafe { data.write(event) };
    SUCCESS
}

/// Ends a set.
///
/// # Safety
/// `set` is one that was made and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetFree(set: *mut c_void) -> c_int {
    if !set.is_null() {
        // SAFETY: as the caller promises.
        drop(unsafe { Box::from_raw(set.cast::<EventSet>()) });
    }
    SUCCESS
}
