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
    } else if json::scan_number(text).is_some() {
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
    let token = json::scan_number(text).ok_or(Fault::Malformed)?;
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

/// The value `mantissa * 10^exponent`, exactly.
struct Decimal {
    negative: bool,
    /// Below 10^18.
    mantissa: u64,
    /// Within the table of powers.
    exponent: i32,
    length: usize,
}

const LARGEST_POWER: i32 = 40;

#[expect(clippy::excessive_precision, clippy::unreadable_literal, reason = "powers of ten read best as they are")]
static ALL_POWERS: [f64; 81] = [
    1e-40, 1e-39, 1e-38, 1e-37, 1e-36, 1e-35, 1e-34, 1e-33, 1e-32, 1e-31, 1e-30, 1e-29, 1e-28, 1e-27, 1e-26, 1e-25,
    1e-24, 1e-23, 1e-22, 1e-21, 1e-20, 1e-19, 1e-18, 1e-17, 1e-16, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9,
    1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12,
    1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22, 1e23, 1e24, 1e25, 1e26, 1e27, 1e28, 1e29, 1e30, 1e31,
    1e32, 1e33, 1e34, 1e35, 1e36, 1e37, 1e38, 1e39, 1e40,
];

/// The FP64 nearest to `10^-exponent`, up to 31.
#[inline(always)]
fn negative_power_of_ten(exponent: usize) -> f64 {
    static POWERS: [f64; 32] = {
        let mut powers = [f64::NAN; 32];
        let mut index = 0;
        while index < 32 {
            powers[index] = ALL_POWERS[LARGEST_POWER as usize - index];
            index += 1;
        }
        powers
    };
    // The mask spares the check of the bounds.
    POWERS.get(exponent & 31).copied().unwrap_or(f64::NAN)
}

#[inline]
fn power_of_ten(exponent: i32) -> f64 {
    ALL_POWERS.get((exponent + LARGEST_POWER) as usize).copied().unwrap_or(f64::NAN)
}

/// The value `mantissa / 10^fraction`, exactly.
struct Short {
    negative: bool,
    /// Below 2^63.
    mantissa: u64,
    /// Up to 23.
    fraction: usize,
    length: usize,
}

/// Reads a number of the form that Python writes for most values: up to seven digits, a point, and up to 23 more, or
/// no point at all. Loads stand at fixed places as far as can be, so that none waits for another; `None` for any other
/// form.
#[inline(always)]
fn scan_short(text: &[u8]) -> Option<Short> {
    /// The largest integers that leave room for so many more digits within 63 bits.
    const FITTING: [u64; 8] = {
        let most = 9_000_000_000_000_000_000;
        [most, most / 10, most / 100, most / 1_000, most / 10_000, most / 100_000, most / 1_000_000, most / 10_000_000]
    };
    let (negative, unsigned) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, point) = match unsigned {
        [digit @ b'0'..=b'9', b'.', ..] => (u64::from(*digit & 15), 1),
        _ => {
            let word = u64::from_le_bytes(*unsigned.first_chunk::<8>()?) ^ ZEROS;
            let (digits, whole) = leading_number(word, NonZeroU64::new(others(word))?);
            if digits == 0 || (digits > 1 && word & 0xff == 0) {
                return None;
            }
            if unsigned.get(digits) != Some(&b'.') {
                return Some(Short { negative, mantissa: whole, fraction: 0, length: digits + usize::from(negative) });
            }
            (whole, digits)
        }
    };
    let [first, second, third] = unsigned.get(point + 1..)?.first_chunk::<24>()?.as_chunks::<8>().0 else {
        return None;
    };
    let first = u64::from_le_bytes(*first) ^ ZEROS;
    let second = u64::from_le_bytes(*second) ^ ZEROS;
    let third = u64::from_le_bytes(*third) ^ ZEROS;
    let (before, last, marks, mantissa) = match (others(first), others(second)) {
        (0, 0) if whole < 100 => {
            let both = eight_digits(first) * 100_000_000 + eight_digits(second);
            (16, third, others(third), whole * 10_000_000_000_000_000 + both)
        }
        (0, marks) => (8, second, marks, whole * 100_000_000 + eight_digits(first)),
        (marks, _) => (0, first, marks, whole),
    };
    let (digits, end) = leading_number(last, NonZeroU64::new(marks)?);
    let fraction = before + digits;
    // Leading zeros make room for more digits, so it is the value that counts.
    if fraction == 0 || mantissa > FITTING.get(digits & 7).copied().unwrap_or(0) {
        return None;
    }
    let mantissa = mantissa * power_up_to_seven(digits) + end;
    Some(Short { negative, mantissa, fraction, length: point + 1 + fraction + usize::from(negative) })
}

