//! What an archive may grow to, checked while it grows.

use super::{Limits, Space};
use crate::artifact::path::shown;
use crate::error::{Error, Result};

/// What is unpacked before the ratio counts, in bytes: small archives of zeros are no bombs.
const FREE_OF_RATIO: u64 = 64 << 20;

/// The most space asked for at once, in bytes.
const STEP: u64 = 64 << 20;

/// The running sums of one archive.
pub(super) struct Guard<'a> {
    limits: &'a Limits,
    space: &'a mut dyn Space,
    entries: u64,
    bytes: u64,
}

/// One file's room: what it said it needs, less what was asked for.
pub(super) struct Room {
    /// Not asked for yet.
    wanted: u64,
    /// Asked for and not written yet.
    taken: u64,
}

impl<'a> Guard<'a> {
    pub(super) fn new(limits: &'a Limits, space: &'a mut dyn Space) -> Self {
        Self { limits, space, entries: 0, bytes: 0 }
    }

    /// Counts one entry; records that only describe others count as well.
    pub(super) fn entry(&mut self) -> Result<()> {
        self.entries += 1;
        self.entries_fit(self.entries)
    }

    /// Whether so many entries may be.
    pub(super) fn entries_fit(&self, entries: u64) -> Result<()> {
        if entries > self.limits.entries {
            return Err(Error::too_large(format!(
                "the archive has more than {} entries: pack fewer files, or several models apart",
                self.limits.entries
            )));
        }
        Ok(())
    }

    /// Counts a file that says it has `size` bytes.
    pub(super) fn file(&mut self, raw: &[u8], size: u64) -> Result<Room> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(Error::too_large(format!(
                "archive entry '{}' of {size} bytes makes the archive unpack to more than {} bytes",
                shown(raw),
                self.limits.bytes
            )));
        }
        Ok(Room { wanted: size, taken: 0 })
    }

    /// Asks for space before `bytes` of the file are written. The writer never passes the file's size.
    pub(super) fn cover(&mut self, room: &mut Room, bytes: u64) -> Result<()> {
        while room.taken < bytes && room.wanted > 0 {
            let step = room.wanted.min(STEP.max(bytes - room.taken));
            self.space.take(step)?;
            room.wanted -= step;
            room.taken += step;
        }
        room.taken = room
            .taken
            .checked_sub(bytes)
            .ok_or_else(|| Error::internal("more was unpacked than the archive's entry announced"))?;
        Ok(())
    }

    /// Checks what came out against what went in, both in bytes.
    pub(super) fn ratio(&self, unpacked: u64, packed: u64) -> Result<()> {
        let allowed = packed.saturating_mul(self.limits.ratio).max(FREE_OF_RATIO);
        if unpacked > allowed {
            return Err(Error::too_large(format!(
                "the archive unpacks to more than {} times its size: publish it uncompressed if that is right",
                self.limits.ratio
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[derive(Default)]
    struct Book(Vec<u64>);

    impl Space for Book {
        fn take(&mut self, bytes: u64) -> Result<()> {
            self.0.push(bytes);
            Ok(())
        }
    }

    #[test]
    fn space_is_asked_for_in_steps_and_sums_to_the_files_size() {
        let (limits, mut book) = (Limits::default(), Book::default());
        let mut guard = Guard::new(&limits, &mut book);
        let mut room = guard.file(b"x", (64 << 20) * 2 + 5).unwrap();
        for _ in 0..(64 * 2 * 4) {
            guard.cover(&mut room, 256 << 10).unwrap();
        }
        guard.cover(&mut room, 5).unwrap();
        assert_eq!(guard.cover(&mut room, 1).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(book.0, [64 << 20, 64 << 20, 5]);
    }

    #[test]
    fn a_ratio_counts_beyond_the_first_bytes_alone() {
        let (limits, mut book) = (Limits::default(), Book::default());
        let guard = Guard::new(&limits, &mut book);
        assert!(guard.ratio(64 << 20, 0).is_ok());
        assert!(guard.ratio(200 << 20, 1 << 20).is_ok());
        assert_eq!(guard.ratio((200 << 20) + 1, 1 << 20).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
