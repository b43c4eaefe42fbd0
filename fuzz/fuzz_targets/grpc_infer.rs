//! Messages of `ModelInfer`: whatever they hold, decoding answers, and what was decoded can be encoded and is read back the
//! same by the reader that was generated from the contract.

#![no_main]

use std::sync::Arc;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use roundhouse::frontend::kserve_grpc::proto::inference::ModelInferResponse;
use roundhouse::frontend::kserve_grpc::request::decode;
use roundhouse::frontend::kserve_grpc::response::{Wrapping, encode};
use roundhouse::frontend::tensor_json::{Limits, ResponseFormat};
use roundhouse::inference::{InferenceResponse, ModelId};

fuzz_target!(|data: &[u8]| {
    let Ok(decoded) = decode(&Bytes::copy_from_slice(data), &Limits::default()) else { return };
    let response = InferenceResponse {
        model: ModelId { name: Arc::from("fuzz"), version: 1 },
        id: decoded.request.id,
        parameters: decoded.request.parameters,
        outputs: decoded.request.inputs,
        last: true,
    };
    let bytes = encode(response.clone(), &ResponseFormat::default(), Wrapping::Unary).concat();
    let message = ModelInferResponse::decode(&bytes[5..]).expect("what we write is protobuf");
    assert_eq!(message.raw_output_contents.len(), response.outputs.len());
    for (raw, output) in message.raw_output_contents.iter().zip(&response.outputs) {
        assert_eq!(raw, output.tensor.data());
    }
});
