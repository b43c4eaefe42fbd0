//! The folders that are taken where none is named.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The folder runtimes are installed in: `ROUNDHOUSE_RUNTIME_DIR`, else `roundhouse/runtime` in the user's cache.
///
/// # Errors
/// `InvalidArgument` where neither that nor a home folder is set.
#[expect(clippy::disallowed_methods, reason = "folders of the user are told by the environment")]
pub fn default_runtime_dir() -> Result<PathBuf> {
    let set = std::env::var_os("ROUNDHOUSE_RUNTIME_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    set.or_else(|| user_cache().map(|cache| cache.join("runtime"))).ok_or_else(|| {
        Error::invalid(
            "neither HOME nor ROUNDHOUSE_RUNTIME_DIR is set: set one, or name the folder with --runtime-dir (serve) or --dir \
             (runtime)",
        )
    })
}

/// The folder models are fetched to: on the first NVMe disk that is mounted beside the root, else in the user's cache.
pub(super) fn default_cache_dir() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    nvme_mount(&mounts)
        .map(|mount| mount.join("roundhouse"))
        .or_else(user_cache)
        .map(|folder| folder.join("models"))
        .ok_or_else(|| Error::invalid("HOME is not set: set it, or name a folder on a fast disk with --cache-dir"))
}

/// The folder of plugins: `backends` beside this program, whether or not it is there.
pub(super) fn default_backend_directory() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(|folder| folder.join("backends"))
}

/// The first mount of an NVMe disk, in the form of proc(5), that is writable and no part of the system.
fn nvme_mount(mounts: &str) -> Option<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.into_iter().find_map(|fields| match fields[..] {
        [device, folder, _, options, ..] => {
            let is_own = device.starts_with("/dev/nvme") && options.split(',').any(|option| option == "rw");
            let is_system = ["/", "/boot", "/etc", "/usr", "/var", "/home", "/opt"]
                .iter()
                .any(|system| folder == *system || (*system != "/" && folder.starts_with(&format!("{system}/"))));
            (is_own && !is_system && !folder.contains('\\')).then(|| PathBuf::from(folder))
        }
        _ => None,
    })
}

/// Our folder in the user's cache.
#[expect(clippy::disallowed_methods, reason = "folders of the user are told by the environment")]
fn user_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("roundhouse"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_goes_to_a_disk_made_for_it() {
        let mounts = "/dev/nvme0n1p1 / ext4 rw 0 0\n/dev/nvme0n1p2 /boot/efi vfat rw 0 0\n/dev/nvme1n1 /ro ext4 ro 0 0\n\
                      /dev/nvme1n1 /mnt/fast xfs rw,noatime 0 0\n";
        assert_eq!(nvme_mount(mounts), Some("/mnt/fast".into()));
        assert_eq!(nvme_mount("/dev/sda1 /mnt/fast ext4 rw 0 0\nodd\n"), None);
    }
}
