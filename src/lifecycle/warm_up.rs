//! Warm-up: each instance answers made-up requests before the model is ready, so that the first caller does not pay for
//! what a runtime does the first time. After Triton's `model_warmup`.
//!
//! Samples run on the thread that loads, not on the device's: those answer other models meanwhile, and what the runs take
//! of the device's memory is measured with the load. Nothing of it is counted as a request.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::flight::Flight;
use crate::backend::{Batch, Model, ModelInstance, ModelMemory};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{NamedTensor, NamedTensors};
use crate::model_config::ModelConfig;
use crate::model_config::complete::RuntimeSignature;
use crate::model_config::warm_up::{self, WarmUpData, WarmUpInput};
use crate::scheduler::sequence::feed::Feed;
use crate::tensor::{DataType, Shape, Tensor, push_string};

/// The most bytes that the samples of one version take together: they are in memory while it loads.
const MAX_BYTES: usize = 1 << 30;

/// The letters of a random string.
const LETTERS: usize = 8;

/// A version's samples, until it is ready.
pub(super) struct WarmUp(Option<Arc<Shared>>);

struct Shared {
    samples: Mutex<Arc<[Sample]>>,
    outputs: Vec<usize>,
    flight: Arc<Flight>,
    abandoned: AtomicBool,
    nanoseconds: AtomicU64,
}

struct Sample {
    name: String,
    count: u32,
    inputs: NamedTensors,
}

impl WarmUp {
    /// The samples of a complete configuration, for `outputs` as indexes into the signature, with what `feed` adds. Files are looked for in the
    /// model's `folder`. Blocking.
    ///
    /// # Errors
    /// Naming the sample and the input: `InvalidArgument` for one that does not fit the model, or a file that is missing
    /// or of another size, `TooLarge` over 1 GiB, `RepositoryFailed` for a file that cannot be read.
    pub(super) fn prepare(
        config: &ModelConfig,
        folder: Option<&Path>,
        outputs: &[usize],
        feed: Option<&Feed>,
        flight: &Arc<Flight>,
    ) -> Result<Self> {
        let mut room = MAX_BYTES;
        let mut samples = Vec::with_capacity(config.warm_ups.len());
        for sample in &config.warm_ups {
            if sample.batch_size == 0 {
                tracing::warn!(model = %config.name, sample = %sample.name, "a warm-up sample of batch_size 0 is left out");
                continue;
            }
            let fault = |input: Option<&str>, text: &str| warm_up::fault(&sample.name, input, text);
            sample.check(&config.inputs).map_err(|(input, text)| Error::invalid(fault(input, &text)))?;
            let mut inputs = NamedTensors::new();
            for known in &config.inputs {
                let Some(input) = sample.inputs.iter().find(|input| input.name == known.name) else { continue };
                let wrong = |error: Error| error.wrap(fault(Some(&input.name), "cannot be made"));
                let batch = (config.max_batch_size > 0).then_some(sample.batch_size);
                let tensor = tensor(&sample.name, input, batch, folder, room).map_err(wrong)?;
                room = room.saturating_sub(tensor.data().len());
                let dims = config.metadata_dims(&known.dims);
                let reshaped = match &known.reshape {
                    None => tensor,
                    Some(reshape) => {
                        let shape = tensor.shape().through_reshape(&dims, reshape, batch.is_some());
                        let shape = shape.ok_or_else(|| wrong(Error::internal("its reshape does not fit")))?;
                        tensor.reshaped(shape).map_err(wrong)?
                    }
                };
                inputs.push(NamedTensor { name: known.name.as_str().into(), tensor: reshaped });
            }
            let rows = if config.max_batch_size > 0 { sample.batch_size } else { 1 };
            inputs.extend(feed.map(|feed| feed.warm_up(rows)).transpose()?.into_iter().flatten());
            samples.push(Sample { name: sample.name.clone(), count: sample.count, inputs });
        }
        let shared = (!samples.is_empty()).then(|| {
            Arc::new(Shared {
                samples: Mutex::new(samples.into()),
                outputs: outputs.to_vec(),
                flight: Arc::clone(flight),
                abandoned: AtomicBool::new(false),
                nanoseconds: AtomicU64::new(0),
            })
        });
        Ok(Self(shared))
    }

    /// The model, whose instances have run the samples when they are given out.
    pub(super) fn around(&self, model: Arc<dyn Model>) -> Arc<dyn Model> {
        match &self.0 {
            None => model,
            Some(shared) => Arc::new(Warmed { model, shared: Arc::clone(shared) }),
        }
    }

    /// Whether an instance was not given out since nobody waits for the load any more.
    pub(super) fn was_abandoned(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.abandoned.load(Ordering::Relaxed))
    }

    /// The samples are let go, and how long their runs took is told.
    pub(super) fn finish(self) -> Duration {
        let Some(shared) = self.0 else { return Duration::ZERO };
        *shared.samples.lock() = Arc::default();
        Duration::from_nanos(shared.nanoseconds.load(Ordering::Relaxed))
    }
}

