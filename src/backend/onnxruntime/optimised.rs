//! A copy of a model's graph as ONNX Runtime rewrote it for this machine, so that the next load need not do it again.
//!
//! Folding constants, fusing operators and choosing layouts is most of the time that a large graph with small weights
//! takes to load: a graph of 2000 small operators loads 3 times as fast from its copy, one of 8000 5 times. For large
//! weights it is next to nothing, writing the copy takes longer than the load, and the disk holds them twice. So a copy is
//! tried where there are many operators for the size, and kept where the load took long and the copy is not too large.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use sha2::{Digest, Sha256};

use super::external::Contents;
use super::session::{Rewriting, Source};

/// Fewer operators are rewritten in no time.
const FEWEST_OPERATORS: u64 = 128;

/// To write a copy takes about 2 ms for each MiB of weights, once; to rewrite an operator about 20 us, at each load. With
/// this many operators for each MiB a copy has paid for itself after two or three loads.
const OPERATORS_PER_MIB: u64 = 50;

/// A load that is done in less than this, the writing of the copy included, is quick enough.
const LEAST_TIME: Duration = Duration::from_millis(10);

/// Whether a copy may be worth it: most of the load then goes into the graph and not into weights.
const fn is_worth_trying(contents: Contents, model_bytes: u64) -> bool {
    // A copy of a graph names the same files, and lies in another folder.
    !contents.has_external_data
        && contents.operators >= FEWEST_OPERATORS
        && contents.operators >= OPERATORS_PER_MIB.saturating_mul(model_bytes >> 20)
}

/// Whether the copy that was written is worth its place on the disk.
fn is_worth_keeping(took: Duration, model_bytes: u64, copy_bytes: u64) -> bool {
    took >= LEAST_TIME && copy_bytes <= model_bytes + model_bytes / 2 + (1 << 20)
}

/// The copy of one model file for this machine and this runtime, or the word that it is not worth one.
pub(super) struct OptimisedCopy {
    /// The copy, once there is one.
    kept: PathBuf,
    /// An empty file that says that there is to be none.
    none: PathBuf,
    model_bytes: u64,
}

/// A file that is gone again unless it becomes the copy.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone is gone, moved is moved.
        let _absent = fs::remove_file(&self.0);
    }
}

impl OptimisedCopy {
    /// The copy of a model in `folder`, whether or not there is one yet; `None` where there should be none.
    pub(super) fn of(folder: &Path, source: &Source<'_>, contents: Contents) -> Option<Self> {
        // With less rewriting there is less to save, and a copy's name does not tell how it was made.
        if source.level != GraphOptimizationLevel::All {
            return None;
        }
        let model_bytes = source.file.metadata().ok()?.len();
        if !is_worth_trying(contents, model_bytes) {
            return None;
        }
        Self::at(folder, source, model_bytes)
    }

    fn at(folder: &Path, source: &Source<'_>, model_bytes: u64) -> Option<Self> {
        // A layout is chosen by what the processor can do, and rewrites change with the runtime's version.
        let mut hash = Sha256::new();
        let (file, version) = (source.file.file_name()?.as_encoded_bytes(), source.version.to_le_bytes());
        for part in
            [b"cpu".as_slice(), ort::info().as_bytes(), processor()?, file, &version, &model_bytes.to_le_bytes()]
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let key: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let at = |ending: &str| folder.join(format!("onnxruntime-{key}.{ending}"));
        Some(Self { kept: at("onnx"), none: at("none"), model_bytes })
    }

    /// The session of the model: from the copy where there is one, else from the model, of which a copy is kept where it
    /// is worth it. A copy that is of no use is no failure.
    pub(super) fn session(&self, source: &Source<'_>) -> ort::Result<Session> {
        if self.kept.exists() {
            match source.commit(Rewriting::Done(&self.kept)) {
                Ok(session) => return Ok(session),
                Err(error) => {
                    tracing::warn!(%error, copy = %self.kept.display(), "an optimised copy cannot be loaded and is dropped");
                    // Without the mark, what cannot be loaded would be made again at each load.
                    self.keep_none();
                    let _absent = fs::remove_file(&self.kept);
                }
            }
        }
        let draft = if self.none.exists() { None } else { self.draft() };
        let Some(draft) = draft else { return source.commit(Rewriting::Yes) };
        let began = Instant::now();
        let Ok(session) = source.commit(Rewriting::Kept(&draft.0)) else {
            // The disk may be full, or the graph one that cannot be written: the model may be sound all the same.
            return source.commit(Rewriting::Yes);
        };
        let took = began.elapsed();
        let kept = match draft.0.metadata() {
            Ok(copy) if is_worth_keeping(took, self.model_bytes, copy.len()) => self.keep(&draft),
            Ok(_) => {
                self.keep_none();
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "an optimised copy cannot be kept: the next load takes as long as this one");
        }
        Ok(session)
    }

    /// A name for a copy in the making, in the folder, which is made where it is missing.
    fn draft(&self) -> Option<Draft> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        fs::create_dir_all(self.kept.parent()?).ok()?;
        Some(Draft(self.kept.with_extension(format!("{}-{number}.draft", std::process::id()))))
    }

    fn keep(&self, draft: &Draft) -> io::Result<()> {
        // A name must not outlive a crash that its content does not: weights with holes would load.
        File::open(&draft.0)?.sync_all()?;
        fs::rename(&draft.0, &self.kept)
    }

    fn keep_none(&self) {
        // Without it the next load tries again.
        let _not_written = File::create(&self.none);
    }
}

/// What the processor can do, as the system lists it; `None` where it does not.
fn processor() -> Option<&'static [u8]> {
    static FLAGS: OnceLock<Option<String>> = OnceLock::new();
    FLAGS
        .get_or_init(|| {
            let text = fs::read_to_string("/proc/cpuinfo").ok()?;
            let is_flags = |line: &&str| line.starts_with("flags") || line.starts_with("Features");
            text.lines().find(is_flags).map(str::to_owned)
        })
        .as_deref()
        .map(str::as_bytes)
}

#[cfg(test)]
mod tests;
