//! How full a disk is.

use std::path::Path;

/// A disk's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// What there is, without what is kept for root.
    pub total: u64,
    /// What is in use, by anybody.
    pub used: u64,
}

/// The disk that `path` is on; `None` where there is no such path.
#[must_use]
pub fn disk_space(path: &Path) -> Option<DiskSpace> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let used = disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize);
    Some(DiskSpace { total: used.saturating_add(disk.f_bavail.saturating_mul(disk.f_frsize)), used })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_holds_no_more_than_it_has() {
        let space = disk_space(Path::new("/")).unwrap();
        assert!(space.total > 0 && space.used <= space.total, "{space:?}");
        assert_eq!(disk_space(Path::new("/no/such/folder")), None);
    }
}
