//! Single elements of JSON data, parsed straight into their type.
//!
//! Each function takes text that starts with the element and returns the value and its length in bytes. The grammar of
//! numbers is JSON's, plus `NaN`, `Infinity` and `-Infinity` for floating types.
//!
//! Floating numbers are correctly rounded. The common case needs no big arithmetic: up to 18 digits are gathered in an
//! integer, eight at a time, and scaled by a power of ten in FP64. That is off by at most a few units in the last
//! place of the FP64, which decides how the FP32 is rounded unless the value lies that close to the middle between two
//! FP32; only then, and outside of the normal range, `fast_float2` decides.

use std::num::NonZeroU64;

use super::decimal::{ZEROS, leading_number, negative_power_of_ten, others, power_of_ten, scan_decimal, scan_short};
use crate::frontend::json;

/// Why a text is no element of the wanted type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is no JSON value of the wanted kind at all.
    Malformed,
    /// It is a number beyond what the type holds.
    OutOfRange,
    /// It has a fraction or an exponent, and the type is an integer.
    NotInteger,
    /// It is NaN or infinite, and the type is an integer.
    NotFinite,
    /// There is no room for it: more elements came than were expected.
    TooMany,
    /// It is a malformed string.
    String(json::strings::Fault),
}

/// A value and the length of its text.
pub(super) type Parsed<T> = Result<(T, usize), Fault>;

/// `true` or `false` as 1 or 0.
pub(super) fn parse_bool(text: &[u8]) -> Parsed<u8> {
    if text.starts_with(b"true") {
        Ok((1, 4))
    } else if text.starts_with(b"false") {
        Ok((0, 5))
    } else {
        Err(Fault::Malformed)
    }
}

/// An integer type of up to 64 bits.
pub(super) trait Integer: Copy {
    /// The value of a sign and a magnitude, if the type holds it.
    fn of(negative: bool, magnitude: u64) -> Option<Self>;
}

macro_rules! integers {
    ($($integer:ty),*) => {
        $(impl Integer for $integer {
            #[inline]
            fn of(negative: bool, magnitude: u64) -> Option<Self> {
                if negative {
                    // Exact down to -2^63, whose magnitude no i64 holds.
                    0_i64.checked_sub_unsigned(magnitude)?.try_into().ok()
                } else {
                    magnitude.try_into().ok()
                }
            }
        })*
    };
}

integers!(u8, u16, u32, u64, i8, i16, i32, i64);

/// An integer of up to seven digits, which is what most are, without a branch on how many. What follows them is not
/// looked at.
#[inline(always)]
pub(super) fn parse_short_integer<T: Integer>(text: &[u8]) -> Option<(T, usize)> {
    let (negative, unsigned) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let word = u64::from_le_bytes(*unsigned.first_chunk::<8>()?) ^ ZEROS;
    let (digits, magnitude) = leading_number(word, NonZeroU64::new(others(word))?);
    let leading_zero = word & 0xff == 0 && digits > 1;
    if digits == 0 || leading_zero {
        return None;
    }
    Some((T::of(negative, magnitude)?, digits + usize::from(negative)))
}

/// An integer without fraction and exponent (`1.0` and `1e3` are refused).
pub(super) fn parse_integer<T: Integer>(text: &[u8]) -> Parsed<T> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut at = start;
    let mut magnitude = 0_u64;
    let mut overflow = false;
    while let Some(digit) = text.get(at).map(|byte| byte.wrapping_sub(b'0'))
        && digit < 10
    {
        // 19 digits always fit 64 bits.
        if at - start < 19 {
            magnitude = magnitude * 10 + u64::from(digit);
        } else {
            match magnitude.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit))) {
                Some(sum) => magnitude = sum,
                None => overflow = true,
            }
        }
        at += 1;
    }
    let leading_zero = at - start > 1 && text.get(start) == Some(&b'0');
    if at == start || leading_zero || matches!(text.get(at), Some(b'.' | b'e' | b'E')) {
        return Err(not_an_integer(text));
    }
    match T::of(negative, magnitude) {
        Some(value) if !overflow => Ok((value, at)),
        _ => Err(Fault::OutOfRange),
    }
}

#[cold]
fn not_an_integer(text: &[u8]) -> Fault {
    if non_finite(text).is_some() {
        Fault::NotFinite
    } else if json::numbers::scan_number(text).is_some() {
        Fault::NotInteger
    } else {
        Fault::Malformed
    }
}

/// An FP32, correctly rounded from the decimal text, if it is a usual one. What follows the text is not looked at.
#[inline(always)]
pub(super) fn parse_usual_f32(text: &[u8]) -> Option<(f32, usize)> {
    let decimal = scan_short(text)?;
    // Zero, or between 1e-23 and 1e7: far from the ends of the FP32.
    let scaled = decimal.mantissa as i64 as f64 * negative_power_of_ten(decimal.fraction);
    let value = round_unless_close(scaled)?;
    Some((if decimal.negative { -value } else { value }, decimal.length))
}

/// Rounds to an FP32, unless the value is so close to the middle between two that its own error could decide.
#[inline(always)]
fn round_unless_close(scaled: f64) -> Option<f32> {
    /// The bits of an FP64 that an FP32 does not have; in their middle rounding turns.
    const DROPPED: u64 = (1 << 29) - 1;
    const MIDDLE: u64 = 1 << 28;
    // Three roundings (integer to FP64, the power, the product), each of half a unit, grow to at most 3 units in the
    // last place: 8 are left as a margin on either side.
    let from_middle = (scaled.to_bits() & DROPPED).wrapping_sub(MIDDLE - 8);
    (from_middle > 16).then_some(scaled as f32)
}

