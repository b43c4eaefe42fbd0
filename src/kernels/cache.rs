//! What NVRTC made of the kernels, kept on disk: compiling all of them takes seconds, reading them milliseconds.
//!
//! A file is named by a hash of all that its content depends on, holds a SHA-256 of the machine code before the code, and is
//! written beside its place and renamed: it is complete or absent, and one that is neither is as good as absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::nvrtc::Nvrtc;
use super::source::{Architecture, Kernel, options, prebuilt, program};
use crate::error::Result;

/// The bytes of a SHA-256.
const DIGEST: usize = 32;

/// Gives each kernel as machine code: from the build, from the disk, or compiled now.
#[derive(Debug)]
pub struct Compiler {
    library: Option<PathBuf>,
    folder: Option<PathBuf>,
    nvrtc: Option<Nvrtc>,
}

impl Compiler {
    /// One that loads NVRTC from `library`, or by its usual names, and keeps what it made in `folder`, if that is given.
    #[must_use]
    pub const fn new(library: Option<PathBuf>, folder: Option<PathBuf>) -> Self {
        Self { library, folder, nvrtc: None }
    }

    /// A kernel for an architecture.
    ///
    /// # Errors
    /// As [`Nvrtc::load`] and [`Nvrtc::compile`]. A folder that cannot be used is no error: it costs time alone.
    pub fn image(&mut self, kernel: &Kernel, architecture: Architecture) -> Result<Vec<u8>> {
        if let Some(image) = prebuilt(kernel.name, architecture) {
            return Ok(image.to_vec());
        }
        let nvrtc = match self.nvrtc.take() {
            Some(nvrtc) => nvrtc,
            None => Nvrtc::load(self.library.clone())?,
        };
        let nvrtc = self.nvrtc.insert(nvrtc);
        let text = program(kernel);
        let place = self.folder.as_deref().map(|folder| place(folder, kernel, &text, architecture, nvrtc.version()));
        if let Some(image) = place.as_deref().and_then(read) {
            return Ok(image);
        }
        let (image, _remarks) = nvrtc.compile(kernel.name, &text, architecture)?;
        if let Some(Err(error)) = place.as_deref().map(|place| write(place, &image)) {
            tracing::warn!(kernel = kernel.name, %error, "a compiled kernel cannot be kept: it is compiled anew the next time");
        }
        Ok(image)
    }
}

/// Where a compiled kernel is kept.
fn place(folder: &Path, kernel: &Kernel, text: &str, architecture: Architecture, version: (i32, i32)) -> PathBuf {
    let mut hash = Sha256::new();
    let parts = [format!("{}.{}", version.0, version.1), text.to_owned()];
    for part in parts.into_iter().chain(options(architecture)) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("{}-{architecture}-{hash}.cubin", kernel.name))
}

fn read(place: &Path) -> Option<Vec<u8>> {
    let content = fs::read(place).ok()?;
    let (digest, image) = content.split_at_checked(DIGEST)?;
    (Sha256::digest(image).as_slice() == digest).then(|| image.to_vec())
}

fn write(place: &Path, image: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    // Another process, or another thread of this one, may be at the same.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let beside = place.with_extension(format!("{}-{number}.tmp", std::process::id()));
    let written = fs::write(&beside, [Sha256::digest(image).as_slice(), image].concat());
    let renamed = written.and_then(|()| fs::rename(&beside, place));
    if renamed.is_err() {
        // What is left of it means nothing to anybody.
        drop(fs::remove_file(&beside));
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::source::ALL;

    const SM_80: Architecture = Architecture { major: 8, minor: 0 };

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_not() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("kernels/a.cubin");
        assert_eq!(read(&place), None);
        write(&place, b"code").unwrap();
        write(&place, b"other code").unwrap();
        assert_eq!(read(&place), Some(b"other code".to_vec()));
        assert_eq!(place.parent().unwrap().read_dir().unwrap().count(), 1);
        let whole = fs::read(&place).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..DIGEST - 1], &[]] {
            fs::write(&place, damaged).unwrap();
            assert_eq!(read(&place), None);
        }
    }

    #[test]
    fn whatever_changes_the_code_changes_its_place() {
        let folder = Path::new("cache");
        let at = |text: &str, minor, version| {
            let architecture = Architecture { minor, ..SM_80 };
            place(folder, &ALL[0], text, architecture, version)
        };
        let first = at("text", 0, (13, 0));
        assert_eq!(first, at("text", 0, (13, 0)));
        for other in [at("texts", 0, (13, 0)), at("text", 6, (13, 0)), at("text", 0, (13, 1)), at("text", 0, (1, 30))] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn without_nvrtc_the_error_says_how_to_get_it() {
        let root = tempfile::tempdir().unwrap();
        let mut compiler = Compiler::new(Some(root.path().join("libnvrtc.so")), None);
        // An architecture that no build compiles for.
        let error = compiler.image(&ALL[0], Architecture { major: 1, minor: 0 }).unwrap_err();
        assert!(error.to_string().contains("pip install nvidia-cuda-nvrtc"), "{error}");
    }
}
