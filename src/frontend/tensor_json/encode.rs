//! From an inference response to the body of an answer.

use bytes::Bytes;
use smallvec::SmallVec;

use super::{EncodedResponse, ResponseFormat};
use crate::error::{Error, Result};
use crate::frontend::json::strings::write_string;
use crate::inference::{InferenceResponse, NamedTensor, ParameterValue, Parameters};
use crate::server::shared_memory::RegionSpec;
use crate::tensor::{DataType, Tensor};

/// Encodes a response (KServe v2, with Triton's binary tensor data extension). Outputs stand in the response's order;
/// those that `format` wants as binary keep their bytes, uncopied, beside the JSON; those in shared memory, which the
/// caller has written there, are named with their place. Classification is not applied
/// here: the caller has replaced such outputs already.
///
/// # Errors
/// `InvalidArgument` if a BYTES output that is to be JSON is not UTF-8.
pub fn encode_response(response: &InferenceResponse, format: &ResponseFormat) -> Result<EncodedResponse> {
    let mut size = 128 + response.id.len() + response.model.name.len() + 64 * response.parameters.len();
    for output in &response.outputs {
        size += 128 + output.name.len();
        if !format.output(&output.name).0 && format.shared(&output.name).is_none() {
            size += json_size(&output.tensor);
        }
    }
    let mut json = Vec::with_capacity(size);
    let mut tensors = SmallVec::new();
    json.push(b'{');
    if !response.id.is_empty() {
        json.extend_from_slice(b"\"id\":");
        write_string(&mut json, &response.id);
        json.push(b',');
    }
    json.extend_from_slice(b"\"model_name\":");
    write_string(&mut json, &response.model.name);
    json.extend_from_slice(b",\"model_version\":\"");
    json.extend_from_slice(itoa::Buffer::new().format(response.model.version).as_bytes());
    json.push(b'"');
    if !response.parameters.is_empty() {
        json.extend_from_slice(b",\"parameters\":");
        write_parameters(&mut json, &response.parameters);
    }
    json.extend_from_slice(b",\"outputs\":[");
    for (index, output) in response.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let shared = format.shared(&output.name);
        let binary = shared.is_none() && format.output(&output.name).0;
        write_output(&mut json, output, binary, shared)?;
        if binary {
            tensors.push(output.tensor.data().clone());
        }
    }
    json.extend_from_slice(b"]}");
    let header_length = (!tensors.is_empty()).then_some(json.len());
    Ok(EncodedResponse { json: json.into(), tensors, header_length })
}

/// The body of an error answer: its text, and a code for programs beside it.
#[must_use]
pub fn encode_error(text: &str, code: &str) -> Bytes {
    let mut json = Vec::with_capacity(32 + text.len() + code.len());
    json.extend_from_slice(b"{\"error\":");
    write_string(&mut json, text);
    json.extend_from_slice(b",\"code\":");
    write_string(&mut json, code);
    json.push(b'}');
    json.into()
}

/// Appends parameters as a JSON object.
pub fn write_parameters(json: &mut Vec<u8>, parameters: &Parameters) {
    json.push(b'{');
    for (index, (key, value)) in parameters.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_string(json, key);
        json.push(b':');
        match value {
            ParameterValue::Bool(value) => write_bool(json, *value),
            ParameterValue::Int(value) => write_integer(json, *value),
            ParameterValue::Uint(value) => write_integer(json, *value),
            ParameterValue::Double(value) => write_f64(json, *value),
            ParameterValue::String(value) => write_string(json, value),
        }
    }
    json.push(b'}');
}

fn write_output(json: &mut Vec<u8>, output: &NamedTensor, binary: bool, shared: Option<&RegionSpec>) -> Result<()> {
    json.extend_from_slice(b"{\"name\":");
    write_string(json, &output.name);
    json.extend_from_slice(b",\"datatype\":\"");
    json.extend_from_slice(output.tensor.data_type().name().as_bytes());
    json.extend_from_slice(b"\",\"shape\":[");
    for (index, dim) in output.tensor.shape().dims().iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_integer(json, *dim);
    }
    if let Some(place) = shared {
        json.extend_from_slice(b"],\"parameters\":{\"shared_memory_region\":");
        write_string(json, &place.region);
        if place.offset > 0 {
            json.extend_from_slice(b",\"shared_memory_offset\":");
            write_integer(json, place.offset);
        }
        json.extend_from_slice(b",\"shared_memory_byte_size\":");
        write_integer(json, output.tensor.data().len());
        json.extend_from_slice(b"}}");
    } else if binary {
        json.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
        write_integer(json, output.tensor.data().len());
        json.extend_from_slice(b"}}");
    } else {
        json.extend_from_slice(b"],\"data\":[");
        write_elements(json, &output.name, &output.tensor)?;
        json.extend_from_slice(b"]}");
    }
    Ok(())
}

