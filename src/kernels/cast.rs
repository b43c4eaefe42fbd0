//! The CPU's twins of `cast.cu`: FP32 from and to FP16, BF16 and INT8, bit for bit what the kernels give.
//!
//! To nearest, ties to even; what is too large is infinite, or saturated in INT8, where NaN is 0; elsewhere each NaN becomes
//! the one quiet NaN of the type without a sign. Source and destination have as many elements; what one has more stays.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements that are looked at together: they stay in the first cache between two passes.
const BLOCK: usize = 1024;

/// 1.5 * 2^23: added to a number of less than 2^22, its sum's last bits are that number, rounded to nearest even.
const ROUNDS: f32 = 12_582_912.0;

const HALF_NAN: u16 = 0x7e00;
const BRAIN_NAN: u16 = 0x7fc0;
const NAN: u32 = 0x7fc0_0000;

/// FP32 to FP16.
pub fn f32_to_f16(to: &mut [f16], from: &[f32]) {
    let length = to.len().min(from.len());
    for (to, from) in to[..length].chunks_mut(BLOCK).zip(from[..length].chunks(BLOCK)) {
        // With the processor's own instruction where it has one; those differ in what becomes of NaN.
        to.convert_from_f32_slice(from);
        if from.iter().fold(false, |found, value| found | value.is_nan()) {
            let pairs = to.iter_mut().zip(from).filter(|(_, value)| value.is_nan());
            pairs.for_each(|(to, _)| *to = f16::from_bits(HALF_NAN));
        }
    }
}

/// FP16 to FP32.
pub fn f16_to_f32(to: &mut [f32], from: &[f16]) {
    let length = to.len().min(from.len());
    for (to, from) in to[..length].chunks_mut(BLOCK).zip(from[..length].chunks(BLOCK)) {
        from.convert_to_f32_slice(to);
        canonical(to);
    }
}

/// FP32 to BF16.
pub fn f32_to_bf16(to: &mut [bf16], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        // Half a step, less by the least where the last bit kept is even: a carry rounds up.
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        *to = bf16::from_bits(if from.is_nan() { BRAIN_NAN } else { rounded });
    }
}

/// BF16 to FP32.
pub fn bf16_to_f32(to: &mut [f32], from: &[bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        let value = f32::from_bits(u32::from(from.to_bits()) << 16);
        *to = if value.is_nan() { f32::from_bits(NAN) } else { value };
    }
}

/// FP32 to INT8.
pub fn f32_to_i8(to: &mut [i8], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        // Written so that it becomes vector instructions of any processor: no call for rounding, no branch.
        let below = if *from > 127.0 { 127.0 } else { *from };
        let within = if below < -128.0 { -128.0 } else { below };
        let rounded = (within + ROUNDS).to_bits().wrapping_sub(ROUNDS.to_bits()) as u8;
        *to = if from.is_nan() { 0 } else { rounded.cast_signed() };
    }
}

/// INT8 to FP32.
pub fn i8_to_f32(to: &mut [f32], from: &[i8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from(*from);
    }
}

