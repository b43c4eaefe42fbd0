//! Properties over random tensors and random damage.

use super::*;
use crate::tensor::push_string;

fn tensor() -> impl Strategy<Value = Tensor> {
    let dims = prop_oneof![
        prop::collection::vec(1_i64..6, 1..4),
        prop::collection::vec(0_i64..3, 0..4),
        (1_i64..80).prop_map(|dim| vec![dim]),
    ];
    (prop::sample::select(&DataType::ALL[..]), dims).prop_flat_map(|(data_type, dims)| {
        let count = dims.iter().product::<i64>() as usize;
        let shape = Shape::new(&dims);
        let data = match data_type.size() {
            None => prop::collection::vec(".{0,12}", count)
                .prop_map(|strings| {
                    let mut data = Vec::new();
                    strings.iter().for_each(|string| push_string(&mut data, string.as_bytes()).unwrap());
                    data
                })
                .boxed(),
            Some(size) => prop::collection::vec(any::<u8>(), count * size)
                .prop_map(move |mut data| {
                    if data_type == DataType::Bool {
                        data.iter_mut().for_each(|byte| *byte &= 1);
                    }
                    data
                })
                .boxed(),
        };
        data.prop_map(move |data| Tensor::new(data_type, shape.clone(), data.into()).unwrap())
    })
}

/// One NaN for all, since JSON has only one.
fn canonical(tensor: &Tensor) -> Vec<u8> {
    fn each<const N: usize>(data: &[u8], change: impl Fn([u8; N]) -> [u8; N]) -> Vec<u8> {
        data.as_chunks::<N>().0.iter().flat_map(|bytes| change(*bytes)).collect()
    }
    let data = tensor.data();
    match tensor.data_type() {
        DataType::Fp16 => each(data, |bytes| {
            let value = half::f16::from_le_bytes(bytes);
            if value.is_nan() { half::f16::NAN.to_le_bytes() } else { bytes }
        }),
        DataType::Bf16 => each(data, |bytes| {
            let value = half::bf16::from_le_bytes(bytes);
            if value.is_nan() { half::bf16::NAN.to_le_bytes() } else { bytes }
        }),
        DataType::Fp32 => each(data, |bytes| {
            let value = f32::from_le_bytes(bytes);
            if value.is_nan() { f32::NAN.to_le_bytes() } else { bytes }
        }),
        DataType::Fp64 => each(data, |bytes| {
            let value = f64::from_le_bytes(bytes);
            if value.is_nan() { f64::NAN.to_le_bytes() } else { bytes }
        }),
        _ => data.to_vec(),
    }
}

/// The elements as separate JSON texts, with FP32 as the FP64 that Python would write for every other seed.
fn element_texts(tensor: &Tensor, as_double: bool) -> Vec<String> {
    if tensor.data_type() == DataType::Bytes {
        return tensor
            .strings()
            .map(|string| serde_json::to_string(std::str::from_utf8(string).unwrap()).unwrap())
            .collect();
    }
    let mut json = Vec::new();
    write_elements(&mut json, "y", tensor).unwrap();
    let text = String::from_utf8(json).unwrap();
    let texts = text.split(',').filter(|text| !text.is_empty());
    let widen = |text: &str| match text.parse::<f32>() {
        Ok(value) if as_double && value.is_finite() && tensor.data_type() == DataType::Fp32 => {
            format!("{:?}", f64::from(value))
        }
        _ => text.to_owned(),
    };
    texts.map(widen).collect()
}

/// Nests and spaces the elements at random, driven by `choices`.
fn nested(elements: &[String], choices: &[u8]) -> String {
    let mut choices = choices.iter().copied().cycle();
    let mut choose = move |of: u8| choices.next().unwrap_or(0) % of;
    let space = |choice: u8| ["", "", " ", "\n\t ", "  "][usize::from(choice)];
    let mut text = String::from("[");
    let mut depth = 1;
    for (index, element) in elements.iter().enumerate() {
        while choose(4) == 0 && depth < 20 {
            text.push_str(space(choose(5)));
            text.push('[');
            depth += 1;
            if choose(5) == 0 {
                text.push_str("[ ], ");
            }
        }
        text.push_str(space(choose(5)));
        text.push_str(element);
        text.push_str(space(choose(5)));
        while choose(4) == 0 && depth > 1 {
            text.push(']');
            text.push_str(space(choose(5)));
            depth -= 1;
        }
        if index + 1 < elements.len() {
            text.push(',');
        }
    }
    text.push_str(&"]".repeat(depth));
    text
}

