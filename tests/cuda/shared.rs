//! Memory of a GPU that a client shares: two processes on one machine, each with the driver open.
#![expect(unsafe_code, reason = "calls of the double, as a client's CUDA runtime makes them")]

use std::ffi::{c_int, c_void};

use roundhouse::error::ErrorKind;
use roundhouse::server::shared_memory::{RegionSpec, SharedMemory};

use crate::support::{assert_nothing_is_left, context, count, folder_inside, function, pattern, read, run_in, write};

const MACHINE: &str = "device 1073741824\ndevice 1073741824";
const BYTES: u64 = 100_000;

/// What the client does: memory of its own, and the handle of it.
fn allocate() -> (u64, [u8; 64]) {
    let (mut at, mut handle) = (0_u64, [0_u8; 64]);
    type Allocate = unsafe extern "C" fn(*mut u64, usize) -> c_int;
    type Export = unsafe extern "C" fn(*mut [u8; 64], u64) -> c_int;
    // SAFETY: the functions' types are what the driver's interface says; the places live through the calls.
    unsafe {
        let allocate = std::mem::transmute::<*mut c_void, Allocate>(function("cuMemAlloc_v2"));
        assert_eq!(allocate(&raw mut at, BYTES as usize), 0);
        let export = std::mem::transmute::<*mut c_void, Export>(function("cuIpcGetMemHandle"));
        assert_eq!(export(&raw mut handle, at), 0);
    }
    (at, handle)
}

fn place(offset: u64, byte_size: u64) -> RegionSpec {
    RegionSpec { region: "r".into(), offset, byte_size }
}

alone! {
    on MACHINE;
    fn tensors_are_read_from_a_clients_memory_and_written_to_it() {
        let context = context();
        // Makes the context this thread's, as a client's runtime does.
        context.memory().unwrap();
        let (at, handle) = allocate();
        write(&context, at, &pattern(1, BYTES));
        let folder = folder_inside().unwrap();
        std::fs::write(folder.join("handle"), handle).unwrap();
        run_in(&folder, module_path!(), "what_the_server_does_with_a_clients_memory").expect_success();
        let found = read(at, BYTES);
        assert_eq!(found[..1000], pattern(1, 1000));
        assert_eq!(found[1000..1500], pattern(2, 500));
        assert_eq!(found[1500..], pattern(1, BYTES)[1500..]);
        // The handles of a process are for others.
        let refused = SharedMemory::new(true).register_cuda("own", &handle, 0, BYTES).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(refused.to_string().contains("must be of another process on this machine"), "{refused}");
    }
}

#[test]
#[ignore = "the other half of the test above, which runs it"]
fn what_the_server_does_with_a_clients_memory() {
    let handle = std::fs::read(folder_inside().unwrap().join("handle")).unwrap();
    let memory = SharedMemory::new(true);
    for (device, bytes, text) in [
        (0, BYTES + 1, "region 'r': byte_size 100001 does not fit: the memory has 100000 bytes"),
        (0, 0, "byte_size 0 does not fit"),
        (2, BYTES, "device_id must be from 0 to 1, got 2"),
        (-1, BYTES, "device_id must be from 0 to 1, got -1"),
    ] {
        let refused = memory.register_cuda("r", &handle, device, bytes).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        assert!(refused.to_string().contains(text), "{refused}");
    }
    assert_eq!(memory.register_cuda("r", &[7; 64], 0, BYTES).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_nothing_is_left();

    memory.register_cuda("r", &handle, 0, BYTES).unwrap();
    let taken = memory.register_cuda("r", &handle, 0, BYTES).unwrap_err();
    assert!(taken.to_string().contains("already in manager"), "{taken}");
    let rows = memory.cuda_status(None).unwrap();
    assert_eq!(rows.iter().map(|row| (row.device_id, row.byte_size)).collect::<Vec<_>>(), [(0, BYTES)]);
    assert_eq!(memory.system_status(None).unwrap(), []);
    let other = memory.system_status(Some("r")).unwrap_err();
    assert!(other.to_string().contains("registered as CUDA shared memory, not system"), "{other}");
    assert_eq!(memory.slice(&place(1, BYTES)).map(drop).unwrap_err().kind(), ErrorKind::InvalidArgument);

    let slice = memory.slice(&place(1000, 500)).unwrap();
    assert!(slice.is_on_gpu());
    assert_eq!(slice.read().unwrap(), pattern(1, BYTES)[1000..1500]);
    slice.write(&pattern(2, 500)).unwrap();
    assert_eq!(slice.read().unwrap(), pattern(2, 500));
    assert_eq!(slice.write(&[0; 501]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    // What a request holds outlives the name; what is of another kind is not meant.
    memory.unregister_system(None).unwrap();
    assert_eq!(memory.cuda_status(None).unwrap().len(), 1);
    memory.unregister_cuda(Some("r")).unwrap();
    assert_eq!((memory.cuda_status(None).unwrap().len(), count("contexts 0")), (0, 1));
    assert_eq!(slice.read().unwrap(), pattern(2, 500));
    drop(slice);
    assert_nothing_is_left();
}
