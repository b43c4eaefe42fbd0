//! The allocator: a device's memory among owners.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;
use roundhouse::device::cuda::accounts::OwnerUsage;
use roundhouse::device::cuda::owner::{Kind, Owner};
use roundhouse::device::cuda::stream::Stream;
use roundhouse::device::devices::Devices;
use roundhouse::device::host::Host;
use roundhouse::device::monitor::DeviceMonitor;
use roundhouse::device::nvml::Nvml;
use roundhouse::error::ErrorKind;
use roundhouse::inference::DeviceId;

use crate::support::{
    MIB, PAGE, assert_nothing_is_left, context, count, folder_inside, pattern, pool, read, say, write,
};

const MACHINE: &str = "device 1073741824";
const OUT_OF_MEMORY: u32 = 2;

alone! {
    on MACHINE;
    fn an_owner_is_counted_to_the_byte_and_everything_comes_back_when_it_ends() {
        let context = context();
        let pool = pool(&context, 100 * MIB, 0);
        let model = pool.owner("m", 40 * MIB).unwrap();
        let stream = Stream::new(&context, 0).unwrap();
        let run = Kind::Activations { stream: stream.handle() };
        let weights = model.allocate(Kind::Weights, 3 * MIB + 5).unwrap();
        let scratch = model.allocate(run, 1000).unwrap();
        assert!(weights.is_multiple_of(512) && scratch.is_multiple_of(512));
        let held = OwnerUsage {
            limit: 40 * MIB,
            weights: 3 * MIB + 512,
            weight_memory: 4 * MIB,
            activations: 1024,
            activations_peak: 1024,
        };
        assert_eq!(model.usage(), held);
        assert_eq!((pool.usage().memory, count("used 0")), (6 * MIB, 6 * MIB));
        assert!(pool.free(scratch) && !pool.free(scratch), "once");
        assert!(!pool.free(weights + 512), "the start of a block alone");
        assert_eq!(model.usage(), OwnerUsage { activations: 0, ..held });
        // Neither was freed.
        model.allocate(run, 5000).unwrap();
        drop(model);
        assert_eq!((pool.usage().memory, pool.usage().owners), (2 * MIB, 0), "scratch stays for the next run");
        pool.trim().unwrap();
        assert_eq!((pool.usage().memory, count("used 0")), (0, 0));
        drop((pool, stream, context));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn owners_of_a_stream_share_its_scratch_and_others_do_not() {
        let context = context();
        let pool = pool(&context, 100 * MIB, 0);
        let (first, second) = (pool.owner("a", 50 * MIB).unwrap(), pool.owner("b", 50 * MIB).unwrap());
        let streams = [Stream::new(&context, 0).unwrap(), Stream::new(&context, 0).unwrap()];
        let run = |index: usize| Kind::Activations { stream: streams[index].handle() };
        let place = first.allocate(run(0), 10 * MIB).unwrap();
        pool.free(place);
        assert_eq!(second.allocate(run(0), 10 * MIB).unwrap(), place, "the stream does one after the other");
        assert_eq!(pool.usage().memory, 10 * MIB);
        assert_ne!(second.allocate(run(1), 10 * MIB).unwrap(), place);
        assert_eq!(pool.usage().memory, 20 * MIB);
        assert_eq!((first.usage().activations, second.usage().activations), (0, 20 * MIB));
        assert_eq!(first.usage().activations_peak, 10 * MIB);
        pool.trim().unwrap();
        assert_eq!(pool.usage().memory, 20 * MIB, "what is in use stays");
    }
}

alone! {
    on MACHINE;
    fn limits_hold_and_only_a_device_that_is_full_is_worth_another_try() {
        let context = context();
        let pool = pool(&context, 20 * MIB, 0);
        let small = pool.owner("small", 6 * MIB).unwrap();
        small.allocate(Kind::Weights, 5 * MIB).unwrap();
        let error = small.allocate(Kind::Weights, 2 * MIB).unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDeviceMemory, false));
        assert_eq!(
            error.report(),
            "model 'small' gets no 2097152 bytes of gpu:0: its limit is reached: 2097152 bytes more than the 6291456 it \
             holds would pass its limit of 6291456 bytes"
        );
        let run = Kind::Activations { stream: 0 };
        assert!(!small.allocate(run, 512).unwrap_err().is_retryable(), "runs count too");
        let large = pool.owner("large", 100 * MIB).unwrap();
        let error = large.allocate(Kind::Weights, 15 * MIB).unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDeviceMemory, true));
        assert_eq!((large.usage().weight_memory, large.usage().weights), (0, 0));
        large.allocate(Kind::Weights, 14 * MIB).unwrap();
        assert_eq!(pool.usage().memory, 20 * MIB);
    }
}

