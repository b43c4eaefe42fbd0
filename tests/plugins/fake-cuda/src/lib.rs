//! A stand-in for the CUDA driver: the functions Roundhouse calls, over host memory.
//!
//! Virtual memory is real: a reservation is addresses that fault, a mapping is a memory file at them, and the same physical
//! memory can be mapped again elsewhere. Work of a stream is done when it is waited for. No kernel runs. Stricter than the
//! driver where that finds mistakes: addresses with mappings in them cannot be freed, and what was unmapped before its work was
//! waited for breaks the device. What can be said to it and asked of it stands in `control`.

mod control;
mod stream;
mod system;
mod world;

use std::ffi::{CStr, c_char, c_float, c_int, c_uint, c_ulonglong, c_void};
use std::os::fd::AsRawFd;

use control::world;
use stream::{Event, Side, Stream, Work};
use world::{
    Code, GRANULARITY, INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, NO_DEVICE, NOT_FOUND, NOT_READY,
    NOT_SUPPORTED, Plain, World,
};

/// `CUmemAllocationProp`.
#[repr(C)]
pub struct Properties {
    kind: c_uint,
    handles: c_uint,
    location: Location,
    metadata: *mut c_void,
    flags: [u8; 8],
}

/// `CUmemLocation`.
#[repr(C)]
pub struct Location {
    kind: c_uint,
    id: c_int,
}

/// `CUmemAccessDesc`.
#[repr(C)]
pub struct Access {
    location: Location,
    flags: c_uint,
}

/// `CUipcMemHandle`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcHandle([u8; 64]);

const DEVICE_LOCATION: c_uint = 1;
const PINNED_KIND: c_uint = 1;
const READ_WRITE: c_uint = 3;

fn call(name: &'static str, body: impl FnOnce(&mut World) -> Result<(), Code>) -> Code {
    let mut world = world();
    match world.begin(name).and_then(|()| body(&mut world)) {
        Ok(()) => 0,
        Err(code) => code,
    }
}

/// Writes an answer.
fn put<T>(place: *mut T, value: T) -> Result<(), Code> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller of the driver promises that a place that is not null can be written.
    unsafe { place.write(value) };
    Ok(())
}

/// Functions of the driver by the names they are exported under, and the table of them all.
macro_rules! driver {
    ($($name:ident, $known:literal => ($($argument:ident: $type:ty),*) |$world:ident| $body:expr;)*) => {
        $(
            /// As in the driver's interface.
            ///
            /// # Safety
            /// As in the driver's interface: pointers are null or what it says of them.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> Code {
                call($known, |$world| $body)
            }
        )*

        fn by_name(name: &str) -> Option<*mut c_void> {
            $(if name == $known || name == stringify!($name) { return Some($name as *const () as *mut c_void); })*
            None
        }
    };
}

type Pointer = usize;
type Handle = usize;

