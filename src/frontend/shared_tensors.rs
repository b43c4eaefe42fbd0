//! Inputs from shared memory and outputs to it, whichever protocol named them.

use compact_str::CompactString;

use super::tensor_body::off_the_io_threads;
use super::tensor_json::{DecodedRequest, ResponseFormat, SharedInput};
use crate::error::{Error, Result};
use crate::inference::{InferenceRequest, InferenceResponse, NamedTensor, NamedTensors};
use crate::server::shared_memory::{RegionSlice, SharedMemory};
use crate::tensor::Tensor;

/// Copies above this many bytes hold up no connection: a copy of 1 MiB takes about as long as a change of threads costs
/// ten times over.
const LARGE_COPY: u64 = 1 << 20;

/// The most bytes of the inputs of one request, and the option that says so.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Bytes.
    pub bytes: usize,
    /// The option, for the error.
    pub flag: &'static str,
}

/// Where outputs are to be written: held from before the model runs, so that nobody takes a region away meanwhile.
pub type OutputPlaces = Vec<(CompactString, RegionSlice)>;

/// Reads the inputs that lie in shared memory into the request, and finds the places of its outputs. Costs nothing where a
/// request has neither.
///
/// # Errors
/// `Unsupported` where shared memory is off; `NotFound` for an unknown region; `InvalidArgument` for bytes outside of one,
/// or that are no such tensor; `TooLarge` if the inputs together are more than `most`.
pub async fn take(
    memory: &SharedMemory,
    request: &mut InferenceRequest,
    inputs: Vec<SharedInput>,
    format: &ResponseFormat,
    most: Most,
) -> Result<OutputPlaces> {
    let mut places = OutputPlaces::new();
    for output in &format.outputs {
        if let Some(place) = &output.shared {
            places.push((output.name.clone(), memory.slice(place)?));
        }
    }
    if !inputs.is_empty() {
        request.inputs.extend(read(memory, inputs, most).await?);
    }
    Ok(places)
}

/// Reads inputs that lie in shared memory.
async fn read(memory: &SharedMemory, inputs: Vec<SharedInput>, most: Most) -> Result<NamedTensors> {
    let mut total = 0_u64;
    let mut is_slow = false;
    let mut found = Vec::with_capacity(inputs.len());
    for input in inputs {
        total = total.saturating_add(input.place.byte_size);
        let slice = memory.slice(&input.place)?;
        is_slow |= slice.is_on_gpu();
        found.push((input, slice));
    }
    if total > u64::try_from(most.bytes).unwrap_or(u64::MAX) {
        let Most { bytes, flag } = most;
        return Err(Error::too_large(format!("the inputs in shared memory have {total} bytes, over {flag} {bytes}")));
    }
    let copy = move || {
        let tensor = |(input, slice): (SharedInput, RegionSlice)| {
            let SharedInput { name, data_type, shape, .. } = input;
            let tensor = Tensor::new(data_type, shape, slice.read()?)
                .map_err(|error| Error::new(error.kind(), format!("unexpected size for input '{name}': {error}")))?;
            Ok(NamedTensor { name, tensor })
        };
        found.into_iter().map(tensor).collect()
    };
    off_the_io_threads(is_slow || total > LARGE_COPY, copy).await
}

/// Writes the outputs that were asked for so to their places; all of them fit, or none is written.
///
/// # Errors
/// `InvalidArgument` for a place that is too small, or whose object has shrunk.
pub async fn put(response: InferenceResponse, places: OutputPlaces) -> Result<InferenceResponse> {
    if places.is_empty() {
        return Ok(response);
    }
    let mut total = 0;
    for (name, place) in &places {
        let Some(output) = response.outputs.iter().find(|output| output.name == *name) else { continue };
        let needed = output.tensor.data().len() as u64;
        if needed > place.byte_size() {
            // Triton's text.
            return Err(Error::invalid(format!(
                "shared memory size specified with the request for output '{name}' ({} bytes) should be at least {needed} \
                 bytes to hold the results",
                place.byte_size()
            )));
        }
        total += needed;
    }
    let is_slow = places.iter().any(|(_, place)| place.is_on_gpu());
    let copy = move || {
        for (name, place) in &places {
            if let Some(output) = response.outputs.iter().find(|output| output.name == *name) {
                place.write(output.tensor.data())?;
            }
        }
        Ok(response)
    };
    off_the_io_threads(is_slow || total > LARGE_COPY, copy).await
}

/// Refuses tensors in shared memory where callers are on other machines.
///
/// # Errors
/// `InvalidArgument` naming the tensor.
pub fn refuse(decoded: &DecodedRequest) -> Result<()> {
    let inputs = decoded.shared_inputs.iter().map(|input| &input.name);
    let outputs = decoded.format.outputs.iter().filter(|output| output.shared.is_some()).map(|output| &output.name);
    match inputs.chain(outputs).next() {
        None => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "tensor '{name}' is in shared memory, which invocations cannot use: send it in the body"
        ))),
    }
}
