//! How the tensors of several requests become one batch, and its outputs the answers to each.
//!
//! A request that runs alone passes through untouched, unless something is made of its inputs. Inputs of several are copied once, into memory of the batch;
//! outputs are slices of the batch's. Ragged inputs, whose shapes differ, are laid end to end in one dimension, as
//! Triton's backends do, with the tensors of `batch_input` beside them.

use bytes::Bytes;
use smallvec::SmallVec;

use super::pictures;
use super::work::Work;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{NamedTensor, NamedTensors};
use crate::model_config::ModelConfig;
use crate::model_config::image::ImageInput;
use crate::model_config::ragged::{BatchInput, BatchInputKind, BatchOutput};
use crate::tensor::{DataType, Shape, Tensor};

/// What must be equal of two requests that share a batch: which inputs there are, and their shapes but for the batch
/// dimension, where they can differ at all.
pub type Likeness = SmallVec<[i64; 8]>;

/// How a model's tensors are laid out in a batch.
#[derive(Debug, Default)]
pub struct Layout {
    /// The most inferences of a batch; 0 where tensors have no batch dimension, so that requests run alone.
    max_items: u64,
    /// Whether requests that passed the checks can differ in shape or in which inputs they have.
    varies: bool,
    ragged: Vec<String>,
    /// The input that is made of the pixels that requests bring, of any size each.
    image: Option<ImageInput>,
    batch_inputs: Vec<BatchInput>,
    batch_outputs: Vec<BatchOutput>,
}

/// The inputs of a batch, and the outputs that some of its requests want.
#[derive(Debug)]
pub struct Gathered {
    /// The inputs.
    pub inputs: NamedTensors,
    /// Indexes into the signature, ascending.
    pub outputs: SmallVec<[usize; 4]>,
}

impl Layout {
    /// The layout that a configuration asks for.
    #[must_use]
    pub fn of(config: &ModelConfig) -> Self {
        let is_open = |dims: &[i64]| dims.contains(&-1);
        Self {
            max_items: u64::from(config.max_batch_size),
            varies: config.inputs.iter().any(|input| input.optional || is_open(&input.dims)),
            ragged: config
                .inputs
                .iter()
                .filter(|input| input.allow_ragged_batch)
                .map(|input| input.name.clone())
                .collect(),
            image: config.image_input.clone(),
            batch_inputs: config.batch_inputs.clone(),
            batch_outputs: config.batch_outputs.clone(),
        }
    }

    /// What the inputs of `work` have in common with those that it may share a batch with.
    #[must_use]
    pub fn likeness(&self, work: &Work) -> Likeness {
        let mut likeness = Likeness::new();
        if !self.varies || self.max_items == 0 {
            return likeness;
        }
        for input in &work.inputs {
            // Names stand for places, since inputs come in the order of the signature; optional ones may be missing.
            likeness.extend(input.name.as_bytes().iter().map(|byte| i64::from(*byte)));
            likeness.push(-1);
            if !self.is_ragged(&input.name) && self.image(&input.name).is_none() {
                likeness.extend(input.tensor.shape().dims().iter().skip(1).copied());
            }
            likeness.push(-2);
        }
        likeness
    }

    /// Whether a request that runs alone can be given to the runtime as it is.
    #[must_use]
    pub fn passes_through(&self) -> bool {
        self.ragged.is_empty() && self.image.is_none() && self.batch_inputs.is_empty() && self.batch_outputs.is_empty()
    }

    fn is_ragged(&self, name: &str) -> bool {
        self.ragged.iter().any(|ragged| ragged == name)
    }

    fn image(&self, name: &str) -> Option<&ImageInput> {
        self.image.as_ref().filter(|image| image.name == name)
    }

    /// The batch of these requests, which are alike.
    ///
    /// # Errors
    /// `Internal` if they are not alike after all.
    pub fn gather(&self, works: &[&Work]) -> Result<Gathered> {
        let Some(first) = works.first() else { return Err(Error::internal("a batch without requests")) };
        let mut inputs = NamedTensors::new();
        for (index, input) in first.inputs.iter().enumerate() {
            let parts = works.iter().map(|work| {
                let part = work.inputs.get(index).filter(|part| part.name == input.name);
                part.map(|part| &part.tensor).ok_or_else(|| Error::internal("requests of one batch differ in inputs"))
            });
            let parts = parts.collect::<Result<SmallVec<[&Tensor; 16]>>>()?;
            let tensor = match self.image(&input.name) {
                Some(image) => pictures::gather(image, &parts)?,
                None if self.is_ragged(&input.name) => end_to_end(&parts)?,
                None => stack(&parts)?,
            };
            inputs.push(NamedTensor { name: input.name.clone(), tensor });
        }
        for batch_input in &self.batch_inputs {
            let tensor = describe(batch_input, works)?;
            inputs.extend(
                batch_input
                    .targets
                    .iter()
                    .map(|target| NamedTensor { name: target.as_str().into(), tensor: tensor.clone() }),
            );
        }
        let mut outputs: SmallVec<[usize; 4]> = works.iter().flat_map(|work| work.outputs.iter().copied()).collect();
        outputs.sort_unstable();
        outputs.dedup();
        Ok(Gathered { inputs, outputs })
    }

