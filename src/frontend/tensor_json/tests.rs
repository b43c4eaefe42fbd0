//! What holds for decoding and encoding together; single numbers are tested beside their parsers.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{InferenceResponse, ModelId, NamedTensor, ParameterValue};
use crate::tensor::{DataType, Shape, Tensor};

fn decode(json: &str) -> Result<DecodedRequest> {
    decode_request(Bytes::copy_from_slice(json.as_bytes()), None, &Limits::default())
}

fn decode_data(data_type: &str, shape: &str, data: &str) -> Result<Tensor> {
    let json = format!(r#"{{"inputs":[{{"name":"x","datatype":"{data_type}","shape":{shape},"data":{data}}}]}}"#);
    let input = decode(&json)?.request.inputs.into_iter().next().unwrap();
    // The other order is read later, in another way, to the same end.
    let json = format!(r#"{{"inputs":[{{"data":{data},"name":"x","datatype":"{data_type}","shape":{shape}}}]}}"#);
    // Compared as text: NaN is not equal to itself.
    assert_eq!(decode(&json).unwrap().request.inputs[0].tensor.data(), input.tensor.data());
    Ok(input.tensor)
}

fn refused(json: &str) -> String {
    let error = decode(json).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    error.to_string()
}

fn refused_data(data_type: &str, shape: &str, data: &str) -> String {
    let error = decode_data(data_type, shape, data).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    error.to_string()
}

fn respond(outputs: Vec<NamedTensor>) -> InferenceResponse {
    InferenceResponse {
        model: ModelId { name: Arc::from("m"), version: 3 },
        id: CompactString::default(),
        parameters: Vec::new(),
        outputs: outputs.into_iter().collect(),
        last: true,
    }
}

fn text(json: &Bytes) -> &str {
    std::str::from_utf8(json).unwrap()
}

#[test]
fn a_whole_request_is_understood() {
    let decoded = decode(
        r#" { "outputs" : [ {"name":"a","parameters":{"binary_data":false,"binary_data_size":9,"other":[1]}}, {"name":"b"},
            {"parameters":{"classification":3},"name":"c","unknown":null} ], "unknown": {"deep":[{"x":[NaN,"]"]}]},
        "id" : "r\u00e9-1", "parameters" : { "sequence_id": 7, "sequence_start": true, "priority": 2, "timeout": 1500,
            "binary_data_output": true, "t": 0.5, "s": "v", "u": 18446744073709551615, "n": -1,
            "triton_enable_empty_final_response": true },
        "inputs" : [ { "data" : [ [1, 2] , [3,4] ], "shape" : [ 2 , 2 ], "extra": 1, "datatype" : "INT8", "name" : "x" } ] } "#,
    )
    .unwrap();
    let request = decoded.request;
    assert_eq!(request.id, "ré-1");
    assert_eq!(request.priority, 2);
    assert_eq!(decoded.timeout, Some(Duration::from_micros(1500)));
    let parameters: Vec<_> = request.parameters.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    assert_eq!(
        parameters,
        [
            ("sequence_id", ParameterValue::Int(7)),
            ("sequence_start", ParameterValue::Bool(true)),
            ("t", ParameterValue::Double(0.5)),
            ("s", ParameterValue::String("v".into())),
            ("u", ParameterValue::Uint(u64::MAX)),
            ("n", ParameterValue::Int(-1)),
            ("triton_enable_empty_final_response", ParameterValue::Bool(true)),
        ]
    );
    assert_eq!(request.outputs.as_slice(), ["a", "b", "c"]);
    let format = decoded.format;
    assert_eq!(format.output("a"), (false, None));
    assert_eq!(format.output("b"), (true, None));
    assert_eq!(format.output("c"), (true, Some(3)));
    assert_eq!(request.inputs[0].tensor, Tensor::from_vec(Shape::new(&[2, 2]), vec![1_i8, 2, 3, 4]).unwrap());
}

