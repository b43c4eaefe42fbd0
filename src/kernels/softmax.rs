//! The CPU's twin of `softmax.cu`: the same bounds, not the same bits, since sums are taken in another order.

/// Numbers side by side in the loops below, which become vector instructions.
const LANES: usize = 8;

/// Elements whose exponentials are summed up in FP32 before they are added in FP64: errors do not grow with a row.
const BLOCK: usize = 256;

/// Below this a power of e is no normal FP32 number, and taken for 0.
const LEAST: f32 = -87.336_54;

/// Each row of `columns` numbers of `from` as exp(x - largest) / sum of those, into `to`.
///
/// Each element is within a relative 1e-6 + 6e-8 * (largest - x) of the exact one (the second term is what the difference
/// loses in FP32), for rows of up to 2^20; below 1.2e-38 it may be 0. A row with a NaN or a positive infinity is NaN, so is one of negative infinities alone; a negative infinity beside others gives 0.
/// What is left at the end, less than a row, stays as it is, as does all where `columns` is 0.
pub fn softmax_f32(to: &mut [f32], from: &[f32], columns: usize) {
    if columns == 0 {
        return;
    }
    for (to, from) in to.chunks_exact_mut(columns).zip(from.chunks_exact(columns)) {
        let largest = largest(from);
        let mut sum = 0.0_f64;
        for (to, from) in to.chunks_mut(BLOCK).zip(from.chunks(BLOCK)) {
            sum += f64::from(exponentials(to, from, largest));
        }
        let share = (1.0 / sum) as f32;
        to.iter_mut().for_each(|value| *value *= share);
    }
}

/// The largest number; a NaN is none.
fn largest(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, *value);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// Writes exp(x - largest) and returns their sum.
fn exponentials(to: &mut [f32], from: &[f32], largest: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (targets, target_rest) = to.as_chunks_mut::<LANES>();
    let (sources, source_rest) = from.as_chunks::<LANES>();
    for (target, source) in targets.iter_mut().zip(sources) {
        for lane in 0..LANES {
            target[lane] = power_of_e(source[lane] - largest);
            lanes[lane] += target[lane];
        }
    }
    for ((target, source), lane) in target_rest.iter_mut().zip(source_rest).zip(&mut lanes) {
        *target = power_of_e(source - largest);
        *lane += *target;
    }
    lanes.iter().sum()
}

/// e to the power of `x`, which is not above 0: a relative error of 2e-7 at most. NaN is NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; the series of e^r to its seventh term; n into the exponent's bits. Without a branch or a
/// call, so that a loop over it becomes vector instructions of any processor.
#[inline]
fn power_of_e(x: f32) -> f32 {
    // Added and taken away, it leaves the nearest whole number, whose bits are the sum's last.
    const ROUNDS: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with so few bits that its product with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUNDS;
    let n = shifted - ROUNDS;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut power = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = power * r + term;
    }
    let exponent = f32::from_bits(shifted.to_bits().wrapping_sub(ROUNDS.to_bits()).wrapping_add(127) << 23);
    // NaN is not below, and any number times NaN is NaN.
    if x < LEAST { 0.0 } else { power * exponent }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The definition, in FP64.
    fn exact(row: &[f32]) -> Vec<f64> {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|value| (f64::from(*value) - f64::from(largest)).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    }

    fn check(row: &[f32]) {
        let mut found = vec![0.0; row.len()];
        softmax_f32(&mut found, row, row.len());
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for (at, (found, exact)) in found.iter().zip(exact(row)).enumerate() {
            let error = (f64::from(*found) - exact).abs();
            let bound = 1e-6 + 6e-8 * f64::from(largest - row[at]);
            assert!(error <= bound * exact + 1.2e-38, "element {at} of {}: {found:e}, exactly {exact:e}", row.len());
        }
    }

    proptest! {
        #[test]
        fn any_row_is_within_the_bound(row in vec(-120.0_f32..120.0, 1..1500)) {
            check(&row);
        }

        #[test]
        fn rows_do_not_touch_each_other(rows in vec(any::<[f32; 13]>(), 1..9)) {
            let from: Vec<f32> = rows.iter().flatten().copied().collect();
            let mut together = vec![0.0; from.len()];
            softmax_f32(&mut together, &from, 13);
            for (row, together) in rows.iter().zip(together.chunks(13)) {
                let mut alone = [0.0; 13];
                softmax_f32(&mut alone, row, 13);
                prop_assert!(alone.iter().zip(together).all(|(one, other)| one.to_bits() == other.to_bits()));
            }
        }
    }

    #[test]
    fn a_row_of_a_million_is_within_the_bound() {
        let row: Vec<f32> = (0..1_u64 << 20).map(|at| ((at * 7919) % 1009) as f32 / 100.0).collect();
        check(&row);
        check(&vec![3.0; 1 << 20]);
    }

    #[test]
    fn what_is_not_finite_is_as_numpy_has_it() {
        let softmax = |row: &[f32]| {
            let mut found = vec![7.0; row.len()];
            softmax_f32(&mut found, row, row.len());
            found
        };
        let (nan, infinity) = (f32::NAN, f32::INFINITY);
        assert_eq!(softmax(&[-infinity, 0.0, -infinity]), [0.0, 1.0, 0.0]);
        assert_eq!(softmax(&[f32::MAX, -f32::MAX]), [1.0, 0.0]);
        for row in [&[1.0, nan, 2.0][..], &[1.0, infinity, 2.0], &[-infinity; 3]] {
            assert!(softmax(row).iter().all(|value| value.is_nan()), "{row:?}");
        }
        softmax_f32(&mut [], &[], 0);
    }

    #[test]
    fn every_power_of_e_is_within_its_bound() {
        for step in 0..=1_000_000 {
            let x = LEAST * (step as f32 / 1_000_000.0);
            let exact = f64::from(x).exp();
            let error = (f64::from(power_of_e(x)) - exact).abs() / exact;
            assert!(error <= 2e-7, "{x}: {error:e}");
        }
        assert_eq!(power_of_e(0.0), 1.0);
    }
}
