//! The process's memory as the C library counts it, and giving back what it keeps.
//!
//! Runtimes take their memory from glibc's `malloc`, as we do. Its own count of what is in use is exact within
//! microseconds and falls the moment a model is dropped; the resident set is no such measure, since glibc keeps freed
//! blocks below its mmap threshold (which grows up to 32 MiB): 96 MiB of weights freed gave nothing back until it was
//! asked to trim. Where the C library is not glibc, nothing is measured and nothing is trimmed: musl gives memory back
//! by itself and keeps no count.
#![expect(unsafe_code, reason = "calls into glibc's malloc")]

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Less than this freed in all is not worth a trim, in bytes.
const WORTH_A_TRIM: u64 = 1 << 20;

/// The bytes that `malloc` has handed out and not got back, over the whole process, memory it mapped for large blocks
/// included; without what was mapped by others (weights that a runtime maps from a file). Zero where glibc is not the C
/// library.
///
/// Takes the lock of each of malloc's arenas in turn and walks their free blocks: below a microsecond where there are few,
/// 50 us for ten thousand of them.
#[must_use]
#[cfg(target_env = "gnu")]
pub fn in_use() -> u64 {
    // SAFETY: takes nothing, returns a plain struct, and locks what it reads.
    let counts = unsafe { libc::mallinfo2() };
    (counts.uordblks as u64).saturating_add(counts.hblkhd as u64)
}

/// Zero: nothing is counted where glibc is not the C library.
#[must_use]
#[cfg(not(target_env = "gnu"))]
pub const fn in_use() -> u64 {
    0
}

/// A block that makes malloc look at the end of the arena when it is freed, and that is not mapped by itself.
#[cfg(target_env = "gnu")]
const LOOKED_AT: usize = 96 << 10;

/// Gives free pages back to the system, from all of malloc's arenas. Blocking: from microseconds to tens of
/// milliseconds, during which an allocation in the arena at work waits. Use a [`Trimmer`].
#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: `malloc_trim` takes a number, locks what it changes, and touches no block in use; the block is given back
    // once, unused (null may be).
    unsafe {
        libc::malloc_trim(0);
        // It joins small free blocks, which may lengthen the free end of a thread's arena, and leaves the ends as they
        // are: up to 45 MiB of a model of 64 MiB stayed, in one unload of seven. The end of an arena is looked at when a
        // block of 64 KiB is freed in it, so one is, in this thread's.
        libc::free(libc::malloc(LOOKED_AT));
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
const fn trim() {}

/// Blocks of so many bytes are mapped by themselves and gone when they are freed: weights, not bodies of requests.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 4 << 20;

/// So many free bytes at the end of an arena are given back when a large block is freed in it.
#[cfg(target_env = "gnu")]
const KEPT_AT_THE_END: libc::c_int = 1 << 20;

/// Arenas there may be, whatever the number of processors: each keeps some of what was freed in it, and glibc would make
/// eight a processor.
#[cfg(target_env = "gnu")]
const FEWEST_ARENAS: usize = 4;

/// Fixes malloc's thresholds, which otherwise grow with what is freed, up to 32 and 64 MiB: models would then lie in the
/// arenas of the threads that loaded them, whose ends no trim gives back. With twenty models of 4 to 16 MiB that came and
/// went on four threads, 170 MiB stayed after the last; so 2 to 11 do. For the whole process; before threads start.
#[cfg(target_env = "gnu")]
pub fn fix_thresholds() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let arenas = libc::c_int::try_from(cores.max(FEWEST_ARENAS)).unwrap_or(libc::c_int::MAX);
    // SAFETY: takes numbers, locks what it changes, and touches no block.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_AT_THE_END);
    }
}

/// Nothing to fix where glibc is not the C library.
#[cfg(not(target_env = "gnu"))]
pub const fn fix_thresholds() {}

/// Gives freed memory back to the system, once for many unloads.
#[derive(Debug, Default)]
pub struct Trimmer {
    /// Bytes freed since the last trim began.
    freed: AtomicU64,
    turn: Mutex<()>,
}

impl Trimmer {
    /// Says that `freed` bytes were freed, and gives them back: on return a trim that began after this call is done, by
    /// this caller or by another, or too little was freed in all since the last one (below 1 MiB) to be worth it.
    /// Returns whether this caller did it. Blocking.
    ///
    /// The end of an arena that only other threads allocate from is given back when one of them next frees a large block:
    /// call this on the threads that load models.
    pub fn trim(&self, freed: u64) -> bool {
        self.settle(freed, trim)
    }

    fn settle(&self, freed: u64, trim: impl FnOnce()) -> bool {
        // More than is worth a trim says no more, and cannot overflow.
        let freed = freed.min(WORTH_A_TRIM);
        if self.freed.fetch_add(freed, Ordering::AcqRel) + freed < WORTH_A_TRIM {
            return false;
        }
        let _turn = self.turn.lock();
        // Whoever had the turn before us may have begun after we had freed: then it took our bytes with it.
        let pending = self.freed.swap(0, Ordering::AcqRel);
        if pending < WORTH_A_TRIM {
            self.freed.fetch_add(pending, Ordering::AcqRel);
            return false;
        }
        trim();
        true
    }
}

/// Tells how much memory a piece of work took, where it can be told.
///
/// malloc's count is the process's, so growth belongs to one piece of work only while no other that allocates much goes
/// on. Work that is measured is kept apart here; requests that run meanwhile are not, and their arenas may grow within
/// the section: take the result as an estimate beside the size of the files, and correct it later.
#[derive(Debug, Default)]
pub struct Meter {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A section that ends however its work ends.
struct Section<'a> {
    meter: &'a Meter,
    /// How many had begun before this one.
    before: u64,
    alone: bool,
}

