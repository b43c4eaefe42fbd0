//! Locked host memory.

use roundhouse::device::cuda::pinned::{PinnedPool, PinnedUsage};
use roundhouse::error::ErrorKind;

use crate::support::{MIB, assert_nothing_is_left, context, count, say};

alone! {
    on "device 1073741824";
    fn a_pool_of_locked_memory_never_locks_more_than_it_may() {
        let context = context();
        let pool = PinnedPool::new(&context, 10 * MIB, 4 * MIB);
        let usage = |locked, taken| PinnedUsage { limit: 10 * MIB, locked: locked * MIB, taken: taken * MIB };
        assert_eq!(pool.usage(), usage(0, 0), "nothing is locked before it is asked for");
        let first = pool.take(3 * MIB).unwrap();
        assert_eq!(pool.usage(), usage(4, 3));
        // In parts: a megabyte is left in the first slab.
        let second = pool.take(6 * MIB).unwrap();
        assert_eq!(pool.usage(), usage(10, 9), "the last slab is as large as there is room for");
        let error = pool.take(2 * MIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfDeviceMemory);
        assert!(error.to_string().starts_with("the pool of pinned host memory has no room"), "{error}");
        assert_eq!(pool.usage(), usage(10, 9), "what was taken in vain is given back");
        drop(first);
        let third = pool.take(4 * MIB).unwrap();
        assert_eq!(pool.usage(), usage(10, 10), "holes are filled");
        assert_eq!(count("calls cuMemHostAlloc"), 3);
        drop((second, third));
        assert_eq!(pool.usage(), usage(10, 0), "slabs are kept");
        pool.trim();
        assert_eq!(pool.usage(), usage(0, 0));
        drop((pool, context));
        assert_nothing_is_left();
    }
}

alone! {
    on "device 1073741824";
    fn a_buffer_lies_in_one_part_and_a_large_one_gets_a_slab_of_its_own() {
        let context = context();
        let pool = PinnedPool::new(&context, 10 * MIB, 2 * MIB);
        let mut large = pool.buffer(5 * MIB).unwrap();
        large.bytes_mut().fill(7);
        assert_eq!(large.bytes().len(), 5 * MIB as usize);
        let small: Vec<_> = (0..4).map(|_| pool.buffer(MIB).unwrap()).collect();
        assert_eq!(pool.usage().locked, 9 * MIB);
        assert!(large.bytes().iter().all(|byte| *byte == 7), "nobody else writes there");
        assert_eq!(pool.buffer(2 * MIB).unwrap_err().kind(), ErrorKind::OutOfDeviceMemory);
        assert_eq!(pool.usage().locked, 9 * MIB, "a slab that would be too small is not locked");
        drop((large, small));
        assert_eq!(pool.usage().taken, 0);
    }
}

alone! {
    on "device 1073741824";
    fn a_host_that_locks_no_more_says_so_and_the_pool_stays_true() {
        const OUT_OF_MEMORY: u32 = 2;
        let context = context();
        let pool = PinnedPool::new(&context, 10 * MIB, MIB);
        say(&format!("fail cuMemHostAlloc 3 {OUT_OF_MEMORY}"));
        let error = pool.take(5 * MIB).unwrap_err();
        assert!(error.to_string().starts_with("the system locks no further"), "{error}");
        assert_eq!((pool.usage().locked, pool.usage().taken), (2 * MIB, 0));
        assert_eq!(pool.take(5 * MIB).unwrap().len(), 5 * MIB);
    }
}