alone! {
    on MACHINE;
    fn room_is_asked_for_once_and_what_was_made_is_used() {
        let context = context();
        let pool = pool(&context, 20 * MIB, 0);
        let (asked, victim) = (Arc::new(AtomicU64::new(0)), pool.owner("victim", 20 * MIB).unwrap());
        victim.allocate(Kind::Weights, 16 * MIB).unwrap();
        let victim = Arc::new(Mutex::new(Some(victim)));
        let (lacking, leaves) = (Arc::clone(&asked), Arc::clone(&victim));
        pool.on_shortage(Box::new(move |bytes| {
            lacking.fetch_add(bytes, Ordering::Relaxed);
            leaves.lock().take().is_some()
        }));
        let model = pool.owner("m", 100 * MIB).unwrap();
        model.allocate(Kind::Weights, 10 * MIB).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 10 * MIB);
        // Now nobody is left to go.
        assert!(model.allocate(Kind::Activations { stream: 0 }, 10 * MIB + 1).is_err());
        assert_eq!(asked.load(Ordering::Relaxed), 20 * MIB + 1);
        assert_eq!(model.usage().activations, 0);
    }
}

alone! {
    on MACHINE;
    fn memory_that_another_process_took_is_lacking_like_our_own() {
        let context = context();
        let pool = pool(&context, 512 * MIB, 64 * MIB);
        let model = pool.owner("m", 512 * MIB).unwrap();
        pool.owner("gone", 64 * MIB).unwrap().allocate(Kind::Weights, 30 * MIB).unwrap();
        assert_eq!(pool.usage().spare, 30 * MIB);
        say(&format!("others 0 {}", 1024 * MIB - 46 * MIB));
        // Sixteen are free; of the thirty that are spare, six are in a piece of no use.
        model.allocate(Kind::Weights, 42 * MIB).unwrap();
        assert_eq!((pool.usage().spare, pool.usage().memory), (0, 42 * MIB));
        let error = model.allocate(Kind::Weights, 8 * MIB).unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDeviceMemory, true));
        assert_eq!((count("used 0"), pool.usage().memory), (42 * MIB, 42 * MIB));
    }
}

alone! {
    on MACHINE;
    fn spare_memory_goes_to_the_next_one_without_asking_the_driver() {
        let context = context();
        let pool = pool(&context, 100 * MIB, 32 * MIB);
        let first = pool.owner("a", 100 * MIB).unwrap();
        first.allocate(Kind::Weights, 48 * MIB).unwrap();
        drop(first);
        assert_eq!((pool.usage().memory, pool.usage().spare), (32 * MIB, 32 * MIB), "no more than is to be kept");
        let asked = count("calls cuMemCreate");
        let second = pool.owner("b", 100 * MIB).unwrap();
        second.allocate(Kind::Weights, 32 * MIB).unwrap();
        assert_eq!((count("calls cuMemCreate"), pool.usage().spare), (asked, 0));
        drop(second);
        pool.release_spare();
        assert_eq!((pool.usage().memory, count("used 0")), (0, 0));
    }
}

