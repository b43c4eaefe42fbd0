//! Blocks in a range of addresses, and the extents of memory that have to lie below them. Pure.
//!
//! Addresses are plenty (a reservation costs nothing), memory is not: so a block goes where memory is mapped already if it
//! can, and nothing is ever moved. An *extent* is what is mapped and unmapped as a whole: whole pages, a piece at most. It
//! counts the blocks that touch it; without one it is idle, and may be unmapped by whoever has seen to it that the device's
//! work on it is done.

use std::collections::BTreeMap;

use super::ranges::Ranges;

/// What blocks are multiples of, in bytes: what `cudaMalloc` aligns to, and at least what any kernel asks for.
pub const UNIT: u64 = 512;

/// So many holes are looked at for one that needs no memory to be mapped.
const HOLES: usize = 8;

/// A part of an arena, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

impl Part {
    /// Where it ends.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Where a block has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The block, rounded up.
    pub block: Part,
    /// The extents that must be mapped before it can be used, in order. The arena counts them from now on.
    pub missing: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    len: u64,
    /// Blocks that touch it.
    blocks: u32,
    /// Blocks that ever did: two equal readings tell that nobody came in between.
    uses: u64,
}

/// An extent without blocks, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Where it is.
    pub part: Part,
    uses: u64,
}

/// A range of addresses with blocks in it.
#[derive(Debug)]
pub struct Arena {
    ranges: Ranges,
    extents: BTreeMap<u64, Extent>,
    page: u64,
    piece: u64,
    mapped: u64,
}

impl Arena {
    /// An empty arena of `len` addresses. Extents are multiples of `page` bytes, a power of two and of [`UNIT`], and
    /// `piece` at most, a multiple of `page`.
    #[must_use]
    pub fn new(len: u64, page: u64, piece: u64) -> Self {
        let len = len & !(page - 1);
        Self { ranges: Ranges::new(len, UNIT), extents: BTreeMap::new(), page, piece, mapped: 0 }
    }

    /// Takes a place for `bytes`. `None` where there are no such addresses left.
    pub fn place(&mut self, bytes: u64) -> Option<Placement> {
        let len = self.ranges.rounded(bytes)?;
        let start = {
            let mut holes = self.ranges.candidates(bytes).take(HOLES).peekable();
            let tightest = *holes.peek()?;
            holes.find(|start| self.is_mapped(Part { offset: *start, len })).unwrap_or(tightest)
        };
        self.ranges.take_at(start, bytes)?;
        let block = Part { offset: start, len };
        let missing = self.missing(block);
        for part in &missing {
            self.extents.insert(part.offset, Extent { len: part.len, blocks: 0, uses: 0 });
            self.mapped += part.len;
        }
        for extent in self.below(block) {
            extent.blocks += 1;
            extent.uses += 1;
        }
        Some(Placement { block, missing })
    }

    /// Frees the block that begins at `offset`, and says how long it was. `None` where none does.
    pub fn free(&mut self, offset: u64) -> Option<u64> {
        let len = self.ranges.give_back(offset)?;
        for extent in self.below(Part { offset, len }) {
            extent.blocks -= 1;
        }
        Some(len)
    }

    /// Forgets an extent that no block touches, since it is not mapped (any more).
    pub fn forget(&mut self, part: Part) -> bool {
        let is_it = |extent: &&Extent| extent.len == part.len && extent.blocks == 0;
        let found = self.extents.get(&part.offset).filter(is_it).is_some();
        if found {
            self.extents.remove(&part.offset);
            self.mapped -= part.len;
        }
        found
    }

