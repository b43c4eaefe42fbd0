//! The `parameters` of a request: those this front end understands, and those it hands on.

use std::time::Duration;

use compact_str::CompactString;

use super::{DecodedRequest, Limits};
use crate::error::{Error, Result};
use crate::frontend::json::{Cursor, Kind, Number};
use crate::inference::ParameterValue;

/// Reads the parameters of a request into it.
///
/// `priority`, `timeout` and `binary_data_output` are taken out; the sequence parameters are checked and, like any
/// other scalar, kept for the backend. Keys that begin with `triton_` are reserved.
pub(super) fn read_request_parameters(
    cursor: &mut Cursor<'_>,
    limits: &Limits,
    decoded: &mut DecodedRequest,
) -> Result<()> {
    cursor.enter_object()?;
    let mut count = 0;
    let (mut priority, mut timeout, mut binary) = (None, None, None);
    while let Some(key) = cursor.next_key()? {
        count_parameter(&mut count, &key, limits)?;
        match &*key {
            "priority" => {
                check_once(&priority, &key)?;
                priority = Some(unsigned(cursor, &key)?);
            }
            "timeout" => {
                check_once(&timeout, &key)?;
                timeout = Some(unsigned(cursor, &key)?);
            }
            "binary_data_output" => {
                check_once(&binary, &key)?;
                binary = Some(boolean(cursor, &key)?);
            }
            _ => {
                let value = scalar(cursor, &key)?;
                check_request_parameter(&key, &value)?;
                decoded.request.parameters.push((CompactString::from(key), value));
            }
        }
    }
    decoded.request.priority = priority.unwrap_or(0);
    decoded.timeout = timeout.filter(|&micros| micros > 0).map(Duration::from_micros);
    decoded.format.binary_default = binary.unwrap_or(false);
    refuse_duplicates(decoded.request.parameters.iter().map(|(key, _)| key.as_str()), "parameter")
}

fn check_request_parameter(key: &str, value: &ParameterValue) -> Result<()> {
    let wanted = match key {
        "sequence_id" => match value {
            ParameterValue::String(_) | ParameterValue::Uint(_) | ParameterValue::Int(0..) => return Ok(()),
            _ => "an unsigned integer or a string",
        },
        "sequence_start" | "sequence_end" => match value {
            ParameterValue::Bool(_) => return Ok(()),
            _ => "a bool",
        },
        "triton_enable_empty_final_response" => match value {
            ParameterValue::Bool(_) => return Ok(()),
            _ => "a bool",
        },
        _ if key.starts_with("triton_") => {
            return Err(Error::invalid(format!("parameter keys starting with 'triton_' are reserved, found '{key}'")));
        }
        _ => return Ok(()),
    };
    Err(Error::invalid(format!("parameter '{key}' must be {wanted}")))
}

/// Counts a parameter against the limits on their number and names.
pub(super) fn count_parameter(count: &mut usize, key: &str, limits: &Limits) -> Result<()> {
    *count += 1;
    if *count > limits.parameters {
        return Err(Error::too_large(format!("more parameters than the limit of {} (parameters)", limits.parameters)));
    }
    check_name(key, "a parameter", limits)
}

/// Checks a name against the limit on its length; `what` it names goes into the error.
pub(super) fn check_name(name: &str, what: &str, limits: &Limits) -> Result<()> {
    if name.len() > limits.name_bytes {
        return Err(Error::too_large(format!(
            "the name of {what} has {} bytes, over the limit of {} (name_bytes)",
            name.len(),
            limits.name_bytes
        )));
    }
    Ok(())
}

/// Checks that what a key of an object stands for is not there yet.
#[inline]
pub(super) fn check_once<T>(place: &Option<T>, key: &str) -> Result<()> {
    if place.is_none() { Ok(()) } else { Err(twice(key)) }
}

#[cold]
fn twice(key: &str) -> Error {
    Error::invalid(format!("the request JSON has '{key}' twice in one object"))
}

/// Refuses a name that occurs twice, in time that no list of names can blow up.
pub(super) fn refuse_duplicates<'a>(names: impl Iterator<Item = &'a str> + Clone, what: &str) -> Result<()> {
    let duplicate = if names.clone().nth(SHORT).is_none() {
        let mut rest = names;
        std::iter::from_fn(|| rest.next().map(|name| (name, rest.clone())))
            .find_map(|(name, mut others)| others.any(|other| other == name).then_some(name))
    } else {
        let mut sorted: Vec<&str> = names.collect();
        sorted.sort_unstable();
        sorted.array_windows().find_map(|[one, other]| (one == other).then_some(*one))
    };
    match duplicate {
        Some(name) => Err(Error::invalid(format!("{what} '{name}' is given twice"))),
        None => Ok(()),
    }
}

/// Up to this many names, comparing each with each is faster than sorting.
const SHORT: usize = 8;

/// The value of a parameter that is `true` or `false`.
pub(super) fn boolean(cursor: &mut Cursor<'_>, key: &str) -> Result<bool> {
    if cursor.kind()? == Kind::Bool { cursor.bool() } else { Err(wrong(key, "a bool")) }
}

/// The value of a parameter that is an integer from 0 to 2^64 - 1.
pub(super) fn unsigned(cursor: &mut Cursor<'_>, key: &str) -> Result<u64> {
    if cursor.kind()? == Kind::Number {
        match cursor.number()? {
            Number::Int(int) => {
                if let Ok(value) = u64::try_from(int) {
                    return Ok(value);
                }
            }
            Number::Uint(uint) => return Ok(uint),
            Number::Double(_) => {}
        }
    }
    Err(wrong(key, "an unsigned integer"))
}

fn scalar(cursor: &mut Cursor<'_>, key: &str) -> Result<ParameterValue> {
    Ok(match cursor.kind()? {
        Kind::Bool => ParameterValue::Bool(cursor.bool()?),
        Kind::String => ParameterValue::String(cursor.string()?.into()),
        Kind::Number => match cursor.number()? {
            Number::Int(int) => ParameterValue::Int(int),
            Number::Uint(uint) => ParameterValue::Uint(uint),
            Number::Double(double) => ParameterValue::Double(double),
        },
        Kind::Object | Kind::Array | Kind::Null => return Err(wrong(key, "a bool, a number or a string")),
    })
}

#[cold]
pub(super) fn wrong(key: &str, wanted: &str) -> Error {
    Error::invalid(format!("parameter '{key}' must be {wanted}"))
}
