//! Regions over real objects of this machine.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

/// An object that goes with the test.
struct Object {
    key: String,
    path: PathBuf,
}

impl Object {
    fn new(content: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let key = format!("/rh-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(format!("/dev/shm{key}"));
        std::fs::write(&path, content).unwrap();
        Self { key, path }
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn truncate(&self, bytes: u64) {
        std::fs::OpenOptions::new().write(true).open(&self.path).unwrap().set_len(bytes).unwrap();
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn place(region: &str, offset: u64, byte_size: u64) -> RegionSpec {
    RegionSpec { region: region.into(), offset, byte_size }
}

fn refused<T>(result: Result<T>) -> (ErrorKind, String) {
    let error = result.err().unwrap();
    (error.kind(), error.report())
}

#[test]
fn bytes_are_read_and_written_where_the_region_lies() {
    let object = Object::new(b"0123456789");
    let memory = SharedMemory::new(true);
    memory.register_system("r", &object.key, 2, 6).unwrap();
    assert_eq!(memory.slice(&place("r", 1, 5)).unwrap().read().unwrap(), "34567");
    memory.slice(&place("r", 4, 2)).unwrap().write(b"ab").unwrap();
    assert_eq!(object.content(), b"012345ab89");
    let (kind, text) = refused(memory.slice(&place("r", 4, 2)).unwrap().write(b"abc"));
    assert_eq!((kind, text.as_str()), (ErrorKind::InvalidArgument, "2 bytes of region 'r' are too few for 3 bytes"));
    let (_, text) = refused(memory.slice(&place("r", 6, 1)));
    assert!(text.starts_with("Invalid offset for shared memory region: 'r'"), "{text}");
    let (_, text) = refused(memory.slice(&place("r", 5, 2)));
    assert!(text.starts_with("Invalid offset + byte size for shared memory region: 'r'"), "{text}");
    assert_eq!(refused(memory.slice(&place("s", 0, 1))).0, ErrorKind::NotFound);
}

#[test]
fn a_region_in_use_outlives_its_name_and_its_object() {
    let object = Object::new(b"abcd");
    let memory = SharedMemory::new(true);
    memory.register_system("r", &object.key, 0, 4).unwrap();
    let slice = memory.slice(&place("r", 0, 4)).unwrap();
    memory.unregister_system(Some("r")).unwrap();
    assert_eq!(refused(memory.system_status(Some("r"))).0, ErrorKind::NotFound);
    drop(object);
    assert_eq!(slice.read().unwrap(), "abcd");
    memory.unregister_system(Some("r")).unwrap();
}

#[test]
fn an_object_that_shrank_is_neither_read_nor_extended() {
    let object = Object::new(&[7; 100]);
    let memory = SharedMemory::new(true);
    memory.register_system("r", &object.key, 0, 100).unwrap();
    let slice = memory.slice(&place("r", 0, 100)).unwrap();
    object.truncate(99);
    for (kind, text) in [refused(slice.read()), refused(slice.write(&[1; 100]))] {
        assert_eq!(kind, ErrorKind::InvalidArgument);
        assert!(text.contains("has become shorter"), "{text}");
    }
    assert_eq!(object.content(), [7; 99]);
    slice.write(&[1; 99]).unwrap();
}

#[test]
fn what_cannot_be_registered_says_why() {
    let object = Object::new(b"abcd");
    let memory = SharedMemory::new(true);
    memory.register_system("r", &object.key, 0, 4).unwrap();
    let taken = refused(memory.register_system("r", &object.key, 0, 4));
    assert_eq!(taken, (ErrorKind::InvalidArgument, "shared memory region 'r' already in manager".to_owned()));
    let (kind, text) = refused(memory.register_system("q", "/nope-nope", 0, 4));
    assert_eq!(kind, ErrorKind::Internal);
    assert!(text.starts_with("Unable to open shared memory region: '/nope-nope'"), "{text}");
    let long = "k".repeat(256);
    for key in ["", "/", "///", "/a/b", "..", "/..", "a\0b", "/triton_python_backend_shm_region_1", &long] {
        let (kind, text) = refused(memory.register_system("q", key, 0, 4));
        assert_eq!(kind, ErrorKind::InvalidArgument, "{key}");
        assert!(text.contains("cannot register shared memory region 'q' with key"), "{text}");
    }
    for (offset, byte_size) in [(0, 5), (4, 1), (0, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let (kind, text) = refused(memory.register_system("q", &object.key, offset, byte_size));
        assert_eq!(kind, ErrorKind::InvalidArgument);
        assert!(text.contains("'q': invalid args"), "{text}");
    }
    let too_long = "n".repeat(MAX_NAME_BYTES + 1);
    for name in ["", &too_long] {
        assert_eq!(refused(memory.register_system(name, &object.key, 0, 4)).0, ErrorKind::InvalidArgument);
    }
    let names: Vec<_> = memory.system_status(None).unwrap().into_iter().map(|region| region.name).collect();
    assert_eq!(names, ["r"]);
}

#[test]
fn links_and_folders_are_no_objects() {
    let object = Object::new(b"abcd");
    let link = Object::new(b"");
    std::fs::remove_file(&link.path).unwrap();
    std::os::unix::fs::symlink(&object.path, &link.path).unwrap();
    let memory = SharedMemory::new(true);
    assert_eq!(refused(memory.register_system("r", &link.key, 0, 4)).0, ErrorKind::Internal);
    std::fs::remove_file(&link.path).unwrap();
    std::fs::create_dir(&link.path).unwrap();
    let (kind, text) = refused(memory.register_system("r", &link.key, 0, 4));
    std::fs::remove_dir(&link.path).unwrap();
    assert_eq!(kind, ErrorKind::Internal, "{text}");
}

#[test]
fn there_are_only_so_many_regions() {
    let object = Object::new(b"abcd");
    let memory = SharedMemory::new(true);
    let mut registered = 0;
    let refusal = loop {
        // A machine that allows fewer descriptors refuses earlier.
        match memory.register_system(&format!("r{registered}"), &object.key, 0, 4) {
            Ok(()) => registered += 1,
            Err(error) => break error,
        }
    };
    let full = registered == MAX_REGIONS && refusal.kind() == ErrorKind::TooLarge;
    assert!(full || refusal.report().contains("Too many open files"), "{registered}: {}", refusal.report());
    memory.unregister_system(None).unwrap();
    memory.register_system("r", &object.key, 0, 4).unwrap();
}

#[test]
fn nothing_works_where_it_is_off_and_the_flag_is_named() {
    let memory = SharedMemory::new(false);
    let object = Object::new(b"abcd");
    let refusals = [
        refused(memory.register_system("r", &object.key, 0, 4)),
        refused(memory.system_status(None)),
        refused(memory.unregister_system(None)),
        refused(memory.register_cuda("r", &[0; 64], 0, 4)),
        refused(memory.cuda_status(None)),
        refused(memory.unregister_cuda(None)),
        refused(memory.slice(&place("r", 0, 4))),
    ];
    for (kind, text) in refusals {
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains("--allow-client-shm"), "{text}");
    }
}

#[test]
fn cuda_regions_wait_for_a_driver() {
    let memory = SharedMemory::new(true);
    assert_eq!(refused(memory.register_cuda("c", &[0; 63], 0, 4)).0, ErrorKind::InvalidArgument);
    assert_eq!(refused(memory.register_cuda("c", &[0; 64], 0, 4)).0, ErrorKind::Unsupported);
    assert_eq!(memory.cuda_status(None).unwrap(), []);
    assert_eq!(refused(memory.cuda_status(Some("c"))).0, ErrorKind::NotFound);
}

proptest! {
    #[test]
    fn a_slice_is_there_exactly_where_its_region_has_the_bytes(
        offset in prop_oneof![0_u64..12, any::<u64>(), u64::MAX - 12..],
        byte_size in prop_oneof![0_u64..12, any::<u64>(), u64::MAX - 12..],
    ) {
        let object = Object::new(b"0123456789");
        let memory = SharedMemory::new(true);
        memory.register_system("r", &object.key, 1, 8).unwrap();
        let fits = u128::from(offset) + u128::from(byte_size) <= 8 && (offset < 8 || offset == 0);
        match memory.slice(&place("r", offset, byte_size)) {
            Ok(slice) => {
                prop_assert!(fits);
                let from = usize::try_from(offset).unwrap() + 1;
                let length = usize::try_from(byte_size).unwrap();
                let read = slice.read().unwrap();
                prop_assert_eq!(&read[..], &b"0123456789"[from..from + length]);
            }
            Err(error) => {
                prop_assert!(!fits);
                prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            }
        }
    }
}