fn input_json(name: &str, tensor: &Tensor, data: Option<&str>, choices: &[u8]) -> String {
    let dims = tensor.shape().dims();
    let mut members = [
        format!("\"name\": \"{name}\""),
        format!("\"datatype\":\"{}\"", tensor.data_type()),
        format!("\"shape\" :{dims:?}"),
        match data {
            Some(data) => format!("\"data\":{data}"),
            None => format!("\"parameters\":{{\"binary_data_size\":{}}}", tensor.data().len()),
        },
        "\"unknown\": {\"data\": [\"]\", {}]}".to_owned(),
    ];
    for (index, choice) in choices.iter().enumerate().take(8) {
        members.swap(index % 5, usize::from(*choice) % 5);
    }
    format!("{{{}}}", members.join(", "))
}

/// A request with JSON and binary inputs, and the length of its JSON part.
fn request(tensors: &[Tensor], choices: &[u8]) -> (Vec<u8>, usize) {
    let mut binary = Vec::new();
    let inputs: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| {
            let choice = choices[index % choices.len()];
            let data = (choice & 1 == 0).then(|| nested(&element_texts(tensor, choice & 2 == 0), choices));
            if data.is_none() {
                binary.extend_from_slice(tensor.data());
            }
            input_json(&format!("input{index}"), tensor, data.as_deref(), choices)
        })
        .collect();
    let json = format!("{{\"id\":\"i\",\"inputs\":[{}]}}", inputs.join(","));
    let length = json.len();
    (([json.into_bytes(), binary]).concat(), length)
}

proptest! {
    #[test]
    fn tensors_of_every_type_round_trip(
        tensors in prop::collection::vec(tensor(), 1..4),
        choices in prop::collection::vec(any::<u8>(), 9..60),
    ) {
        let (body, length) = request(&tensors, &choices);
        let decoded = decode_request(body.into(), Some(length), &Limits::default()).unwrap();
        prop_assert_eq!(decoded.request.inputs.len(), tensors.len());
        for (input, tensor) in decoded.request.inputs.iter().zip(&tensors) {
            prop_assert_eq!((input.tensor.data_type(), input.tensor.shape()), (tensor.data_type(), tensor.shape()));
            prop_assert_eq!(canonical(&input.tensor), canonical(tensor));
        }
    }

    #[test]
    fn responses_are_json_and_come_back(tensor in tensor(), binary in any::<bool>()) {
        let response = respond(vec![NamedTensor { name: "y".into(), tensor: tensor.clone() }]);
        let format = ResponseFormat { binary_default: binary, ..ResponseFormat::default() };
        let encoded = encode_response(&response, &format).unwrap();
        let json = text(&encoded.json);
        // Its outputs are, as JSON, what inputs are.
        let request = format!("{{{}", json.replacen("\"outputs\"", "\"inputs\"", 1).trim_start_matches('{'));
        let body = encoded.tensors.iter().fold(request.clone().into_bytes(), |body, tensor| [&body, &tensor[..]].concat());
        let decoded = decode_request(body.into(), Some(request.len()), &Limits::default()).unwrap();
        prop_assert_eq!(canonical(&decoded.request.inputs[0].tensor), canonical(&tensor));
        if !json.contains("NaN") && !json.contains("Infinity") {
            prop_assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{}", json);
        }
    }

    #[test]
    fn a_cut_anywhere_is_an_error(tensor in tensor(), choices in prop::collection::vec(any::<u8>(), 9..30)) {
        let (body, length) = request(&[tensor], &choices);
        let body = Bytes::from(body);
        for end in 0..length {
            prop_assert!(decode_request(body.slice(..end), None, &Limits::default()).is_err(), "{end}");
        }
        for end in length..body.len() {
            prop_assert!(decode_request(body.slice(..end), Some(length), &Limits::default()).is_err(), "{end}");
        }
    }

    #[test]
    fn damage_anywhere_never_panics(
        tensors in prop::collection::vec(tensor(), 1..3),
        choices in prop::collection::vec(any::<u8>(), 9..30),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
        lie in any::<Option<u16>>(),
    ) {
        let (mut body, length) = request(&tensors, &choices);
        for (at, byte, kind) in damage {
            let at = at.index(body.len());
            match kind {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => _ = body.remove(at),
            }
            if body.is_empty() {
                break;
            }
        }
        let length = lie.map_or(length, usize::from);
        if let Ok(decoded) = decode_request(body.into(), Some(length), &Limits::default()) {
            let _ = encode_response(&respond(decoded.request.inputs.to_vec()), &decoded.format);
        }
    }
}
