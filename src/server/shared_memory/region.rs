//! One registered system region: an open descriptor, read and written by position.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use compact_str::CompactString;
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::{Errno, pread, pwrite};

use super::SystemRegion;
use crate::error::{Error, Result};

/// Where Linux keeps POSIX shared memory objects.
const FOLDER: &str = "/dev/shm/";

/// An open object and the bytes of it that were registered. Closed with the last reference.
pub(super) struct Region {
    key: CompactString,
    object: OwnedFd,
    /// Within the object when it was registered; the sum fits an `i64`.
    offset: u64,
    byte_size: u64,
}

impl Region {
    /// Opens the object of this file name. Links are not followed, and what is no file is refused.
    pub(super) fn open(name: &str, key: &str, file: &str, offset: u64, byte_size: u64) -> Result<Self> {
        // O_NONBLOCK: a pipe that somebody put there is not waited for.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let unopened = || format!("Unable to open shared memory region: '{key}'");
        let object = rustix::fs::open(format!("{FOLDER}{file}"), flags, Mode::empty())
            .map_err(|error| Error::internal(unopened()).with_source(error))?;
        let stat = fstat(&object).map_err(|error| Error::internal(unopened()).with_source(error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::internal(format!("{}: it is no shared memory object", unopened())));
        }
        let there = u64::try_from(stat.st_size).unwrap_or(0);
        if byte_size == 0 || !is_within(offset, byte_size, there) {
            return Err(Error::invalid(format!(
                "failed to register shared memory region '{name}': invalid args: offset {offset} and byte_size {byte_size}, \
                 the object has {there} bytes"
            )));
        }
        Ok(Self { key: key.into(), object, offset, byte_size })
    }

    pub(super) const fn byte_size(&self) -> u64 {
        self.byte_size
    }

    pub(super) fn status(&self, name: &str) -> SystemRegion {
        SystemRegion { name: name.into(), key: self.key.clone(), offset: self.offset, byte_size: self.byte_size }
    }

    /// Reads `length` bytes from `offset` of the region, both checked against it by the caller.
    pub(super) fn read(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        let mut at = self.check(name, offset, length)?;
        let no_memory = || Error::too_large(format!("no memory for {length} bytes of shared memory region '{name}'"));
        let length = usize::try_from(length).map_err(|_| no_memory())?;
        let mut data = Vec::new();
        data.try_reserve_exact(length).map_err(|_| no_memory())?;
        while data.len() < length {
            match pread(&self.object, spare_capacity(&mut data), at) {
                Ok(0) => return Err(shrunk(name)),
                Ok(count) => at += count as u64,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("read", name, error)),
            }
        }
        // The allocator may have given more than was asked for.
        data.truncate(length);
        Ok(data.into())
    }

    /// Writes to `offset` of the region; the caller has checked both against it. An object is never made longer, but for a
    /// client that truncates its own between our look and our write.
    pub(super) fn write(&self, name: &str, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = self.check(name, offset, data.len() as u64)?;
        let mut rest = data;
        while !rest.is_empty() {
            match pwrite(&self.object, rest, at) {
                Ok(0) => return Err(failed("write", name, Errno::NOSPC)),
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("write", name, error)),
            }
        }
        Ok(())
    }

    /// Where in the object the bytes lie, if it still has them.
    fn check(&self, name: &str, offset: u64, length: u64) -> Result<u64> {
        let stat = fstat(&self.object).map_err(|error| failed("look at", name, error))?;
        let there = u64::try_from(stat.st_size).unwrap_or(0);
        match self.offset.checked_add(offset) {
            Some(at) if is_within(at, length, there) => Ok(at),
            _ => Err(shrunk(name)),
        }
    }
}

/// Whether `length` bytes from `offset` lie within `whole`.
fn is_within(offset: u64, length: u64, whole: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= whole)
}

#[cold]
fn shrunk(name: &str) -> Error {
    Error::invalid(format!(
        "shared memory region '{name}' has become shorter than it was registered: unregister it and register it anew"
    ))
}

#[cold]
fn failed(what: &str, name: &str, error: Errno) -> Error {
    Error::internal(format!("cannot {what} shared memory region '{name}'")).with_source(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bounds_are_those_of_exact_arithmetic(
            offset in prop_oneof![0_u64..64, any::<u64>(), u64::MAX - 64..],
            length in prop_oneof![0_u64..64, any::<u64>(), u64::MAX - 64..],
            whole in prop_oneof![0_u64..128, any::<u64>()],
        ) {
            let exact = u128::from(offset) + u128::from(length) <= u128::from(whole);
            prop_assert_eq!(is_within(offset, length, whole), exact);
        }
    }
}
