//! Bodies of inferences: from bytes to a request, and from a response to bytes, as every front end over HTTP has them.

use bytes::Bytes;

use super::classification;
use super::tensor_json::{self, DecodedRequest, EncodedResponse, Limits, ResponseFormat};
use crate::error::{Error, Result};
use crate::inference::InferenceResponse;
use crate::lifecycle::handle::ModelHandle;

/// JSON from this size on is read and written where it holds up no connection.
pub const LARGE_JSON: usize = 128 << 10;

/// Reads a request whose JSON is the first `header_length` bytes, or all of them.
///
/// # Errors
/// As [`tensor_json::decode_request`].
pub async fn decode(body: Bytes, header_length: Option<usize>, limits: &Limits) -> Result<DecodedRequest> {
    if header_length.unwrap_or(body.len()) < LARGE_JSON {
        return tensor_json::decode_request(body, header_length, limits);
    }
    let limits = limits.clone();
    off_the_io_threads(true, move || tensor_json::decode_request(body, header_length, &limits)).await
}

/// Where there is room for one answer, a model with any number of them has no place.
///
/// # Errors
/// `Unsupported` for a decoupled model, in Triton's words.
pub fn refuse_decoupled(handle: &ModelHandle) -> Result<()> {
    if handle.config.decoupled {
        return Err(Error::unsupported("HTTP end point doesn't support models with decoupled transaction policy"));
    }
    Ok(())
}

/// Reads a body that is the one input of a model, a batch of one where it has batches.
///
/// # Errors
/// `InvalidArgument` for a model with another number of inputs, or a body of another size.
pub fn decode_raw(handle: &ModelHandle, body: Bytes) -> Result<DecodedRequest> {
    let [input] = handle.inputs.as_slice() else {
        return Err(Error::invalid(format!(
            "Raw request must only have 1 input (found 1) to be deduced but got {} inputs in '{}' model configuration",
            handle.inputs.len(),
            handle.id.name
        )));
    };
    let mut dims = input.dims.clone();
    if handle.max_batch_size > 0 {
        // A raw request is a batch of one.
        if let Some(batch) = dims.first_mut() {
            *batch = 1;
        }
    }
    tensor_json::decode_raw(body, &input.name, input.data_type, &dims)
}

/// Puts the top classes in the place of outputs that were asked for so.
///
/// # Errors
/// As [`classification::top_classes`].
pub fn classify(response: &mut InferenceResponse, format: &ResponseFormat, handle: &ModelHandle) -> Result<()> {
    if format.outputs.iter().all(|output| output.classification.is_none()) {
        return Ok(());
    }
    for output in &mut response.outputs {
        if let (_, Some(count)) = format.output(&output.name) {
            let metadata = handle.outputs.iter().find(|metadata| metadata.name == output.name);
            let labels = metadata.map_or(&[][..], |metadata| &metadata.labels);
            output.tensor = classification::top_classes(&output.tensor, count, labels, handle.max_batch_size > 0)?;
        }
    }
    Ok(())
}

/// Writes a response.
///
/// # Errors
/// `Internal` for an output that has no such form.
pub async fn encode(response: InferenceResponse, format: ResponseFormat) -> Result<EncodedResponse> {
    let as_json = |output: &crate::inference::NamedTensor| {
        !format.output(&output.name).0 && format.shared(&output.name).is_none()
    };
    let bytes: usize =
        response.outputs.iter().filter(|output| as_json(output)).map(|output| output.tensor.data().len()).sum();
    off_the_io_threads(bytes >= LARGE_JSON / 4, move || tensor_json::encode_response(&response, &format)).await
}

/// Runs `work` here, or where it holds up no connection if it is `large`.
///
/// # Errors
/// The work's own.
pub async fn off_the_io_threads<T: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if !large {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("work off the I/O threads failed").with_source(error))?
}
