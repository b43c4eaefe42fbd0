//! The generate extension: tensors as plain JSON members, by name, for models that suit it.

use std::time::Duration;

use super::json::{Cursor, Kind, Number, strings};
use super::tensor_json::{self, Limits};
use crate::error::{Error, Result};
use crate::inference::{InferenceRequest, InferenceResponse, NamedTensor, ParameterValue};
use crate::lifecycle::handle::TensorMetadata;
use crate::tensor::{Shape, Tensor};

/// The members of a request's object: those named like an input are that tensor; `id` is the request's; the others, and
/// those of `parameters`, are request parameters.
#[derive(Default)]
pub struct Members {
    /// The request.
    pub request: InferenceRequest,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

impl Members {
    /// Reads the object for a model with these inputs.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no such object, `TooLarge` over a limit.
    pub fn read(body: &[u8], inputs: &[TensorMetadata], limits: &Limits) -> Result<Self> {
        let mut members = Self::default();
        let mut cursor = Cursor::new(body, limits.json_depth);
        cursor.enter_object()?;
        while let Some(key) = cursor.next_key()? {
            if let Some(input) = inputs.iter().find(|input| *input.name == *key) {
                let tensor = read_tensor(&mut cursor, input, limits)?;
                members.request.inputs.push(NamedTensor { name: input.name.clone(), tensor });
            } else if key == "id" {
                members.request.id = cursor.string()?.into();
            } else if key == "parameters" && cursor.kind()? == Kind::Object {
                cursor.enter_object()?;
                while let Some(key) = cursor.next_key()? {
                    members.parameter(&mut cursor, &key, limits)?;
                }
            } else {
                members.parameter(&mut cursor, &key, limits)?;
            }
        }
        cursor.end()?;
        Ok(members)
    }

    fn parameter(&mut self, cursor: &mut Cursor<'_>, key: &str, limits: &Limits) -> Result<()> {
        if key.starts_with("triton_") {
            return Err(Error::invalid(format!("parameter '{key}' begins with triton_, which is reserved")));
        }
        if self.request.parameters.len() >= limits.parameters {
            return Err(Error::too_large(format!("the request has more than {} parameters", limits.parameters)));
        }
        let value = match cursor.kind()? {
            Kind::Bool => ParameterValue::Bool(cursor.bool()?),
            Kind::String => ParameterValue::String(cursor.string()?.into()),
            Kind::Number => match cursor.number()? {
                Number::Int(value) => ParameterValue::Int(value),
                Number::Uint(value) => ParameterValue::Uint(value),
                Number::Double(value) => ParameterValue::Double(value),
            },
            Kind::Null | Kind::Array | Kind::Object => {
                return Err(Error::invalid(format!(
                    "'{key}' is no input of the model, and a parameter must be a number, a text, true or false"
                )));
            }
        };
        if key == "timeout" {
            let ParameterValue::Int(microseconds @ 0..) = value else {
                return Err(Error::invalid("parameter 'timeout' must be a whole number of microseconds"));
            };
            self.timeout = (microseconds > 0).then(|| Duration::from_micros(microseconds.unsigned_abs()));
            return Ok(());
        }
        self.request.parameters.push((key.into(), value));
        Ok(())
    }
}

fn read_tensor(cursor: &mut Cursor<'_>, input: &TensorMetadata, limits: &Limits) -> Result<Tensor> {
    let elements = tensor_json::read_elements(cursor, &input.name, input.data_type, None, limits)?;
    let shape = deduce_shape(&input.dims, elements.count).ok_or_else(|| {
        Error::invalid(format!(
            "input '{}' has {} elements, which do not fit its shape {}",
            input.name,
            elements.count,
            Shape::new(&input.dims)
        ))
    })?;
    Tensor::new(input.data_type, shape, elements.data)
}

/// The shape of `count` elements: fixed dimensions stay, the innermost -1 takes what they leave, other -1s are 1.
fn deduce_shape(dims: &[i64], count: usize) -> Option<Shape> {
    let fixed = dims.iter().filter(|dim| **dim != -1).try_fold(1_i64, |product, dim| product.checked_mul(*dim))?;
    let count = i64::try_from(count).ok()?;
    let rest = if fixed == 0 { 0 } else { count / fixed };
    let innermost = dims.iter().rposition(|dim| *dim == -1);
    let shape: Shape = dims
        .iter()
        .enumerate()
        .map(|(at, &dim)| match dim {
            -1 if Some(at) == innermost => rest,
            -1 => 1,
            fixed => fixed,
        })
        .collect();
    (shape.element_count() == usize::try_from(count).ok()).then_some(shape)
}

/// The answer: outputs by name, one element as a bare value, more as a flat array.
///
/// # Errors
/// `Internal` for an output that has no such form.
pub fn write_members(response: &InferenceResponse) -> Result<Vec<u8>> {
    let mut json = Vec::with_capacity(256);
    append_members(&mut json, response)?;
    Ok(json)
}

/// The answer as a server-sent event.
///
/// # Errors
/// As [`write_members`].
pub fn write_event(response: &InferenceResponse) -> Result<Vec<u8>> {
    let mut event = Vec::with_capacity(256);
    event.extend_from_slice(b"data: ");
    append_members(&mut event, response)?;
    event.extend_from_slice(b"\n\n");
    Ok(event)
}

fn append_members(json: &mut Vec<u8>, response: &InferenceResponse) -> Result<()> {
    let key = |json: &mut Vec<u8>, name: &str, first: bool| {
        json.extend_from_slice(if first { b"{" } else { b"," });
        strings::write_string(json, name);
        json.push(b':');
    };
    key(json, "model_name", true);
    strings::write_string(json, &response.model.name);
    key(json, "model_version", false);
    strings::write_string(json, &response.model.version.to_string());
    if !response.id.is_empty() {
        key(json, "id", false);
        strings::write_string(json, &response.id);
    }
    for output in &response.outputs {
        key(json, &output.name, false);
        let bare = output.tensor.element_count() == 1;
        if !bare {
            json.push(b'[');
        }
        tensor_json::write_elements(json, &output.name, &output.tensor)?;
        if !bare {
            json.push(b']');
        }
    }
    json.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_free_dimension_takes_the_rest() {
        assert_eq!(deduce_shape(&[-1, 4], 8), Some(Shape::new(&[2, 4])));
        assert_eq!(deduce_shape(&[-1, -1], 3), Some(Shape::new(&[1, 3])));
        assert_eq!(deduce_shape(&[2, -1, 3], 12), Some(Shape::new(&[2, 2, 3])));
        assert_eq!(deduce_shape(&[4], 3), None);
        assert_eq!(deduce_shape(&[-1, 4], 6), None);
        assert_eq!(deduce_shape(&[], 1), Some(Shape::default()));
    }
}