/// Appends the elements of the output `name` in row-major order, separated by commas, without brackets. Floating
/// numbers are the shortest that read back as the same FP32 or FP64 (FP16 and BF16 as their FP32).
///
/// # Errors
/// `InvalidArgument` if a BYTES element is not UTF-8.
pub fn write_elements(json: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<()> {
    let data = tensor.data();
    match tensor.data_type() {
        DataType::Bool => write_each(json, data, |json, [byte]: [u8; 1]| write_bool(json, byte != 0)),
        DataType::Uint8 => write_each(json, data, |json, bytes| write_integer(json, u8::from_le_bytes(bytes))),
        DataType::Uint16 => write_each(json, data, |json, bytes| write_integer(json, u16::from_le_bytes(bytes))),
        DataType::Uint32 => write_each(json, data, |json, bytes| write_integer(json, u32::from_le_bytes(bytes))),
        DataType::Uint64 => write_each(json, data, |json, bytes| write_integer(json, u64::from_le_bytes(bytes))),
        DataType::Int8 => write_each(json, data, |json, bytes| write_integer(json, i8::from_le_bytes(bytes))),
        DataType::Int16 => write_each(json, data, |json, bytes| write_integer(json, i16::from_le_bytes(bytes))),
        DataType::Int32 => write_each(json, data, |json, bytes| write_integer(json, i32::from_le_bytes(bytes))),
        DataType::Int64 => write_each(json, data, |json, bytes| write_integer(json, i64::from_le_bytes(bytes))),
        DataType::Fp16 => {
            write_each(json, data, |json, bytes| write_f32(json, half::f16::from_le_bytes(bytes).to_f32()));
        }
        DataType::Bf16 => {
            write_each(json, data, |json, bytes| write_f32(json, half::bf16::from_le_bytes(bytes).to_f32()));
        }
        DataType::Fp32 => write_each(json, data, |json, bytes| write_f32(json, f32::from_le_bytes(bytes))),
        DataType::Fp64 => write_each(json, data, |json, bytes| write_f64(json, f64::from_le_bytes(bytes))),
        DataType::Bytes => return write_strings(json, name, tensor),
    }
    Ok(())
}

/// Elements may lie at any address, so they are read byte-wise, which compiles to plain loads.
#[inline]
fn write_each<const N: usize>(json: &mut Vec<u8>, data: &[u8], write: impl Fn(&mut Vec<u8>, [u8; N])) {
    let (elements, _) = data.as_chunks::<N>();
    for element in elements {
        write(json, *element);
        json.push(b',');
    }
    if !elements.is_empty() {
        json.pop();
    }
}

fn write_strings(json: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<()> {
    for (index, string) in tensor.strings().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let Ok(string) = simdutf8::basic::from_utf8(string) else {
            return Err(Error::invalid(format!(
                "element {index} of output '{name}' is not UTF-8 and cannot be sent as JSON; ask for this output with \
                 the parameter binary_data"
            )));
        };
        write_string(json, string);
    }
    Ok(())
}

/// The bytes that a tensor's elements take as JSON at most, commas included; for strings, without escapes.
fn json_size(tensor: &Tensor) -> usize {
    let each = match tensor.data_type() {
        DataType::Bool => 6,
        DataType::Uint8 => 4,
        DataType::Int8 => 5,
        DataType::Uint16 => 6,
        DataType::Int16 => 7,
        DataType::Uint32 => 11,
        DataType::Int32 => 12,
        DataType::Uint64 | DataType::Int64 => 21,
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 => 17,
        DataType::Fp64 => 25,
        // Its 4-byte length makes room for quotes and comma.
        DataType::Bytes => return tensor.data().len(),
    };
    tensor.element_count().saturating_mul(each)
}

fn write_bool(json: &mut Vec<u8>, value: bool) {
    json.extend_from_slice(if value { b"true" } else { b"false" });
}

#[inline]
fn write_integer(json: &mut Vec<u8>, value: impl itoa::Integer) {
    json.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

#[inline]
fn write_f32(json: &mut Vec<u8>, value: f32) {
    /// Below it every FP32 with a whole value is an integer that is printed with all its digits.
    const WHOLE: f32 = 16_777_216.0;
    let whole = value as i32;
    if value.abs() < WHOLE && whole as f32 == value && (whole != 0 || value.is_sign_positive()) {
        write_integer(json, whole);
        json.extend_from_slice(b".0");
    } else if value.is_finite() {
        json.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else {
        write_non_finite(json, f64::from(value));
    }
}

#[inline]
fn write_f64(json: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        json.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else {
        write_non_finite(json, value);
    }
}

#[cold]
fn write_non_finite(json: &mut Vec<u8>, value: f64) {
    json.extend_from_slice(if value.is_nan() {
        b"NaN"
    } else if value > 0.0 {
        b"Infinity"
    } else {
        b"-Infinity"
    });
}
