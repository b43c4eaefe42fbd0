//! The same walk over a device's memory on the double and on a real GPU: `cuda --ignored --nocapture real_gpu` on a
//! machine with one (docs/gpu.md).
#![expect(unsafe_code, reason = "asks for copies, whose two sides stay until they are done")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse::device::cuda::context::Context;
use roundhouse::device::cuda::owner::{Kind, Owner};
use roundhouse::device::cuda::pinned::{PinnedBuffer, PinnedPool};
use roundhouse::device::cuda::pool::{PoolLimits, VramPool};
use roundhouse::device::cuda::sleeper::Sleeper;
use roundhouse::device::cuda::stream::Stream;

use crate::support::{MIB, assert_nothing_is_left, context, pattern};

/// Weights as models have them: many small ones, some large.
const LENS: [u64; 8] = [100, 4 << 10, 3 << 20, 600 << 10, 16 << 20, 1, 2 << 20, 9 << 20];

struct Walk {
    context: Arc<Context>,
    stream: Stream,
    buffer: PinnedBuffer,
}

impl Walk {
    fn write(&mut self, address: u64, bytes: &[u8]) {
        self.buffer.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the address was allocated with that length; the buffer is left alone until the stream was waited for.
        unsafe { self.stream.copy_to_device(address, self.buffer.part().start(bytes.len())).unwrap() };
        self.stream.synchronize().unwrap();
    }

    fn read(&mut self, address: u64, len: usize) -> &[u8] {
        // SAFETY: as above.
        unsafe { self.stream.copy_to_host(self.buffer.part().start(len), address).unwrap() };
        self.stream.synchronize().unwrap();
        &self.buffer.bytes()[..len]
    }

    fn free(&self) -> u64 {
        self.context.memory().unwrap().0
    }

    /// Seconds that the bytes take from pinned memory to the device, in the pieces of a wake: the least a wake can take.
    fn bare_copy(&self, owner: &Owner, bytes: u64) -> Duration {
        let piece = self.buffer.part().start(PoolLimits::PIECE as usize);
        let to = owner.allocate(Kind::Weights, PoolLimits::PIECE).unwrap();
        let begun = Instant::now();
        for _ in 0..bytes.div_ceil(PoolLimits::PIECE) {
            // SAFETY: the address was allocated with that length, and the buffer is as long.
            unsafe { self.stream.copy_to_device(to, piece).unwrap() };
        }
        self.stream.synchronize().unwrap();
        let took = begun.elapsed();
        assert!(owner.pool().free(to));
        took
    }
}

/// Loads a model of about `bytes`, has it sleep and wake, looks at every byte and at what the driver says is free.
#[expect(clippy::print_stdout, reason = "the figures, for whoever asked for them")]
fn walk(bytes: u64) {
    let context = context();
    let pinned = PinnedPool::new(&context, 2 * bytes + 256 * MIB, 64 * MIB);
    let sleeper = Sleeper::new(&context, &pinned).unwrap();
    let buffer = pinned.buffer(PoolLimits::PIECE).unwrap();
    let mut walk = Walk { stream: Stream::new(&context, 0).unwrap(), buffer, context: Arc::clone(&context) };
    // What the context itself takes is taken by now.
    let at_first = walk.free();
    let limits = PoolLimits { memory: at_first - at_first / 10, spare: 0, piece: PoolLimits::PIECE };
    let pool = VramPool::new(&context, limits);
    let model = pool.owner("walker", limits.memory).unwrap();
    let (mut blocks, mut seed) = (Vec::new(), 0);
    while model.usage().weights < bytes {
        seed += 1;
        let len = LENS[seed as usize % LENS.len()];
        let address = model.allocate(Kind::Weights, len).unwrap();
        // The ends of a block tell whether it came back whole and in its place.
        let ends = pattern(seed, len.min(4096));
        walk.write(address, &ends);
        walk.write(address + len - ends.len() as u64, &ends);
        blocks.push((address, len, ends));
    }
    let usage = model.usage();
    let taken = at_first - walk.free();
    assert!(taken.abs_diff(usage.weight_memory) * 50 <= taken, "{taken} of the driver, {usage:?}");
    let slept = sleeper.sleep(&model).unwrap();
    assert!(at_first.abs_diff(walk.free()) <= 50 * MIB, "a model that sleeps takes nothing");
    let woken = sleeper.wake(&model).unwrap();
    assert_eq!((slept.bytes, woken.bytes), (usage.weights, usage.weights));
    for (address, len, ends) in &blocks {
        assert_eq!(walk.read(*address, ends.len()), ends);
        assert_eq!(walk.read(address + len - ends.len() as u64, ends.len()), ends);
    }
    let bare = walk.bare_copy(&model, usage.weights);
    drop(model);
    pool.trim().unwrap();
    assert!(at_first.abs_diff(walk.free()) <= 50 * MIB, "everything came back");
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let (name, count, weights) = (context.name(), blocks.len(), usage.weights);
    println!(
        "{{\"device\":\"{name}\",\"blocks\":{count},\"bytes\":{weights},\"memory\":{},\"sleep_ms\":{:.3},\"wake_ms\":{:.3},\
         \"bare_copy_ms\":{:.3}}}",
        usage.weight_memory,
        ms(slept.took),
        ms(woken.took),
        ms(bare)
    );
}

alone! {
    on "device 1073741824";
    fn a_walk_over_a_device_finds_every_byte_again() {
        walk(40 * MIB);
        assert_nothing_is_left();
    }
}

/// On a machine with a GPU.
#[test]
#[ignore = "needs a GPU"]
fn real_gpu() {
    walk(1024 * MIB);
}
