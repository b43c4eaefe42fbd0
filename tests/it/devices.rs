//! What a device says of its memory, with a fake in the place of the driver's library.

use roundhouse::device::devices::Devices;
use roundhouse::device::host::Host;
use roundhouse::device::monitor::{DeviceMemory, DeviceMonitor, GpuHealth, GpuIdentity, GpuProcess};
use roundhouse::device::nvml::Nvml;
use roundhouse::error::ErrorKind;
use roundhouse::inference::DeviceId;

use crate::support::nvml::FakeNvml;

fn opened(fake: &FakeNvml) -> Devices {
    Devices { host: Host::default(), nvml: Some(Nvml::open(Some(&fake.library())).unwrap()) }
}

#[test]
fn gpus_tell_their_memory_and_what_of_it_is_ours() {
    let fake = FakeNvml::saying(
        "gpu 80000 30000 500\ngpu 40000 100 0\n\
         process 0 self 20000\nprocess 0 1 9000\nprocess 0 self 700\nprocess 0 self -\nprocess 1 1 100\n",
    );
    let devices = opened(&fake);
    let named = |index, uuid: &str| GpuIdentity { index, uuid: uuid.to_owned() };
    assert_eq!(devices.gpus(), [named(0, "GPU-fake-0"), named(1, "GPU-fake-1")]);
    let memory = |gpu| devices.memory(DeviceId::Gpu(gpu));
    assert_eq!(memory(0).unwrap(), DeviceMemory { total: 80_000, used: 30_500, ours: 20_700 });
    assert_eq!(memory(1).unwrap(), DeviceMemory { total: 40_000, used: 100, ours: 0 });
    assert_eq!(memory(2).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(devices.memory(DeviceId::Cpu).unwrap().total > 80_000);
    // The numbers are read anew each time.
    fake.say("gpu 80000 100 500\ngpu 40000 100 0\n");
    assert_eq!(memory(0).unwrap(), DeviceMemory { total: 80_000, used: 600, ours: 0 });
}

#[test]
fn a_driver_that_does_not_count_by_process_still_tells_its_memory() {
    const NOT_SUPPORTED: u32 = 3;
    let fake = FakeNvml::saying(&format!("gpu 80000 30000 0\nprocess 0 self 5\nprocesses {NOT_SUPPORTED}\n"));
    let memory = opened(&fake).memory(DeviceId::Gpu(0)).unwrap();
    assert_eq!(memory, DeviceMemory { total: 80_000, used: 30_000, ours: 0 });
}

#[test]
fn a_gpu_that_fell_off_the_bus_is_an_error_and_the_others_go_on() {
    const GPU_LOST: u32 = 15;
    let fake = FakeNvml::saying(&format!("gpu 80000 1 0 {GPU_LOST}\ngpu 80000 2 0\n"));
    let devices = opened(&fake);
    let error = devices.memory(DeviceId::Gpu(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(
        error.report().starts_with("cannot read the memory of gpu:0: device fell off the bus"),
        "{}",
        error.report()
    );
    assert_eq!(devices.memory(DeviceId::Gpu(1)).unwrap().used, 2);
}

#[test]
fn a_library_that_does_not_start_says_why() {
    const DRIVER_NOT_LOADED: u32 = 9;
    const VERSION_MISMATCH: u32 = 18;
    let reason = |code: u32| Nvml::open(Some(&FakeNvml::saying(&format!("init {code}\n")).library())).unwrap_err();
    assert_eq!(reason(DRIVER_NOT_LOADED), "the NVIDIA driver is not loaded");
    assert!(reason(VERSION_MISMATCH).contains("reboot"), "{}", reason(VERSION_MISMATCH));
    assert!(reason(999).contains("failed: an internal driver error"), "{}", reason(999));
}

#[test]
fn a_machine_may_have_the_driver_and_no_gpu() {
    let fake = FakeNvml::saying("");
    let devices = opened(&fake);
    assert!(devices.gpus().is_empty());
    assert_eq!(devices.memory(DeviceId::Gpu(0)).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_gpu_tells_its_work_and_what_it_does_not_say_is_left_open() {
    let fake = FakeNvml::saying(
        "gpu 80000 1 0\ngpu 80000 1 0\nutilization 0 75 20\npower 0 71500 300000\nenergy 0 12999\ntemperature 0 41\n\
         ecc 0 0\nretiring 0 0\nprocess 0 1 9000\nprocess 0 7 -\n",
    );
    let devices = opened(&fake);
    let reading = devices.gpu(0).unwrap();
    assert_eq!((reading.utilization, reading.memory_utilization), (Some(0.75), Some(0.2)));
    assert_eq!((reading.power, reading.power_limit), (Some(71.5), Some(300.0)));
    assert_eq!((reading.energy, reading.temperature), (Some(12), Some(41)));
    let process = |pid, bytes| GpuProcess { pid, bytes };
    assert_eq!(reading.processes, [process(1, Some(9_000)), process(7, None)]);
    assert_eq!(reading.health, GpuHealth::Well);
    let silent = devices.gpu(1).unwrap();
    assert_eq!((silent.utilization, silent.power, silent.energy, silent.temperature), (None, None, None, None));
    assert_eq!(silent.health, GpuHealth::Well, "a card without ECC is not sick");
    assert_eq!(devices.gpu(2).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_sick_gpu_is_told_from_a_program_that_went_wrong() {
    const GPU_LOST: u32 = 15;
    let said = "gpu 80000 1 0\ngpu 80000 1 0\n";
    let fake = FakeNvml::saying(said);
    let devices = opened(&fake);
    let sickness = |gpu| match devices.gpu(gpu).unwrap().health {
        GpuHealth::Well => String::new(),
        GpuHealth::Sick { reason } => reason,
    };
    fake.say(&format!("{said}xid 0 31\nxid 1 48\n"));
    assert_eq!(sickness(0), "", "a page fault of a kernel");
    assert!(sickness(1).starts_with("the driver reported XID 48"), "{}", sickness(1));
    // It has told it once and is sick from then on.
    fake.say(said);
    assert!(sickness(1).contains("XID 48"));
    fake.say(&format!("{said}ecc 0 2\n"));
    assert!(sickness(0).contains("2 uncorrectable errors"), "{}", sickness(0));
    fake.say(&format!("{said}retiring 0 1\n"));
    assert!(sickness(0).contains("wait to be retired"), "{}", sickness(0));
    fake.say(&format!("gpu 80000 1 0 {GPU_LOST}\ngpu 80000 1 0\n"));
    assert!(sickness(0).starts_with("it fell off the bus"), "{}", sickness(0));
}

#[test]
fn a_gpu_that_is_cut_is_its_mig_devices() {
    let fake = FakeNvml::saying(
        "gpu 80000 70000 0\ngpu 40000 100 0\nmig 0 20000 5000\nmig 0 10000 10\npower 0 71500 300000\n\
         utilization 0 75 20\n",
    );
    let devices = opened(&fake);
    let named = |index, uuid: &str| GpuIdentity { index, uuid: uuid.to_owned() };
    assert_eq!(devices.gpus(), [named(0, "MIG-fake-0"), named(1, "MIG-fake-1"), named(2, "GPU-fake-1")]);
    let memory = |gpu| devices.memory(DeviceId::Gpu(gpu)).unwrap();
    assert_eq!((memory(0).total, memory(1).total, memory(2).total), (20_000, 10_000, 40_000));
    assert_eq!(memory(0).used, 5_000);
    let reading = devices.gpu(1).unwrap();
    assert_eq!((reading.power, reading.utilization), (Some(71.5), None), "of the whole GPU, and not to be had");
}
