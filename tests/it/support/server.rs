//! A server in this process, on ports and threads of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use roundhouse::app::{App, Listeners, Machine};
use roundhouse::backend::gated::{Counts, Gated};
use roundhouse::backend::identity::Identity;
use roundhouse::backend::registry::BackendRegistry;
use roundhouse::backend::weights::Weights;
use roundhouse::config::amount::{Amount, Limited, MemoryLimit};
use roundhouse::config::{EvictionRule, Port, ServeOptions, ServerConfig};
use roundhouse::device::devices::Devices;
use roundhouse::device::monitor::{DeviceMemory, DeviceMonitor};
use roundhouse::error::Result;
use roundhouse::inference::DeviceId;
use roundhouse::lifecycle::residency::{ModelResidency, ResidencyQuery, Tier, TierBook};
use roundhouse::server::InferenceServer;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Request, Response};
use super::repository::Repository;
use super::{eventually, within};

/// Where a server of a test listens.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) sagemaker: SocketAddr,
}

/// The host as it is; GPUs of a GiB that nobody uses.
struct Memory(Devices);

impl DeviceMonitor for Memory {
    fn memory(&self, device: DeviceId) -> Result<DeviceMemory> {
        match device {
            DeviceId::Cpu => self.0.memory(device),
            DeviceId::Gpu(_) => Ok(DeviceMemory { total: 1 << 30, used: 0, ours: 0 }),
        }
    }
}

/// A running server with the `gated` and `identity` backends.
pub(crate) struct TestServer {
    /// Its models.
    pub(crate) repository: Repository,
    /// The hand on its `gated` models.
    pub(crate) gated: Gated,
    /// The server below the protocol.
    pub(crate) inner: InferenceServer,
    /// Where it listens.
    pub(crate) addresses: Addresses,
    /// Makes it drain.
    pub(crate) shutdown: CancellationToken,
    running: Option<JoinHandle<Result<()>>>,
    runtime: Option<Runtime>,
}

/// A configuration for the repository: free ports, two executor threads, the rest as an operator gets it.
pub(crate) fn config_for(repository: &Repository) -> ServerConfig {
    let options = ServeOptions {
        model_repository: Some(repository.path().to_str().unwrap().to_owned()),
        http_port: Some(Port::At(0)),
        grpc_port: Some(Port::At(0)),
        metrics_port: Some(Port::At(0)),
        sagemaker_port: Some(Port::At(0)),
        executor_threads: std::num::NonZeroUsize::new(2),
        // Not a model's name, and gone with the repository.
        cache_dir: Some(repository.path().join(".cache")),
        ..ServeOptions::default()
    };
    options.resolve().unwrap()
}

/// Has the models come from this URI, anonymously where it is one of S3.
pub(crate) fn at_uri(config: &mut ServerConfig, uri: &str) {
    config.model_repository = Some(uri.to_owned());
    config.fetch.s3_anonymous = true;
    config.fetch.s3_region = Some("us-east-1".to_owned());
}

impl TestServer {
    /// A server as `config_for` has it.
    pub(crate) async fn start(repository: Repository) -> Self {
        Self::start_with(repository, |_| {}).await
    }

    /// A server with another configuration, once it is ready.
    pub(crate) async fn start_with(repository: Repository, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let server = Self::start_unready(repository, Gated::default(), change).await;
        eventually("the server is ready", || server.inner.is_ready()).await;
        server
    }

    /// A server over the models at this URI, once it is ready. Its cache folder is `.cache` in its own, empty repository.
    pub(crate) async fn start_uri(uri: &str, change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::start_with(Repository::empty(), |config| {
            at_uri(config, uri);
            change(config);
        })
        .await
    }

    /// A server that may be loading its first models yet.
    pub(crate) async fn start_unready(
        repository: Repository,
        gated: Gated,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        Self::start_on(repository, gated, |_| {}, change).await
    }

    /// A server on a machine with `gpus` GPUs and a CPU, each with room for models of `kib` KiB, once it is ready.
    pub(crate) async fn start_on_gpus(repository: Repository, gpus: u32, kib: u64) -> Self {
        Self::start_on_gpus_with(repository, gpus, kib, |_| {}).await
    }