    /// The extents that no block touches now.
    pub fn idle(&self) -> impl Iterator<Item = Idle> + '_ {
        let idle = self.extents.iter().filter(|(_, extent)| extent.blocks == 0);
        idle.map(|(offset, extent)| Idle { part: Part { offset: *offset, len: extent.len }, uses: extent.uses })
    }

    /// Whether no block has touched an extent since it was seen to be idle.
    #[must_use]
    pub fn is_still(&self, idle: &Idle) -> bool {
        let is_it = |extent: &Extent| extent.len == idle.part.len && extent.blocks == 0 && extent.uses == idle.uses;
        self.extents.get(&idle.part.offset).is_some_and(is_it)
    }

    /// The extents, in order.
    pub fn extents(&self) -> impl Iterator<Item = Part> + '_ {
        self.extents.iter().map(|(offset, extent)| Part { offset: *offset, len: extent.len })
    }

    /// Bytes of all extents.
    #[must_use]
    pub const fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Bytes of all blocks.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.ranges.taken_bytes()
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = Part> + '_ {
        self.ranges.taken().map(|(offset, len)| Part { offset, len })
    }

    /// The blocks, those that touch as one: what has to be copied to keep everything.
    #[must_use]
    pub fn runs(&self) -> Vec<Part> {
        joined(self.blocks(), u64::MAX)
    }

    /// Cuts anew into extents what blocks need, in pieces as large as may be: many small blocks leave many small extents
    /// behind, and each costs calls of the driver to map. Only while nothing is mapped.
    pub fn reshape(&mut self) {
        let pages = self.blocks().map(|block| self.in_pages(block));
        let parts = joined(pages, self.piece);
        let empty = |part: Part| (part.offset, Extent { len: part.len, blocks: 0, uses: 0 });
        self.extents = parts.into_iter().map(empty).collect();
        self.mapped = self.extents.values().map(|extent| extent.len).sum();
        for block in self.blocks().collect::<Vec<_>>() {
            for extent in self.below(block) {
                extent.blocks += 1;
                extent.uses += 1;
            }
        }
    }

    /// A block with all of the pages that it touches.
    const fn in_pages(&self, block: Part) -> Part {
        let offset = block.offset & !(self.page - 1);
        Part { offset, len: block.end().next_multiple_of(self.page) - offset }
    }

    /// The start of the extent that reaches furthest to the left of those that touch `part`.
    fn first_below(&self, part: Part) -> u64 {
        let before = self.extents.range(..=part.offset).next_back();
        before.filter(|(offset, extent)| *offset + extent.len > part.offset).map_or(part.offset, |(offset, _)| *offset)
    }

    fn below(&mut self, part: Part) -> impl Iterator<Item = &mut Extent> {
        let first = self.first_below(part);
        self.extents.range_mut(first..part.end()).map(|(_, extent)| extent)
    }

    fn is_mapped(&self, part: Part) -> bool {
        self.gaps(part).next().is_none()
    }

    /// The parts of `part` that no extent holds.
    fn gaps(&self, part: Part) -> impl Iterator<Item = Part> + '_ {
        let held = self.extents.range(self.first_below(part)..part.end());
        let held = held.map(|(offset, extent)| (*offset, *offset + extent.len));
        let mut next = part.offset;
        held.chain([(part.end(), part.end())]).filter_map(move |(from, until)| {
            let gap = Part { offset: next, len: from.saturating_sub(next) };
            next = until;
            (gap.len > 0).then_some(gap)
        })
    }

    /// What has to be mapped for a block, in extents.
    fn missing(&self, block: Part) -> Vec<Part> {
        self.gaps(self.in_pages(block)).flat_map(|gap| pieces(gap, self.piece)).collect()
    }
}

/// A part cut into pieces, each but the last of them `piece` long.
fn pieces(part: Part, piece: u64) -> impl Iterator<Item = Part> {
    let starts = (0..).map(move |index| index * piece).take_while(move |from| *from < part.len);
    starts.map(move |from| Part { offset: part.offset + from, len: piece.min(part.len - from) })
}

