//! Requests as clients write them, wrong ones, and any bytes.

use proptest::prelude::*;
use prost::Message;

use super::super::proto::inference as pb;
use super::super::response::{Wrapping, encode, encode_error};
use super::*;
use crate::error::ErrorKind;
use crate::inference::{InferenceResponse, ModelId, ParameterValue};

fn parameter(choice: pb::infer_parameter::ParameterChoice) -> pb::InferParameter {
    pb::InferParameter { parameter_choice: Some(choice) }
}

use pb::infer_parameter::ParameterChoice::{
    BoolParam as Bool, DoubleParam as Double, Int64Param as Int, StringParam as Text, Uint64Param as Uint,
};

fn input(name: &str, data_type: &str, shape: &[i64]) -> pb::model_infer_request::InferInputTensor {
    pb::model_infer_request::InferInputTensor {
        name: name.to_owned(),
        datatype: data_type.to_owned(),
        shape: shape.to_vec(),
        ..Default::default()
    }
}

fn typed(
    data_type: &str,
    shape: &[i64],
    contents: pb::InferTensorContents,
) -> pb::model_infer_request::InferInputTensor {
    pb::model_infer_request::InferInputTensor { contents: Some(contents), ..input("x", data_type, shape) }
}

fn read(request: &pb::ModelInferRequest) -> Result<Decoded> {
    decode(&Bytes::from(request.encode_to_vec()), &Limits::default())
}

fn one(input: pb::model_infer_request::InferInputTensor) -> Result<Tensor> {
    let request = pb::ModelInferRequest { model_name: "m".to_owned(), inputs: vec![input], ..Default::default() };
    read(&request).map(|decoded| decoded.request.inputs[0].tensor.clone())
}

#[test]
fn raw_tensors_are_slices_of_the_message() {
    let request = pb::ModelInferRequest {
        model_name: "m".to_owned(),
        model_version: "3".to_owned(),
        id: "r".to_owned(),
        inputs: vec![input("x", "FP16", &[2]), input("y", "UINT8", &[0])],
        raw_input_contents: vec![Bytes::from_static(&[1, 2, 3, 4]), Bytes::new()],
        parameters: [
            ("timeout".to_owned(), parameter(Int(5000))),
            ("priority".to_owned(), parameter(Uint(2))),
            ("sequence_id".to_owned(), parameter(Text("s".to_owned()))),
            ("own".to_owned(), parameter(Double(0.5))),
            ("triton_enable_empty_final_response".to_owned(), parameter(Bool(true))),
        ]
        .into(),
        outputs: vec![pb::model_infer_request::InferRequestedOutputTensor {
            name: "z".to_owned(),
            parameters: [("classification".to_owned(), parameter(Int(3)))].into(),
        }],
    };
    let message = Bytes::from(request.encode_to_vec());
    let decoded = decode(&message, &Limits::default()).unwrap();
    assert_eq!((decoded.model.as_str(), decoded.version, decoded.request.id.as_str()), ("m", Some(3), "r"));
    let tensor = &decoded.request.inputs[0].tensor;
    assert_eq!((tensor.data_type(), tensor.data().as_ref()), (DataType::Fp16, &[1, 2, 3, 4][..]));
    assert!(message.as_ptr_range().contains(&tensor.data().as_ptr()), "no copy");
    assert_eq!((decoded.timeout, decoded.request.priority), (Some(Duration::from_millis(5)), 2));
    assert!(decoded.empty_final);
    assert_eq!(
        decoded.request.parameters,
        [
            (CompactString::from("own"), ParameterValue::Double(0.5)),
            (CompactString::from("sequence_id"), ParameterValue::String("s".into())),
        ]
    );
    assert_eq!(decoded.format.output("z").1, Some(3));
}