driver! {
    // === The driver, devices and contexts ===
    cuInit, "cuInit" => (_flags: c_uint) |world| if world.devices.is_empty() { Err(NO_DEVICE) } else { Ok(()) };
    cuDriverGetVersion, "cuDriverGetVersion" => (version: *mut c_int) |world| put(version, world.version);
    cuDeviceGetCount, "cuDeviceGetCount" => (count: *mut c_int) |world| put(count, world.devices.len() as c_int);
    cuDeviceGet, "cuDeviceGet" => (device: *mut c_int, index: c_int) |world| {
        world.device(index)?;
        put(device, index)
    };
    cuDeviceGetName, "cuDeviceGetName" => (name: *mut c_char, room: c_int, device: c_int) |world| {
        world.device(device)?;
        let text = format!("Fake GPU {device}\0");
        if name.is_null() || (room as usize) < text.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: there is room, as was just looked at.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
        Ok(())
    };
    cuDeviceGetUuid_v2, "cuDeviceGetUuid" => (uuid: *mut [u8; 16], device: c_int) |world| {
        world.device(device)?;
        let mut bytes = *b"\xfa\xcefake-cuda-gpu\0";
        let last = world.devices.len() as c_int - 1;
        bytes[15] = if world.backwards { last - device } else { device } as u8;
        put(uuid, bytes)
    };
    cuDeviceTotalMem_v2, "cuDeviceTotalMem" => (bytes: *mut usize, device: c_int) |world| {
        let total = world.device(device)?.total as usize;
        put(bytes, total)
    };
    // Every attribute is there: compute capability 9.0, one of anything else.
    cuDeviceGetAttribute, "cuDeviceGetAttribute" => (value: *mut c_int, attribute: c_int, device: c_int) |world| {
        world.device(device)?;
        put(value, match attribute { 75 => 9, 76 => 0, _ => 1 })
    };
    cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain" => (context: *mut Handle, device: c_int) |world| {
        let found = world.device(device)?;
        found.sound()?;
        found.held += 1;
        put(context, device as usize + 1)
    };
    cuDevicePrimaryCtxRelease_v2, "cuDevicePrimaryCtxRelease" => (device: c_int) |world| {
        let found = world.device(device)?;
        found.held = found.held.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        Ok(())
    };
    cuDevicePrimaryCtxGetState, "cuDevicePrimaryCtxGetState" =>
        (device: c_int, flags: *mut c_uint, active: *mut c_int) |world| {
        let held = world.device(device)?.held > 0;
        put(flags, 0)?;
        put(active, c_int::from(held))
    };
    cuCtxGetCurrent, "cuCtxGetCurrent" => (context: *mut Handle) |_world| {
        put(context, world::current().map_or(0, |device| device + 1))
    };
    cuCtxGetDevice, "cuCtxGetDevice" => (device: *mut c_int) |_world| {
        put(device, world::current().ok_or(INVALID_CONTEXT)? as c_int)
    };
    cuCtxSynchronize, "cuCtxSynchronize" => () |world| {
        let device = world.here()?;
        world.finish_all();
        world.devices[device].sound()
    };
    cuMemGetInfo_v2, "cuMemGetInfo" => (free: *mut usize, total: *mut usize) |world| {
        let device = world.here()?;
        put(free, world.devices[device].free() as usize)?;
        put(total, world.devices[device].total as usize)
    };

    // === Memory ===
    cuMemAlloc_v2, "cuMemAlloc" => (pointer: *mut Pointer, len: usize) |world| put(pointer, world.allocate(len)?);
    cuMemFree_v2, "cuMemFree" => (pointer: Pointer) |world| world.free(pointer, false);
    cuMemAllocHost_v2, "cuMemAllocHost" => (pointer: *mut Pointer, len: usize) |world| {
        put(pointer, world.allocate_host(len)?)
    };
    cuMemHostAlloc, "cuMemHostAlloc" => (pointer: *mut Pointer, len: usize, _flags: c_uint) |world| {
        put(pointer, world.allocate_host(len)?)
    };
    cuMemFreeHost, "cuMemFreeHost" => (pointer: Pointer) |world| world.free_host(pointer);
    cuMemGetAllocationGranularity, "cuMemGetAllocationGranularity" =>
        (granularity: *mut usize, _properties: *const Properties, _option: c_uint) |_world| {
        put(granularity, GRANULARITY)
    };
    cuMemAddressReserve, "cuMemAddressReserve" =>
        (pointer: *mut Pointer, len: usize, align: usize, _at: Pointer, _flags: c_ulonglong) |world| {
        put(pointer, world.reserve(len, align)?)
    };
    cuMemAddressFree, "cuMemAddressFree" => (pointer: Pointer, len: usize) |world| world.free_addresses(pointer, len);
    cuMemCreate, "cuMemCreate" =>
        (handle: *mut u64, len: usize, properties: *const Properties, _flags: c_ulonglong) |world| {
        // SAFETY: the caller of the driver promises that a pointer that is not null can be read.
        let wanted = unsafe { properties.as_ref() }.ok_or(INVALID_VALUE)?;
        if wanted.kind != PINNED_KIND || wanted.location.kind != DEVICE_LOCATION {
            return Err(INVALID_VALUE);
        }
        put(handle, world.create(len, wanted.location.id)?)
    };
    cuMemRelease, "cuMemRelease" => (handle: u64) |world| world.release(handle);
    cuMemMap, "cuMemMap" => (at: Pointer, len: usize, offset: usize, handle: u64, _flags: c_ulonglong) |world| {
        world.map(at, len, offset, handle)
    };
    cuMemUnmap, "cuMemUnmap" => (at: Pointer, len: usize) |world| world.unmap(at, len);
    cuMemSetAccess, "cuMemSetAccess" => (at: Pointer, len: usize, access: *const Access, count: usize) |world| {
        // SAFETY: the caller of the driver promises that a pointer that is not null can be read.
        let wanted = unsafe { access.as_ref() }.filter(|_access| count == 1).ok_or(INVALID_VALUE)?;
        if wanted.location.kind != DEVICE_LOCATION || wanted.flags != READ_WRITE {
            return Err(INVALID_VALUE);
        }
        world.device(wanted.location.id)?;
        world.open(at, len)
    };

    // === Streams and events ===
    cuStreamCreate, "cuStreamCreate" => (stream: *mut Handle, _flags: c_uint) |world| put(stream, new_stream(world)?);
    cuStreamCreateWithPriority, "cuStreamCreateWithPriority" =>
        (stream: *mut Handle, _flags: c_uint, _priority: c_int) |world| put(stream, new_stream(world)?);
    cuStreamDestroy_v2, "cuStreamDestroy" => (stream: Handle) |world| {
        let _broken = world.finish(stream);
        world.streams.remove(&stream).map(drop).ok_or(INVALID_HANDLE)
    };
    cuStreamSynchronize, "cuStreamSynchronize" => (stream: Handle) |world| world.finish(stream);
    // Whoever looks again and again sees the work go on.
    cuStreamQuery, "cuStreamQuery" => (stream: Handle) |world| {
        world.stream(stream)?;
        if world.step(stream) { Err(NOT_READY) } else { Ok(()) }
    };
    cuStreamWaitEvent, "cuStreamWaitEvent" => (stream: Handle, event: Handle, _flags: c_uint) |world| {
        let Some((other, until)) = world.events.get(&event).ok_or(INVALID_HANDLE)?.at else { return Ok(()) };
        world.ask(stream, Work::Wait { stream: other, until }, false).map(drop)
    };
    cuEventCreate, "cuEventCreate" => (event: *mut Handle, _flags: c_uint) |world| {
        world.here()?;
        let handle = world.new_handle() as usize;
        world.events.insert(handle, Event::default());
        put(event, handle)
    };
    cuEventDestroy_v2, "cuEventDestroy" => (event: Handle) |world| {
        world.events.remove(&event).map(drop).ok_or(INVALID_HANDLE)
    };
    cuEventRecord, "cuEventRecord" => (event: Handle, stream: Handle) |world| {
        world.events.get_mut(&event).ok_or(INVALID_HANDLE)?.happened = None;
        let number = world.ask(stream, Work::Record { event }, false)?;
        if let Some(event) = world.events.get_mut(&event) {
            event.at = Some((stream, number));
        }
        Ok(())
    };
    cuEventQuery, "cuEventQuery" => (event: Handle) |world| {
        match world.events.get(&event).ok_or(INVALID_HANDLE)?.at {
            Some((stream, number)) if !world.is_done(stream, number) => {
                world.step(stream);
                Err(NOT_READY)
            }
            _ => Ok(()),
        }
    };
    cuEventSynchronize, "cuEventSynchronize" => (event: Handle) |world| {
        let Some((stream, number)) = world.events.get(&event).ok_or(INVALID_HANDLE)?.at else { return Ok(()) };
        while !world.is_done(stream, number) && world.step(stream) {}
        world.here().and_then(|device| world.devices[device].sound())
    };
    cuEventElapsedTime, "cuEventElapsedTime" => (ms: *mut c_float, from: Handle, to: Handle) |world| {
        let happened = |event: Handle| world.events.get(&event).ok_or(INVALID_HANDLE)?.happened.ok_or(NOT_READY);
        put(ms, happened(to)?.duration_since(happened(from)?).as_secs_f32() * 1e3)
    };
    cuMemcpyHtoDAsync_v2, "cuMemcpyHtoDAsync" => (to: Pointer, from: Pointer, len: usize, stream: Handle) |world| {
        world.copy(stream, (Side::Device, to), (Side::Host, from), len, false)
    };
    cuMemcpyDtoHAsync_v2, "cuMemcpyDtoHAsync" => (to: Pointer, from: Pointer, len: usize, stream: Handle) |world| {
        world.copy(stream, (Side::Host, to), (Side::Device, from), len, false)
    };
    cuMemcpyDtoDAsync_v2, "cuMemcpyDtoDAsync" => (to: Pointer, from: Pointer, len: usize, stream: Handle) |world| {
        world.copy(stream, (Side::Device, to), (Side::Device, from), len, false)
    };
    cuMemcpyHtoD_v2, "cuMemcpyHtoD" => (to: Pointer, from: Pointer, len: usize) |world| {
        world.finish_all();
        world.copy(stream::DEFAULT, (Side::Device, to), (Side::Host, from), len, true)
    };
    cuMemcpyDtoH_v2, "cuMemcpyDtoH" => (to: Pointer, from: Pointer, len: usize) |world| {
        world.finish_all();
        world.copy(stream::DEFAULT, (Side::Host, to), (Side::Device, from), len, true)
    };
    cuMemcpyDtoD_v2, "cuMemcpyDtoD" => (to: Pointer, from: Pointer, len: usize) |world| {
        world.finish_all();
        world.copy(stream::DEFAULT, (Side::Device, to), (Side::Device, from), len, true)
    };
    cuMemsetD8Async, "cuMemsetD8Async" => (to: Pointer, value: u8, len: usize, stream: Handle) |world| {
        world.here()?;
        world.ask(stream, Work::Set { to, value, len }, false).map(drop)
    };
    cuMemsetD8_v2, "cuMemsetD8" => (to: Pointer, value: u8, len: usize) |world| {
        world.finish_all();
        world.ask(stream::DEFAULT, Work::Set { to, value, len }, true).map(drop)
    };

    // === Sharing between processes of one machine ===
    cuIpcGetMemHandle, "cuIpcGetMemHandle" => (handle: *mut IpcHandle, at: Pointer) |world| {
        let plain = world.plain.get(&at).ok_or(INVALID_VALUE)?;
        let memory = plain.memory.as_ref().ok_or(INVALID_VALUE)?;
        let numbers = [std::process::id() as u64, memory.as_raw_fd() as u64, plain.len as u64, plain.device as u64];
        let mut bytes = [0; 64];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        put(handle, IpcHandle(bytes))
    };
    cuIpcOpenMemHandle_v2, "cuIpcOpenMemHandle" => (at: *mut Pointer, handle: IpcHandle, _flags: c_uint) |world| {
        world.here()?;
        let number = |index: usize| {
            let bytes = handle.0.chunks_exact(8).nth(index).and_then(|bytes| bytes.try_into().ok());
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        let (process, descriptor, len, device) = (number(0), number(1), number(2) as usize, number(3) as usize);
        // A process may not open its own, as with the driver.
        if process == u64::from(std::process::id()) || len == 0 {
            return Err(INVALID_CONTEXT);
        }
        if device >= world.devices.len() {
            return Err(INVALID_DEVICE);
        }
        let path = format!("/proc/{process}/fd/{descriptor}");
        let memory = std::fs::File::options().read(true).write(true).open(path).map_err(|_gone| INVALID_VALUE)?;
        let mapped = system::map_anywhere(len, &memory).ok_or(world::MAP_FAILED)?;
        world.plain.insert(mapped, Plain { len, device, memory: None });
        put(at, mapped)
    };
    cuMemGetAddressRange_v2, "cuMemGetAddressRange" => (base: *mut Pointer, len: *mut usize, at: Pointer) |world| {
        world.here()?;
        let (start, whole) = world.plain.range(..=at).next_back().map(|(start, plain)| (*start, plain.len)).ok_or(NOT_FOUND)?;
        if at >= start + whole {
            return Err(NOT_FOUND);
        }
        put(base, start)?;
        put(len, whole)
    };
    cuIpcCloseMemHandle, "cuIpcCloseMemHandle" => (at: Pointer) |world| world.free(at, true);

    // === Kernels, of which none runs ===
    cuModuleLoadData, "cuModuleLoadData" => (module: *mut Handle, _image: *const c_void) |world| {
        world.here()?;
        put(module, world.new_handle() as usize)
    };
    cuModuleGetFunction, "cuModuleGetFunction" =>
        (function: *mut Handle, _module: Handle, _name: *const c_char) |world| {
        put(function, world.new_handle() as usize)
    };
    cuModuleUnload, "cuModuleUnload" => (_module: Handle) |_world| Ok(());
}

