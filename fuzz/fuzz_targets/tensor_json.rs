//! Bodies of inference requests: whatever they hold, decoding answers, and what was decoded can be encoded.
//!
//! The first two bytes say how the rest is read: 0xffff as JSON alone, anything else as the length of the JSON part.

#![no_main]

use std::sync::Arc;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use roundhouse::frontend::tensor_json::{Limits, decode_raw, decode_request, encode_response};
use roundhouse::inference::{InferenceResponse, ModelId};
use roundhouse::tensor::DataType;

fuzz_target!(|data: &[u8]| {
    let Some((length, body)) = data.split_first_chunk::<2>() else { return };
    let length = u16::from_le_bytes(*length);
    let header_length = (length != u16::MAX).then_some(usize::from(length));
    let body = Bytes::copy_from_slice(body);
    let decoded = match header_length {
        Some(0) => decode_raw(body, "x", DataType::Fp32, &[-1, 2]),
        _ => decode_request(body, header_length, &Limits::default()),
    };
    let Ok(decoded) = decoded else { return };
    let response = InferenceResponse {
        model: ModelId { name: Arc::from("fuzz"), version: 1 },
        id: decoded.request.id,
        parameters: decoded.request.parameters,
        outputs: decoded.request.inputs,
        last: true,
    };
    // A binary BYTES input need not be UTF-8 and then cannot be answered as JSON: an error is right there.
    let Ok(encoded) = encode_response(&response, &decoded.format) else { return };
    assert_eq!(encoded.header_length.is_some(), !encoded.tensors.is_empty());
    if encoded.tensors.is_empty() {
        // What we write, we read, and write the same again. No parameter is an array, so that the key is found by it.
        let json = std::str::from_utf8(&encoded.json).expect("the JSON is UTF-8");
        let again = json.replacen("\"outputs\":[", "\"inputs\":[", 1);
        let decoded = decode_request(again.into(), None, &Limits::default()).expect("a response reads as a request");
        let response = InferenceResponse {
            model: response.model,
            id: decoded.request.id,
            parameters: decoded.request.parameters,
            outputs: decoded.request.inputs,
            last: true,
        };
        let again = encode_response(&response, &decoded.format).expect("what was JSON can be JSON");
        assert_eq!(again.json, encoded.json);
    }
});
