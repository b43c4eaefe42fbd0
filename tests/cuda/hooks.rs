//! What runtimes call, as they call it: through plain C functions.

use std::ffi::c_void;
use std::sync::Arc;

use roundhouse::device::cuda::hooks::{
    OwnerScope, next_stream, onnxruntime_alloc, onnxruntime_free, serve, serve_no_more, stray_frees, stream_allocate,
    stream_free, take_refusal,
};
use roundhouse::device::cuda::owner::Kind;
use roundhouse::device::cuda::stream::Streams;
use roundhouse::error::ErrorKind;

use crate::support::{MIB, assert_nothing_is_left, context, pool};

const MACHINE: &str = "device 1073741824\ndevice 1073741824";

alone! {
    on MACHINE;
    fn memory_is_counted_for_the_owner_of_the_calling_thread() {
        let context = context();
        let pool = pool(&context, 100 * MIB, 0);
        let others = serve(&pool, 50 * MIB, None).unwrap();
        let (first, second) = (pool.owner("a", 50 * MIB).unwrap(), pool.owner("b", 50 * MIB).unwrap());
        let weights = {
            let _scope = OwnerScope::enter(&first, Kind::Weights);
            let weights = onnxruntime_alloc(3 * MIB as usize);
            {
                let _inner = OwnerScope::enter(&second, Kind::Activations { stream: 0 });
                assert!(!onnxruntime_alloc(1000).is_null());
            }
            assert!(!onnxruntime_alloc(512).is_null(), "the outer scope counts again");
            weights
        };
        assert_eq!((first.usage().weights, first.usage().activations), (3 * MIB + 512, 0));
        assert_eq!((second.usage().weights, second.usage().activations), (0, 1024));
        // A thread of the runtime's own: nobody's, and freed by anybody.
        let nobodys = std::thread::scope(|scope| {
            let context = Arc::clone(&context);
            let own = scope.spawn(move || {
                context.memory().unwrap();
                onnxruntime_alloc(2000) as usize
            });
            own.join().unwrap()
        });
        assert_eq!(others.usage().weights, 2048);
        onnxruntime_free(nobodys as *mut c_void);
        onnxruntime_free(weights);
        onnxruntime_free(std::ptr::null_mut());
        assert_eq!((others.usage().weights, first.usage().weights, stray_frees()), (0, 512, 0));
        onnxruntime_free(weights);
        assert_eq!(stray_frees(), 1, "twice is once too often");
        drop((first, second, others));
        serve_no_more();
        drop((pool, context));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn a_refusal_is_null_and_its_reason_is_kept_for_the_thread() {
        let context = context();
        let pool = pool(&context, 100 * MIB, 0);
        let others = serve(&pool, MIB, None).unwrap();
        let model = pool.owner("m", 10 * MIB).unwrap();
        let _scope = OwnerScope::enter(&model, Kind::Weights);
        assert!(onnxruntime_alloc(11 * MIB as usize).is_null());
        let refusal = take_refusal().unwrap();
        assert_eq!(refusal.kind(), ErrorKind::OutOfDeviceMemory);
        assert!(refusal.report().starts_with("model 'm' gets no 11534336 bytes of gpu:0"), "{}", refusal.report());
        assert!(take_refusal().is_none());
        assert!(onnxruntime_alloc(usize::MAX).is_null(), "no number is too large");
        assert!(!onnxruntime_alloc(MIB as usize).is_null());
        assert!(take_refusal().is_some(), "until somebody asks");
        drop(others);
    }
}

alone! {
    on MACHINE;
    fn a_panic_ends_at_the_border() {
        let context = context();
        let pool = pool(&context, 8 * MIB, 0);
        pool.on_shortage(Box::new(|_bytes| panic!("on purpose")));
        let model = pool.owner("m", 100 * MIB).unwrap();
        let _scope = OwnerScope::enter(&model, Kind::Weights);
        assert!(onnxruntime_alloc(9 * MIB as usize).is_null());
        assert_eq!(take_refusal().unwrap().kind(), ErrorKind::Internal);
        assert!(!onnxruntime_alloc(8 * MIB as usize).is_null(), "and no lock stays behind");
    }
}

alone! {
    on MACHINE;
    fn a_plugin_names_its_stream_and_its_device() {
        let context = context();
        let pool = pool(&context, 100 * MIB, 0);
        let streams = Arc::new(Streams::new(&context, 2).unwrap());
        let others = serve(&pool, 50 * MIB, Some(&streams)).unwrap();
        let model = pool.owner("m", 50 * MIB).unwrap();
        {
            let _scope = OwnerScope::enter(&model, Kind::Activations { stream: 0 });
            let first = stream_allocate(1000, 0, 0x11, false);
            let second = stream_allocate(1000, 0, 0x22, false);
            assert!((first as u64).abs_diff(second as u64) > MIB, "each stream has scratch of its own");
            stream_free(first);
            assert_eq!(stream_allocate(900, 0, 0x11, false), first);
            assert_eq!(model.usage().activations, 2048);
            assert!(!stream_allocate(700, 0, 0x11, true).is_null());
            assert_eq!((model.usage().activations, others.usage().weights), (2048, 1024), "what is shared is nobody's");
            assert!(stream_allocate(5, 1, 0x11, false).is_null());
            let refusal = take_refusal().unwrap().report();
            assert!(refusal.starts_with("model 'm' asks for memory of device 1, where it is not placed"), "{refusal}");
        }
        assert!(!stream_allocate(5, 0, 0, false).is_null());
        assert_eq!(others.usage().weights, 1536);
        assert!(stream_allocate(5, 1, 0, false).is_null(), "a device that is not served");
        assert!(take_refusal().unwrap().to_string().contains("is not served"));
        let (one, two) = (next_stream(0), next_stream(0));
        assert!(one != 0 && two != 0 && one != two && next_stream(0) == one, "in turn");
        assert_eq!(next_stream(1), 0);
    }
}