    /// The same with another configuration.
    pub(crate) async fn start_on_gpus_with(
        repository: Repository,
        gpus: u32,
        kib: u64,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        let devices = (0..gpus).map(Limited::Gpu).chain([Limited::Cpu]);
        let amount = Amount::Bytes(kib << 10);
        let limits = devices.map(|device| MemoryLimit { device, amount }).collect();
        let equip = move |machine: &mut Machine| machine.gpus = Ok((0..gpus).collect());
        let server = Self::start_on(repository, Gated::default(), equip, |config| {
            config.cache.memory_limits = limits;
            config.cache.rule = EvictionRule::Lru;
            config.cache.min_residency = Duration::ZERO;
            config.cache.room_wait = Duration::from_secs(60);
            change(config);
        })
        .await;
        eventually("the server is ready", || server.inner.is_ready()).await;
        server
    }

    /// A server on this machine's GPUs, which are the double's, with the `weights` backend behind the gates, once it is ready.
    pub(crate) async fn start_on_cuda(repository: Repository, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let gated = Gated::over(Weights);
        let server = Self::start_on(
            repository,
            gated,
            |machine| *machine = Machine::here(),
            |config| {
                config.cache.min_residency = Duration::ZERO;
                config.cache.room_wait = Duration::from_secs(60);
                change(config);
            },
        )
        .await;
        eventually("the server is ready", || server.inner.is_ready()).await;
        server
    }

    async fn start_on(
        repository: Repository,
        gated: Gated,
        equip: impl FnOnce(&mut Machine),
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        let mut config = config_for(&repository);
        change(&mut config);
        let mut machine = Machine {
            gpus: Err("the test's machine has none".to_owned()),
            monitor: Arc::new(Memory(Devices::default())),
            cuda: None,
        };
        equip(&mut machine);
        let registry = BackendRegistry::default().with(Arc::new(gated.clone())).with(Arc::new(Identity));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let (app, listeners, addresses) = runtime
            .spawn(async move {
                let listeners = Listeners::bind(&config).await.unwrap();
                let bound = listeners.addresses().unwrap();
                let addresses = Addresses {
                    http: bound.http.unwrap(),
                    grpc: bound.grpc.unwrap(),
                    metrics: bound.metrics.unwrap(),
                    sagemaker: bound.sagemaker.unwrap(),
                };
                (App::build_on(config, registry, machine).unwrap(), listeners, addresses)
            })
            .await
            .unwrap();
        let inner = app.server().clone();
        let running = runtime.spawn(app.run(listeners, shutdown.clone()));
        Self { repository, gated, inner, addresses, shutdown, running: Some(running), runtime: Some(runtime) }
    }