    /// The outputs of a batch as the answers to its requests: for each those that it wants, in the order it wants them.
    ///
    /// # Errors
    /// `BackendFailed` if an output's shape does not say which part is whose.
    pub fn split(
        &self,
        wanted: &[usize],
        outputs: &NamedTensors,
        works: &[&Work],
    ) -> Result<SmallVec<[NamedTensors; 16]>> {
        let mut answers: SmallVec<[NamedTensors; 16]> = works.iter().map(|_| NamedTensors::new()).collect();
        let mut parts: SmallVec<[SmallVec<[Tensor; 16]>; 4]> = SmallVec::new();
        for output in outputs {
            let source = self
                .batch_outputs
                .iter()
                .find(|scattered| scattered.targets.iter().any(|target| output.name == *target));
            parts.push(match source {
                Some(scattered) => scatter(output, &scattered.source, works)?,
                None => unstack(output, works)?,
            });
        }
        for (place, (work, answer)) in works.iter().zip(answers.iter_mut()).enumerate() {
            for index in &work.outputs {
                let found = wanted.iter().position(|wanted| wanted == index);
                let part = found.and_then(|at| Some((outputs.get(at)?, parts.get(at)?.get(place)?)));
                let (output, tensor) = part.ok_or_else(|| Error::internal("a wanted output was not computed"))?;
                answer.push(NamedTensor { name: output.name.clone(), tensor: tensor.clone() });
            }
        }
        Ok(answers)
    }
}

fn total(parts: &[&Tensor]) -> usize {
    parts.iter().map(|part| part.data().len()).sum()
}

fn copied(parts: &[&Tensor]) -> Bytes {
    let mut data = Vec::with_capacity(total(parts));
    for part in parts {
        data.extend_from_slice(part.data());
    }
    data.into()
}

/// Tensors of one shape but for the first dimension, one after the other along that.
fn stack(parts: &[&Tensor]) -> Result<Tensor> {
    let [first, rest @ ..] = parts else { return Err(Error::internal("an input without requests")) };
    if rest.is_empty() {
        return Ok((*first).clone());
    }
    let items: i64 = parts.iter().filter_map(|part| part.shape().dims().first()).sum();
    let shape: Shape = std::iter::once(items).chain(first.shape().dims().iter().skip(1).copied()).collect();
    // Each part was checked when it was made: that they are alike is what the count of bytes shows.
    Tensor::new(first.data_type(), shape, copied(parts)).map_err(|error| error.wrap("requests of one batch differ"))
}

/// The elements of all tensors in one dimension.
fn end_to_end(parts: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else { return Err(Error::internal("an input without requests")) };
    let elements: usize = parts.iter().map(|part| part.element_count()).sum();
    let shape = Shape::new(&[i64::try_from(elements).unwrap_or(i64::MAX)]);
    match parts {
        [only] => (*only).clone().reshaped(shape),
        _ => Tensor::new(first.data_type(), shape, copied(parts)),
    }
}

