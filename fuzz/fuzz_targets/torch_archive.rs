//! Files that are to be TorchScript: whatever the bytes, they are told apart within bounds, as a whole file and as a list of
//! members alone.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use roundhouse_pytorch::archive::{central_directory, kind_of_directory};

fuzz_target!(|data: &[u8]| {
    let directory = central_directory(&mut Cursor::new(data)).expect("bytes in memory are read");
    if let Some(directory) = directory {
        assert!(directory.len() <= data.len().max(1));
        let kind = kind_of_directory(&directory);
        assert_eq!(kind, kind_of_directory(&directory));
    }
    let _ = kind_of_directory(data);
});