impl<'a> Section<'a> {
    fn begin(meter: &'a Meter) -> Self {
        let before = meter.begun.fetch_add(1, Ordering::SeqCst);
        let alone = meter.ended.load(Ordering::SeqCst) == before;
        Self { meter, before, alone }
    }

    /// Whether no other section was open at any time since this one began.
    fn was_alone(&self) -> bool {
        self.alone && self.meter.begun.load(Ordering::SeqCst) == self.before + 1
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.meter.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Meter {
    /// While what this returns lives, no growth is attributed to anybody: something else allocates much.
    pub fn disturb(&self) -> impl Drop + Send + '_ {
        Section::begin(self)
    }

    /// Does the work, and says by how many bytes the memory in use has grown meanwhile: `None` where another measured
    /// section overlapped this one, or nothing can be measured (no glibc). Zero where it has shrunk.
    pub fn measure<T>(&self, work: impl FnOnce() -> T) -> (T, Option<u64>) {
        let section = Section::begin(self);
        let before = in_use();
        let result = work();
        let grown = in_use().saturating_sub(before);
        let known = cfg!(target_env = "gnu") && section.was_alone();
        (result, known.then_some(grown))
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    /// What other tests of this process may take or free meanwhile.
    const SLACK: u64 = 256 * MIB;

    /// Those that measure take turns.
    static TURN: Mutex<()> = Mutex::new(());

    /// A block that malloc counts and nobody touches.
    fn block() -> Vec<u8> {
        Vec::with_capacity(usize::try_from(GIB).unwrap())
    }

    #[test]
    fn what_a_block_takes_is_counted_and_gone_when_it_is_freed() {
        let _turn = TURN.lock();
        let before = in_use();
        let held = block();
        let with = in_use();
        drop(held);
        let after = in_use();
        assert!(with.abs_diff(before + GIB) < SLACK, "{before} {with}");
        assert!(after.abs_diff(before) < SLACK, "{before} {after}");
    }

    #[test]
    fn work_measured_alone_is_told_its_growth() {
        let _turn = TURN.lock();
        let meter = Meter::default();
        let (held, grown) = meter.measure(block);
        assert!(grown.unwrap().abs_diff(GIB) < SLACK, "{grown:?}");
        let ((), shrunk) = meter.measure(|| drop(held));
        assert_eq!(shrunk, Some(0));
    }

    #[test]
    fn overlapping_work_is_told_nothing_whichever_ends_first() {
        let meter = Meter::default();
        let (((), inner), outer) = meter.measure(|| meter.measure(|| ()));
        assert_eq!((inner, outer), (None, None));
        // One begins within the other and ends after it.
        let (started, wait_started) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let meter = &meter;
            let other = scope.spawn(move || {
                meter
                    .measure(|| {
                        started.send(()).unwrap();
                        wait_release.recv().unwrap();
                    })
                    .1
            });
            wait_started.recv().unwrap();
            assert_eq!(meter.measure(|| ()).1, None);
            release.send(()).unwrap();
            assert_eq!(other.join().unwrap(), None);
        });
        assert!(meter.measure(|| ()).1.is_some());
    }

    #[test]
    fn work_that_panics_does_not_stay_open() {
        let meter = Meter::default();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meter.measure(|| panic!("on purpose"))));
        assert!(panicked.is_err());
        assert!(meter.measure(|| ()).1.is_some());
    }

    #[test]
    fn little_is_gathered_until_it_is_worth_a_trim() {
        let trimmer = Trimmer::default();
        let mut trims = 0;
        for _ in 0..4 {
            trimmer.settle(MIB / 4, || trims += 1);
        }
        assert_eq!(trims, 1);
        assert!(!trimmer.settle(0, || panic!("nothing was freed since")));
        assert!(trimmer.settle(u64::MAX, || trims += 1));
    }

    #[test]
    fn callers_that_come_during_a_trim_share_the_next_one() {
        let trimmer = Trimmer::default();
        let (started, wait_started) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        let done: usize = std::thread::scope(|scope| {
            let trimmer = &trimmer;
            let first = scope.spawn(move || {
                trimmer.settle(2 * MIB, || {
                    started.send(()).unwrap();
                    wait_release.recv().unwrap();
                })
            });
            wait_started.recv().unwrap();
            let others: Vec<_> = (0..8).map(|_| scope.spawn(|| trimmer.settle(2 * MIB, || {}))).collect();
            // All eight have said what they freed before the first is let go.
            while trimmer.freed.load(Ordering::Acquire) < 8 * WORTH_A_TRIM {
                std::thread::yield_now();
            }
            release.send(()).unwrap();
            assert!(first.join().unwrap());
            others.into_iter().map(|other| usize::from(other.join().unwrap())).sum()
        });
        assert_eq!(done, 1);
    }

    #[test]
    fn a_trim_gives_small_blocks_back_to_the_system() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        // Below the mmap threshold, so that malloc keeps them; one in sixteen stays, so that no stretch is free as a whole.
        let mut blocks: Vec<Option<Vec<u8>>> = (0..128 * 16).map(|_| Some(vec![1; 64 << 10])).collect();
        for block in blocks.iter_mut().enumerate().filter(|(index, _)| index % 16 != 0).map(|(_, block)| block) {
            *block = None;
        }
        let kept = resident();
        assert!(Trimmer::default().trim(120 * MIB));
        let after = resident();
        drop(blocks);
        assert!(after + 60 * MIB < kept, "{kept} {after}");
    }
}