#[test]
fn typed_contents_become_the_bytes_of_each_type() {
    let contents = pb::InferTensorContents::default;
    let small = || pb::InferTensorContents { int_contents: vec![-1, 127], ..contents() };
    assert_eq!(one(typed("INT8", &[2], small())).unwrap().elements::<i8>(), Some(&[-1, 127][..]));
    assert_eq!(one(typed("INT16", &[2], small())).unwrap().elements::<i16>(), Some(&[-1, 127][..]));
    assert_eq!(one(typed("INT32", &[2], small())).unwrap().elements::<i32>(), Some(&[-1, 127][..]));
    let unsigned = || pb::InferTensorContents { uint_contents: vec![0, 255], ..contents() };
    assert_eq!(one(typed("UINT8", &[2], unsigned())).unwrap().elements::<u8>(), Some(&[0, 255][..]));
    assert_eq!(one(typed("UINT16", &[2], unsigned())).unwrap().elements::<u16>(), Some(&[0, 255][..]));
    assert_eq!(one(typed("UINT32", &[2], unsigned())).unwrap().elements::<u32>(), Some(&[0, 255][..]));
    let long = pb::InferTensorContents { int64_contents: vec![i64::MIN, 7], ..contents() };
    assert_eq!(one(typed("INT64", &[2], long)).unwrap().elements::<i64>(), Some(&[i64::MIN, 7][..]));
    let long = pb::InferTensorContents { uint64_contents: vec![u64::MAX], ..contents() };
    assert_eq!(one(typed("UINT64", &[1], long)).unwrap().elements::<u64>(), Some(&[u64::MAX][..]));
    let flags = pb::InferTensorContents { bool_contents: vec![true, false], ..contents() };
    assert_eq!(one(typed("BOOL", &[2], flags)).unwrap().data().as_ref(), [1, 0]);
    let floats = pb::InferTensorContents { fp32_contents: vec![1.5, -2.0], ..contents() };
    assert_eq!(
        one(typed("FP32", &[2], floats)).unwrap().data().as_ref(),
        bytemuck::cast_slice::<f32, u8>(&[1.5, -2.0])
    );
    let floats = pb::InferTensorContents { fp64_contents: vec![0.1], ..contents() };
    assert_eq!(one(typed("FP64", &[1], floats)).unwrap().data().as_ref(), 0.1_f64.to_le_bytes());
    let texts = pb::InferTensorContents { bytes_contents: vec!["ab".into(), "".into()], ..contents() };
    assert_eq!(one(typed("BYTES", &[2], texts)).unwrap().strings().collect::<Vec<_>>(), [&b"ab"[..], b""]);
    assert_eq!(one(typed("FP32", &[0], contents())).unwrap().element_count(), 0);
}

