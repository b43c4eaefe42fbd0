//! The double itself: what it holds of the driver's semantics, looked at through cudarc's raw calls.
#![expect(unsafe_code, reason = "calls of the driver as they are")]

use std::os::unix::process::ExitStatusExt;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult};
use roundhouse::device::cuda::stream::Event;
use roundhouse::device::cuda::stream::Stream;
use roundhouse::device::cuda::virtual_memory::{Mapping, PhysicalBytes, Reservation};

use crate::support::{
    MIB, PAGE, assert_nothing_is_left, context, count, folder_inside, pattern, read, run_in, say, write,
};

const MACHINE: &str = "device 1073741824";

alone! {
    on MACHINE;
    fn the_same_memory_can_be_mapped_again_elsewhere_and_keeps_what_it_holds() {
        let context = context();
        let addresses = Reservation::new(&context, 4 * PAGE).unwrap();
        let mapping = Mapping::new(&addresses, PAGE, PhysicalBytes::new(&context, PAGE).unwrap()).unwrap();
        let bytes = pattern(1, 1000);
        write(&context, addresses.address() + PAGE + 5, &bytes);
        let physical = mapping.unmap().unwrap();
        assert_eq!((count("mapped"), count("physical")), (0, PAGE));
        let again = Mapping::new(&addresses, 2 * PAGE, physical).unwrap();
        assert_eq!(read(addresses.address() + 2 * PAGE + 5, 1000), bytes);
        drop((again, addresses, context));
        assert_nothing_is_left();
    }
}

#[test]
fn a_touch_of_what_is_not_mapped_is_a_fault() {
    let Some(_folder) = folder_inside() else {
        let ended = crate::support::run_inside(module_path!(), "a_touch_of_what_is_not_mapped_is_a_fault", MACHINE);
        assert_eq!(ended.0.status.signal(), Some(libc::SIGSEGV), "{}", ended.0.status);
        return;
    };
    let context = context();
    let addresses = Reservation::new(&context, PAGE).unwrap();
    let mapping = Mapping::new(&addresses, 0, PhysicalBytes::new(&context, PAGE).unwrap()).unwrap();
    assert_eq!(read(addresses.address(), 1), [0]);
    drop(mapping);
    read(addresses.address(), 1);
}

alone! {
    on MACHINE;
    fn mappings_that_overlap_or_reach_beyond_are_refused_and_give_their_memory_back() {
        let context = context();
        let addresses = Reservation::new(&context, 2 * PAGE).unwrap();
        let memory = |len| PhysicalBytes::new(&context, len).unwrap();
        let _mapping = Mapping::new(&addresses, 0, memory(PAGE)).unwrap();
        assert!(Mapping::new(&addresses, 0, memory(PAGE)).is_err());
        assert!(Mapping::new(&addresses, PAGE, memory(2 * PAGE)).is_err());
        assert!(PhysicalBytes::new(&context, PAGE + 1).is_err(), "no multiple of the granularity");
        assert_eq!((count("handles"), count("used 0")), (1, PAGE));
    }
}

alone! {
    on MACHINE;
    fn a_stream_that_was_not_waited_for_finds_no_memory_and_breaks_the_device() {
        let context = context();
        let addresses = Reservation::new(&context, PAGE).unwrap();
        let mapping = Mapping::new(&addresses, 0, PhysicalBytes::new(&context, PAGE).unwrap()).unwrap();
        let stream = Stream::new(&context, 0).unwrap();
        // SAFETY: the double checks what it is given; host memory lives through the call.
        let code = unsafe { sys::cuMemsetD8Async(addresses.address(), 7, 16, stream.handle() as sys::CUstream) };
        assert_eq!(code, CUresult::CUDA_SUCCESS);
        assert_eq!(count("pending"), 1, "nothing is done before somebody waits");
        drop(mapping);
        let error = stream.synchronize().unwrap_err();
        assert!(error.report().contains("an illegal memory access"), "{}", error.report());
        assert!(context.is_lost());
        assert!(context.memory().is_err(), "and from then on every call");
    }
}

