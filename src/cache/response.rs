//! Answers that are kept: to the same question, the same model gives the same bytes again without a run.
//!
//! A key is the load that answered and a SHA-256 over all that may change an answer, each part with its length before it.
//! No two questions share an answer unless somebody finds a collision of SHA-256. Since a load has a number that no other
//! has, what a model answered before it was unloaded or changed can never be found again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use sha2::{Digest, Sha256};

use crate::inference::{NamedTensor, NamedTensors, ParameterValue, Parameters};
use crate::tensor::Tensor;

/// What a part of the cache holds at least, each under a lock of its own.
const LEAST_OF_A_PART: u64 = 32 << 20;

/// The most parts.
const MOST_PARTS: u64 = 16;

/// An answer takes at most this share of a part.
const SHARE: u64 = 4;

/// What an entry takes beside its bytes: key, links, the vector of outputs.
const ENTRY_BYTES: u64 = 256;

/// What an output takes beside its bytes, where its name and shape lie inline.
const OUTPUT_BYTES: u64 = 64;

/// The answers of all models, within a number of bytes. What is asked for least goes first.
pub struct ResponseCache {
    answers: Cache<Key, Arc<NamedTensors>, Weigh, DefaultHashBuilder, DefaultLifecycle<Key, Arc<NamedTensors>>>,
    next_load: AtomicU64,
    largest: u64,
}

/// A question to one loaded version of a model.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    load: u64,
    digest: [u8; 32],
}

/// The answers of one loaded version of a model.
pub struct Responses {
    cache: Arc<ResponseCache>,
    load: u64,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Key, Arc<NamedTensors>> for Weigh {
    fn weight(&self, _key: &Key, answer: &Arc<NamedTensors>) -> u64 {
        weight(answer)
    }
}

fn weight(answer: &NamedTensors) -> u64 {
    let output = |output: &NamedTensor| {
        let named = output.name.len() + 8 * output.tensor.shape().rank();
        OUTPUT_BYTES + (output.tensor.data().len() + named) as u64
    };
    answer.iter().map(output).fold(ENTRY_BYTES, u64::saturating_add)
}

impl ResponseCache {
    /// A cache of `bytes`; `None` for 0.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Arc<Self>> {
        if bytes == 0 {
            return None;
        }
        let parts = (bytes / LEAST_OF_A_PART).clamp(1, MOST_PARTS);
        // Down to a power of two, which the cache would round up to.
        let parts = 1_u64 << parts.ilog2();
        let options = OptionsBuilder::new()
            .weight_capacity(bytes)
            // It makes tables for so many at once: answers are some KiB as a rule, and more than that grow them.
            .estimated_items_capacity(usize::try_from(bytes / 4096).unwrap_or(usize::MAX).clamp(64, 65_536))
            .shards(usize::try_from(parts).unwrap_or(1))
            .build()
            .ok()?;
        let answers = Cache::with_options(options, Weigh, DefaultHashBuilder::default(), DefaultLifecycle::default());
        let largest = answers.shard_capacity() / SHARE;
        Some(Arc::new(Self { answers, next_load: AtomicU64::new(0), largest }))
    }

    /// A place for the answers of a version that was just loaded.
    #[must_use]
    pub fn responses(self: &Arc<Self>) -> Arc<Responses> {
        let load = self.next_load.fetch_add(1, Ordering::Relaxed);
        Arc::new(Responses { cache: Arc::clone(self), load })
    }

    /// What all answers take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.answers.weight()
    }

    /// How many answers there are.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.answers.len()
    }
}

impl Responses {
    /// The question: `inputs` in the model's order, the wanted `outputs` as indexes into its signature, and the
    /// `parameters` of the request. Some 0.9 ms a MiB of inputs where the processor has instructions for SHA-256.
    #[must_use]
    pub fn key(&self, inputs: &[NamedTensor], outputs: &[usize], parameters: &Parameters) -> Key {
        let mut hash = Question(Sha256::new());
        hash.number(inputs.len() as u64);
        for NamedTensor { name, tensor } in inputs {
            hash.bytes(name.as_bytes());
            hash.bytes(tensor.data_type().name().as_bytes());
            hash.number(tensor.shape().rank() as u64);
            tensor.shape().dims().iter().for_each(|dim| hash.number(dim.cast_unsigned()));
            hash.bytes(tensor.data());
        }
        hash.number(outputs.len() as u64);
        outputs.iter().for_each(|output| hash.number(*output as u64));
        hash.number(parameters.len() as u64);
        for (name, value) in parameters {
            hash.bytes(name.as_bytes());
            hash.parameter(value);
        }
        Key { load: self.load, digest: hash.0.finalize().into() }
    }

    /// The kept answer.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<NamedTensors> {
        self.cache.answers.get(key).map(|answer| NamedTensors::clone(&answer))
    }

    /// Keeps an answer, unless it is large beside the cache. The bytes are copied: a slice of a request's body, of a whole
    /// batch's output or of a runtime's arena would keep all of that in memory, uncounted.
    pub fn keep(&self, key: Key, answer: &NamedTensors) {
        if weight(answer) > self.cache.largest {
            return;
        }
        let own = |output: &NamedTensor| {
            let tensor = &output.tensor;
            let data = Bytes::copy_from_slice(tensor.data());
            // It was a tensor of this type and shape before.
            let tensor = Tensor::new(tensor.data_type(), tensor.shape().clone(), data).ok()?;
            Some(NamedTensor { name: output.name.clone(), tensor })
        };
        if let Some(answer) = answer.iter().map(own).collect() {
            self.cache.answers.insert(key, Arc::new(answer));
        }
    }

    /// Lets all of this version's answers go. Looks at every answer of every model.
    pub fn forget(&self) {
        self.cache.answers.retain(|key, _| key.load != self.load);
    }
}

/// A hash over parts that cannot run into each other.
struct Question(Sha256);

impl Question {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn parameter(&mut self, value: &ParameterValue) {
        let (kind, number) = match value {
            ParameterValue::Bool(value) => (0, u64::from(*value)),
            ParameterValue::Int(value) => (1, value.cast_unsigned()),
            ParameterValue::Uint(value) => (2, *value),
            ParameterValue::Double(value) => (3, value.to_bits()),
            ParameterValue::String(text) => {
                self.number(4);
                return self.bytes(text.as_bytes());
            }
        };
        self.number(kind);
        self.number(number);
    }
}

#[cfg(test)]
mod tests;
