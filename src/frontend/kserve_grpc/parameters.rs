//! Parameters (`InferParameter`): those this front end understands, and those it hands on.

use std::time::Duration;

use compact_str::CompactString;

use super::super::tensor_json::Limits;
use super::super::tensor_json::shared::SharedParameters;
use super::wire::{Fields, Value, put_bytes, put_varint, varint_length, wrong_type};
use crate::error::{Error, Result};
use crate::inference::{InferenceRequest, ParameterValue, Parameters};

/// What the parameters of a request say to this front end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Understood {
    /// `timeout`; `None` if absent or 0.
    pub(super) timeout: Option<Duration>,
    /// `triton_enable_empty_final_response`.
    pub(super) empty_final: bool,
}

/// One entry of a `map<string, InferParameter>`.
pub(super) fn read_entry<'a>(entry: &'a [u8], limits: &Limits) -> Result<(&'a str, ParameterValue)> {
    let (mut key, mut value) = ("", None);
    let mut fields = Fields(entry);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => key = field.text("parameters.key")?,
            2 => {
                let mut fields = Fields(field.bytes("parameters.value")?);
                while let Some((number, choice)) = fields.next()? {
                    value = read_choice(number, choice)?.or(value);
                }
            }
            _ => {}
        }
    }
    if key.len() > limits.name_bytes {
        return Err(Error::too_large(format!(
            "the name of a parameter has {} bytes, over the limit of {} (name_bytes)",
            key.len(),
            limits.name_bytes
        )));
    }
    let value = value.ok_or_else(|| Error::invalid(format!("parameter '{key}' has no value")))?;
    Ok((key, value))
}

fn read_choice(number: u32, choice: Value<'_>) -> Result<Option<ParameterValue>> {
    Ok(Some(match number {
        1 => ParameterValue::Bool(choice.varint("bool_param")? != 0),
        2 => ParameterValue::Int(choice.varint("int64_param")? as i64),
        3 => ParameterValue::String(choice.text("string_param")?.into()),
        4 => match choice {
            Value::Fixed64(bytes) => ParameterValue::Double(f64::from_le_bytes(bytes)),
            _ => return Err(wrong_type("double_param")),
        },
        5 => ParameterValue::Uint(choice.varint("uint64_param")?),
        _ => return Ok(None),
    }))
}

/// An integer that is not negative, of either kind.
pub(super) fn unsigned(value: &ParameterValue) -> Option<u64> {
    match value {
        ParameterValue::Int(value) => u64::try_from(*value).ok(),
        ParameterValue::Uint(value) => Some(*value),
        ParameterValue::Bool(_) | ParameterValue::Double(_) | ParameterValue::String(_) => None,
    }
}

/// Takes in one parameter of a request. The texts are Triton's.
pub(super) fn take(
    key: &str,
    value: ParameterValue,
    request: &mut InferenceRequest,
    understood: &mut Understood,
) -> Result<()> {
    let wrong =
        |expected: &str| Err(Error::invalid(format!("invalid value type for '{key}' parameter, expected {expected}.")));
    match key {
        "priority" => match unsigned(&value) {
            Some(priority) => request.priority = priority,
            None => return wrong("int64_param or uint64_param"),
        },
        "timeout" => match unsigned(&value) {
            Some(micros) => understood.timeout = (micros > 0).then(|| Duration::from_micros(micros)),
            None => return wrong("int64_param or uint64_param"),
        },
        "triton_enable_empty_final_response" => match value {
            ParameterValue::Bool(enable) => understood.empty_final = enable,
            _ => return wrong("bool_param"),
        },
        "sequence_id" => match value {
            ParameterValue::String(_) | ParameterValue::Uint(_) | ParameterValue::Int(0..) => {
                keep(key, value, request);
            }
            _ => return wrong("int64_param or string_param"),
        },
        "sequence_start" | "sequence_end" => match value {
            ParameterValue::Bool(_) => keep(key, value, request),
            _ => return wrong("bool_param"),
        },
        _ if key.starts_with("triton_") => {
            return Err(Error::invalid(format!(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified, \
                 found '{key}'"
            )));
        }
        _ => keep(key, value, request),
    }
    Ok(())
}

