//! Archives: whatever they hold, unpacking ends, and nothing comes out beside the target folder.
//!
//! The first byte says what is done to the rest: 0 nothing, 1 gzip around it, 2 Zstandard around it, 3 the sums of a tar's
//! headers are made right first, 4 that and gzip; so that the fuzzer gets behind the checksums.

#![no_main]

use std::io::{Cursor, Write};
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use roundhouse::artifact::{Everything, Limits, unpack};

fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    let mut archive = rest.to_vec();
    if matches!(how, 3 | 4) {
        for block in archive.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    let archive = match how {
        1 | 4 => gzip(&archive),
        2 => zstd::encode_all(&archive[..], 1).expect("compressing into memory"),
        _ => archive,
    };
    let root = Path::new("/tmp").join(format!("roundhouse-fuzz-{}", std::process::id()));
    let (target, canary) = (root.join("target"), root.join("canary"));
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(&target).expect("a target");
    std::fs::create_dir(&canary).expect("a canary");
    let limits = Limits { entries: 200, bytes: 1 << 20, ..Limits::default() };
    let length = archive.len() as u64;
    match unpack(Cursor::new(archive), length, &target, &limits, &mut Everything, &mut Everything) {
        Ok(unpacked) => {
            assert!(unpacked.bytes <= limits.bytes && unpacked.files.len() as u64 <= limits.entries);
            for (path, bytes) in &unpacked.files {
                let found = target.join(path).symlink_metadata().expect("what is reported is there");
                assert!(found.is_file() && found.len() == *bytes);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert_eq!(canary.read_dir().expect("the canary").count(), 0);
    assert_eq!(root.read_dir().expect("the root").count(), 2);
    let _ = std::fs::remove_dir_all(&root);
});

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compressing into memory");
    encoder.finish().expect("compressing into memory")
}