    /// A new connection.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addresses.http).await
    }

    /// A new connection to SageMaker's port.
    pub(crate) async fn sagemaker(&self) -> Client {
        Client::connect(self.addresses.sagemaker).await
    }

    /// Asks over a connection of its own.
    pub(crate) async fn ask(&self, request: &Request) -> Response {
        self.client().await.ask(request).await
    }

    /// Asks without waiting: connected and sent when this returns.
    pub(crate) async fn send(&self, request: &Request) -> Client {
        let mut client = self.client().await;
        client.send(request).await;
        client
    }

    /// Waits until `reached` holds of what has happened to a gated model.
    pub(crate) async fn until(&self, model: &str, reached: impl Fn(&Counts) -> bool) -> Counts {
        let waiting = self.gated.until(model, reached);
        match tokio::time::timeout(super::LONG, waiting).await {
            Ok(counts) => counts,
            Err(_elapsed) => panic!("model {model} did not get there: {:?}", self.gated.counts(model)),
        }
    }

    /// Waits until so many requests wait in the queue of a model.
    pub(crate) async fn until_pending(&self, model: &str, count: usize) {
        eventually("requests in the queue", || self.pending(model) == count).await;
    }

    /// Requests in the queues of a model's versions.
    pub(crate) fn pending(&self, model: &str) -> usize {
        let versions = self.inner.resident_versions();
        versions.iter().filter(|loaded| *loaded.id.name == *model).map(|loaded| loaded.pending()).sum()
    }

    /// Sequences of the model `s` that hold a slot, and that wait for one.
    pub(crate) fn live(&self) -> (usize, usize) {
        let versions = self.inner.resident_versions();
        let live = versions
            .iter()
            .filter(|loaded| &*loaded.id.name == "s")
            .filter_map(|loaded| Some(loaded.queue()?.live_sequences()));
        live.fold((0, 0), |(held, waiting), (more, behind)| (held + more, waiting + behind))
    }

    /// The value of a series on the metrics page, by everything before the value; `None` where it is not there.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let page = self.inner.metrics_page();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    /// How many loads have ended so: `ok`, `failed`, `cancelled`.
    pub(crate) fn loads(&self, outcome: &str) -> usize {
        let count = self.metric(&format!("roundhouse_model_loads_total{{outcome=\"{outcome}\"}}")).unwrap();
        count as usize
    }

    /// The state of a model's first row in the repository index; empty for one that was never asked for.
    pub(crate) async fn state(&self, model: &str) -> String {
        let index = self.ask(&super::client::post("/v2/repository/index", "")).await.json();
        let row = index.as_array().unwrap().iter().find(|row| row["name"] == model).unwrap();
        row["state"].as_str().unwrap_or_default().to_owned()
    }

    /// The names of the repository index, once each.
    pub(crate) async fn index(&self) -> Vec<String> {
        let index = self.ask(&super::client::post("/v2/repository/index", "")).await.json();
        let mut names: Vec<_> =
            index.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect();
        names.dedup();
        names
    }

    /// The books of the devices.
    pub(crate) fn books(&self) -> Vec<TierBook> {
        let page = self.inner.residency(&ResidencyQuery { limit: 1, ..ResidencyQuery::default() });
        page.books.into_iter().filter(|book| book.tier == Tier::Device).collect()
    }

    /// The book of the disk.
    pub(crate) fn disk(&self) -> TierBook {
        let page = self.inner.residency(&ResidencyQuery { limit: 1, ..ResidencyQuery::default() });
        page.books.into_iter().find(|book| book.tier == Tier::Disk).unwrap()
    }

    /// A model's row.
    pub(crate) fn row(&self, model: &str) -> ModelResidency {
        self.inner.model_residency(model).unwrap_or_else(|| panic!("nothing is known of {model}"))
    }

    /// A model's row, if there is one.
    pub(crate) fn row_if(&self, model: &str) -> Option<ModelResidency> {
        self.inner.model_residency(model)
    }

    /// The models in memory, ascending.
    pub(crate) fn in_memory(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.inner.resident_versions().iter().map(|version| version.id.name.to_string()).collect();
        names.dedup();
        names
    }

    /// Shuts down and waits for the end of `run`.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.shutdown.cancel();
        let running = self.running.take().unwrap();
        within("the end of the server", running).await.unwrap()
    }

    /// The last check of a test: nothing is pinned, nothing waits, unloading everything leaves nothing in memory, and
    /// the server stops in peace.
    pub(crate) async fn finish(mut self) {
        let idle = || {
            let versions = self.inner.resident_versions();
            versions.iter().all(|loaded| loaded.pins() == 0 && loaded.pending() == 0)
        };
        eventually("no pins and nothing in the queues", idle).await;
        // A load whose caller left may end only now; what is leaked never goes.
        let unloaded = async {
            loop {
                let resident = self.inner.resident_versions();
                let counted = self.metric("roundhouse_models_resident");
                if resident.is_empty() && counted == Some(0.0) && self.gated.alive() == 0 {
                    return;
                }
                // What came with an ensemble goes with it.
                for loaded in resident.iter().filter(|loaded| !loaded.is_part()) {
                    self.inner.unload_model(&loaded.id.name, false).await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        };
        within("everything is out of memory", unloaded).await;
        // Who was unloaded without anybody waiting has its lease a moment longer than it is seen.
        let empty = || self.books().iter().all(|book| (book.booked, book.reserved, book.models) == (0, 0, 0));
        eventually("every book is empty", empty).await;
        self.stop().await.unwrap();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // A test that failed must not leave threads at a closed gate.
        self.gated.open_all();
        self.shutdown.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// All of them, side by side, in order.
pub(crate) async fn all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures_util::future::join_all(futures).await
}