#[test]
fn wrong_requests_are_refused_with_the_texts_that_clients_know() {
    let contents = pb::InferTensorContents { int_contents: vec![1, 300], ..Default::default() };
    let refused = |input, text: &str| {
        let error = one(input).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    refused(typed("INT8", &[2], contents.clone()), "out of range for INT8");
    refused(typed("FP16", &[2], contents.clone()), "raw_input_contents");
    let other_type = "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'INT32', expected \
                      datatype 'FP32'";
    refused(typed("FP32", &[2], contents.clone()), other_type);
    refused(typed("INT32", &[3], contents.clone()), "unexpected size for input 'x'");
    refused(input("x", "INT32", &[1]), "unable to find data for input tensor 'x' for model 'm' in request.");
    refused(input("x", "INT31", &[1]), "unknown datatype 'INT31'");
    let both = pb::ModelInferRequest {
        inputs: vec![typed("INT32", &[2], contents)],
        raw_input_contents: vec![Bytes::from_static(&[0; 8])],
        ..Default::default()
    };
    assert!(read(&both).unwrap_err().to_string().contains("contents field must not be specified"));
    let too_many = pb::ModelInferRequest { raw_input_contents: vec![Bytes::new()], ..Default::default() };
    assert!(read(&too_many).unwrap_err().to_string().contains("got 1"));
    for (key, value, text) in [
        ("sequence_start", Int(1), "'sequence_start' parameter, expected bool_param"),
        ("sequence_id", Bool(true), "'sequence_id' parameter, expected int64_param or string_param"),
        ("timeout", Text("1".to_owned()), "'timeout' parameter"),
        ("priority", Int(-1), "'priority' parameter"),
        ("triton_x", Int(1), "'triton_' are reserved"),
    ] {
        let parameters = [(key.to_owned(), parameter(value))].into();
        let error = read(&pb::ModelInferRequest { parameters, ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
    let version = pb::ModelInferRequest { model_version: "one".to_owned(), ..Default::default() };
    assert!(read(&version).unwrap_err().to_string().contains("failed to get model version"));
}

#[test]
fn limits_are_named() {
    let limits = Limits { inputs: 1, rank: 1, parameters: 1, name_bytes: 4, elements: 2, ..Limits::default() };
    let named = |request: pb::ModelInferRequest, limit: &str| {
        let error = decode(&Bytes::from(request.encode_to_vec()), &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains(limit), "{error}");
    };
    let with = |inputs| pb::ModelInferRequest { inputs, ..Default::default() };
    named(with(vec![input("x", "BOOL", &[]), input("y", "BOOL", &[])]), "(inputs)");
    named(with(vec![input("x", "BOOL", &[1, 1])]), "(rank)");
    named(with(vec![input("xxxxx", "BOOL", &[])]), "(name_bytes)");
    let flags = pb::InferTensorContents { bool_contents: vec![true; 3], ..Default::default() };
    named(with(vec![typed("BOOL", &[3], flags)]), "(elements)");
    let floats = pb::InferTensorContents { fp32_contents: vec![0.0; 3], ..Default::default() };
    named(with(vec![typed("FP32", &[3], floats)]), "(elements)");
    let parameters = ["a", "b"].map(|key| (key.to_owned(), parameter(Int(1)))).into();
    named(pb::ModelInferRequest { parameters, ..Default::default() }, "(parameters)");
}

#[test]
fn an_error_of_a_stream_names_its_request() {
    let pieces = encode_error("no", "r7").concat();
    let message = pb::ModelStreamInferResponse::decode(&pieces[5..]).unwrap();
    assert_eq!((message.error_message.as_str(), message.infer_response.unwrap().id.as_str()), ("no", "r7"));
    assert_eq!(pieces[1..5], u32::try_from(pieces.len() - 5).unwrap().to_be_bytes());
}

#[test]
fn a_tensor_in_shared_memory_is_named_and_takes_no_contents() {
    let place = |name: &str, extra: &[(&str, pb::infer_parameter::ParameterChoice)]| {
        let region = [("shared_memory_region", Text("r".to_owned())), ("shared_memory_byte_size", Int(8))];
        let parameters = region.iter().chain(extra).map(|(key, value)| ((*key).to_owned(), parameter(value.clone())));
        pb::model_infer_request::InferInputTensor { parameters: parameters.collect(), ..input(name, "INT32", &[2]) }
    };
    let output =
        |extra: &[(&str, pb::infer_parameter::ParameterChoice)]| pb::model_infer_request::InferRequestedOutputTensor {
            name: "z".to_owned(),
            parameters: place("", extra).parameters,
        };
    let request = pb::ModelInferRequest {
        inputs: vec![
            input("a", "UINT8", &[1]),
            place("b", &[("shared_memory_offset", Uint(4)), ("shared_memory_other", Bool(true))]),
            input("c", "UINT8", &[1]),
        ],
        raw_input_contents: vec![Bytes::from_static(&[1]), Bytes::from_static(&[2])],
        outputs: vec![output(&[])],
        ..Default::default()
    };
    let decoded = read(&request).unwrap();
    let raw: Vec<_> = decoded.request.inputs.iter().map(|input| input.tensor.data()[0]).collect();
    assert_eq!(raw, [1, 2], "contents are of those inputs that are not elsewhere");
    let [shared] = decoded.shared_inputs.as_slice() else { panic!("one input lies in shared memory") };
    let wanted = RegionSpec { region: "r".into(), offset: 4, byte_size: 8 };
    assert_eq!((shared.name.as_str(), &shared.place), ("b", &wanted));
    assert_eq!(decoded.format.shared("z"), Some(&RegionSpec { offset: 0, ..wanted }));

    let with = |input| pb::ModelInferRequest { model_name: "m".to_owned(), inputs: vec![input], ..Default::default() };
    let contents = Some(pb::InferTensorContents { int_contents: vec![1, 2], ..Default::default() });
    let typed = pb::model_infer_request::InferInputTensor { contents, ..place("x", &[]) };
    let long = pb::model_infer_request::InferInputTensor { shape: vec![3], ..place("x", &[]) };
    let alone = pb::model_infer_request::InferInputTensor {
        parameters: [("shared_memory_offset".to_owned(), parameter(Int(0)))].into(),
        ..input("x", "INT32", &[2])
    };
    let raw = pb::ModelInferRequest { raw_input_contents: vec![Bytes::new()], ..with(place("x", &[])) };
    let both = pb::ModelInferRequest { outputs: vec![output(&[("classification", Int(1))])], ..Default::default() };
    for (request, text) in [
        (with(typed), "unexpected 'content' provided when using shared memory for input tensor 'x' for model 'm'"),
        (with(long), "input byte size mismatch for input 'x'. Expected 12, got 8"),
        (with(alone), "'shared_memory_offset' can not be specified without 'shared_memory_region'"),
        (
            with(place("x", &[("shared_memory_region", Int(1))])),
            "'shared_memory_region' parameter, expected string_param",
        ),
        (
            with(place("x", &[("shared_memory_offset", Int(-1))])),
            "'shared_memory_offset' parameter, expected int64_param",
        ),
        (raw, "for each of the 0 inputs of a request for model 'm', got 1"),
        (both, "Output can't set both 'shared_memory_region' and 'classification'"),
    ] {
        let error = read(&request).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains(text)), (ErrorKind::InvalidArgument, true), "{error}");
    }
}

#[test]
fn an_output_in_shared_memory_keeps_its_place_among_the_contents() {
    let tensor = |data: &[u8]| Tensor::from_vec(Shape::new(&[data.len().try_into().unwrap()]), data.to_vec()).unwrap();
    let response = InferenceResponse {
        model: ModelId { name: "m".into(), version: 1 },
        id: "".into(),
        parameters: Vec::new(),
        outputs: [("a", tensor(&[1; 20_000])), ("b", tensor(&[2]))]
            .map(|(name, tensor)| NamedTensor { name: name.into(), tensor })
            .into(),
        last: true,
    };
    let place = RegionSpec { region: "r".into(), offset: 0, byte_size: 20_000 };
    let shared = OutputFormat { name: "a".into(), binary: None, classification: None, shared: Some(place) };
    let format = ResponseFormat { outputs: [shared].into_iter().collect(), ..ResponseFormat::default() };
    let pieces = encode(response, &format, Wrapping::Unary).concat();
    assert_eq!(&pieces[..5], &super::super::response::prefix(pieces.len() - 5));
    let message = pb::ModelInferResponse::decode(&pieces[5..]).unwrap();
    assert_eq!(message.outputs.len(), 2);
    assert_eq!(message.raw_output_contents, [Bytes::new(), Bytes::from_static(&[2])]);
}

fn a_response() -> impl Strategy<Value = InferenceResponse> {
    let tensor = (prop::collection::vec(any::<u8>(), 0..40), prop::bool::weighted(0.2)).prop_map(|(data, large)| {
        let data = if large { vec![7; 20_000] } else { data };
        Tensor::from_vec(Shape::new(&[data.len().try_into().unwrap(), 1]), data).unwrap()
    });
    let value = prop_oneof![
        any::<bool>().prop_map(ParameterValue::Bool),
        any::<i64>().prop_map(ParameterValue::Int),
        any::<u64>().prop_map(ParameterValue::Uint),
        (-1e9..1e9).prop_map(ParameterValue::Double),
        "[a-z]{0,30}".prop_map(|text| ParameterValue::String(text.into())),
    ];
    let outputs = prop::collection::vec(("[a-z]{1,30}", tensor), 0..4);
    let parameters = prop::collection::btree_map("[a-z]{1,9}", value, 0..4);
    (outputs, parameters, any::<u64>(), ".{0,20}", any::<bool>()).prop_map(
        |(outputs, parameters, version, id, last)| InferenceResponse {
            model: ModelId { name: "model".into(), version },
            id: id.into(),
            parameters: parameters.into_iter().map(|(key, value)| (key.into(), value)).collect(),
            outputs: outputs.into_iter().map(|(name, tensor)| NamedTensor { name: name.into(), tensor }).collect(),
            last,
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let message = Bytes::from(bytes);
        let _answer = decode(&message, &Limits::default());
        let _id = id_of(&message);
    }

    #[test]
    fn a_request_cut_or_changed_anywhere_is_read_or_refused(cut in 0_usize..200, at in 0_usize..200, byte in any::<u8>()) {
        let request = pb::ModelInferRequest {
            model_name: "m".to_owned(),
            inputs: vec![typed("INT32", &[2], pb::InferTensorContents { int_contents: vec![1, 2], ..Default::default() })],
            parameters: [("a".to_owned(), parameter(Int(1)))].into(),
            ..Default::default()
        };
        let mut bytes = request.encode_to_vec();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes.truncate(cut);
        let _answer = decode(&Bytes::from(bytes), &Limits::default());
    }

    #[test]
    fn answers_read_back_as_clients_read_them(response in a_response()) {
        let pieces = encode(response.clone(), &ResponseFormat::default(), Wrapping::Unary).concat();
        prop_assert_eq!(&pieces[..5], &super::super::response::prefix(pieces.len() - 5));
        let message = pb::ModelInferResponse::decode(&pieces[5..]).unwrap();
        prop_assert_eq!(&message.model_version, &response.model.version.to_string());
        prop_assert_eq!(&message.id, response.id.as_str());
        prop_assert_eq!(message.parameters.len(), response.parameters.len());
        prop_assert_eq!(message.outputs.len(), response.outputs.len());
        for ((output, raw), expected) in message.outputs.iter().zip(&message.raw_output_contents).zip(&response.outputs) {
            prop_assert_eq!(output.name.as_str(), expected.name.as_str());
            prop_assert_eq!(output.datatype.as_str(), expected.tensor.data_type().name());
            prop_assert_eq!(output.shape.as_slice(), expected.tensor.shape().dims());
            prop_assert_eq!(raw, expected.tensor.data());
        }
        let last = response.last;
        let streamed = encode(response, &ResponseFormat::default(), Wrapping::Stream).concat();
        let streamed = pb::ModelStreamInferResponse::decode(&streamed[5..]).unwrap().infer_response.unwrap();
        prop_assert_eq!(&streamed.raw_output_contents, &message.raw_output_contents);
        prop_assert_eq!(&streamed.parameters["triton_final_response"], &parameter(Bool(last)));
    }

    #[test]
    fn raw_requests_of_clients_read_as_they_were_meant(
        data in prop::collection::vec(any::<u8>(), 0..64), name in "[a-z]{0,9}", id in ".{0,9}"
    ) {
        let request = pb::ModelInferRequest {
            model_name: name.clone(),
            id: id.clone(),
            inputs: vec![input(&name, "UINT8", &[data.len().try_into().unwrap()])],
            raw_input_contents: vec![data.clone().into()],
            ..Default::default()
        };
        let decoded = read(&request).unwrap();
        prop_assert_eq!(decoded.model.as_str(), name.as_str());
        prop_assert_eq!(decoded.request.id.as_str(), id.as_str());
        prop_assert_eq!(decoded.request.inputs[0].tensor.data(), &data);
    }
}
