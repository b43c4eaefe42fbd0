//! An [`InferenceResponse`] onto the wire: as `ModelInferResponse`, or inside of `ModelStreamInferResponse`, with gRPC's
//! prefix in front. Large tensors are pieces of their own and not copied.

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::super::tensor_json::ResponseFormat;
use super::parameters;
use super::wire::{put_bytes, put_length, put_text, put_varint, varint_length};
use crate::inference::{InferenceResponse, NamedTensor, ParameterValue};

/// The bytes of one gRPC message with its prefix, in order.
pub type Pieces = SmallVec<[Bytes; 3]>;

/// Room for what stands before the fields and is known last: gRPC's prefix (5) and the head of the wrapping field (6 for
/// lengths below 4 GiB).
const HEADROOM: usize = 11;

/// A tensor from this size on, in bytes, is a piece of its own; a smaller one is copied behind what is before it.
const LARGE: usize = 16 << 10;

/// How an answer is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// `ModelInferResponse`.
    Unary,
    /// `ModelStreamInferResponse`, whose answer says in `triton_final_response` whether it is the request's last.
    Stream,
}

/// Writes an answer. Outputs that `format` has in shared memory, where they are already, have contents of no bytes, as in
/// Triton: clients find an output's contents by its place.
#[must_use]
pub fn encode(mut response: InferenceResponse, format: &ResponseFormat, wrapping: Wrapping) -> Pieces {
    if wrapping == Wrapping::Stream {
        let last = (CompactString::const_new("triton_final_response"), ParameterValue::Bool(response.last));
        response.parameters.push(last);
    }
    let length = |output: &NamedTensor| match format.shared(&output.name) {
        None => output.tensor.data().len(),
        Some(_) => 0,
    };
    let small: usize = response.outputs.iter().map(length).filter(|size| *size < LARGE).sum();
    let mut out = Vec::with_capacity(HEADROOM + 160 + small + response.outputs.len() * 96);
    out.resize(HEADROOM, 0);
    put_text(&mut out, 1, &response.model.name);
    put_bytes(&mut out, 2, itoa::Buffer::new().format(response.model.version).as_bytes());
    put_text(&mut out, 3, &response.id);
    parameters::put(&mut out, 4, &response.parameters);
    for output in &response.outputs {
        put_output(&mut out, output);
    }
    let contents: usize = response.outputs.iter().map(length).map(|size| 1 + varint_length(size as u64) + size).sum();
    let start = put_heads(&mut out, contents, wrapping);
    let mut pieces = Pieces::new();
    let mut from = start;
    for output in response.outputs {
        let data = if length(&output) == 0 { Bytes::new() } else { output.tensor.into_data() };
        put_length(&mut out, 6, data.len());
        if data.len() < LARGE {
            out.extend_from_slice(&data);
        } else {
            let before = std::mem::take(&mut out);
            pieces.push(Bytes::from(before).slice(from..));
            pieces.push(data);
            from = 0;
        }
    }
    if out.len() > from {
        pieces.push(Bytes::from(out).slice(from..));
    }
    pieces
}

/// Writes what stands before the fields into the headroom, once their length is known, and says where it begins.
fn put_heads(out: &mut [u8], contents: usize, wrapping: Wrapping) -> usize {
    let inner = out.len() - HEADROOM + contents;
    let mut heads = Vec::with_capacity(HEADROOM);
    let wrapper = match wrapping {
        Wrapping::Unary => 0,
        Wrapping::Stream => 1 + varint_length(inner as u64),
    };
    heads.extend_from_slice(&prefix(inner + wrapper));
    if wrapping == Wrapping::Stream {
        put_length(&mut heads, 2, inner);
    }
    let start = HEADROOM.saturating_sub(heads.len());
    if let Some(place) = out.get_mut(start..HEADROOM) {
        place.copy_from_slice(&heads);
    }
    start
}

/// gRPC's prefix of an uncompressed message. A length that does not fit is 4 GiB or more, which no client takes.
pub(super) fn prefix(length: usize) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

fn put_output(out: &mut Vec<u8>, output: &NamedTensor) {
    let data_type = output.tensor.data_type().name();
    let dims = output.tensor.shape().dims();
    let packed: usize = dims.iter().map(|dim| varint_length(*dim as u64)).sum();
    let text = |length: usize| 1 + varint_length(length as u64) + length;
    let shape = if packed == 0 { 0 } else { text(packed) };
    put_length(out, 5, text(output.name.len()) + text(data_type.len()) + shape);
    put_bytes(out, 1, output.name.as_bytes());
    put_bytes(out, 2, data_type.as_bytes());
    if packed > 0 {
        put_length(out, 3, packed);
        for dim in dims {
            put_varint(out, *dim as u64);
        }
    }
}

/// An error as an item of a stream: its text, and the id of the request that it answers.
#[must_use]
pub fn encode_error(text: &str, id: &str) -> Pieces {
    let mut inner = Vec::new();
    put_text(&mut inner, 3, id);
    let mut message = vec![0; 5];
    put_text(&mut message, 1, text);
    put_bytes(&mut message, 2, &inner);
    let prefix = prefix(message.len() - 5);
    if let Some(place) = message.first_chunk_mut::<5>() {
        *place = prefix;
    }
    Pieces::from_iter([message.into()])
}