struct Warmed {
    model: Arc<dyn Model>,
    shared: Arc<Shared>,
}

impl Model for Warmed {
    fn signature(&self) -> &RuntimeSignature {
        self.model.signature()
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        let mut instance = self.model.instance()?;
        self.shared.run(&mut *instance)?;
        Ok(instance)
    }

    fn memory(&self) -> ModelMemory {
        self.model.memory()
    }

    fn keeps_files(&self) -> bool {
        self.model.keeps_files()
    }
}

impl Shared {
    fn run(&self, instance: &mut dyn ModelInstance) -> Result<()> {
        // One that takes the place of a panicked one comes when the samples are gone.
        let samples = Arc::clone(&self.samples.lock());
        let began = Instant::now();
        for sample in &*samples {
            for _ in 0..sample.count {
                if !self.flight.is_wanted() {
                    self.abandoned.store(true, Ordering::Relaxed);
                    return Err(Error::not_ready("nobody waits for the model's load any more"));
                }
                let batch = Batch { inputs: &sample.inputs, outputs: &self.outputs };
                instance.execute(&batch).map_err(|error| error.wrap(warm_up::fault(&sample.name, None, "failed")))?;
            }
        }
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
        Ok(())
    }
}

/// An input as callers would send it: one item, `batch` times where there is a batch dimension; at most `room` bytes.
fn tensor(sample: &str, input: &WarmUpInput, batch: Option<u32>, folder: Option<&Path>, room: usize) -> Result<Tensor> {
    let too_large = || Error::too_large(format!("the samples of a model take at most {MAX_BYTES} bytes together"));
    let shape = Shape::new(&input.dims);
    let elements = shape.element_count().ok_or_else(too_large)?;
    let copies = batch.map_or(1, |batch| batch as usize);
    let least = match (input.data_type.size(), &input.data) {
        (Some(size), _) => size,
        (None, WarmUpData::Random) => 4 + LETTERS,
        (None, _) => 4,
    };
    let bytes = elements.checked_mul(least).and_then(|bytes| bytes.checked_mul(copies));
    if bytes.is_none_or(|bytes| bytes > room) {
        return Err(too_large());
    }
    let data = match &input.data {
        WarmUpData::Zero => vec![0; elements * least],
        WarmUpData::Random => random(input.data_type, elements, seed(sample, &input.name))?,
        WarmUpData::File(name) => read_file(folder, ("input_data_file", warm_up::FOLDER), name, room / copies)?,
    };
    let item = Tensor::new(input.data_type, shape, data.into())?;
    let Some(batch) = batch else { return Ok(item) };
    let dims: Shape = std::iter::once(i64::from(batch)).chain(input.dims.iter().copied()).collect();
    Tensor::new(input.data_type, dims, Bytes::from(item.data().repeat(copies)))
}

/// The bytes of a file in a folder `below` the model's, named by a `field` of its configuration, which must lie there, links followed.
pub(super) fn read_file(
    folder: Option<&Path>,
    (field, below): (&str, &str),
    name: &str,
    most: usize,
) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::InvalidArgument,
            _ => ErrorKind::RepositoryFailed,
        };
        Error::new(kind, format!("cannot read {below}/{name} in the model's folder")).with_source(error)
    };
    let Some(folder) = folder else {
        return Err(Error::invalid(format!("{field} '{name}': a bare model file has no folder to look in")));
    };
    let folder = folder.join(below).canonicalize().map_err(failed)?;
    let path = folder.join(name).canonicalize().map_err(failed)?;
    if !path.starts_with(&folder) || !path.is_file() {
        let text = format!("{field} '{name}' is no file in the model's {below} folder");
        return Err(Error::invalid(text));
    }
    let mut data = Vec::new();
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(most as u64 + 1).read_to_end(&mut data).map_err(failed)?;
    if data.len() > most {
        return Err(Error::too_large(format!("{below}/{name} is larger than {most} bytes")));
    }
    Ok(data)
}

/// Elements that look random: any integer, floats from 0 to 1, strings of letters.
fn random(data_type: DataType, elements: usize, seed: u64) -> Result<Vec<u8>> {
    let mut state = seed;
    let mut next = move || splitmix(&mut state);
    #[expect(clippy::cast_precision_loss, reason = "24 bits are what a float holds")]
    let fraction = |bits: u64| (bits >> 40) as f32 / 16_777_216.0;
    let mut data = Vec::with_capacity(elements.saturating_mul(data_type.size().unwrap_or(4 + LETTERS)));
    for _ in 0..elements {
        let bits = next();
        match data_type {
            DataType::Bool => data.push(u8::from(bits & 1 == 1)),
            DataType::Fp16 => data.extend_from_slice(&half::f16::from_f32(fraction(bits)).to_le_bytes()),
            DataType::Bf16 => data.extend_from_slice(&half::bf16::from_f32(fraction(bits)).to_le_bytes()),
            DataType::Fp32 => data.extend_from_slice(&fraction(bits).to_le_bytes()),
            DataType::Fp64 => data.extend_from_slice(&f64::from(fraction(bits)).to_le_bytes()),
            DataType::Bytes => push_string(&mut data, &bits.to_le_bytes().map(|byte| b'a' + byte % 26))?,
            _ => data.extend_from_slice(bits.to_le_bytes().get(..data_type.size().unwrap_or(8)).unwrap_or_default()),
        }
    }
    Ok(data)
}