/// Reads a JSON number of up to 18 significant digits; `None` for anything else, be it wrong or only unusual.
#[inline(always)]
fn scan_decimal(text: &[u8]) -> Option<Decimal> {
    let negative = *text.first()? == b'-';
    let start = usize::from(negative);
    let mut mantissa = u64::from(digit(text, start)?);
    let mut at = start + 1;
    let mut significant = 0;
    if mantissa != 0 {
        while let Some(digit) = digit(text, at) {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
        }
        significant = at - start;
    } else if digit(text, at).is_some() {
        return None;
    }
    let mut exponent = 0;
    if text.get(at) == Some(&b'.') {
        at += 1;
        let fraction = at;
        loop {
            let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) else {
                while let Some(digit) = digit(text, at) {
                    mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
                    at += 1;
                }
                break;
            };
            let word = u64::from_le_bytes(*chunk) ^ ZEROS;
            let Some(marks) = NonZeroU64::new(others(word)) else {
                mantissa = mantissa.wrapping_mul(100_000_000).wrapping_add(eight_digits(word));
                at += 8;
                continue;
            };
            let (digits, end) = leading_number(word, marks);
            mantissa = mantissa.wrapping_mul(power_up_to_seven(digits)).wrapping_add(end);
            at += digits;
            break;
        }
        let length = at - fraction;
        if length == 0 {
            return None;
        }
        significant += length;
        if significant > 18 {
            if significant != length {
                return None;
            }
            // Zeros behind `0.` are not significant.
            significant -= text.get(fraction..at)?.iter().take_while(|&&byte| byte == b'0').count();
        }
        exponent = -i32::try_from(length).ok()?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = text.get(at + 1).copied();
        at += 1 + usize::from(matches!(sign, Some(b'+' | b'-')));
        let mut power = i32::from(digit(text, at)?);
        at += 1;
        while let Some(digit) = digit(text, at) {
            power = power.saturating_mul(10).saturating_add(i32::from(digit));
            at += 1;
        }
        exponent = exponent.saturating_add(if sign == Some(b'-') { -power } else { power });
    }
    let usual = significant <= 18 && (-LARGEST_POWER..=LARGEST_POWER).contains(&exponent);
    usual.then_some(Decimal { negative, mantissa, exponent, length: at })
}

#[inline]
fn digit(text: &[u8], at: usize) -> Option<u8> {
    let digit = text.get(at)?.wrapping_sub(b'0');
    (digit < 10).then_some(digit)
}

/// Eight times the digit 0.
const ZEROS: u64 = 0x3030_3030_3030_3030;

#[inline]
fn power_up_to_seven(exponent: usize) -> u64 {
    const POWERS: [u64; 8] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    // The mask spares the check of the bounds.
    POWERS.get(exponent & 7).copied().unwrap_or(1)
}

/// Marks the first of the eight bytes, from the lowest on, that is not below ten by its high bit; bytes behind it may
/// be marked or not. Zero if all are below ten.
#[inline]
const fn others(word: u64) -> u64 {
    // A byte from ten on gets its high bit set; a carry out of it can only touch bytes behind it.
    (word.wrapping_add(0x7676_7676_7676_7676) | word) & 0x8080_8080_8080_8080
}

/// How many digits (0 to 7) stand before the first mark, and the number they make.
#[inline]
const fn leading_number(word: u64, marks: NonZeroU64) -> (usize, u64) {
    let mark = marks.trailing_zeros();
    // The digits move to the end and zeros stand before them. The mark is the highest bit of its byte: 63 - mark is 8
    // bits short of the bits from there on, which two shifts make up for, as a shift by 64 would be none.
    ((mark / 8) as usize, eight_digits((word << 8) << (63 ^ mark)))
}

