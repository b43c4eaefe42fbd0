//! Files that are read again when they change: certificates, tokens. They are looked at once a second rather than
//! subscribed to: that sees the swapped symbolic links of Kubernetes' secrets and network disks as well.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from another: device, inode, length in bytes, time of change; links are followed.
/// `None` where it is not there.
type Stamp = Option<(u64, u64, u64, SystemTime)>;

/// Files that belong together, and how they are read anew.
pub struct Watched {
    what: &'static str,
    paths: Vec<PathBuf>,
    /// As they were when they were last read.
    read: Vec<Stamp>,
    /// As they were when they were last looked at.
    looked: Vec<Stamp>,
    reload: Box<dyn Fn() -> Result<()> + Send>,
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        let changed = metadata.modified().ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.len(), changed))
    };
    paths.iter().map(stamp).collect()
}

impl Watched {
    /// Watches `paths` from now on; so it is called before they are read for the first time. `reload` reads them and puts
    /// what it has read in the place of what was; where it fails, what was stays.
    pub fn new(what: &'static str, paths: Vec<PathBuf>, reload: impl Fn() -> Result<()> + Send + 'static) -> Self {
        let read = stamps(&paths);
        Self { what, looked: read.clone(), read, paths, reload: Box::new(reload) }
    }

    /// Looks at the files, and reads them if they have changed and the last change is over: a certificate and its key are
    /// written one after the other. Whether they were read.
    pub fn look(&mut self) -> bool {
        let now = stamps(&self.paths);
        let is_settled = now == self.looked;
        self.looked = now;
        if !is_settled || self.looked == self.read {
            return false;
        }
        self.read.clone_from(&self.looked);
        match (self.reload)() {
            Ok(()) => tracing::info!(paths = ?self.paths, "{} read again", self.what),
            Err(error) => {
                tracing::error!(paths = ?self.paths, error = %error.report(), "{} changed and cannot be used: going on with those from before", self.what);
            }
        }
        true
    }
}

/// Looks at all of them, as long as it is polled.
///
/// # Errors
/// `Internal` if the thread that looks has panicked.
pub async fn watch(mut all: Vec<Watched>) -> Result<()> {
    if all.is_empty() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        // A disk may be slow.
        let looked = tokio::task::spawn_blocking(move || {
            for watched in &mut all {
                watched.look();
            }
            all
        });
        all = looked.await.map_err(|error| Error::internal("looking at files failed").with_source(error))?;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_has_changed_is_read_once_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a"), folder.path().join("b")];
        std::fs::write(&paths[0], "1").unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let mut watched = Watched::new("numbers", paths.to_vec(), move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Err(Error::invalid("never right"))
        });
        assert!(!watched.look() && !watched.look());
        std::fs::write(&paths[0], "22").unwrap();
        assert!(!watched.look(), "it may go on");
        std::fs::write(&paths[1], "333").unwrap();
        assert!(!watched.look(), "it goes on");
        assert!(watched.look());
        assert!(!watched.look(), "what is wrong is said once");
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_swapped_link_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["one", "two"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("tls.crt"), "same length").unwrap();
        }
        std::os::unix::fs::symlink("one", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let mut watched = Watched::new("links", vec![at("tls.crt")], || Ok(()));
        std::os::unix::fs::symlink("two", at("..new")).unwrap();
        std::fs::rename(at("..new"), at("..data")).unwrap();
        assert!(!watched.look());
        assert!(watched.look());
    }
}