/// An FP32, correctly rounded from a decimal text of up to 18 digits.
fn parse_short_f32(text: &[u8]) -> Option<(f32, usize)> {
    let decimal = scan_decimal(text)?;
    let scaled = decimal.mantissa as i64 as f64 * power_of_ten(decimal.exponent);
    let normal = scaled >= f64::from(f32::MIN_POSITIVE) && scaled <= f64::from(f32::MAX);
    if !normal && decimal.mantissa != 0 {
        return None;
    }
    let value = round_unless_close(scaled)?;
    Some((if decimal.negative { -value } else { value }, decimal.length))
}

/// An FP32, correctly rounded from the decimal text.
pub(super) fn parse_f32(text: &[u8]) -> Parsed<f32> {
    parse_short_f32(text).map_or_else(|| parse_any_f32(text), Ok)
}

#[inline(never)]
fn parse_any_f32(text: &[u8]) -> Parsed<f32> {
    if let Some((value, length)) = non_finite(text) {
        return Ok((value as f32, length));
    }
    let token = json::numbers::scan_number(text).ok_or(Fault::Malformed)?;
    let digits = text.get(..token.length).unwrap_or_default();
    let value: f32 = fast_float2::parse(digits).map_err(|_| Fault::Malformed)?;
    if value.is_infinite() { Err(Fault::OutOfRange) } else { Ok((value, token.length)) }
}

/// An FP64, correctly rounded from the decimal text, if it has few digits. This is Clinger's case: both the integer
/// and the power are exact, so that one rounding remains.
fn parse_short_f64(text: &[u8]) -> Option<(f64, usize)> {
    let decimal = scan_decimal(text)?;
    if decimal.mantissa > 1 << 53 || !(-22..=22).contains(&decimal.exponent) {
        return None;
    }
    let mantissa = decimal.mantissa as f64;
    let value = if decimal.exponent < 0 {
        mantissa / power_of_ten(-decimal.exponent)
    } else {
        mantissa * power_of_ten(decimal.exponent)
    };
    Some((if decimal.negative { -value } else { value }, decimal.length))
}

/// An FP64, correctly rounded from the decimal text.
pub(super) fn parse_f64(text: &[u8]) -> Parsed<f64> {
    parse_short_f64(text).map_or_else(|| parse_any_f64(text), Ok)
}

#[inline(never)]
fn parse_any_f64(text: &[u8]) -> Parsed<f64> {
    if let Some((value, length)) = non_finite(text) {
        return Ok((value, length));
    }
    // One pass instead of one to find the end and one to convert; the grammar here is looser than JSON's, though.
    let (value, length) = fast_float2::parse_partial::<f64, _>(text).map_err(|_| Fault::Malformed)?;
    if !is_json(text.get(..length).unwrap_or_default()) || matches!(text.get(length), Some(b'e' | b'E')) {
        return Err(Fault::Malformed);
    }
    if value.is_infinite() { Err(Fault::OutOfRange) } else { Ok((value, length)) }
}

/// Whether a decimal number, as `fast_float2` takes it, is also one to JSON: no `+`, no `.5`, no `1.`, no `01`.
fn is_json(number: &[u8]) -> bool {
    let unsigned = number.strip_prefix(b"-").unwrap_or(number);
    let point = match unsigned {
        [b'0', b'0'..=b'9', ..] => return false,
        [b'0'..=b'9', ..] => memchr::memchr(b'.', unsigned),
        _ => return false,
    };
    point.is_none_or(|point| unsigned.get(point + 1).is_some_and(u8::is_ascii_digit))
}

/// An FP16, rounded from the FP64 that is nearest to the text.
pub(super) fn parse_f16(text: &[u8]) -> Parsed<half::f16> {
    let (double, length) = parse_f64(text)?;
    let value = half::f16::from_f32(to_odd(double));
    if value.is_infinite() && double.is_finite() { Err(Fault::OutOfRange) } else { Ok((value, length)) }
}

/// A BF16, rounded from the FP64 that is nearest to the text.
pub(super) fn parse_bf16(text: &[u8]) -> Parsed<half::bf16> {
    let (double, length) = parse_f64(text)?;
    let value = half::bf16::from_f32(to_odd(double));
    if value.is_infinite() && double.is_finite() { Err(Fault::OutOfRange) } else { Ok((value, length)) }
}

/// Rounds to an FP32 so that a second rounding to 16 bits comes out as if it were the only one: an inexact result gets
/// an odd last bit, hence never lies in the middle between two 16-bit values.
fn to_odd(double: f64) -> f32 {
    let single = double as f32;
    let bits = single.to_bits();
    if f64::from(single) == double || !double.is_finite() || bits & 1 == 1 {
        single
    } else if f64::from(single).abs() < double.abs() {
        f32::from_bits(bits + 1)
    } else {
        f32::from_bits(bits - 1)
    }
}

fn non_finite(text: &[u8]) -> Option<(f64, usize)> {
    if text.starts_with(b"NaN") {
        Some((f64::NAN, 3))
    } else if text.starts_with(b"Infinity") {
        Some((f64::INFINITY, 8))
    } else if text.starts_with(b"-Infinity") {
        Some((f64::NEG_INFINITY, 9))
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
