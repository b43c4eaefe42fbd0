//! Whether there is a driver, which devices it has, and what becomes of its errors.

use std::fs;

use roundhouse::device::cuda::driver::Driver;
use roundhouse::device::cuda::stream::Stream;
use roundhouse::device::cuda::virtual_memory::PhysicalBytes;
use roundhouse::error::ErrorKind;
use roundhouse::inference::DeviceId;

use crate::support::{MIB, PAGE, context, count, folder_inside, libraries, run_in, say};

const DRIVER_MISMATCH: u32 = 803;
const FELL_OFF: u32 = 46;

alone! {
    on "device 1073741824\ndevice 2147483648";
    fn devices_tell_their_name_identifier_and_memory() {
        let driver = Driver::open().unwrap();
        assert_eq!((driver.devices(), driver.version().as_str()), (2, "13.0"));
        let second = driver.context(1).unwrap();
        assert_eq!((second.id(), second.name()), (DeviceId::Gpu(1), "Fake GPU 1"));
        assert_eq!(second.uuid(), "GPU-face6661-6b65-2d63-7564-612d67707501");
        assert_eq!(second.memory().unwrap(), (2048 * MIB, 2048 * MIB));
        assert_eq!(second.granularity(), PAGE);
        assert_eq!((count("contexts 0"), count("contexts 1")), (0, 1));
        let first = driver.context(0).unwrap();
        assert_eq!(first.memory().unwrap().1, 1024 * MIB, "the thread's device is the one that is asked");
        assert_eq!(driver.context(2).unwrap_err().kind(), ErrorKind::NotFound);
        drop((first, second));
        assert_eq!((count("contexts 0"), count("contexts 1")), (0, 0));
    }
}

alone! {
    on "device 1\nversion 11080";
    fn a_driver_that_is_too_old_says_what_to_do() {
        let reason = Driver::open().unwrap_err();
        assert_eq!(reason, "the CUDA driver is too old: it is for CUDA 11.8; update it to one for 12.0 or newer");
    }
}

alone! {
    on "";
    fn a_driver_without_a_gpu_is_a_normal_state() {
        assert_eq!(Driver::open().unwrap_err(), "the CUDA driver sees no GPU");
    }
}

alone! {
    on &format!("device 1\nfail cuInit 0 {DRIVER_MISMATCH}");
    fn a_driver_that_was_updated_under_its_library_says_so() {
        let reason = Driver::open().unwrap_err();
        assert!(reason.contains("reboot after an update"), "{reason}");
    }
}

#[test]
fn a_library_that_lacks_a_function_is_no_panic() {
    if folder_inside().is_some() {
        let reason = Driver::open().unwrap_err();
        assert!(reason.starts_with("the CUDA driver lacks cu"), "{reason}");
        assert!(reason.ends_with("update it to one for CUDA 12.0 or newer"), "{reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A library, and not this one. cudarc looks for this name first, on a machine with a driver too.
    fs::copy(&libraries().1, folder.path().join("libcuda.so")).unwrap();
    run_in(folder.path(), module_path!(), "a_library_that_lacks_a_function_is_no_panic").expect_success();
}

#[test]
fn a_machine_without_a_driver_says_so_in_words() {
    if folder_inside().is_some() {
        // Where there is a driver after all, it is found.
        let reason = Driver::open().map_or_else(|reason| reason, |driver| format!("{} devices", driver.devices()));
        let found = reason.ends_with(" devices") || reason.contains("sees no GPU");
        assert!(found || reason.ends_with("cannot be loaded: is the NVIDIA driver installed?"), "{reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    run_in(folder.path(), module_path!(), "a_machine_without_a_driver_says_so_in_words").expect_success();
}

alone! {
    on "device 4194304";
    fn what_is_lacking_has_a_kind_and_a_lost_device_is_remembered() {
        let context = context();
        let full = PhysicalBytes::new(&context, 3 * PAGE).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::OutOfDeviceMemory);
        assert_eq!(
            full.report(),
            "gpu:0 has no such memory left: cuMemCreate: out of memory (CUDA_ERROR_OUT_OF_MEMORY)"
        );
        assert_eq!(PhysicalBytes::new(&context, 1).unwrap_err().kind(), ErrorKind::Internal);
        assert!(!context.is_lost());
        let held = PhysicalBytes::new(&context, PAGE).unwrap();
        let stream = Stream::new(&context, 0).unwrap();
        say(&format!("lost 0 {FELL_OFF}"));
        let lost = stream.synchronize().unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::NotReady);
        assert!(lost.to_string().starts_with("gpu:0 is lost to this process: look at nvidia-smi"), "{lost}");
        assert!(context.is_lost());
        drop((held, stream));
        assert_eq!(context.failed_drops(), 2, "what a lost device keeps is counted");
    }
}