/// A tensor of `batch_input`.
fn describe(batch_input: &BatchInput, works: &[&Work]) -> Result<Tensor> {
    let sources = works.iter().map(|work| source(work, &batch_input.source)).collect::<Result<Vec<_>>>()?;
    let counts = || sources.iter().map(|tensor| tensor.element_count() as u64);
    let accumulated = || {
        counts().scan(0_u64, |sum, count| {
            *sum += count;
            Some(*sum)
        })
    };
    let rank = sources.first().map_or(0, |tensor| tensor.shape().rank().saturating_sub(1));
    let items = || {
        works.iter().zip(&sources).flat_map(|(work, tensor)| {
            let item = tensor.shape().dims().iter().skip(1).map(|dim| dim.unsigned_abs());
            (0..work.batch_size).flat_map(move |_| item.clone())
        })
    };
    let length = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let (numbers, shape): (Vec<u64>, Shape) = match batch_input.kind {
        BatchInputKind::ElementCount => (counts().collect(), Shape::new(&[length(works.len())])),
        BatchInputKind::AccumulatedElementCount => (accumulated().collect(), Shape::new(&[length(works.len())])),
        BatchInputKind::AccumulatedElementCountWithZero => {
            (std::iter::once(0).chain(accumulated()).collect(), Shape::new(&[length(works.len() + 1)]))
        }
        BatchInputKind::MaxElementCountAsShape => {
            let largest = counts().max().unwrap_or(0);
            // What it holds means nothing; it has to be there.
            (vec![0; usize::try_from(largest).unwrap_or(0)], Shape::new(&[i64::try_from(largest).unwrap_or(0)]))
        }
        BatchInputKind::ItemShape => {
            let numbers: Vec<_> = items().collect();
            let rows = numbers.len().checked_div(rank).unwrap_or(0);
            (numbers, Shape::new(&[length(rows), length(rank)]))
        }
        BatchInputKind::ItemShapeFlatten => {
            let numbers: Vec<_> = items().collect();
            let all = length(numbers.len());
            (numbers, Shape::new(&[all]))
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "counts of elements in FP32 are what the configuration asks for")]
    match batch_input.data_type {
        DataType::Fp32 => Tensor::from_vec(shape, numbers.into_iter().map(|number| number as f32).collect()),
        _ => {
            let narrow = |number| {
                i32::try_from(number).map_err(|_| Error::too_large(format!("{number} elements do not fit an INT32")))
            };
            Tensor::from_vec(shape, numbers.into_iter().map(narrow).collect::<Result<Vec<i32>>>()?)
        }
    }
}

fn source<'a>(work: &'a Work, name: &str) -> Result<&'a Tensor> {
    let found = work.inputs.iter().find(|input| input.name == name).map(|input| &input.tensor);
    found.ok_or_else(|| Error::invalid(format!("input '{name}' is needed to describe the batch and was left out")))
}

fn not_split(output: &NamedTensor, why: &str) -> Error {
    let text = format!("output '{}' came out of the model in shape {}: {why}", output.name, output.tensor.shape());
    Error::new(ErrorKind::BackendFailed, text)
}

/// The parts of an output along its first dimension, as many items each as the requests brought.
fn unstack(output: &NamedTensor, works: &[&Work]) -> Result<SmallVec<[Tensor; 16]>> {
    if let [_] = works {
        return Ok(SmallVec::from_iter([output.tensor.clone()]));
    }
    let items: u64 = works.iter().map(|work| work.rows()).sum();
    let dims = output.tensor.shape().dims();
    if dims.first().is_none_or(|first| first.unsigned_abs() != items) {
        return Err(not_split(
            output,
            &format!("its first dimension is not the batch of {items}; set max_batch_size: 0"),
        ));
    }
    let item: Shape = dims.iter().skip(1).copied().collect();
    let sizes = works.iter().map(|work| {
        let rows = i64::try_from(work.rows()).unwrap_or(i64::MAX);
        std::iter::once(rows).chain(item.dims().iter().copied()).collect::<Shape>()
    });
    cut(output, sizes)
}

/// The parts of an output that holds one answer after the other, each in its source's shape.
fn scatter(output: &NamedTensor, from: &str, works: &[&Work]) -> Result<SmallVec<[Tensor; 16]>> {
    let shapes = works.iter().map(|work| source(work, from).map(|tensor| tensor.shape().clone()));
    let shapes = shapes.collect::<Result<SmallVec<[Shape; 16]>>>()?;
    let needed: usize = shapes.iter().filter_map(Shape::element_count).sum();
    if needed != output.tensor.element_count() {
        return Err(not_split(output, &format!("the inputs '{from}' it follows have {needed} elements")));
    }
    cut(output, shapes.into_iter())
}

/// Consecutive parts of a tensor's elements, in the given shapes.
fn cut(output: &NamedTensor, shapes: impl Iterator<Item = Shape>) -> Result<SmallVec<[Tensor; 16]>> {
    let tensor = &output.tensor;
    let mut strings = (tensor.data_type() == DataType::Bytes).then(|| tensor.strings());
    let mut at = 0;
    shapes
        .map(|shape| {
            let elements = shape.element_count().unwrap_or(0);
            let length = match (&mut strings, tensor.data_type().size()) {
                (Some(strings), _) => strings.by_ref().take(elements).map(|string| 4 + string.len()).sum(),
                (None, size) => elements * size.unwrap_or(0),
            };
            let end = at + length;
            if end > tensor.data().len() {
                return Err(not_split(output, "it is too short for the batch"));
            }
            let part = tensor.data().slice(at..end);
            at = end;
            Tensor::new(tensor.data_type(), shape, part)
        })
        .collect()
}

#[cfg(test)]
mod tests;
