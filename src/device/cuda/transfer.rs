//! Which bytes go where when a model is copied to host memory and back. Pure.

use super::arena::Part;

/// One copy: a part of the arena, and where it is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where in the arena, in bytes.
    pub(super) offset: u64,
    /// Which of the host's parts.
    pub(super) part: usize,
    /// Where in that part.
    pub(super) at: usize,
    /// How many bytes.
    pub(super) len: usize,
}

/// Lays `runs` one after another over the host's parts, of which `host` holds the lengths. In order, and each piece lies
/// within one run, one part and one of `extents`, which are in order too and hold all runs: so that an extent can be
/// filled as soon as it is there.
pub(super) fn cut(runs: &[Part], host: &[usize], extents: &[Part]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut part, mut at) = (0, 0_usize);
    let mut extents = extents.iter().peekable();
    for run in runs {
        let mut offset = run.offset;
        while offset < run.end() {
            while extents.next_if(|extent| extent.end() <= offset).is_some() {}
            while host.get(part).is_some_and(|len| at >= *len) {
                (part, at) = (part + 1, 0);
            }
            let (Some(extent), Some(room)) = (extents.peek(), host.get(part)) else { return pieces };
            let len = (run.end().min(extent.end()) - offset).min((room - at) as u64);
            pieces.push(Piece { offset, part, at, len: len as usize });
            offset += len;
            at += len as usize;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(offset: u64, len: u64) -> Part {
        Part { offset, len }
    }

    #[test]
    fn pieces_end_where_a_run_a_part_or_an_extent_ends() {
        let pieces = cut(&[part(2, 6), part(20, 3)], &[4, 100], &[part(0, 5), part(5, 5), part(20, 5)]);
        let piece = |offset, part, at, len| Piece { offset, part, at, len };
        assert_eq!(pieces, [piece(2, 0, 0, 3), piece(5, 0, 3, 1), piece(6, 1, 0, 2), piece(20, 1, 2, 3)]);
        assert_eq!(cut(&[], &[], &[]), []);
    }

    proptest! {
        #[test]
        fn every_byte_is_copied_once_and_to_a_place_of_its_own(
            gaps in prop::collection::vec((1..5_u64, 1..30_u64), 0..8),
            cuts in prop::collection::vec(1..20_usize, 0..12),
            extent in 1..16_u64,
        ) {
            let mut end = 0;
            let runs: Vec<Part> = gaps.iter().map(|(gap, len)| {
                let run = part(end + gap, *len);
                end = run.end();
                run
            }).collect();
            let bytes: u64 = runs.iter().map(|run| run.len).sum();
            let mut host = cuts;
            host.push(bytes as usize);
            let extents: Vec<Part> = (0..=end / extent).map(|index| part(index * extent, extent)).collect();
            let wanted: Vec<u64> = runs.iter().flat_map(|run| run.offset..run.end()).collect();
            let places: Vec<(usize, usize)> =
                host.iter().enumerate().flat_map(|(part, len)| (0..*len).map(move |at| (part, at))).collect();
            let pieces = cut(&runs, &host, &extents);
            let copied: Vec<_> = pieces.iter()
                .flat_map(|piece| (0..piece.len).map(|byte| (piece.offset + byte as u64, (piece.part, piece.at + byte))))
                .collect();
            prop_assert_eq!(copied, wanted.into_iter().zip(places).collect::<Vec<_>>());
            for piece in pieces {
                prop_assert_eq!(piece.offset / extent, (piece.offset + piece.len as u64 - 1) / extent);
            }
        }
    }
}