fn canonical(values: &mut [f32]) {
    for value in values {
        *value = if value.is_nan() { f32::from_bits(NAN) } else { *value };
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What lies at a rounding's borders, and what is none of the usual numbers.
    fn awkward() -> Vec<f32> {
        let halves = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
        let around = halves.flat_map(|value| {
            let bits = value.to_bits();
            // The half itself, its neighbours, and the tie between it and the next one with that tie's neighbours.
            [0, 1, u32::MAX, 0xfff, 0x1000, 0x1001].map(|step| f32::from_bits(bits.wrapping_add(step)))
        });
        let more =
            [65_519.996, 65_520.0, 2.98e-8, 2.9e-8, 1e-45, f32::MAX, -f32::MAX, -0.0, f32::INFINITY, -f32::INFINITY];
        let nans = [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffc0_0000].map(f32::from_bits);
        around.chain(more).chain(nans).collect()
    }

    /// The nearest of all halves, the even one of two as near: the definition, by search.
    fn nearest_half(value: f32) -> u16 {
        if value.is_nan() {
            return HALF_NAN;
        }
        let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
        let size = f64::from(value.abs());
        // Infinity stands where the next number of the same exponent would be.
        let of = |bits: u16| if bits == 0x7c00 { 65_536.0 } else { f16::from_bits(bits).to_f64() };
        let mut above = 0_u16;
        for step in (0..15).rev().map(|bit| 1 << bit) {
            if above + step <= 0x7c00 && of(above + step) <= size {
                above += step;
            }
        }
        if above == 0x7c00 {
            return sign | above;
        }
        let (down, up) = (size - of(above), of(above + 1) - size);
        sign | if down < up || (down == up && above.is_multiple_of(2)) { above } else { above + 1 }
    }

    fn brain_by_search(value: f32) -> u16 {
        if value.is_nan() {
            return BRAIN_NAN;
        }
        let bits = value.to_bits();
        let (low, rest) = (bits >> 16, bits & 0xffff);
        let up = rest > 0x8000 || (rest == 0x8000 && low % 2 == 1);
        u16::try_from(low + u32::from(up)).unwrap()
    }

    fn byte_by_search(value: f32) -> i8 {
        if value.is_nan() {
            return 0;
        }
        let value = f64::from(value.clamp(-1000.0, 1000.0));
        let floor = value.floor();
        let up = value - floor > 0.5 || (value - floor == 0.5 && floor % 2.0 != 0.0);
        (floor + f64::from(u8::from(up))).clamp(-128.0, 127.0) as i8
    }

    fn check(values: &[f32]) {
        let mut halves = vec![f16::ZERO; values.len()];
        let mut brains = vec![bf16::ZERO; values.len()];
        let mut bytes = vec![0; values.len()];
        f32_to_f16(&mut halves, values);
        f32_to_bf16(&mut brains, values);
        f32_to_i8(&mut bytes, values);
        for (at, value) in values.iter().enumerate() {
            assert_eq!(halves[at].to_bits(), nearest_half(*value), "{value:e} as FP16");
            assert_eq!(brains[at].to_bits(), brain_by_search(*value), "{value:e} as BF16");
            assert_eq!(bytes[at], byte_by_search(*value), "{value:e} as INT8");
        }
    }

    #[test]
    fn the_borders_of_every_rounding_are_right() {
        check(&awkward());
        check(&(-2600..2600).map(|tenth| tenth as f32 / 10.0).collect::<Vec<_>>());
        check(&(-300..300).map(|half| half as f32 / 2.0).collect::<Vec<_>>());
    }

    #[test]
    fn every_narrow_number_becomes_its_own_value() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let mut wide = vec![0.0; bits.len()];
        f16_to_f32(&mut wide, &bits.iter().map(|bits| f16::from_bits(*bits)).collect::<Vec<_>>());
        for (bits, wide) in bits.iter().zip(&wide) {
            let (exponent, fraction) = (i32::from(bits >> 10) & 31, f64::from(bits & 0x3ff) / 1024.0);
            let size = match exponent {
                0 => fraction * 2_f64.powi(-14),
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1.0 + fraction) * 2_f64.powi(exponent - 15),
            };
            let signed = if bits & 0x8000 == 0 { size } else { -size } as f32;
            let expected = if size.is_nan() { NAN } else { signed.to_bits() };
            assert_eq!(wide.to_bits(), expected, "{bits:#06x}");
        }
        bf16_to_f32(&mut wide, &bits.iter().map(|bits| bf16::from_bits(*bits)).collect::<Vec<_>>());
        for (bits, wide) in bits.iter().zip(&wide) {
            let is_nan = bits & 0x7fff > 0x7f80;
            assert_eq!(wide.to_bits(), if is_nan { NAN } else { u32::from(*bits) << 16 }, "{bits:#06x}");
        }
        let bytes: Vec<i8> = (i8::MIN..=i8::MAX).collect();
        i8_to_f32(&mut wide, &bytes);
        assert!(bytes.iter().zip(&wide).all(|(byte, wide)| f64::from(*byte) == f64::from(*wide)));
    }

    proptest! {
        #[test]
        fn any_bits_are_rounded_to_the_nearest(bits in vec(any::<u32>(), 1..2100)) {
            check(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
        }
    }
}