alone! {
    on MACHINE;
    fn streams_wait_for_events_of_each_other() {
        let context = context();
        let addresses = Reservation::new(&context, PAGE).unwrap();
        let _mapping = Mapping::new(&addresses, 0, PhysicalBytes::new(&context, PAGE).unwrap()).unwrap();
        let (first, second) = (Stream::new(&context, 0).unwrap(), Stream::new(&context, -1).unwrap());
        let set = |stream: &Stream, value| {
            // SAFETY: the double checks what it is given; host memory lives through the call.
            let code = unsafe { sys::cuMemsetD8Async(addresses.address(), value, 4, stream.handle() as sys::CUstream) };
            assert_eq!(code, CUresult::CUDA_SUCCESS);
        };
        set(&first, 1);
        let event = Event::new(&context).unwrap();
        event.record(&first).unwrap();
        second.wait(&event).unwrap();
        set(&second, 2);
        assert!(!event.is_done().unwrap());
        second.synchronize().unwrap();
        assert!(event.is_done().unwrap(), "the second stream could not go on before it");
        assert_eq!(read(addresses.address(), 4), [2; 4]);
        event.synchronize().unwrap();
    }
}

alone! {
    on MACHINE;
    fn knobs_fail_the_nth_call_and_count_every_one() {
        let context = context();
        say("fail cuMemCreate 2 2");
        let _first = PhysicalBytes::new(&context, PAGE).unwrap();
        assert!(PhysicalBytes::new(&context, PAGE).is_err());
        let _third = PhysicalBytes::new(&context, PAGE).unwrap();
        assert_eq!(count("calls cuMemCreate"), 3);
        say("fail cuMemCreate 0 2");
        assert!(PhysicalBytes::new(&context, PAGE).is_err());
        assert!(PhysicalBytes::new(&context, PAGE).is_err());
        say("heal\nothers 0 1069547520");
        assert_eq!(context.memory().unwrap(), (0, 1024 * MIB), "another process has the rest");
        assert!(PhysicalBytes::new(&context, PAGE).is_err());
    }
}

alone! {
    on MACHINE;
    fn no_kernel_is_launched() {
        let context = context();
        context.memory().unwrap();
        // SAFETY: the double checks what it is given; host memory lives through the call.
        let launched = unsafe {
            let function = std::ptr::null_mut();
            let nothing = &mut [];
            result::launch_kernel(function, (1, 1, 1), (1, 1, 1), 0, std::ptr::null_mut(), nothing)
        };
        assert_eq!(launched.unwrap_err().0, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
}

/// The other process of the test below: opens what it is told of, changes it, and goes.
#[test]
fn memory_is_shared_between_processes() {
    let folder = folder_inside();
    let Some(folder) = folder else {
        crate::support::run_inside(module_path!(), "memory_is_shared_between_processes", MACHINE).expect_success();
        return;
    };
    let context = context();
    context.memory().unwrap();
    let note = folder.join("shared");
    if let Ok(bytes) = std::fs::read(&note) {
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        for (to, from) in handle.reserved.iter_mut().zip(bytes) {
            *to = from as std::ffi::c_char;
        }
        let mut address = 0;
        // SAFETY: the double checks what it is given; host memory lives through the call.
        unsafe {
            sys::cuIpcOpenMemHandle_v2(&raw mut address, handle, 1).result().unwrap();
            assert_eq!(read(address, 3), b"one");
            result::memset_d8_sync(address, b'2', 3).unwrap();
            sys::cuIpcCloseMemHandle(address).result().unwrap();
        }
        return;
    }
    // SAFETY: the double checks what it is given; host memory lives through the call.
    unsafe {
        let address = result::malloc_sync(MIB as usize).unwrap();
        result::memcpy_htod_sync(address, b"one").unwrap();
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        sys::cuIpcGetMemHandle(&raw mut handle, address).result().unwrap();
        std::fs::write(&note, handle.reserved.map(|byte| byte as u8)).unwrap();
        run_in(&folder, module_path!(), "memory_is_shared_between_processes").expect_success();
        assert_eq!(read(address, 3), b"222");
        result::free_sync(address).unwrap();
    }
    drop(context);
    assert_nothing_is_left();
}