/// Parts in order, which may overlap: those that touch are one, and then cut into pieces.
fn joined(parts: impl Iterator<Item = Part>, piece: u64) -> Vec<Part> {
    let mut whole: Vec<Part> = Vec::new();
    for part in parts {
        match whole.last_mut() {
            Some(last) if part.offset <= last.end() => last.len = last.end().max(part.end()) - last.offset,
            _ => whole.push(part),
        }
    }
    if piece == u64::MAX { whole } else { whole.into_iter().flat_map(|part| pieces(part, piece)).collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4 * UNIT;
    const PIECE: u64 = 4 * PAGE;
    const PAGES: u64 = 64;

    fn part(offset: u64, len: u64) -> Part {
        Part { offset: offset * UNIT, len: len * UNIT }
    }

    /// Every unit by itself: whether an extent and which block is there.
    #[derive(Default)]
    struct Slow {
        blocks: Vec<Part>,
    }

    impl Slow {
        fn check(&self, arena: &Arena) -> Result<(), TestCaseError> {
            let units = |part: Part| part.offset / UNIT..part.end() / UNIT;
            let mut mapped = vec![0_u32; (PAGES * PAGE / UNIT) as usize];
            for extent in arena.extents() {
                prop_assert!(extent.len <= PIECE && extent.len > 0);
                prop_assert!(extent.offset.is_multiple_of(PAGE) && extent.len.is_multiple_of(PAGE));
                units(extent).for_each(|unit| mapped[unit as usize] += 1);
            }
            prop_assert!(mapped.iter().all(|count| *count <= 1), "extents overlap");
            let mut taken = vec![0_u32; mapped.len()];
            for block in &self.blocks {
                units(*block).for_each(|unit| taken[unit as usize] += 1);
            }
            prop_assert!(taken.iter().all(|count| *count <= 1), "blocks overlap");
            prop_assert!(taken.iter().zip(&mapped).all(|(taken, mapped)| taken <= mapped), "a block has no memory");
            prop_assert_eq!(arena.taken(), self.blocks.iter().map(|block| block.len).sum::<u64>());
            prop_assert_eq!(arena.mapped(), u64::from(mapped.iter().sum::<u32>()) * UNIT);
            let idle: Vec<Part> = arena.idle().map(|idle| idle.part).collect();
            let is_idle = |extent: &Part| units(*extent).all(|unit| taken[unit as usize] == 0);
            prop_assert_eq!(idle, arena.extents().filter(is_idle).collect::<Vec<_>>());
            let runs = arena.runs();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].offset));
            prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), arena.taken());
            Ok(())
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Place(u64),
        Free(prop::sample::Index),
        Trim,
        Reshape,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..12 * PAGE).prop_map(Step::Place),
            2 => (1..2 * UNIT).prop_map(Step::Place),
            4 => any::<prop::sample::Index>().prop_map(Step::Free),
            1 => Just(Step::Trim),
            1 => Just(Step::Reshape),
        ]
    }

    proptest! {
        #[test]
        fn every_block_lies_on_memory_of_its_own_and_all_of_it_comes_back(
            steps in prop::collection::vec(step(), 1..100),
        ) {
            let mut arena = Arena::new(PAGES * PAGE, PAGE, PIECE);
            let mut slow = Slow::default();
            for step in steps {
                match step {
                    Step::Place(bytes) => {
                        let before = arena.mapped();
                        if let Some(placement) = arena.place(bytes) {
                            prop_assert_eq!(placement.block.len, bytes.next_multiple_of(UNIT));
                            let fresh: u64 = placement.missing.iter().map(|part| part.len).sum();
                            prop_assert_eq!(arena.mapped(), before + fresh);
                            slow.blocks.push(placement.block);
                        }
                    }
                    Step::Free(which) if !slow.blocks.is_empty() => {
                        let block = slow.blocks.swap_remove(which.index(slow.blocks.len()));
                        prop_assert_eq!(arena.free(block.offset), Some(block.len));
                        prop_assert_eq!(arena.free(block.offset), None);
                    }
                    Step::Free(_) => {}
                    Step::Trim => {
                        for idle in arena.idle().collect::<Vec<_>>() {
                            prop_assert!(arena.is_still(&idle) && arena.forget(idle.part));
                        }
                        prop_assert_eq!(arena.idle().count(), 0);
                    }
                    Step::Reshape => {
                        arena.reshape();
                        prop_assert_eq!(arena.idle().count(), 0);
                    }
                }
                slow.check(&arena)?;
            }
            for block in slow.blocks.drain(..) {
                arena.free(block.offset);
            }
            for idle in arena.idle().collect::<Vec<_>>() {
                arena.forget(idle.part);
            }
            prop_assert_eq!((arena.mapped(), arena.taken(), arena.extents().count()), (0, 0, 0));
            prop_assert!(arena.place(PAGES * PAGE).is_some(), "the addresses are one again");
        }
    }

    #[test]
    fn a_block_is_put_where_memory_is_rather_than_where_it_fits_tightest() {
        let mut arena = Arena::new(PAGES * PAGE, PAGE, PIECE);
        let first = arena.place(6 * UNIT).unwrap();
        assert_eq!(first.missing, [part(0, 8)]);
        // The rest of the second page is mapped already.
        let second = arena.place(2 * UNIT).unwrap();
        assert_eq!((second.block, second.missing.len()), (part(6, 2), 0));
        let third = arena.place(17 * UNIT).unwrap();
        assert_eq!(third.missing, [part(8, 16), part(24, 4)], "in pieces, the last one no larger than it must be");
        arena.free(first.block.offset);
        arena.free(second.block.offset);
        let idle: Vec<_> = arena.idle().collect();
        assert_eq!(idle[0].part, part(0, 8));
        assert!(arena.forget(idle[0].part));
        // Eight units without memory fit tightly; two on memory are left at the end of the third block.
        let fourth = arena.place(2 * UNIT).unwrap();
        assert_eq!((fourth.block, fourth.missing.len()), (part(25, 2), 0));
    }

    #[test]
    fn what_was_used_in_between_is_not_idle_any_more() {
        let mut arena = Arena::new(PAGES * PAGE, PAGE, PIECE);
        let block = arena.place(UNIT).unwrap().block;
        assert!(!arena.forget(part(0, 4)), "a block is on it");
        arena.free(block.offset);
        let seen = arena.idle().next().unwrap();
        assert!(arena.is_still(&seen));
        let again = arena.place(UNIT).unwrap();
        assert!(again.missing.is_empty());
        arena.free(again.block.offset);
        assert!(!arena.is_still(&seen));
    }

    #[test]
    fn small_extents_become_large_ones_when_they_are_cut_anew() {
        let mut arena = Arena::new(PAGES * PAGE, PAGE, PIECE);
        for _ in 0..8 {
            arena.place(PAGE).unwrap();
        }
        assert_eq!(arena.extents().count(), 8);
        arena.reshape();
        assert_eq!(arena.extents().collect::<Vec<_>>(), [part(0, 16), part(16, 16)]);
        assert_eq!(arena.runs(), [part(0, 32)]);
    }
}
