//! What is open at the start, and whose memory is whose.

use roundhouse::inference::DeviceId;

use super::{answers, models, run};
use crate::cuda::{MIB, PAGE, count};
use crate::support::server::TestServer;

alone! {
    on "device 1073741824\ndevice 1073741824";
    fn a_model_holds_its_memory_through_the_driver_and_gives_it_back_before_its_unload_is_answered() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a"], 24), |_| {}).await;
            let before = count("used 0");
            answers(&server, "a").await;
            let row = server.row("a");
            assert_eq!(row.device, Some(DeviceId::Gpu(0)), "GPUs first, where nothing is said");
            assert_eq!(row.device_bytes, 24 * MIB, "what it took, to the page");
            assert!(count("used 0") >= before + 24 * MIB);
            assert!(count("calls cuMemMap") > 0 && count("used 1") < PAGE);
            server.inner.unload_model("a", false).await.unwrap();
            assert!(count("used 0") < before + 20 * MIB, "{}", count("used 0"));
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824";
    fn models_that_ask_for_the_cpu_hold_nothing_of_a_gpu() {
        run(async {
            let cpu = format!("instance_group [ {{ kind: KIND_CPU }} ]\n{}", super::weighs(8, 1, 1));
            let repository = crate::support::repository::Repository::empty().with("c", "gated", &cpu);
            let server = TestServer::start_on_cuda(repository, |_| {}).await;
            answers(&server, "c").await;
            assert_eq!((server.row("c").device, count("used 0")), (Some(DeviceId::Cpu), 0));
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824\ndevice 1073741824\nfail cuDevicePrimaryCtxRetain 1 101";
    fn a_gpu_that_cannot_be_opened_is_not_used_and_the_others_are() {
        run(async {
            let server = TestServer::start_on_cuda(models(&["a"], 8), |_| {}).await;
            answers(&server, "a").await;
            assert_eq!(server.row("a").device, Some(DeviceId::Gpu(1)));
            assert_eq!(server.books().iter().filter_map(|book| book.device).collect::<Vec<_>>(), [DeviceId::Gpu(1), DeviceId::Cpu]);
            server.finish().await;
        });
    }
}

alone! {
    on "device 1073741824\ndevice 536870912\nbackwards";
    fn a_gpu_is_the_same_one_to_nvml_and_to_the_driver_whatever_their_orders() {
        run(async {
            let first = format!("instance_group [ {{ kind: KIND_GPU gpus: [ 0 ] }} ]\n{}", super::weighs(24, 1, 1));
            let repository = crate::support::repository::Repository::empty().with("a", "gated", &first);
            let server = TestServer::start_on_cuda(repository, |_| {}).await;
            let limits: Vec<_> = server.books().iter().filter(|book| book.device.is_some()).map(|book| (book.device, book.limit)).collect();
            let before = (count("used 0"), count("used 1"));
            answers(&server, "a").await;
            // NVML's first is the driver's second, which is the smaller one.
            assert_eq!(server.row("a").device, Some(DeviceId::Gpu(0)));
            assert!(count("used 1") >= before.1 + 24 * MIB && count("used 0") == before.0);
            assert_eq!(limits[0].0, Some(DeviceId::Gpu(0)));
            assert!(limits[0].1 < 512 * MIB && limits[1].1 > 512 * MIB, "each book is its device's: {limits:?}");
            server.finish().await;
        });
    }
}