/// The number that eight digits (0 to 9, the first in the lowest byte) make: all pairs at once, then two pairs a
/// multiplication, placed so that their sum lands in the upper half.
#[inline]
const fn eight_digits(word: u64) -> u64 {
    const PAIR: u64 = 0x0000_00ff_0000_00ff;
    let pairs = word.wrapping_mul(10).wrapping_add(word >> 8);
    let first_and_third = (pairs & PAIR).wrapping_mul((1_000_000 << 32) + 100);
    let second_and_fourth = ((pairs >> 16) & PAIR).wrapping_mul((10_000 << 32) + 1);
    first_and_third.wrapping_add(second_and_fourth) >> 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text amid other text, as in an array, and at the very end of the buffer, by the usual way and the sure one.
    fn every_way<T: Copy + PartialEq + std::fmt::Debug>(
        text: &str,
        usual: impl Fn(&[u8]) -> Option<(T, usize)>,
        sure: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Parsed<T> {
        let amid = format!("{text}, 99999999999999");
        let result = sure(text.as_bytes());
        assert_eq!(result, sure(amid.as_bytes()), "{text}");
        for quick in [usual(text.as_bytes()), usual(amid.as_bytes())].into_iter().flatten() {
            // Taking too little is allowed: the array reader sees that no comma follows.
            assert!(quick.1 < text.len() || Ok(quick) == result, "{text}");
        }
        result
    }

    fn f32_every_way(text: &str) -> Parsed<f32> {
        let bits = |(value, length): (f32, usize)| (value.to_bits(), length);
        let usual = |text: &[u8]| parse_usual_f32(text).map(bits);
        every_way(text, usual, |text| parse_f32(text).map(bits)).map(|(bits, length)| (f32::from_bits(bits), length))
    }

    fn f64_every_way(text: &str) -> Parsed<f64> {
        let bits = |(value, length): (f64, usize)| (value.to_bits(), length);
        let usual = |text: &[u8]| parse_short_f64(text).map(bits);
        every_way(text, usual, |text| parse_f64(text).map(bits)).map(|(bits, length)| (f64::from_bits(bits), length))
    }

    fn integer<T: Integer + PartialEq + std::fmt::Debug>(text: &str) -> Parsed<T> {
        every_way(text, parse_short_integer::<T>, parse_integer::<T>)
    }

    #[test]
    fn rounding_is_right_where_it_is_hard() {
        for text in [
            "16777217",
            "16777217.0",
            "16777217.000000001",
            "16777216.999999999",
            "16777219",
            "0",
            "-0",
            "-0.0",
            "0e5",
            "0.000",
            "1.1754943508222875e-38",
            "1.17549435e-38",
            "1e-45",
            "7.006492321624085e-46",
            "7.1e-46",
            "1e-60",
            "3.4028234663852886e38",
            "3.4028235677973366e38",
            "3.402823567797336e38",
            "0.1",
            "0.3745401203632355",
            "1.00000005960464477539062",
            "1.000000059604644775390625",
            "1.0000000596046447753906250000000000000001",
            "9999999999999999999",
            "99999999999999999999",
            "0.00000000000000000000000000000123456789012345678",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551615.5",
            "123456789012345678901234567890e-20",
            "1e10",
            "1E+10",
            "1e-10",
            "8.5",
            "0.5e1",
            "1e00000000000000000001",
        ] {
            let (value, length) = f32_every_way(text).unwrap();
            assert_eq!(value.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{text}");
            assert_eq!(length, text.len());
        }
    }

    #[test]
    fn what_json_does_not_allow_is_refused() {
        for text in ["", "-", "+1", ".5", "1.", "1.e5", "1e", "1e+", "01", "-01", "00", "--1", "nan", "inf", "x", " 1"]
        {
            assert_eq!(f32_every_way(text).unwrap_err(), Fault::Malformed, "{text}");
            assert_eq!(f64_every_way(text), Err(Fault::Malformed), "{text}");
            assert_eq!(integer::<i32>(text), Err(Fault::Malformed), "{text}");
        }
        // 0x1 is the number 0 and then something else, which the array reader refuses.
        assert_eq!(parse_f32(b"0x1"), Ok((0.0, 1)));
    }

    #[test]
    fn numbers_beyond_the_type_are_out_of_range() {
        for text in ["3.5e38", "-3.5e38", "1e39", "1e99999999999", "3.4028236e38"] {
            assert_eq!(f32_every_way(text).unwrap_err(), Fault::OutOfRange, "{text}");
        }
        assert_eq!(parse_f64(b"1e309"), Err(Fault::OutOfRange));
        assert_eq!(parse_f16(b"65520"), Err(Fault::OutOfRange));
        assert_eq!(parse_f16(b"65519.99"), Ok((half::f16::MAX, 8)));
        assert_eq!(parse_bf16(b"3.4e38"), Err(Fault::OutOfRange));
        assert_eq!(parse_bf16(b"1e39"), Err(Fault::OutOfRange));
        assert_eq!(integer::<u8>("256"), Err(Fault::OutOfRange));
        assert_eq!(integer::<u8>("-1"), Err(Fault::OutOfRange));
        assert_eq!(integer::<i8>("-129"), Err(Fault::OutOfRange));
        assert_eq!(integer::<u64>("18446744073709551616"), Err(Fault::OutOfRange));
        assert_eq!(integer::<i64>("-9223372036854775809"), Err(Fault::OutOfRange));
        assert_eq!(integer::<i64>("100000000000000000000000"), Err(Fault::OutOfRange));
    }

    #[test]
    fn integers_are_exact_to_their_ends_and_nothing_else() {
        assert_eq!(integer::<u64>("18446744073709551615"), Ok((u64::MAX, 20)));
        assert_eq!(integer::<i64>("-9223372036854775808"), Ok((i64::MIN, 20)));
        assert_eq!(integer::<u8>("-0"), Ok((0, 2)));
        assert_eq!(integer::<i32>("1.0"), Err(Fault::NotInteger));
        assert_eq!(integer::<i32>("1e3"), Err(Fault::NotInteger));
        assert_eq!(integer::<i32>("NaN"), Err(Fault::NotFinite));
        assert_eq!(integer::<i32>("-Infinity"), Err(Fault::NotFinite));
    }

    #[test]
    fn sixteen_bit_types_are_rounded_once() {
        // Above the middle of two by less than an FP32 can tell: rounding twice would give 1.0.
        let (value, _) = parse_f16(b"1.000488281250001").unwrap();
        assert_eq!(value.to_bits(), half::f16::from_f32(1.0).to_bits() + 1);
        let (value, _) = parse_bf16(b"1.003906250000001").unwrap();
        assert_eq!(value.to_bits(), half::bf16::from_f32(1.0).to_bits() + 1);
        assert!(parse_f16(b"NaN").unwrap().0.is_nan());
        assert_eq!(parse_bf16(b"-Infinity"), Ok((half::bf16::NEG_INFINITY, 9)));
    }

    #[test]
    fn every_16_bit_value_comes_back() {
        for bits in 0..=u16::MAX {
            let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            if f16.is_finite() {
                assert_eq!(parse_f16(f16.to_f32().to_string().as_bytes()).unwrap().0.to_bits(), bits);
            }
            if bf16.is_finite() {
                assert_eq!(parse_bf16(bf16.to_f32().to_string().as_bytes()).unwrap().0.to_bits(), bits);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn f32_equals_the_standard_library(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,24})?([eE][-+]?[0-9]{1,2})?") {
            let expected: f32 = text.parse().unwrap();
            match f32_every_way(&text) {
                Ok((value, length)) => prop_assert_eq!((value.to_bits(), length), (expected.to_bits(), text.len())),
                Err(fault) => prop_assert!(fault == Fault::OutOfRange && expected.is_infinite(), "{}", text),
            }
        }

        #[test]
        fn f64_equals_the_standard_library(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,24})?([eE][-+]?[0-9]{1,3})?") {
            let expected: f64 = text.parse().unwrap();
            match f64_every_way(&text) {
                Ok((value, length)) => prop_assert_eq!((value.to_bits(), length), (expected.to_bits(), text.len())),
                Err(fault) => prop_assert!(fault == Fault::OutOfRange && expected.is_infinite(), "{}", text),
            }
        }

        #[test]
        fn f32_is_right_beside_the_middle_of_two(bits in 0x0080_0000_u32..0x7f00_0000, nudge in -20_i64..20) {
            let low = f64::from(f32::from_bits(bits));
            let high = f64::from(f32::from_bits(bits + 1));
            let middle = f64::from_bits((low / 2.0 + high / 2.0).to_bits().wrapping_add_signed(nudge));
            for text in [format!("{middle:e}"), format!("{middle:.20e}"), middle.to_string(), format!("{middle:.18e}")] {
                let (value, _) = f32_every_way(&text).unwrap();
                prop_assert_eq!(value.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{}", text);
            }
        }

        #[test]
        fn every_f32_comes_back_from_its_shortest_and_its_double_text(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [format!("{value}"), format!("{value:e}"), format!("{}", f64::from(value))] {
                prop_assert_eq!(f32_every_way(&text).unwrap().0.to_bits(), bits);
            }
        }

        #[test]
        fn integers_equal_the_standard_library(text in "-?(0|[1-9][0-9]{0,21})") {
            prop_assert_eq!(integer::<u64>(&text).ok().map(|(value, _)| value),
                text.parse().ok().or((text == "-0").then_some(0)));
            prop_assert_eq!(integer::<i64>(&text).ok().map(|(value, _)| value), text.parse().ok());
            prop_assert_eq!(integer::<i16>(&text).ok().map(|(value, _)| value), text.parse().ok());
        }
    }
}