/// Another one for another sample or input, and the same at each load.
fn seed(sample: &str, input: &str) -> u64 {
    let bytes = sample.bytes().chain(std::iter::once(0)).chain(input.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The next number of a sequence without a short period (Steele, Lea and Flood's `SplitMix64`).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(data_type: DataType, dims: &[i64], data: WarmUpData) -> WarmUpInput {
        WarmUpInput { name: "x".to_owned(), data_type, dims: dims.to_vec(), data }
    }

    fn made(input: &WarmUpInput, batch: Option<u32>, folder: Option<&Path>) -> Result<Tensor> {
        tensor("w", input, batch, folder, 1000)
    }

    #[test]
    fn every_type_has_zeros_and_random_elements_that_are_the_same_each_time() {
        for data_type in DataType::ALL {
            let zeros = made(&input(data_type, &[2, 3], WarmUpData::Zero), Some(2), None).unwrap();
            assert_eq!(zeros.shape().dims(), [2, 2, 3], "{data_type}");
            assert!(zeros.data().iter().all(|byte| *byte == 0));
            let one = made(&input(data_type, &[40], WarmUpData::Random), None, None).unwrap();
            assert_eq!(one, made(&input(data_type, &[40], WarmUpData::Random), None, None).unwrap());
            assert!(one.data().iter().any(|byte| *byte != 0), "{data_type}");
            let other = tensor("v", &input(data_type, &[40], WarmUpData::Random), None, None, 1000).unwrap();
            assert_ne!(one, other, "{data_type}");
        }
        let floats = made(&input(DataType::Fp32, &[99], WarmUpData::Random), None, None).unwrap();
        assert!(floats.elements::<f32>().unwrap().iter().all(|number| (0.0..1.0).contains(number)));
    }

    #[test]
    fn a_batch_is_one_item_many_times() {
        let twice = made(&input(DataType::Int8, &[3], WarmUpData::Random), Some(2), None).unwrap();
        assert_eq!(twice.data()[..3], twice.data()[3..]);
    }

    #[test]
    fn a_file_is_held_against_shape_type_and_folder() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("warmup");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        std::fs::write(folder.join("deep/eight"), [1, 0, 0, 0, 2, 0, 0, 0]).unwrap();
        std::fs::write(folder.join("large"), vec![0; 2000]).unwrap();
        std::fs::write(folder.join("strings"), b"\x02\0\0\0hi\0\0\0\0").unwrap();
        std::fs::write(root.path().join("outside"), [0; 8]).unwrap();
        std::os::unix::fs::symlink("../outside", folder.join("link")).unwrap();
        let file = |name: &str| WarmUpData::File(name.to_owned());
        let of = |input: WarmUpInput| made(&input, None, Some(root.path()));
        let read = of(input(DataType::Int32, &[2], file("deep/eight"))).unwrap();
        assert_eq!(read.elements::<i32>().unwrap(), [1, 2]);
        let strings = of(input(DataType::Bytes, &[2], file("strings"))).unwrap();
        assert_eq!(strings.strings().collect::<Vec<_>>(), [b"hi".as_slice(), b""]);
        let wrong = |data_type, name: &str| of(input(data_type, &[2], file(name))).unwrap_err();
        assert!(wrong(DataType::Int8, "deep/eight").to_string().contains("needs 2 bytes, got 8"));
        assert!(wrong(DataType::Bytes, "deep/eight").to_string().contains("cut short"));
        assert_eq!(wrong(DataType::Int8, "large").kind(), ErrorKind::TooLarge);
        assert_eq!(wrong(DataType::Int8, "none").kind(), ErrorKind::InvalidArgument);
        for outside in ["link", "deep"] {
            assert!(wrong(DataType::Int8, outside).to_string().contains("is no file in the model's warmup folder"));
        }
        let bare = made(&input(DataType::Int8, &[2], file("x")), None, None).unwrap_err();
        assert!(bare.to_string().contains("a bare model file has no folder"));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_made() {
        for (dims, batch) in
            [(&[1001][..], None), (&[i64::MAX, i64::MAX], None), (&[501], Some(2)), (&[9], Some(u32::MAX))]
        {
            let refused = made(&input(DataType::Uint8, dims, WarmUpData::Zero), batch, None).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::TooLarge, "{dims:?}");
        }
    }
}
