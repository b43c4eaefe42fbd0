//! Decimal numbers as integers and powers of ten, eight digits at a time in the bytes of a 64-bit word.

use std::num::NonZeroU64;

/// The value `mantissa * 10^exponent`, exactly.
pub(super) struct Decimal {
    pub(super) negative: bool,
    /// Below 10^18.
    pub(super) mantissa: u64,
    /// Within the table of powers.
    pub(super) exponent: i32,
    pub(super) length: usize,
}

const LARGEST_POWER: i32 = 40;

static ALL_POWERS: [f64; 81] = [
    1e-40, 1e-39, 1e-38, 1e-37, 1e-36, 1e-35, 1e-34, 1e-33, 1e-32, 1e-31, 1e-30, 1e-29, 1e-28, 1e-27, 1e-26, 1e-25,
    1e-24, 1e-23, 1e-22, 1e-21, 1e-20, 1e-19, 1e-18, 1e-17, 1e-16, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9,
    1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12,
    1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22, 1e23, 1e24, 1e25, 1e26, 1e27, 1e28, 1e29, 1e30, 1e31,
    1e32, 1e33, 1e34, 1e35, 1e36, 1e37, 1e38, 1e39, 1e40,
];

/// The FP64 nearest to `10^-exponent`, up to 31.
#[inline(always)]
pub(super) fn negative_power_of_ten(exponent: usize) -> f64 {
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
pub(super) fn power_of_ten(exponent: i32) -> f64 {
    ALL_POWERS.get((exponent + LARGEST_POWER) as usize).copied().unwrap_or(f64::NAN)
}

/// The value `mantissa / 10^fraction`, exactly.
pub(super) struct Short {
    pub(super) negative: bool,
    /// Below 2^63.
    pub(super) mantissa: u64,
    /// Up to 23.
    pub(super) fraction: usize,
    pub(super) length: usize,
}

/// Reads a number of the form that Python writes for most values: up to seven digits, a point, and up to 23 more, or
/// no point at all. Loads stand at fixed places as far as can be, so that none waits for another; `None` for any other
/// form.
#[inline(always)]
pub(super) fn scan_short(text: &[u8]) -> Option<Short> {
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
pub(super) fn scan_decimal(text: &[u8]) -> Option<Decimal> {
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
pub(super) const ZEROS: u64 = 0x3030_3030_3030_3030;

#[inline]
fn power_up_to_seven(exponent: usize) -> u64 {
    const POWERS: [u64; 8] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    // The mask spares the check of the bounds.
    POWERS.get(exponent & 7).copied().unwrap_or(1)
}

/// Marks the first of the eight bytes, from the lowest on, that is not below ten by its high bit; bytes behind it may
/// be marked or not. Zero if all are below ten.
#[inline]
pub(super) const fn others(word: u64) -> u64 {
    // A byte from ten on gets its high bit set; a carry out of it can only touch bytes behind it.
    (word.wrapping_add(0x7676_7676_7676_7676) | word) & 0x8080_8080_8080_8080
}

/// How many digits (0 to 7) stand before the first mark, and the number they make.
#[inline]
pub(super) const fn leading_number(word: u64, marks: NonZeroU64) -> (usize, u64) {
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
