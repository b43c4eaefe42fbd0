//! The body of a KServe v2 inference: JSON, or JSON followed by binary tensors (Triton's binary tensor data extension).
//!
//! *Decoding* makes an [`InferenceRequest`] of a body. Binary tensors are slices of the body; JSON numbers go straight
//! into typed buffers, without a tree in between. *Encoding* makes the JSON of an
//! [`InferenceResponse`](crate::inference::InferenceResponse); binary tensors are handed on as they are.
//!
//! Beyond the protocol: FP16 and BF16 have a JSON form (numbers), and `NaN`, `Infinity`, `-Infinity` are accepted and
//! written for floating types, as Python and Triton do. Stricter than Triton: numbers are never truncated to their
//! type, and a key that this module knows may not stand twice in an object.

mod decimal;
mod decode;
mod elements;
mod encode;
mod numbers;
mod parameters;
pub mod shared;

use std::time::Duration;

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

pub use self::decode::{decode_raw, decode_request};
pub use self::elements::{Elements, read_elements};
pub use self::encode::{encode_error, encode_response, write_elements, write_parameters};
use crate::inference::InferenceRequest;
use crate::server::shared_memory::RegionSpec;
use crate::tensor::{DataType, Shape};

/// What a request may ask of the decoder. Passing a limit is a `TooLarge` error that names it, except for the depth,
/// where Triton's `InvalidArgument` is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the JSON part (Triton's `--http-max-input-size`).
    pub json_bytes: usize,
    /// Levels of objects and arrays in the JSON part.
    pub json_depth: usize,
    /// Inputs, and requested outputs.
    pub inputs: usize,
    /// Elements of one tensor given as JSON.
    pub elements: usize,
    /// Dimensions of one tensor.
    pub rank: usize,
    /// Parameters of the request, of an input, or of an output.
    pub parameters: usize,
    /// Bytes of the name of an input, an output or a parameter, and of the request's id.
    pub name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_bytes: 64 << 20,
            json_depth: 100,
            inputs: 4096,
            elements: 32 << 20,
            rank: 64,
            parameters: 1024,
            name_bytes: 1024,
        }
    }
}

/// A request as it came, with what concerns the front end alone beside it.
#[derive(Clone, Debug, Default)]
pub struct DecodedRequest {
    /// What is handed down. Its deadline is unset: the caller makes it of `timeout` and its own clock.
    pub request: InferenceRequest,
    /// The `timeout` parameter (microseconds on the wire); `None` if absent or 0, which is Triton's "no timeout".
    pub timeout: Option<Duration>,
    /// How the answer is to be written.
    pub format: ResponseFormat,
    /// The inputs that lie in shared memory; not among the request's until somebody has read them.
    pub shared_inputs: Vec<SharedInput>,
}

/// An input that lies in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedInput {
    /// The input's name.
    pub name: CompactString,
    /// Its element type.
    pub data_type: DataType,
    /// Its dimensions, which agree with `place.byte_size` unless the type is BYTES.
    pub shape: Shape,
    /// Where it lies.
    pub place: RegionSpec,
}

/// How the outputs of a response are to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseFormat {
    /// Whether outputs are binary unless they say otherwise (`binary_data_output`).
    pub binary_default: bool,
    /// The outputs that were asked for with parameters of their own.
    pub outputs: SmallVec<[OutputFormat; 2]>,
}

/// The parameters of one requested output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFormat {
    /// The output's name.
    pub name: CompactString,
    /// Its `binary_data`, if given.
    pub binary: Option<bool>,
    /// Its `classification`, if given: how many of the top classes to answer instead of the tensor. Never 0.
    pub classification: Option<u32>,
    /// Where in shared memory it is to be written, instead of the answer. Excludes `classification` and binary data.
    pub shared: Option<RegionSpec>,
}

impl ResponseFormat {
    /// Whether the output of this name is to be binary, and how many top classes it is to be reduced to, if any.
    #[must_use]
    pub fn output(&self, name: &str) -> (bool, Option<u32>) {
        let own = self.outputs.iter().find(|output| output.name == name);
        let binary = own.and_then(|output| output.binary).unwrap_or(self.binary_default);
        (binary, own.and_then(|output| output.classification))
    }

    /// Where in shared memory the output of this name is written, if it is.
    #[must_use]
    pub fn shared(&self, name: &str) -> Option<&RegionSpec> {
        self.outputs.iter().find(|output| output.name == name)?.shared.as_ref()
    }
}

/// A response as it goes onto the wire: the JSON, then the tensors in order.
#[derive(Clone, Debug)]
pub struct EncodedResponse {
    /// The JSON part.
    pub json: Bytes,
    /// The bytes of each binary output, in the order of the outputs.
    pub tensors: SmallVec<[Bytes; 2]>,
    /// The value of `Inference-Header-Content-Length`, the JSON part's length in bytes, if any output is binary; the
    /// content type is `application/octet-stream` then and `application/json` otherwise.
    pub header_length: Option<usize>,
}

#[cfg(test)]
mod tests;
