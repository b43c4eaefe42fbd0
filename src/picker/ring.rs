//! The ring: which instances stand next to a model, in which order.
//!
//! It is the one that Envoy builds for the same addresses (`ring_hash` with xxHash and equal weights): each instance has
//! the same number of points, the hashes of `ADDRESS_0`, `ADDRESS_1` ..., and a key belongs to the first point at or after
//! its own hash. Source: Envoy's `source/extensions/load_balancing_policies/ring_hash`.

use smallvec::SmallVec;

use super::hash::xxh64;

/// An instance, by its place among those that were ever known. Never used again for another one.
pub type Id = u32;

/// The points of all instances.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Ascending.
    points: Vec<(u64, Id)>,
    members: usize,
}

impl Ring {
    /// The ring of these addresses, with at least so many points (Envoy's `minimum_ring_size`).
    #[must_use]
    pub fn new(members: &[(Id, &str)], least: usize) -> Self {
        let each = least.div_ceil(members.len().max(1)).max(1);
        let mut points: Vec<_> = members
            .iter()
            .flat_map(|(id, name)| (0..each).map(move |point| (xxh64(format!("{name}_{point}").as_bytes()), *id)))
            .collect();
        points.sort_unstable();
        Self { points, members: members.len() }
    }

    /// How many instances there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.members
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// The first `most` instances from `hash` on, each once.
    #[must_use]
    pub fn walk(&self, hash: u64, most: usize) -> SmallVec<[Id; 8]> {
        let from = self.points.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.points.split_at(from);
        let mut order = SmallVec::new();
        for (_, id) in after.iter().chain(before) {
            if order.len() >= most.min(self.members) {
                break;
            }
            if !order.contains(id) {
                order.push(*id);
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(count: u32) -> Ring {
        let names: Vec<_> = (0..count).map(|id| (id, format!("10.0.0.{id}:8000"))).collect();
        Ring::new(&names.iter().map(|(id, name)| (*id, name.as_str())).collect::<Vec<_>>(), 1024)
    }

    #[test]
    fn nobody_stands_on_an_empty_ring() {
        assert!(ring(0).is_empty() && ring(0).walk(7, 3).is_empty());
    }

    #[test]
    fn each_instance_has_about_its_share() {
        let ring = ring(3);
        let mut shares = [0_usize; 3];
        for model in 0..30_000 {
            shares[ring.walk(xxh64(format!("m{model}").as_bytes()), 1)[0] as usize] += 1;
        }
        assert!(shares.iter().all(|share| (8_000..12_000).contains(share)), "{shares:?}");
    }

    proptest! {
        #[test]
        fn the_walk_is_the_order_of_the_nearest_points(hash: u64, count in 1_u32..12, most in 0_usize..14) {
            let ring = ring(count);
            // The distance from the hash to an instance's nearest point, going up.
            let mut nearest: Vec<_> = (0..count)
                .map(|id| {
                    let own = ring.points.iter().filter(|(_, of)| *of == id);
                    (own.map(|(point, _)| point.wrapping_sub(hash)).min().unwrap(), id)
                })
                .collect();
            nearest.sort_unstable();
            let expected: Vec<_> = nearest.into_iter().map(|(_, id)| id).take(most).collect();
            prop_assert_eq!(ring.walk(hash, most).to_vec(), expected);
        }

        #[test]
        fn whoever_leaves_moves_nobody_elses_models(hash: u64, leaver in 0_u32..6) {
            // The same number of points each: what Envoy rounds up is left out.
            let names: Vec<_> = (0..6).map(|id| (id, format!("10.0.0.{id}:8000"))).collect();
            let members: Vec<_> = names.iter().map(|(id, name)| (*id, name.as_str())).collect();
            let rest: Vec<_> = members.iter().copied().filter(|(id, _)| *id != leaver).collect();
            let (before, after) = (Ring::new(&members, 6 * 64), Ring::new(&rest, 5 * 64));
            let mut expected = before.walk(hash, 6);
            expected.retain(|id| *id != leaver);
            prop_assert_eq!(after.walk(hash, 6), expected);
        }
    }
}
