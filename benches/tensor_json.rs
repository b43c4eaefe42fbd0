//! Decoding and encoding of inference bodies: small requests, where every allocation counts, and large JSON tensors,
//! where every digit does. `serde_json` into a vector stands beside the large ones as a reference.

#![expect(clippy::unwrap_used, reason = "a benchmark whose work fails should stop")]

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use roundhouse::frontend::tensor_json::{Limits, ResponseFormat, decode_request, encode_response};
use roundhouse::inference::{InferenceResponse, ModelId, NamedTensor, NamedTensors};
use roundhouse::tensor::{Shape, Tensor};

/// 3 x 224 x 224, the usual picture.
const IMAGE: usize = 150_528;
const LARGE: usize = 262_144;

/// Numbers in [0, 1) with all 24 bits of an FP32 in play.
fn floats(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0
    };
    (0..count).map(next).collect()
}

/// As Python writes `json.dumps(array.tolist())` of an FP32 array: each the shortest text of the FP64 it becomes.
fn python_list(values: &[f32]) -> String {
    let texts: Vec<String> = values.iter().map(|value| format!("{:?}", f64::from(*value))).collect();
    format!("[{}]", texts.join(", "))
}

fn python_image(values: &[f32]) -> String {
    let rows: Vec<String> = values.chunks(3).map(python_list).collect();
    let pictures: Vec<String> = rows.chunks(224).map(|row| format!("[{}]", row.join(", "))).collect();
    format!("[[{}]]", pictures.join(", "))
}

fn request(shape: &str, data_type: &str, data: &str) -> Bytes {
    let input = format!(r#"{{"name": "INPUT0", "shape": {shape}, "datatype": "{data_type}", "data": {data}}}"#);
    format!(r#"{{"inputs": [{input}]}}"#).into()
}

fn response(tensor: Tensor) -> InferenceResponse {
    let outputs: NamedTensors = [NamedTensor { name: "OUTPUT0".into(), tensor }].into_iter().collect();
    InferenceResponse {
        model: ModelId { name: Arc::from("identity"), version: 1 },
        id: "".into(),
        parameters: Vec::new(),
        outputs,
        last: true,
    }
}

fn small(criterion: &mut Criterion) {
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("small");
    let values = floats(16);
    let json = request("[16]", "FP32", &python_list(&values));
    group.bench_function("decode_json_16", |bencher| {
        bencher.iter(|| decode_request(black_box(json.clone()), None, &limits).unwrap());
    });
    let counting: Vec<f32> = (0..16_u8).map(f32::from).collect();
    let json = request("[16]", "FP32", &python_list(&counting));
    group.bench_function("decode_json_16_whole", |bencher| {
        bencher.iter(|| decode_request(black_box(json.clone()), None, &limits).unwrap());
    });
    let header = concat!(
        r#"{"inputs":[{"name":"INPUT0","shape":[16],"datatype":"FP32","parameters":{"binary_data_size":64}}],"#,
        r#""outputs":[{"name":"OUTPUT0","parameters":{"binary_data":true}}]}"#
    );
    let mut body = header.as_bytes().to_vec();
    values.iter().for_each(|value| body.extend_from_slice(&value.to_le_bytes()));
    let binary = Bytes::from(body);
    group.bench_function("decode_binary_16", |bencher| {
        bencher.iter(|| decode_request(black_box(binary.clone()), Some(header.len()), &limits).unwrap());
    });
    for (name, values, binary_default) in [
        ("encode_json_16", values.clone(), false),
        ("encode_json_16_whole", counting, false),
        ("encode_binary_16", values, true),
    ] {
        let response = response(Tensor::from_vec(Shape::new(&[16]), values).unwrap());
        let format = ResponseFormat { binary_default, ..ResponseFormat::default() };
        group.bench_function(name, |bencher| {
            bencher.iter(|| encode_response(black_box(&response), &format).unwrap());
        });
    }
    group.finish();
}

fn large(criterion: &mut Criterion) {
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("large");
    group.sample_size(30);
    let mut decode = |name: &str, body: &Bytes| {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| decode_request(black_box(body.clone()), None, &limits).unwrap());
        });
    };
    let image = python_image(&floats(IMAGE));
    decode("decode_150528_nested", &request("[1, 224, 224, 3]", "FP32", &image));
    let late = format!(r#"{{"inputs":[{{"data":{image},"name":"x","datatype":"FP32","shape":[1,224,224,3]}}]}}"#);
    decode("decode_150528_nested_data_first", &late.into());
    let values = floats(LARGE);
    decode("decode_262144_flat", &request("[262144]", "FP32", &python_list(&values)));
    decode("decode_262144_fp64", &request("[262144]", "FP64", &python_list(&values)));
    let pixels: Vec<u8> = values.iter().map(|value| (value * 256.0) as u8).collect();
    decode("decode_262144_uint8", &request("[262144]", "UINT8", &format!("{pixels:?}")));
    let zeros = python_list(&vec![0.0; LARGE]);
    decode("decode_262144_zeros", &request("[262144]", "FP32", &zeros));
    let words = format!("{:?}", vec!["a sentence of some thirty letters"; 10_000]);
    decode("decode_10000_bytes", &request("[10000]", "BYTES", &words));

    group.throughput(Throughput::Elements(LARGE as u64));
    let mut encode = |name: &str, tensor: Tensor| {
        let response = response(tensor);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || &response,
                |response| encode_response(black_box(response), &ResponseFormat::default()).unwrap(),
                BatchSize::PerIteration,
            );
        });
    };
    encode("encode_262144_fp32", Tensor::from_vec(Shape::new(&[LARGE as i64]), values.clone()).unwrap());
    encode("encode_262144_uint8", Tensor::from_vec(Shape::new(&[LARGE as i64]), pixels).unwrap());
    let words = vec!["a sentence of some thirty letters"; 10_000];
    encode("encode_10000_bytes", Tensor::from_strings(Shape::new(&[10_000]), &words).unwrap());
    group.finish();
}

fn reference(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("serde_json");
    group.sample_size(30);
    let values = floats(LARGE);
    let text = python_list(&values[..IMAGE]);
    group.bench_function("decode_150528_flat", |bencher| {
        bencher.iter(|| serde_json::from_str::<Vec<f32>>(black_box(&text)).unwrap());
    });
    group.bench_function("encode_262144_fp32", |bencher| {
        bencher.iter(|| serde_json::to_vec(black_box(&values)).unwrap());
    });
    group.finish();
}

criterion_group!(benches, small, large, reference);
criterion_main!(benches);
