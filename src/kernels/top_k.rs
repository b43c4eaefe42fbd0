//! The CPU's twin of `top_k.cu`: the largest of each row with their columns, bit for bit what the kernel gives.

/// Numbers that are looked at together, to pass by those of which none is wanted.
const BLOCK: usize = 16;

/// The `k` largest of each row of `columns` numbers of `from`, the largest first: their values into `values` and their
/// columns into `indices`, `k` a row each.
///
/// Of equal values the one of the lower column goes first; NaN, whatever its sign, is larger than any number, and -0 equals
/// 0. Where `k` is 0 or above `columns` nothing is written. `columns` is below 2^32.
pub fn top_k_f32(values: &mut [f32], indices: &mut [u32], from: &[f32], columns: usize, k: usize) {
    if k == 0 || k > columns {
        return;
    }
    let mut best: Vec<u64> = Vec::with_capacity(k + 1);
    let targets = values.chunks_exact_mut(k).zip(indices.chunks_exact_mut(k));
    for (row, (values, indices)) in from.chunks_exact(columns).zip(targets) {
        largest(&mut best, row, k);
        for ((rank, value), index) in best.iter().zip(values).zip(indices) {
            let column = u32::MAX - (*rank & u64::from(u32::MAX)) as u32;
            (*value, *index) = (row[column as usize], column);
        }
    }
}

/// The ranks of the `k` largest, descending.
fn largest(best: &mut Vec<u64>, row: &[f32], k: usize) {
    best.clear();
    for (block, numbers) in row.chunks(BLOCK).enumerate() {
        // A later column never goes before an equal one.
        let least = best.last().filter(|_| best.len() == k).map_or(0, |rank| (rank >> 32) as u32);
        if best.len() == k && !numbers.iter().fold(false, |any, value| any | (ordered(*value) > least)) {
            continue;
        }
        for (at, value) in numbers.iter().enumerate() {
            let column = (block * BLOCK + at) as u32;
            let rank = u64::from(ordered(*value)) << 32 | u64::from(u32::MAX - column);
            if best.len() == k && best.last().is_some_and(|least| rank < *least) {
                continue;
            }
            let place = best.partition_point(|other| *other > rank);
            best.insert(place, rank);
            best.truncate(k);
        }
    }
}

/// A number as bits that are in its order.
#[inline]
fn ordered(value: f32) -> u32 {
    // -0 becomes 0.
    let bits = (value + 0.0).to_bits();
    let turned = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    if value.is_nan() { u32::MAX } else { turned }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// The definition: a stable sort, the larger first.
    fn by_sorting(row: &[f32], k: usize) -> (Vec<u32>, Vec<u32>) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|one, other| match (row[*one].is_nan(), row[*other].is_nan()) {
            (false, false) => row[*other].partial_cmp(&row[*one]).unwrap(),
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        });
        order.truncate(k);
        (order.iter().map(|at| row[*at].to_bits()).collect(), order.iter().map(|at| *at as u32).collect())
    }

    fn check(from: &[f32], columns: usize, k: usize) {
        let rows = from.len() / columns;
        let (mut values, mut indices) = (vec![0.0; rows * k], vec![0; rows * k]);
        top_k_f32(&mut values, &mut indices, from, columns, k);
        for (at, row) in from.chunks_exact(columns).enumerate() {
            let (bits, columns) = by_sorting(row, k);
            let place = at * k..(at + 1) * k;
            assert_eq!(values[place.clone()].iter().map(|value| value.to_bits()).collect::<Vec<_>>(), bits);
            assert_eq!(indices[place], columns);
        }
    }

    proptest! {
        #[test]
        fn it_is_the_head_of_a_stable_sort(
            bits in vec(any::<u32>(), 60..400), columns in 1_usize..60, k in 1_usize..60,
        ) {
            let from: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            check(&from, columns, k.min(columns));
        }

        #[test]
        fn equal_ones_go_by_their_columns(
            from in vec(select(&[0.0, -0.0, 1.0, -1.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY][..]), 90..300),
            k in 1_usize..90,
        ) {
            check(&from, 90, k);
        }
    }

    #[test]
    fn more_than_there_are_is_nothing() {
        let (mut values, mut indices) = ([5.0; 3], [5; 3]);
        top_k_f32(&mut values, &mut indices, &[1.0, 2.0], 2, 3);
        top_k_f32(&mut values, &mut indices, &[1.0, 2.0], 2, 0);
        assert_eq!((values, indices), ([5.0; 3], [5; 3]));
    }
}