#[test]
fn nesting_need_not_follow_the_shape_but_the_count_must() {
    let expected = Tensor::from_vec(Shape::new(&[2, 2]), vec![1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    for data in ["[1,2,3,4]", "[[1,2],[3,4]]", "[[[1.0],[2],[]],3,[[[4e0]]]]", " [ 1 ,\n2\t,[ 3.00000000 , 4 ]\r] "] {
        assert_eq!(decode_data("FP32", "[2,2]", data).unwrap(), expected, "{data}");
    }
    let count = "unexpected number of elements in 'data' of input 'x': the shape asks for 4, got ";
    assert_eq!(refused_data("FP32", "[2,2]", "[1,2,3]"), format!("{count}3"));
    assert_eq!(refused_data("FP32", "[2,2]", "[1,2,3,4,5]"), format!("{count}more"));
    assert_eq!(refused_data("BYTES", "[4]", r#"["","","","",""]"#), format!("{count}more"));
    assert_eq!(refused_data("BOOL", "[4]", "[]"), format!("{count}0"));
    assert_eq!(refused_data("FP32", "[1]", "1"), "'data' of input 'x' must be an array");
}

#[test]
fn tensors_without_elements_are_tensors() {
    for data_type in DataType::ALL {
        for (shape, data) in [("[0]", "[]"), ("[2,0]", "[[],[]]"), ("[0,9223372036854775807]", " [ ] ")] {
            let tensor = decode_data(data_type.name(), shape, data).unwrap();
            assert_eq!(tensor.element_count(), 0);
            let response = respond(vec![NamedTensor { name: "y".into(), tensor }]);
            let json = encode_response(&response, &ResponseFormat::default()).unwrap().json;
            assert!(text(&json).ends_with(r#""data":[]}]}"#), "{}", text(&json));
        }
    }
}

#[test]
fn elements_that_do_not_fit_are_named() {
    for (data_type, data, expected) in [
        ("UINT8", "[1,300]", "element 1 of input 'x' is 300, which is out of range for UINT8"),
        ("UINT8", "[1, -1]", "element 1 of input 'x' is -1, which is out of range for UINT8"),
        ("INT32", "[2147483648,0]", "element 0 of input 'x' is 2147483648, which is out of range for INT32"),
        (
            "UINT64",
            "[1,18446744073709551616]",
            "element 1 of input 'x' is 18446744073709551616, which is out of range for UINT64",
        ),
        (
            "INT64",
            "[0,1.0]",
            "element 1 of input 'x' is 1.0, but INT64 takes only integers without fraction or exponent",
        ),
        (
            "INT8",
            "[1e3, 0]",
            "element 0 of input 'x' is 1e3, but INT8 takes only integers without fraction or exponent",
        ),
        ("INT16", "[0, NaN]", "element 1 of input 'x' is NaN, which INT16 cannot hold"),
        ("INT16", "[0,-Infinity]", "element 1 of input 'x' is -Infinity, which INT16 cannot hold"),
        ("FP32", "[0, 1e39]", "element 1 of input 'x' is 1e39, which is out of range for FP32"),
        ("FP64", "[0, -1e309]", "element 1 of input 'x' is -1e309, which is out of range for FP64"),
        ("FP16", "[65520, 0]", "element 0 of input 'x' is 65520, which is out of range for FP16"),
        ("FP32", "[0, true]", "element 1 of input 'x' is true, but FP32 takes a number"),
        ("FP32", "[0, null]", "element 1 of input 'x' is null, but FP32 takes a number"),
        ("INT32", "[0, \"1\"]", "element 1 of input 'x' is a string, but INT32 takes a number"),
        ("INT32", "[0, {}]", "element 1 of input 'x' is an object, but INT32 takes a number"),
        ("BOOL", "[true, 1]", "element 1 of input 'x' is 1, but BOOL takes true or false"),
        ("BYTES", "[\"a\", 1]", "element 1 of input 'x' is 1, but BYTES takes a string"),
    ] {
        assert_eq!(refused_data(data_type, "[2]", data), expected);
    }
}

#[test]
fn malformed_data_is_named_with_its_offset() {
    let before = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":"#.len();
    for (data, what, at) in [
        ("[1,2", "unexpected end of text", None),
        ("[1 2]", "expected ',' or ']'", Some(3)),
        ("[1,]", "expected a value", Some(3)),
        ("[,1]", "expected a value", Some(1)),
        ("[1,2]]", "expected ',' or '}'", Some(5)),
        ("[1.]", "expected a value", Some(1)),
        ("[01]", "expected a value", Some(1)),
        ("[1.5x,2]", "expected ',' or ']'", Some(4)),
        ("[+1]", "expected a value", Some(1)),
        ("[1e]", "expected a value", Some(1)),
        ("[nan]", "expected a value", Some(1)),
        ("[1,2}", "expected ',' or ']'", Some(4)),
    ] {
        let json = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[2],"data":{data}"#);
        let json = if at.is_some() { format!("{json}}}]}}") } else { json };
        let at = before + at.unwrap_or(data.len());
        assert_eq!(refused(&json), format!("failed to parse the request JSON buffer: {what} at {at}"), "{data}");
    }
}

#[test]
fn strings_are_unescaped_and_checked() {
    let tensor = decode_data("BYTES", "[3]", r#"["a\"\u00e9\ud83d\ude00]", "", "\u0000[" ]"#).unwrap();
    assert_eq!(tensor.strings().collect::<Vec<_>>(), ["a\"é😀]".as_bytes(), b"", b"\0["]);
    assert!(refused_data("BYTES", "[1]", r#"["\ud83d"]"#).contains("half of a surrogate pair in a string at 63"));
    let mut json = br#"{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["#.to_vec();
    json.extend_from_slice(b"\"\xff\"]}]}");
    assert!(decode_request(json.into(), None, &Limits::default()).is_err());
}

#[test]
fn non_finite_numbers_pass_both_ways() {
    for data_type in ["FP16", "BF16", "FP32", "FP64"] {
        let tensor = decode_data(data_type, "[4]", "[NaN, Infinity, -Infinity, -0.0]").unwrap();
        let response = respond(vec![NamedTensor { name: "y".into(), tensor }]);
        let json = encode_response(&response, &ResponseFormat::default()).unwrap().json;
        assert!(text(&json).ends_with(r#""data":[NaN,Infinity,-Infinity,-0.0]}]}"#), "{}", text(&json));
    }
}

#[test]
fn nesting_beyond_the_limit_is_refused_wherever_it_is() {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    for nested in [deep(10_000), objects(10_000), "[".repeat(10_000), "{\"a\":".repeat(10_000)] {
        for json in [
            nested.clone(),
            format!(r#"{{"unknown":{nested}}}"#),
            format!(r#"{{"inputs":{nested}}}"#),
            format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[0],"data":{nested}}}]}}"#),
            format!(r#"{{"inputs":[{{"data":{nested},"name":"x","datatype":"FP32","shape":[0]}}]}}"#),
            format!(r#"{{"parameters":{{"p":{nested}}},"inputs":[]}}"#),
            format!(r#"{{"inputs":[],"outputs":[{{"name":"y","parameters":{{"p":{nested}}}}}]}}"#),
        ] {
            refused(&json);
        }
    }
    // The data stands three levels down, so that 97 more are allowed.
    assert!(decode_data("FP32", "[0]", &deep(97)).is_ok());
    let limit = "JSON nesting depth exceeds maximum allowed limit (100)";
    assert!(refused_data("FP32", "[0]", &deep(98)).contains(limit));
    let json = format!(r#"{{"inputs":[{{"data":{},"name":"x","datatype":"FP32","shape":[0]}}]}}"#, deep(98));
    assert!(refused(&json).contains(limit));
}

#[test]
fn lying_shapes_and_sizes_cost_nothing() {
    assert!(refused_data("FP64", "[4611686018427387904]", "[1]").contains("got 1"));
    assert!(refused_data("BYTES", "[4611686018427387904]", r#"["a"]"#).contains("got 1"));
    assert!(refused_data("FP32", "[9223372036854775807,9223372036854775807]", "[1]").contains("can be counted"));
    assert!(refused_data("FP32", "[-1]", "[1]").contains("dimension -1 is negative"));
    assert!(refused_data("FP32", "[1.0]", "[1]").contains("not an integer"));
    assert!(refused_data("FP32", "[9223372036854775808]", "[1]").contains("not an integer"));
    assert!(refused_data("FP8", "[1]", "[1]").contains("unknown datatype 'FP8'"));
    for size in ["8", "18446744073709551615", "9223372036854775807"] {
        let json = format!(
            r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[2],"parameters":{{"binary_data_size":{size}}}}}]}}"#
        );
        let text = refused(&json);
        assert!(text.starts_with(&format!("unexpected size for input 'x': binary_data_size is {size}, but only 0")));
    }
}

fn binary(header: &str, tensors: &[u8], header_length: Option<usize>) -> Result<DecodedRequest> {
    let body = [header.as_bytes(), tensors].concat();
    decode_request(body.into(), header_length, &Limits::default())
}

#[test]
fn binary_tensors_are_slices_of_the_body_in_input_order() {
    let header = r#"{"inputs":[{"parameters":{"binary_data_size":4},"name":"a","datatype":"INT16","shape":[2]},
        {"name":"b","datatype":"INT8","shape":[1],"data":[7]},
        {"name":"c","shape":[1],"parameters":{"binary_data_size":5},"datatype":"BYTES"}]}"#;
    let tensors = [1, 0, 2, 0, 1, 0, 0, 0, b'z'];
    let decoded = binary(header, &tensors, Some(header.len())).unwrap();
    let inputs = &decoded.request.inputs;
    assert_eq!(inputs[0].tensor.data(), &tensors[..4]);
    assert_eq!(inputs[1].tensor.data(), &[7_u8][..]);
    assert_eq!(inputs[2].tensor.strings().collect::<Vec<_>>(), [b"z"]);
    assert_eq!(inputs[2].tensor.data().as_ptr() as usize - inputs[0].tensor.data().as_ptr() as usize, 4);

    let error = binary(header, &tensors[..8], Some(header.len())).unwrap_err().to_string();
    assert!(error.starts_with("unexpected size for input 'c': binary_data_size is 5, but only 4 bytes"), "{error}");
    let error = binary(header, &[&tensors[..], b"ab"].concat(), Some(header.len())).unwrap_err().to_string();
    assert_eq!(error, "unexpected additional input data: 2 bytes are left behind the last binary input");
    let error = binary(header, &tensors, Some(usize::MAX)).unwrap_err().to_string();
    assert!(
        error.contains("Inference-Header-Content-Length is 18446744073709551615, but the body has only"),
        "{error}"
    );
    for length in (0..header.len()).chain(header.len() + 1..=header.len() + tensors.len()) {
        assert!(binary(header, &tensors, Some(length)).is_err(), "{length}");
    }
    let header = header.replace("\"shape\":[2]", "\"shape\":[3]");
    let error = binary(&header, &tensors, Some(header.len())).unwrap_err().to_string();
    assert_eq!(error, "unexpected size for input 'a': shape [3] of INT16 needs 6 bytes, got 4");
}

#[test]
fn an_input_has_its_data_in_exactly_one_place() {
    let input = |rest: &str| format!(r#"{{"inputs":[{{"name":"x","datatype":"INT8","shape":[1]{rest}}}]}}"#);
    assert!(refused(&input("")).ends_with("'parameters'. But no field is set (input 'x')"));
    let both = r#","data":[1],"parameters":{"binary_data_size":1}"#;
    assert!(refused(&input(both)).ends_with("But set 'data' 'binary_data_size' (input 'x')"));
    let both = r#","data":[1],"parameters":{"shared_memory_region":"r","shared_memory_byte_size":1}"#;
    assert!(refused(&input(both)).ends_with("But set 'data' 'shared_memory_region' (input 'x')"));
}

#[test]
fn tensors_in_shared_memory_are_named_by_their_place() {
    let input = |shape: &str, parameters: &str| {
        format!(r#"{{"inputs":[{{"name":"x","datatype":"INT16","shape":{shape},"parameters":{{{parameters}}}}}]}}"#)
    };
    let at = r#""shared_memory_region":"r","shared_memory_byte_size":4"#;
    let decoded = decode(&input("[2]", &format!(r#"{at},"shared_memory_offset":6"#))).unwrap();
    let place = RegionSpec { region: "r".into(), offset: 6, byte_size: 4 };
    let expected =
        SharedInput { name: "x".into(), data_type: DataType::Int16, shape: Shape::new(&[2]), place: place.clone() };
    assert_eq!((decoded.request.inputs.len(), &decoded.shared_inputs[..]), (0, &[expected][..]));
    for (json, text) in [
        (input("[3]", at), "input byte size mismatch for input 'x'. Expected 6, got 4"),
        (
            input("[2]", r#""shared_memory_region":"r""#),
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'x'",
        ),
        (
            input("[2]", r#""shared_memory_offset":1"#),
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'x'",
        ),
        (
            input("[2]", r#""shared_memory_region":"r","shared_memory_byte_size":-4"#),
            "parameter 'shared_memory_byte_size' must be an unsigned integer",
        ),
        (input("[2]", r#""shared_memory_region":7"#), "parameter 'shared_memory_region' must be a string"),
    ] {
        assert_eq!(refused(&json), text, "{json}");
    }
    let twice = format!(r#"{{"name":"x","datatype":"INT16","shape":[2],"parameters":{{{at}}}}}"#);
    assert_eq!(refused(&format!(r#"{{"inputs":[{twice},{twice}]}}"#)), "input 'x' is given twice");
    let output = |more: &str| format!(r#"{{"inputs":[],"outputs":[{{"name":"y","parameters":{{{at}{more}}}}}]}}"#);
    let format = decode(&output(r#","binary_data":false"#)).unwrap().format;
    assert_eq!(format.shared("y"), Some(&RegionSpec { offset: 0, ..place }));
    for (more, other) in [(r#","binary_data":true"#, "binary_data"), (r#","classification":1"#, "classification")] {
        assert_eq!(refused(&output(more)), format!("Output can't set both 'shared_memory_region' and '{other}'"));
    }
    let written = Tensor::from_vec(Shape::new(&[2]), vec![1_i16, 2]).unwrap();
    let response = respond(vec![NamedTensor { name: "y".into(), tensor: written }]);
    let encoded = encode_response(&response, &ResponseFormat { binary_default: true, ..format }).unwrap();
    assert!(encoded.tensors.is_empty() && encoded.header_length.is_none());
    let parameters = r#""parameters":{"shared_memory_region":"r","shared_memory_byte_size":4}"#;
    assert!(text(&encoded.json).contains(parameters), "{}", text(&encoded.json));
}

#[test]
fn what_is_missing_or_twice_or_of_the_wrong_type_is_named() {
    for (json, expected) in [
        ("{}", "the request JSON has no 'inputs'"),
        ("", "failed to parse the request JSON buffer: expected an object at 0"),
        ("[]", "failed to parse the request JSON buffer: expected an object at 0"),
        (r#"{"inputs":[]} x"#, "failed to parse the request JSON buffer: unexpected text after the document at 14"),
        (r#"{"inputs":[{"datatype":"INT8","shape":[0],"data":[]}]}"#, "an input has no 'name'"),
        (r#"{"inputs":[{"name":"x","shape":[0],"data":[]}]}"#, "input 'x' has no 'datatype'"),
        (r#"{"inputs":[{"name":"x","datatype":"INT8","data":[]}]}"#, "input 'x' has no 'shape'"),
        (r#"{"inputs":[],"inputs":[]}"#, "the request JSON has 'inputs' twice in one object"),
        (r#"{"id":"","id":"","inputs":[]}"#, "the request JSON has 'id' twice in one object"),
        (r#"{"inputs":[{"name":"x","name":"x"}]}"#, "the request JSON has 'name' twice in one object"),
        (
            r#"{"inputs":[],"parameters":{"timeout":1,"timeout":2}}"#,
            "the request JSON has 'timeout' twice in one object",
        ),
        (r#"{"inputs":[],"parameters":{"p":1,"q":2,"p":2}}"#, "parameter 'p' is given twice"),
        (r#"{"inputs":[],"outputs":[{"name":"y"},{"name":"y"}]}"#, "requested output 'y' is given twice"),
        (r#"{"inputs":[],"outputs":[{}]}"#, "a requested output has no 'name'"),
        (r#"{"inputs":[],"parameters":{"timeout":-1}}"#, "parameter 'timeout' must be an unsigned integer"),
        (r#"{"inputs":[],"parameters":{"priority":"1"}}"#, "parameter 'priority' must be an unsigned integer"),
        (r#"{"inputs":[],"parameters":{"binary_data_output":1}}"#, "parameter 'binary_data_output' must be a bool"),
        (
            r#"{"inputs":[],"parameters":{"sequence_id":-1}}"#,
            "parameter 'sequence_id' must be an unsigned integer or a string",
        ),
        (r#"{"inputs":[],"parameters":{"sequence_end":0}}"#, "parameter 'sequence_end' must be a bool"),
        (
            r#"{"inputs":[],"parameters":{"triton_x":1}}"#,
            "parameter keys starting with 'triton_' are reserved, found 'triton_x'",
        ),
        (r#"{"inputs":[],"parameters":{"p":null}}"#, "parameter 'p' must be a bool, a number or a string"),
        (r#"{"inputs":[],"parameters":{"p":[1]}}"#, "parameter 'p' must be a bool, a number or a string"),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":0}}]}"#,
            "parameter 'classification' must be an integer from 1 to 4294967295",
        ),
    ] {
        assert_eq!(refused(json), expected, "{json}");
    }
    let names: String = (0..20)
        .map(|index| format!(r#"{{"name":"{}","datatype":"INT8","shape":[0],"data":[]}},"#, index % 19))
        .collect();
    let json = format!(r#"{{"inputs":[{}]}}"#, names.trim_end_matches(','));
    assert_eq!(refused(&json), "input '0' is given twice");
    assert_eq!(decode(r#"{"inputs":[],"parameters":{"timeout":0}}"#).unwrap().timeout, None);
}

#[test]
fn limits_are_named_when_passed() {
    let limits =
        Limits { json_bytes: 400, inputs: 2, elements: 3, rank: 2, parameters: 2, name_bytes: 10, json_depth: 9 };
    let input = |name: &str, shape: &str, data: &str| {
        format!(r#"{{"name":"{name}","datatype":"INT8","shape":{shape},"data":{data}}}"#)
    };
    let inputs = |inputs: &[String]| format!(r#"{{"inputs":[{}]}}"#, inputs.join(","));
    let few = input("a", "[3]", "[1,2,3]");
    decode_request(inputs(&[few.clone(), input("b", "[0]", "[]")]).into(), None, &limits).unwrap();
    for (json, limit) in [
        (" ".repeat(401), "--max-json-bytes 400"),
        (inputs(&[few.clone(), input("b", "[0]", "[]"), few]), "(inputs)"),
        (inputs(&[input("a", "[4]", "[1,2,3,4]")]), "(elements)"),
        (inputs(&[input("a", "[1,1,1]", "[1]")]), "(rank)"),
        (inputs(&[input("abcdefghijk", "[1]", "[1]")]), "(name_bytes)"),
        (r#"{"id":"abcdefghijk","inputs":[]}"#.into(), "(name_bytes)"),
        (r#"{"parameters":{"abcdefghijk":1},"inputs":[]}"#.into(), "(name_bytes)"),
        (r#"{"parameters":{"a":1,"b":1,"c":1},"inputs":[]}"#.into(), "(parameters)"),
        (r#"{"inputs":[],"outputs":[{"name":"a"},{"name":"b"},{"name":"c"}]}"#.into(), "(inputs)"),
    ] {
        let error = decode_request(json.into(), None, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains(limit), "{error}");
    }
}

#[test]
fn a_raw_body_takes_the_shape_that_its_size_gives() {
    let raw = |bytes: usize, data_type, dims: &[i64]| {
        let decoded = decode_raw(Bytes::from(vec![1; bytes]), "x", data_type, dims)?;
        assert_eq!(decoded.format.output("any"), (true, None));
        Ok::<_, Error>(decoded.request.inputs[0].tensor.shape().clone())
    };
    assert_eq!(raw(32, DataType::Fp32, &[-1]).unwrap(), Shape::new(&[8]));
    assert_eq!(raw(32, DataType::Fp32, &[-1, 4]).unwrap(), Shape::new(&[2, 4]));
    assert_eq!(raw(32, DataType::Fp32, &[2, 4]).unwrap(), Shape::new(&[2, 4]));
    assert_eq!(raw(0, DataType::Fp32, &[-1, 4]).unwrap(), Shape::new(&[0, 4]));
    for (bytes, dims) in [(31, [-1, 4]), (32, [2, 5]), (32, [-1, 0]), (32, [-1, i64::MAX])] {
        let error = raw(bytes, DataType::Fp32, &dims).unwrap_err().to_string();
        assert!(error.contains("a raw body of") && error.contains("'x'"), "{error}");
    }
    let error = raw(32, DataType::Fp16, &[-1, -1]).unwrap_err().to_string();
    assert_eq!(
        error,
        "The shape of the raw input 'x' can not be deduced because there are more than one variable-sized dimension"
    );
    assert_eq!(raw(3, DataType::Bytes, &[1]).unwrap(), Shape::new(&[1]));
    assert_eq!(raw(3, DataType::Bytes, &[-1, 1]).unwrap(), Shape::new(&[1, 1]));
    for dims in [&[-1][..], &[2], &[1, -1], &[-1, 2]] {
        let error = raw(3, DataType::Bytes, dims).unwrap_err().to_string();
        assert_eq!(error, "For BYTE datatype raw input, the model must have input shape [1]");
    }
}

#[test]
fn a_response_is_written_in_triton_s_form() {
    let floats = vec![0.1_f32, 1.0, -3.0, 16_777_216.0, 1e-7, f32::MAX, 12_345_678.0, 0.0];
    let mut response = respond(vec![
        NamedTensor { name: "y".into(), tensor: Tensor::from_vec(Shape::new(&[2, 4]), floats).unwrap() },
        NamedTensor { name: "b".into(), tensor: Tensor::from_vec(Shape::new(&[2]), vec![-1_i64, i64::MAX]).unwrap() },
        NamedTensor { name: "s\"".into(), tensor: Tensor::from_strings(Shape::new(&[2]), &["a\n", "é"]).unwrap() },
        NamedTensor {
            name: "t".into(),
            tensor: Tensor::new(DataType::Bool, Shape::new(&[3]), Bytes::from_static(&[1, 0, 2])).unwrap(),
        },
    ]);
    response.id = "7".into();
    response.parameters = vec![("p".into(), ParameterValue::Double(2.0)), ("q".into(), ParameterValue::Bool(false))];
    let format = ResponseFormat {
        binary_default: false,
        outputs: [OutputFormat { name: "b".into(), binary: Some(true), classification: None, shared: None }]
            .into_iter()
            .collect(),
    };
    let encoded = encode_response(&response, &format).unwrap();
    let expected = concat!(
        r#"{"id":"7","model_name":"m","model_version":"3","parameters":{"p":2.0,"q":false},"outputs":["#,
        r#"{"name":"y","datatype":"FP32","shape":[2,4],"data":[0.1,1.0,-3.0,16777216.0,1e-7,3.4028235e38,12345678.0,0.0]},"#,
        r#"{"name":"b","datatype":"INT64","shape":[2],"parameters":{"binary_data_size":16}},"#,
        r#"{"name":"s\"","datatype":"BYTES","shape":[2],"data":["a\n","é"]},"#,
        r#"{"name":"t","datatype":"BOOL","shape":[3],"data":[true,false,true]}]}"#
    );
    assert_eq!(text(&encoded.json), expected);
    assert_eq!(encoded.header_length, Some(expected.len()));
    assert_eq!(encoded.tensors.len(), 1);
    assert_eq!(encoded.tensors[0].as_ptr(), response.outputs[1].tensor.data().as_ptr());
    let plain = encode_response(&respond(Vec::new()), &format).unwrap();
    assert_eq!(text(&plain.json), r#"{"model_name":"m","model_version":"3","outputs":[]}"#);
    assert_eq!(plain.header_length, None);
}

#[test]
fn a_string_that_is_not_utf_8_asks_to_be_binary() {
    let tensor = Tensor::from_strings(Shape::new(&[2]), &[b"a".as_slice(), b"\xff"]).unwrap();
    let response = respond(vec![NamedTensor { name: "y".into(), tensor }]);
    let error = encode_response(&response, &ResponseFormat::default()).unwrap_err().to_string();
    assert!(error.contains("element 1 of output 'y' is not UTF-8") && error.contains("binary_data"), "{error}");
    let binary = ResponseFormat { binary_default: true, ..ResponseFormat::default() };
    assert!(encode_response(&response, &binary).is_ok());
}

#[test]
fn an_error_body_is_escaped() {
    let json = encode_error("no \"such\"\nmodel \u{1}", "not_found");
    assert_eq!(text(&json), r#"{"error":"no \"such\"\nmodel \u0001","code":"not_found"}"#);
}

mod properties;
