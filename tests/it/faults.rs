//! A repository that fails, panics and hangs while models are loaded from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse::backend::gated::{Gated, Step};
use roundhouse::backend::registry::BackendRegistry;
use roundhouse::cache::cost_aware::CostAware;
use roundhouse::cache::memory_pool::MemoryPool;
use roundhouse::config::ModelControl;
use roundhouse::error::{Error, ErrorKind};
use roundhouse::inference::{Deadline, DeviceId};
use roundhouse::lifecycle::files::Files;
use roundhouse::lifecycle::loader::{DevicePlace, Loader};
use roundhouse::lifecycle::{ManagerOptions, ModelManager};
use roundhouse::metrics::prometheus::{Detail, ServerMetrics};
use roundhouse::model_config::UnknownFields;
use roundhouse::repository::faulty::{Fault, Faulty};
use roundhouse::repository::local::Local;
use roundhouse::scheduler::executor::Executor;

use crate::support::repository::Repository;
use crate::support::{eventually, within};

/// A manager over a repository that does what its script says.
struct Scripted {
    files: Repository,
    repository: Arc<Faulty>,
    gated: Gated,
    manager: ModelManager,
    metrics: Arc<ServerMetrics>,
    _executor: Executor,
}

impl Scripted {
    fn new(control: ModelControl, load_concurrency: usize) -> Self {
        let files = Repository::gated(&["a", "b"]);
        let repository = Arc::new(Faulty::new(Arc::new(Local::open(files.path()).unwrap())));
        let gated = Gated::default();
        let executor = Executor::start(DeviceId::Cpu, 1, 1).unwrap();
        let loader = Loader {
            repository: Arc::clone(&repository) as Arc<_>,
            backends: Arc::new(BackendRegistry::default().with(Arc::new(gated.clone()))),
            files: Files::new(1, Arc::new(|| Err(Error::internal("nothing is fetched here")))),
            devices: vec![DevicePlace {
                pool: MemoryPool::new(DeviceId::Cpu, 1 << 30, Duration::ZERO, Box::new(CostAware::default())),
                executor: executor.handle(),
                threads: 1,
                resources: None,
                gpu: None,
            }],
            retain: true,
            loading: tokio::runtime::Handle::current(),
            meter: Arc::default(),
            responses: None,
            host: None,
            queue_capacity: 8,
            unknown_fields: UnknownFields::Deny,
        };
        let metrics = Arc::new(ServerMetrics::new().unwrap());
        let options =
            ManagerOptions { control, load_concurrency, load_retry: Duration::ZERO, ..ManagerOptions::default() };
        let manager = ModelManager::new(loader, options, Arc::clone(&metrics));
        Self { files, repository, gated, manager, metrics, _executor: executor }
    }

    fn cancelled(&self) -> bool {
        self.metrics.render(&[], Detail::Busiest, &[]).contains("roundhouse_model_loads_total{outcome=\"cancelled\"} 1")
    }

    async fn finish(self) {
        for resident in self.manager.all_resident() {
            assert!(resident.versions().iter().all(|version| version.pins() == 0));
        }
        for name in ["a", "b"] {
            within("an unload", self.manager.unload(name)).await.unwrap();
        }
        assert_eq!(self.gated.alive(), 0);
    }
}

fn soon(milliseconds: u64) -> Option<Deadline> {
    Deadline::after(Instant::now(), Duration::from_millis(milliseconds))
}

#[tokio::test]
async fn a_repository_that_fails_is_the_answer_and_is_asked_again() {
    let scripted = Scripted::new(ModelControl::OnDemand, 4);
    for _ in 0..3 {
        let down = Error::new(ErrorKind::RepositoryFailed, "the network is down");
        scripted.repository.next_resolve("a", Fault::Error(down));
        let error = scripted.manager.acquire("a", None, soon(60_000)).await.err().unwrap();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NotReady, true), "503 with Retry-After");
        assert_eq!(error.report(), "model 'a' cannot be loaded: the network is down");
    }
    assert!(scripted.manager.acquire("a", None, soon(60_000)).await.is_ok());
    assert_eq!(scripted.repository.resolves("a"), 4);
    scripted.finish().await;
}

