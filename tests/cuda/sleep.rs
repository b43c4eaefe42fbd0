//! Sleep and wake.

use std::sync::Arc;

use proptest::prelude::*;
use roundhouse::device::cuda::context::Context;
use roundhouse::device::cuda::owner::{Kind, Owner, Residence};
use roundhouse::device::cuda::pinned::PinnedPool;
use roundhouse::device::cuda::pool::VramPool;
use roundhouse::device::cuda::sleeper::Sleeper;
use roundhouse::error::ErrorKind;

use crate::support::{MIB, PAGE, assert_nothing_is_left, context, count, pattern, pool, read, say, write};

const MACHINE: &str = "device 1073741824";

/// An owner with blocks, and what was written into each.
struct Model {
    owner: Arc<Owner>,
    blocks: Vec<(u64, Vec<u8>)>,
}

impl Model {
    fn new(context: &Arc<Context>, pool: &Arc<VramPool>, seed: u64, lens: &[u64]) -> Self {
        let owner = pool.owner(&format!("m{seed}"), 512 * MIB).unwrap();
        let blocks = lens.iter().enumerate().map(|(index, len)| {
            let address = owner.allocate(Kind::Weights, *len).unwrap();
            let bytes = pattern(seed * 100 + index as u64, *len);
            write(context, address, &bytes);
            (address, bytes)
        });
        Self { blocks: blocks.collect(), owner }
    }

    fn holds_its_bytes(&self) -> bool {
        self.blocks.iter().all(|(address, bytes)| read(*address, bytes.len() as u64) == *bytes)
    }
}

fn sleeper(context: &Arc<Context>, pinned: u64) -> (Sleeper, Arc<PinnedPool>) {
    let pinned = PinnedPool::new(context, pinned, 4 * MIB);
    (Sleeper::new(context, &pinned).unwrap(), pinned)
}

alone! {
    on MACHINE;
    fn a_model_that_slept_has_every_byte_at_its_old_address() {
        let context = context();
        let pool = pool(&context, 512 * MIB, 0);
        let (sleeper, pinned) = sleeper(&context, 64 * MIB);
        let mut model = Model::new(&context, &pool, 1, &[5 * MIB, 100, 700_000, 9 * MIB, 1, 3 * MIB]);
        // A hole is not copied.
        let (freed, _) = model.blocks.remove(2);
        pool.free(freed);
        let taken = model.owner.usage().weights;
        let slept = sleeper.sleep(&model.owner).unwrap();
        assert_eq!(slept.bytes, taken);
        assert_eq!(model.owner.residence(), Residence::Asleep { bytes: taken });
        assert_eq!((pool.usage().memory, count("used 0"), count("mappings")), (0, 0, 0));
        assert_eq!(model.owner.usage().weight_memory, 0);
        assert!(pinned.usage().taken >= taken);
        let refused = model.owner.allocate(Kind::Weights, 1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotReady);
        assert_eq!(sleeper.sleep(&model.owner).unwrap().bytes, 0, "it sleeps already");
        let woken = sleeper.wake(&model.owner).unwrap();
        assert_eq!(woken.bytes, taken);
        assert!(model.holds_its_bytes());
        assert_eq!((model.owner.residence(), pinned.usage().taken), (Residence::Awake, 0));
        assert_eq!(sleeper.wake(&model.owner).unwrap().bytes, 0, "it is awake already");
        // And lives on.
        let fresh = model.owner.allocate(Kind::Weights, MIB).unwrap();
        assert!(pool.free(fresh));
        drop((model, sleeper, pinned, pool, context));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn many_small_weights_are_mapped_in_large_pieces_when_they_wake() {
        let context = context();
        let pool = pool(&context, 512 * MIB, 0);
        let (sleeper, _pinned) = sleeper(&context, 64 * MIB);
        let model = Model::new(&context, &pool, 1, &[PAGE; 12]);
        assert_eq!(count("mappings"), 12);
        sleeper.sleep(&model.owner).unwrap();
        sleeper.wake(&model.owner).unwrap();
        assert_eq!(count("mappings"), 3, "four pages a piece");
        assert!(model.holds_its_bytes());
    }
}

alone! {
    on MACHINE;
    fn without_locked_memory_a_model_stays_awake() {
        let context = context();
        let pool = pool(&context, 512 * MIB, 0);
        let (sleeper, pinned) = sleeper(&context, 4 * MIB);
        let model = Model::new(&context, &pool, 1, &[5 * MIB]);
        let error = sleeper.sleep(&model.owner).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfDeviceMemory);
        assert!(error.report().contains("the pool of pinned host memory has no room"), "{}", error.report());
        assert_eq!((model.owner.residence(), pinned.usage().taken), (Residence::Awake, 0));
        assert!(model.holds_its_bytes());
    }
}