fn new_stream(world: &mut World) -> Result<Handle, Code> {
    let device = world.here()?;
    let handle = world.new_handle() as usize;
    world.streams.insert(handle, Stream::on(device));
    Ok(handle)
}

/// Makes a context the calling thread's; null for none. Works on a broken device, as with the driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> Code {
    world::set_current(None);
    call("cuCtxSetCurrent", |world| {
        let Some(device) = context.checked_sub(1) else { return Ok(()) };
        if world.devices.get(device).is_none_or(|device| device.held == 0) {
            return Err(INVALID_CONTEXT);
        }
        world::set_current(Some(device));
        Ok(())
    })
}

/// Nothing can be launched.
#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel() -> Code {
    call("cuLaunchKernel", |_world| Err(NOT_SUPPORTED))
}

/// The name of a code.
///
/// # Safety
/// `text` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, text: *mut *const c_char) -> Code {
    put(text, error_text(code).0.as_ptr()).err().unwrap_or(0)
}

/// A code in words.
///
/// # Safety
/// `text` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    put(text, error_text(code).1.as_ptr()).err().unwrap_or(0)
}

fn error_text(code: Code) -> (&'static CStr, &'static CStr) {
    match code {
        0 => (c"CUDA_SUCCESS", c"no error"),
        world::INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        world::OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        world::NO_DEVICE => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        world::INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        world::ILLEGAL_ADDRESS => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
        _ => (c"CUDA_ERROR_OF_THE_DOUBLE", c"an error of the double"),
    }
}

/// A function by its name, with or without its version.
///
/// # Safety
/// `name` ends in a zero; the others are null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    function: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    status: *mut c_int,
) -> Code {
    // SAFETY: as the caller promises.
    let found = unsafe { CStr::from_ptr(name) }.to_str().ok().and_then(|name| match name {
        "cuCtxSetCurrent" => Some(cuCtxSetCurrent as *const () as *mut c_void),
        "cuLaunchKernel" => Some(cuLaunchKernel as *const () as *mut c_void),
        "cuGetErrorName" => Some(cuGetErrorName as *const () as *mut c_void),
        "cuGetErrorString" => Some(cuGetErrorString as *const () as *mut c_void),
        "cuGetProcAddress" | "cuGetProcAddress_v2" => Some(cuGetProcAddress_v2 as *const () as *mut c_void),
        name => by_name(name),
    });
    let _ignored = put(status, c_int::from(found.is_none()));
    match found {
        Some(found) => put(function, found).err().unwrap_or(0),
        None => NOT_FOUND,
    }
}
