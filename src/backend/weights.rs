//! The `weights` backend: a fake whose models hold memory of a GPU as a runtime's do, and see whether it is still theirs.
//!
//! It gives back its inputs as `identity` does. On a GPU whose memory we hand out a model takes `weight_bytes` in
//! `weight_blocks` blocks and fills them with numbers of its own; each run takes `scratch_bytes`, writes them, and compares
//! all of both. Elsewhere it holds nothing.

use std::sync::Arc;

use parking_lot::Mutex;

use super::identity::Identity;
use super::placement::{GpuShare, Placement};
use super::{Backend, Batch, Execution, Model, ModelFiles, ModelInstance};
use crate::device::cuda::block::Block;
use crate::device::cuda::owner::Kind;
use crate::device::cuda::pinned::PinnedBuffer;
use crate::device::cuda::stream::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::model_config::ModelConfig;
use crate::model_config::complete::RuntimeSignature;

/// Its name in `config.pbtxt`.
pub const NAME: &str = "weights";

/// What is copied at once, in bytes.
const PIECE: usize = 1 << 20;

/// The backend.
#[derive(Debug, Default)]
pub struct Weights;

struct WeightsModel {
    inner: Box<dyn Model>,
    held: Option<Arc<Held>>,
    scratch: u64,
}

struct WeightsInstance {
    inner: Box<dyn ModelInstance>,
    held: Option<(Arc<Held>, Arc<Stream>)>,
    scratch: u64,
}

/// What a model has on a device. Blocks go before the share that they are of.
struct Held {
    blocks: Vec<Block>,
    seed: u64,
    buffer: Mutex<PinnedBuffer>,
    share: GpuShare,
}

impl Held {
    fn take(share: &GpuShare, bytes: u64, count: u64, seed: u64) -> Result<Self> {
        let buffer = Mutex::new(share.gpu.staging().buffer(PIECE as u64)?);
        let mut held = Self { blocks: Vec::new(), seed, buffer, share: share.clone() };
        let stream = share.stream();
        for at in 0..count {
            // Of different lengths, all together as many as was said.
            let len = bytes / count + if at == 0 { bytes % count } else { 0 };
            let block = Block::take(&share.owner, Kind::Weights, len)?;
            held.fill(&stream, &block, seed.wrapping_add(at))?;
            held.blocks.push(block);
        }
        Ok(held)
    }

    fn fill(&self, stream: &Stream, block: &Block, seed: u64) -> Result<()> {
        let mut buffer = self.buffer.lock();
        for (offset, len) in pieces(block.len()) {
            pattern(seed, offset, &mut buffer.bytes_mut()[..len]);
            block.write(stream, offset, &buffer, len)?;
        }
        Ok(())
    }

    fn check(&self, stream: &Stream, block: &Block, seed: u64) -> Result<()> {
        let mut buffer = self.buffer.lock();
        let mut expected = vec![0; PIECE];
        for (offset, len) in pieces(block.len()) {
            block.read(stream, offset, &mut buffer, len)?;
            pattern(seed, offset, &mut expected[..len]);
            if buffer.bytes()[..len] != expected[..len] {
                let text = format!("memory of model '{}' is not what it wrote there", self.share.owner.name());
                return Err(Error::new(ErrorKind::BackendFailed, text));
            }
        }
        Ok(())
    }

    /// What a run does: scratch of its own, and a look at everything.
    fn run(&self, stream: &Stream, scratch: u64) -> Result<()> {
        let scratch = match scratch {
            0 => None,
            bytes => {
                let kind = Kind::Activations { stream: stream.handle() };
                let block = Block::take(&self.share.owner, kind, bytes)?;
                self.fill(stream, &block, !self.seed)?;
                Some(block)
            }
        };
        for (block, at) in self.blocks.iter().zip(0..) {
            self.check(stream, block, self.seed.wrapping_add(at))?;
        }
        scratch.map_or(Ok(()), |block| self.check(stream, &block, !self.seed))
    }
}

fn pieces(len: u64) -> impl Iterator<Item = (u64, usize)> {
    let starts = (0..len).step_by(PIECE);
    starts.map(move |offset| (offset, usize::try_from(len - offset).map_or(PIECE, |rest| rest.min(PIECE))))
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, offset: u64, bytes: &mut [u8]) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let word = |at: u64| (seed ^ (offset + at * 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let count = words.len() as u64;
    for (place, at) in words.iter_mut().zip(0..) {
        *place = word(at);
    }
    rest.iter_mut().zip(word(count)).for_each(|(place, byte)| *place = byte);
}

fn parameter(config: &ModelConfig, key: &str, default: u64) -> Result<u64> {
    let Some(text) = config.parameters.get(key) else { return Ok(default) };
    text.parse().map_err(|_unreadable| Error::invalid(format!("parameter {key} is '{text}', expected a number")))
}

impl Backend for Weights {
    fn name(&self) -> &'static str {
        NAME
    }

    fn known_parameters(&self) -> &'static [&'static str] {
        &["weight_bytes", "weight_blocks", "scratch_bytes"]
    }

    fn default_model_file(&self) -> &'static str {
        ""
    }

    fn on_gpu(&self) -> Result<()> {
        Ok(())
    }

    fn load(&self, files: &ModelFiles, config: &ModelConfig, placement: &Placement) -> Result<Box<dyn Model>> {
        let inner = Identity.load(files, config, placement)?;
        let bytes = parameter(config, "weight_bytes", 0)?;
        let count = parameter(config, "weight_blocks", 1)?.max(1);
        let scratch = parameter(config, "scratch_bytes", 0)?;
        let seed =
            config.name.bytes().fold(files.version, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let held = placement.share().map(|share| Held::take(share, bytes, count, seed)).transpose()?;
        Ok(Box::new(WeightsModel { inner, held: held.map(Arc::new), scratch }))
    }
}

impl Model for WeightsModel {
    fn signature(&self) -> &RuntimeSignature {
        self.inner.signature()
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        let held = self.held.as_ref().map(|held| (Arc::clone(held), held.share.stream()));
        Ok(Box::new(WeightsInstance { inner: self.inner.instance()?, held, scratch: self.scratch }))
    }
}

impl ModelInstance for WeightsInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        if let Some((held, stream)) = &self.held {
            held.run(stream, self.scratch)?;
        }
        self.inner.execute(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_and_patterns_depend_on_the_place_alone() {
        assert_eq!(pieces(0).count(), 0);
        let all: Vec<_> = pieces((PIECE + 5) as u64).collect();
        assert_eq!(all, [(0, PIECE), (PIECE as u64, 5)]);
        let (mut whole, mut part) = ([0; 32], [0; 16]);
        pattern(7, 0, &mut whole);
        pattern(7, 16, &mut part);
        assert_eq!(whole[16..], part);
        assert_ne!(whole[..16], part);
    }
}