alone! {
    on MACHINE;
    fn a_model_without_room_stays_asleep_until_room_is_made() {
        let context = context();
        let pool = pool(&context, 20 * MIB, 0);
        let (sleeper, pinned) = sleeper(&context, 64 * MIB);
        let sleeper = Arc::new(sleeper);
        let first = Model::new(&context, &pool, 1, &[12 * MIB]);
        sleeper.sleep(&first.owner).unwrap();
        let second = Model::new(&context, &pool, 2, &[12 * MIB]);
        let error = sleeper.wake(&first.owner).unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDeviceMemory, true));
        assert_eq!(first.owner.residence(), Residence::Asleep { bytes: 12 * MIB });
        assert_eq!(pool.usage().memory, 12 * MIB);
        // The one who makes room puts the other to sleep, with the same sleeper.
        let (victim, with) = (Arc::clone(&second.owner), Arc::clone(&sleeper));
        pool.on_shortage(Box::new(move |_bytes| with.sleep(&victim).is_ok()));
        sleeper.wake(&first.owner).unwrap();
        assert!(first.holds_its_bytes());
        assert_eq!(second.owner.residence(), Residence::Asleep { bytes: 12 * MIB });
        assert_eq!(pinned.usage().taken, 12 * MIB);
    }
}

alone! {
    on MACHINE;
    fn a_model_whose_host_copy_is_dropped_has_to_be_loaded_again() {
        let context = context();
        let pool = pool(&context, 64 * MIB, 0);
        let (sleeper, pinned) = sleeper(&context, 64 * MIB);
        let model = Model::new(&context, &pool, 1, &[MIB, MIB]);
        assert!(!model.owner.drop_host_copy(), "awake, it has none");
        sleeper.sleep(&model.owner).unwrap();
        assert!(model.owner.drop_host_copy());
        assert_eq!((model.owner.residence(), pinned.usage().taken), (Residence::Dropped, 0));
        let errors = [sleeper.wake(&model.owner).unwrap_err(), sleeper.sleep(&model.owner).unwrap_err()];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::NotReady);
            assert!(error.report().ends_with("it has to be loaded again"), "{}", error.report());
        }
        // Its runtime frees what it had, as when it was awake.
        assert!(pool.free(model.blocks[0].0));
        assert_eq!(model.owner.usage().weights, MIB);
    }
}

alone! {
    on MACHINE;
    fn where_the_driver_will_not_map_again_what_it_unmapped_the_host_copy_stays() {
        const REFUSED: u32 = 1;
        let context = context();
        let pool = pool(&context, 512 * MIB, 0);
        let (sleeper, _pinned) = sleeper(&context, 64 * MIB);
        let model = Model::new(&context, &pool, 1, &[20 * MIB]);
        say(&format!("fail cuMemUnmap 2 {REFUSED}\nfail cuMemMap 1 {REFUSED}"));
        sleeper.sleep(&model.owner).unwrap_err();
        assert_eq!(model.owner.residence(), Residence::Asleep { bytes: 20 * MIB });
        assert_eq!(pool.usage().memory, count("used 0"), "some of it is still mapped, and counted");
        assert_eq!(model.owner.usage().weight_memory, 12 * MIB);
        sleeper.wake(&model.owner).unwrap();
        assert!(model.holds_its_bytes());
        drop((model, sleeper));
        assert_eq!((pool.usage().memory, count("used 0")), (0, 0));
    }
}