/// Takes in one of the parameters that say where in shared memory a tensor lies. The texts are Triton's.
pub(super) fn take_shared(
    key: &str,
    value: ParameterValue,
    shared: &mut SharedParameters,
    limits: &Limits,
) -> Result<()> {
    let wrong = |expected| Error::invalid(format!("invalid value type for '{key}' parameter, expected {expected}."));
    match key {
        "shared_memory_region" => match value {
            ParameterValue::String(region) => {
                name(&region, "a shared memory region", limits)?;
                shared.region = Some(region);
            }
            _ => return Err(wrong("string_param")),
        },
        "shared_memory_offset" | "shared_memory_byte_size" => {
            let number = unsigned(&value).ok_or_else(|| wrong("int64_param or uint64_param"))?;
            let place = if key == "shared_memory_offset" { &mut shared.offset } else { &mut shared.byte_size };
            *place = Some(number);
        }
        _ => {}
    }
    Ok(())
}

/// A key that comes again replaces what it was, as maps of protobuf do.
fn keep(key: &str, value: ParameterValue, request: &mut InferenceRequest) {
    match request.parameters.iter_mut().find(|(known, _)| known == key) {
        Some((_, old)) => *old = value,
        None => request.parameters.push((CompactString::new(key), value)),
    }
}

/// Refuses a parameter more than there may be.
pub(super) fn count(count: &mut usize, limits: &Limits) -> Result<()> {
    *count += 1;
    if *count > limits.parameters {
        return Err(Error::too_large(format!("more parameters than the limit of {} (parameters)", limits.parameters)));
    }
    Ok(())
}

/// Appends the entries of a `map<string, InferParameter>`.
pub(super) fn put(out: &mut Vec<u8>, number: u32, parameters: &Parameters) {
    let mut value = Vec::new();
    for (key, parameter) in parameters {
        value.clear();
        let integer = |value: &mut Vec<u8>, number: u32, integer: u64| {
            // Written though it be 0: which of the kinds it is must be seen.
            put_varint(value, u64::from(number) << 3);
            put_varint(value, integer);
        };
        match parameter {
            ParameterValue::Bool(flag) => integer(&mut value, 1, u64::from(*flag)),
            ParameterValue::Int(number) => integer(&mut value, 2, *number as u64),
            ParameterValue::String(text) => put_bytes(&mut value, 3, text.as_bytes()),
            ParameterValue::Double(number) => {
                put_varint(&mut value, 4 << 3 | 1);
                value.extend_from_slice(&number.to_le_bytes());
            }
            ParameterValue::Uint(number) => integer(&mut value, 5, *number),
        }
        let text = |length: usize| 1 + varint_length(length as u64) + length;
        super::wire::put_length(out, number, text(key.len()) + text(value.len()));
        put_bytes(out, 1, key.as_bytes());
        put_bytes(out, 2, &value);
    }
}

/// The version that a text names; none for the latest: an empty text or -1.
pub(super) fn version(text: &str) -> Result<Option<crate::inference::Version>> {
    match text {
        "" | "-1" => Ok(None),
        number => number.parse().map(Some).map_err(|_| {
            Error::invalid(format!(
                "failed to get model version from specified version string '{}' (details: expected a number)",
                number.chars().take(32).collect::<String>()
            ))
        }),
    }
}

/// A name within the limit on names.
pub(super) fn name<'a>(name: &'a str, of: &str, limits: &Limits) -> Result<&'a str> {
    if name.len() > limits.name_bytes {
        return Err(Error::too_large(format!(
            "the name of {of} has {} bytes, over the limit of {} (name_bytes)",
            name.len(),
            limits.name_bytes
        )));
    }
    Ok(name)
}