alone! {
    on MACHINE;
    fn nvml_and_the_pool_count_the_same() {
        let context = context();
        let library = folder_inside().unwrap().join("libnvidia-ml.so.1");
        let devices = Devices { host: Host::default(), nvml: Some(Nvml::open(Some(&library)).unwrap()) };
        let pool = pool(&context, 100 * MIB, 0);
        let model = pool.owner("m", 100 * MIB).unwrap();
        model.allocate(Kind::Weights, 17 * MIB).unwrap();
        say(&format!("others 0 {}", 200 * MIB));
        let memory = devices.memory(DeviceId::Gpu(0)).unwrap();
        assert_eq!((memory.total, memory.ours), (1024 * MIB, pool.usage().memory));
        assert_eq!(memory.used, 200 * MIB + pool.usage().memory);
        drop(model);
        assert_eq!(devices.memory(DeviceId::Gpu(0)).unwrap().ours, 0);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open(u64),
    End(prop::sample::Index),
    Weights(prop::sample::Index, u64),
    Run(prop::sample::Index, usize, u64),
    Free(prop::sample::Index),
    Trim,
    FailNext(&'static str, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let symbol = prop::sample::select(vec!["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemAddressReserve"]);
    prop_oneof![
        2 => (1..64 * MIB).prop_map(Step::Open),
        1 => any::<prop::sample::Index>().prop_map(Step::End),
        5 => (any::<prop::sample::Index>(), 1..9 * MIB).prop_map(|(who, bytes)| Step::Weights(who, bytes)),
        5 => (any::<prop::sample::Index>(), 0..2_usize, 1..5 * MIB)
            .prop_map(|(who, stream, bytes)| Step::Run(who, stream, bytes)),
        6 => any::<prop::sample::Index>().prop_map(Step::Free),
        1 => Just(Step::Trim),
        1 => (symbol, 1..4_u64).prop_map(|(symbol, nth)| Step::FailNext(symbol, nth)),
    ]
}

/// A block with what was written into it.
struct Block {
    address: u64,
    bytes: Vec<u8>,
    len: u64,
    owner: usize,
    lasts: bool,
}

alone! {
    on MACHINE;
    fn whatever_happens_blocks_keep_their_bytes_counts_are_exact_and_nothing_is_left() {
        let context = context();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 48,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let streams = [Stream::new(&context, 0).unwrap(), Stream::new(&context, 0).unwrap()];
        let outcome = runner.run(&prop::collection::vec(step(), 1..60), |steps| {
            let pool = pool(&context, 96 * MIB, 8 * MIB);
            let mut owners: Vec<Option<Arc<Owner>>> = Vec::new();
            let mut blocks: Vec<Block> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                let alive: Vec<usize> = (0..owners.len()).filter(|index| owners[*index].is_some()).collect();
                match step {
                    Step::Open(limit) => owners.extend(pool.owner("m", limit).ok().map(Some)),
                    Step::End(which) if !alive.is_empty() => {
                        let index = alive[which.index(alive.len())];
                        owners[index] = None;
                        blocks.retain(|block| block.owner != index);
                    }
                    Step::Weights(who, bytes) | Step::Run(who, _, bytes) if !alive.is_empty() => {
                        let owner = alive[who.index(alive.len())];
                        let kind = match step {
                            Step::Run(_, stream, _) => Kind::Activations { stream: streams[stream].handle() },
                            _ => Kind::Weights,
                        };
                        let allocated = owners[owner].as_ref().map(|owner| owner.allocate(kind, bytes));
                        let Some(Ok(address)) = allocated else { continue };
                        let content = pattern(number as u64, 600.min(bytes));
                        write(&context, address, &content);
                        let (len, lasts) = (bytes.next_multiple_of(512), kind == Kind::Weights);
                        blocks.push(Block { address, bytes: content, len, owner, lasts });
                    }
                    Step::Free(which) if !blocks.is_empty() => {
                        let block = blocks.swap_remove(which.index(blocks.len()));
                        prop_assert_eq!(read(block.address, block.bytes.len() as u64), block.bytes);
                        prop_assert!(pool.free(block.address));
                    }
                    Step::Trim => pool.trim().unwrap(),
                    Step::FailNext(symbol, nth) => say(&format!("fail {symbol} {nth} {OUT_OF_MEMORY}")),
                    _ => {}
                }
                for block in &blocks {
                    prop_assert_eq!(&read(block.address, block.bytes.len() as u64), &block.bytes);
                }
                for (index, owner) in owners.iter().enumerate() {
                    let Some(owner) = owner else { continue };
                    let sum = |lasts: bool| -> u64 {
                        let its = blocks.iter().filter(|block| block.owner == index && block.lasts == lasts);
                        its.map(|block| block.len).sum()
                    };
                    let usage = owner.usage();
                    prop_assert_eq!((usage.weights, usage.activations), (sum(true), sum(false)));
                    prop_assert!(usage.weight_memory + usage.activations <= usage.limit);
                    prop_assert!(usage.weights <= usage.weight_memory);
                }
                prop_assert!(pool.usage().memory <= 96 * MIB);
                prop_assert_eq!(pool.usage().memory, count("used 0"));
            }
            say("heal");
            drop(owners);
            pool.trim().unwrap();
            prop_assert_eq!((pool.usage().memory, pool.usage().owners), (0, 0));
            prop_assert_eq!((count("mappings"), count("handles")), (0, 0));
            drop(pool);
            prop_assert_eq!(count("reservations"), 0);
            Ok(())
        });
        outcome.unwrap();
        assert_eq!(context.failed_drops(), 0);
        drop((streams, context));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn threads_allocate_and_free_at_once() {
        let context = context();
        let pool = pool(&context, 512 * MIB, 16 * MIB);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (pool, context) = (&pool, &context);
                scope.spawn(move || {
                    let stream = Stream::new(context, 0).unwrap();
                    for round in 0..25 {
                        let owner = pool.owner("m", 64 * MIB).unwrap();
                        let run = Kind::Activations { stream: stream.handle() };
                        let kinds = [Kind::Weights, run, run, Kind::Weights];
                        let blocks = kinds.map(|kind| owner.allocate(kind, (thread + 1) * 300_000).unwrap());
                        let bytes = pattern(thread * 100 + round, 100);
                        write(context, blocks[1], &bytes);
                        assert_eq!(read(blocks[1], 100), bytes);
                        assert!(pool.free(blocks[1]) && pool.free(blocks[0]));
                        if round % 8 == 0 {
                            pool.trim().unwrap();
                        }
                    }
                });
            }
        });
        pool.trim().unwrap();
        assert_eq!((pool.usage().memory, pool.usage().owners), (0, 0));
        drop((pool, context));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn a_lost_device_answers_with_errors_and_lets_go() {
        let context = context();
        let pool = pool(&context, 100 * MIB, 0);
        let model = pool.owner("m", 100 * MIB).unwrap();
        model.allocate(Kind::Weights, PAGE).unwrap();
        say("lost 0 719");
        let error = model.allocate(Kind::Weights, 2 * PAGE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotReady);
        assert!(context.is_lost());
        assert!(pool.trim().is_ok(), "nothing is idle, so nothing is asked of it");
        drop(model);
        assert_eq!(pool.usage().owners, 0);
    }
}