/// What can be refused in the middle, and how often before it is.
fn failure() -> impl Strategy<Value = (&'static str, u64)> {
    let symbols = vec![
        "cuMemcpyDtoHAsync",
        "cuMemcpyHtoDAsync",
        "cuMemUnmap",
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuStreamSynchronize",
        "cuMemHostAlloc",
        "cuCtxSynchronize",
    ];
    (prop::sample::select(symbols), 1..8_u64)
}

alone! {
    on MACHINE;
    fn a_failure_in_the_middle_never_leaves_half_a_model() {
        // A refusal that says nothing of the device's health.
        const REFUSED: u32 = 1;
        let context = context();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let lens = prop::collection::vec(1..5 * MIB / 2, 1..4);
        let rounds = prop::collection::vec(prop::option::of(failure()), 1..8);
        let outcome = runner.run(&(lens, rounds, 0..2_u64), |(lens, rounds, spare)| {
            let pool = pool(&context, 256 * MIB, spare * 64 * MIB);
            let (sleeper, pinned) = sleeper(&context, 64 * MIB);
            let model = Model::new(&context, &pool, 3, &lens);
            let bytes = model.owner.usage().weights;
            for (round, failure) in rounds.into_iter().enumerate() {
                if let Some((symbol, nth)) = failure {
                    say(&format!("fail {symbol} {nth} {REFUSED}"));
                }
                let before = model.owner.residence();
                let moved = if round % 2 == 0 { sleeper.sleep(&model.owner) } else { sleeper.wake(&model.owner) };
                say("heal");
                let after = model.owner.residence();
                match (round % 2, moved) {
                    (0, Ok(_)) => prop_assert_eq!(after, Residence::Asleep { bytes }),
                    (_, Ok(_)) => prop_assert_eq!(after, Residence::Awake),
                    (_, Err(_)) => prop_assert_eq!(after, before),
                }
                match after {
                    Residence::Awake => {
                        prop_assert!(model.holds_its_bytes());
                        prop_assert_eq!(pinned.usage().taken, 0);
                    }
                    _ => prop_assert!(pinned.usage().taken >= bytes),
                }
                prop_assert_eq!(pool.usage().memory, count("used 0"));
                prop_assert_eq!(model.owner.usage().weights, bytes);
            }
            sleeper.wake(&model.owner).unwrap();
            prop_assert!(model.holds_its_bytes());
            drop((model, sleeper));
            pool.trim().unwrap();
            prop_assert_eq!((pool.usage().memory, count("mappings"), count("handles")), (0, 0, 0));
            Ok(())
        });
        outcome.unwrap();
        drop(context);
        assert_nothing_is_left();
    }
}

alone! {
    on "device 1073741824\nslow 100";
    fn models_go_to_sleep_and_wake_on_many_threads() {
        let context = context();
        let pool = pool(&context, 256 * MIB, 16 * MIB);
        let (sleeper, _pinned) = sleeper(&context, 128 * MIB);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (context, pool, sleeper) = (&context, &pool, &sleeper);
                scope.spawn(move || {
                    let model = Model::new(context, pool, seed, &[300_000, MIB, 64]);
                    for _ in 0..6 {
                        sleeper.sleep(&model.owner).unwrap();
                        sleeper.wake(&model.owner).unwrap();
                        assert!(model.holds_its_bytes());
                    }
                });
            }
        });
        drop(sleeper);
        pool.trim().unwrap();
        assert_eq!((pool.usage().memory, pool.usage().owners), (0, 0));
        assert_eq!((count("mappings"), count("handles"), context.failed_drops()), (0, 0, 0));
    }
}