#[tokio::test]
async fn a_repository_that_panics_hangs_nobody_and_the_next_request_loads() {
    let scripted = Scripted::new(ModelControl::OnDemand, 1);
    scripted.repository.next_resolve("a", Fault::Panic("an index is out of bounds"));
    let asked = (0..5).map(|_| scripted.manager.acquire("a", None, None));
    let failed = within("every answer", futures_util::future::join_all(asked)).await;
    assert!(failed.iter().any(Result::is_err), "the panic is somebody's answer");
    for result in failed {
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::Internal);
        }
    }
    for name in ["a", "b"] {
        assert!(within("a load", scripted.manager.acquire(name, None, None)).await.is_ok(), "no permit was lost");
    }
    scripted.repository.next_resolve("a", Fault::Panic("an index is out of bounds"));
    assert!(within("a load", scripted.manager.load("a", None)).await.is_err());
    assert!(scripted.manager.acquire("a", None, None).await.is_ok(), "the old copy answers on");
    scripted.finish().await;
}

#[tokio::test]
async fn a_repository_that_hangs_holds_up_no_other_model_and_no_deadline() {
    let scripted = Scripted::new(ModelControl::OnDemand, 4);
    scripted.repository.next_resolve("a", Fault::Hold);
    let late = scripted.manager.acquire("a", None, soon(5)).await.err().unwrap();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
    assert!(scripted.manager.acquire("b", None, soon(60_000)).await.is_ok());
    scripted.repository.release();
    eventually("the load is abandoned", || scripted.cancelled()).await;
    assert_eq!(scripted.gated.counts("a").loads_begun, 0, "nothing was loaded for nobody");
    assert!(scripted.manager.acquire("a", None, soon(60_000)).await.is_ok());
    scripted.finish().await;
}

#[tokio::test]
async fn a_name_that_was_given_up_before_it_was_looked_for_is_not_remembered() {
    let scripted = Scripted::new(ModelControl::OnDemand, 4);
    scripted.repository.next_resolve("nowhere", Fault::Hold);
    let late = scripted.manager.acquire("nowhere", None, soon(5)).await.err().unwrap();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
    scripted.repository.release();
    let names = async {
        while scripted.manager.index().await.unwrap().iter().any(|entry| entry.name == "nowhere") {
            tokio::task::yield_now().await;
        }
    };
    within("the name is forgotten", names).await;
    scripted.finish().await;
}

#[tokio::test]
async fn a_model_folder_that_vanishes_while_it_is_loaded_is_an_error_and_no_more() {
    let scripted = Scripted::new(ModelControl::OnDemand, 4);
    scripted.files.put(
        "a/config.pbtxt",
        crate::support::repository::config("a", "gated", "")
            .replace("name: \"y\"", "label_filename: \"labels.txt\" name: \"y\""),
    );
    scripted.files.put("a/labels.txt", "one\ntwo\n");
    scripted.gated.close("a", Step::Load);
    let loading = tokio::spawn({
        let manager = scripted.manager.clone();
        async move { manager.load("a", None).await }
    });
    within("the load", scripted.gated.until("a", |counts| counts.loads_begun == 1)).await;
    scripted.files.remove("a");
    scripted.gated.open("a", Step::Load);
    let error = loading.await.unwrap().unwrap_err();
    assert!(error.report().contains("labels.txt"), "{}", error.report());
    assert_eq!(scripted.gated.alive(), 0);
    let gone = scripted.manager.acquire("a", None, soon(60_000)).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    scripted.finish().await;
}

#[tokio::test]
async fn a_listing_that_fails_is_the_index_s_answer() {
    let scripted = Scripted::new(ModelControl::OnDemand, 4);
    scripted.repository.next_list(Fault::Error(Error::new(ErrorKind::RepositoryFailed, "the network is down")));
    assert_eq!(scripted.manager.index().await.unwrap_err().kind(), ErrorKind::RepositoryFailed);
    assert_eq!(scripted.manager.index().await.unwrap().len(), 2);
    scripted.finish().await;
}

#[tokio::test]
async fn explicitly_refused_requests_and_loads_at_once_leave_the_model_where_it_is_found() {
    let scripted = Scripted::new(ModelControl::Explicit, 4);
    for _ in 0..200 {
        let ask = || {
            let manager = scripted.manager.clone();
            tokio::spawn(async move { manager.acquire("a", None, None).await.map(drop) })
        };
        let load = || {
            let manager = scripted.manager.clone();
            tokio::spawn(async move { manager.load("a", None).await })
        };
        let (one, loading, two) = (ask(), load(), ask());
        loading.await.unwrap().unwrap();
        assert!(scripted.manager.resident("a", None).unwrap().is_some(), "what was loaded is found");
        for refused in [one, two] {
            let kind = refused.await.unwrap().err().map(|error| error.kind());
            assert!(matches!(kind, None | Some(ErrorKind::NotFound)), "{kind:?}");
        }
        scripted.manager.unload("a").await.unwrap();
        assert_eq!(scripted.gated.alive(), 0);
    }
    scripted.finish().await;
}
