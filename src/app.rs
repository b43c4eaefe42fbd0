//! `App`: chooses each body of each trait, once, and runs what it built.

mod backends;
mod gpus;
mod parts;
mod security;
mod start;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Either;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::backends::backends;
use self::gpus::Gpus;
use self::parts::{LoadingRuntime, disk_opener, open_devices, open_pool, open_repository, reporter, resources};
use self::security::Security;
use self::start::{neighbours, start_models};
use crate::artifact::start_write_back;
use crate::backend::registry::{BackendRegistry, Entry};
use crate::cache::response::ResponseCache;
use crate::config::security::TlsPort;
use crate::config::{ServerConfig, UnknownConfigFields};
use crate::device::allocator::fix_thresholds;
use crate::device::cuda::driver::Driver;
use crate::device::cuda::gpu::Cuda;
use crate::device::monitor::DeviceMonitor;
use crate::device::selection::select;
use crate::error::{Error, Result};
use crate::frontend::kserve_grpc::{GrpcService, is_grpc};
use crate::frontend::kserve_http::Kserve;
use crate::frontend::listener::{self, Serving, Wire};
use crate::frontend::metrics_http;
use crate::frontend::picker::neighbours::Neighbours;
use crate::frontend::sagemaker::keys::Keys;
use crate::frontend::sagemaker::{SageMaker, is_endpoint};
use crate::frontend::watch::watch;
use crate::lifecycle::files::Files;
use crate::lifecycle::loader::{DevicePlace, Loader};
use crate::lifecycle::{ManagerOptions, ModelManager};
use crate::metrics::prometheus::ServerMetrics;
use crate::model_config::UnknownFields;
use crate::repository::ModelRepository;
use crate::repository::download::{DownloadOptions, Downloader};
use crate::repository::registered::Registered;
use crate::repository::s3::uri::is_s3;
use crate::scheduler::executor::Executor;
use crate::server::InferenceServer;
use crate::server::shared_memory::SharedMemory;
use crate::telemetry::trace::Tracer;
use crate::telemetry::trace::writer::Writer;

/// Everything that runs, before it runs.
pub struct App {
    config: ServerConfig,
    server: InferenceServer,
    /// The models that SageMaker's platform brings, over those of the repository.
    registered: Registered,
    /// Who may use the runtime API.
    keys: Option<Keys>,
    security: Security,
    /// Who is asked what to bring before the server is ready.
    neighbours: Option<Neighbours>,
    /// Dropped last: queues hand their work to these threads.
    executors: Vec<Executor>,
    loading: LoadingRuntime,
    tracer: Tracer,
    /// What writes traces.
    traces: Writer,
}

/// The devices of a machine.
pub struct Machine {
    /// The GPUs that models can run on, or why there are none.
    pub gpus: std::result::Result<Vec<u32>, String>,
    /// What the devices say of their memory.
    pub monitor: Arc<dyn DeviceMonitor>,
    /// The driver through which GPUs are opened and their memory is handed out; without it, runtimes take that by
    /// themselves.
    pub cuda: Option<Cuda>,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let driver = Driver::open();
        let monitor = open_devices();
        let cuda = driver.and_then(|driver| Cuda::find(driver, &monitor.gpus()));
        let gpus = cuda.as_ref().map(Cuda::gpus).map_err(Clone::clone);
        Self { gpus, monitor: Arc::new(monitor), cuda: cuda.ok() }
    }
}

/// The sockets the server listens on.
pub struct Listeners {
    /// KServe v2 HTTP.
    pub http: Option<TcpListener>,
    /// KServe v2 over gRPC.
    pub grpc: Option<TcpListener>,
    /// Metrics.
    pub metrics: Option<TcpListener>,
    /// SageMaker's container contract and runtime API.
    pub sagemaker: Option<TcpListener>,
}

/// Where the server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// KServe v2 HTTP.
    pub http: Option<SocketAddr>,
    /// KServe v2 over gRPC.
    pub grpc: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
    /// SageMaker's container contract and runtime API.
    pub sagemaker: Option<SocketAddr>,
}

impl Listeners {
    /// Binds what the configuration asks for.
    ///
    /// # Errors
    /// `InvalidArgument` naming the port that cannot be had.
    pub async fn bind(config: &ServerConfig) -> Result<Self> {
        let bind = |flag: &'static str, port: Option<u16>| async move {
            let Some(port) = port else { return Ok(None) };
            let address = SocketAddr::new(config.address, port);
            TcpListener::bind(address).await.map(Some).map_err(|error| {
                Error::invalid(format!("cannot listen on {address}: choose another {flag} or --address"))
                    .with_source(error)
            })
        };
        Ok(Self {
            http: bind("--http-port", config.http_port).await?,
            grpc: bind("--grpc-port", config.grpc.port).await?,
            metrics: bind("--metrics-port", config.metrics_port).await?,
            sagemaker: bind("--sagemaker-port", config.sagemaker.port).await?,
        })
    }

    /// Where they listen.
    ///
    /// # Errors
    /// `Internal` if a socket does not know its address.
    pub fn addresses(&self) -> Result<Addresses> {
        let address = |listener: &Option<TcpListener>| {
            let address = listener.as_ref().map(TcpListener::local_addr).transpose();
            address.map_err(|error| Error::internal("a socket has no address").with_source(error))
        };
        Ok(Addresses {
            http: address(&self.http)?,
            grpc: address(&self.grpc)?,
            metrics: address(&self.metrics)?,
            sagemaker: address(&self.sagemaker)?,
        })
    }
}

impl App {
    /// Builds the server the configuration describes; nothing runs yet but the executor threads.
    ///
    /// # Errors
    /// `InvalidArgument` for what the configuration asks and this machine does not have.
    pub fn build(config: ServerConfig) -> Result<Self> {
        let backends = backends(&config);
        Self::build_with(config, backends)
    }

    /// Builds the server with other backends: for tests.
    ///
    /// # Errors
    /// As [`App::build`].
    pub fn build_with(config: ServerConfig, backends: BackendRegistry) -> Result<Self> {
        Self::build_on(config, backends, Machine::here())
    }

    /// Builds the server as if the machine had other devices: for tests.
    ///
    /// # Errors
    /// As [`App::build`].
    pub fn build_on(config: ServerConfig, backends: BackendRegistry, machine: Machine) -> Result<Self> {
        let Machine { gpus, monitor, cuda } = machine;
        fix_thresholds();
        let loading = LoadingRuntime::start(&config)?;
        let security = Security::open(&config.security)?;
        let neighbours = neighbours(&config.warm)?;
        let keys = config.sagemaker.endpoint.keys.as_deref().map(Keys::open).transpose()?;
        let below = config.model_repository.as_ref().map(|uri| open_repository(uri, &config, &loading.handle));
        let registered = Registered::over(below.transpose()?);
        let repository: Arc<dyn ModelRepository> = Arc::new(registered.clone());
        for (name, entry) in backends.iter() {
            match entry {
                Entry::Available(_) => tracing::info!(backend = name, "backend available"),
                Entry::Installed(_) => tracing::info!(backend = name, "backend installed: opened by its first model"),
                Entry::Unavailable(error) => {
                    tracing::warn!(backend = name, reason = %error.report(), "backend unavailable")
                }
            }
        }
        let mut selection = select(&config.devices, &gpus)?;
        tracing::info!(devices = ?selection.devices, reason = selection.reason, "devices chosen");
        let mut gpus = Gpus::open(cuda, &mut selection.devices, &config, &*monitor)?;
        let monitor = gpus.watched(monitor);
        let resources = resources(&config.rate_limit, &selection.devices);
        let mut executors = Vec::new();
        let mut devices = Vec::new();
        for device in selection.devices {
            // With a single thread for connections it is the short way or none: one run may hold it.
            let short_ways = config.io_threads.saturating_sub(1).max(1);
            let executor = Executor::start_with(
                device,
                config.executor_threads,
                short_ways,
                resources.clone().unwrap_or_default(),
            )?;
            let pool = open_pool(&config.cache, device, &*monitor, gpus.host_limit())?;
            let gpu = gpus.hand_out(device, pool.room().limit, config.executor_threads)?;
            devices.push(DevicePlace {
                pool,
                gpu,
                executor: executor.handle(),
                threads: config.executor_threads,
                resources: resources.clone(),
            });
            executors.push(executor);
        }
        let metrics = Arc::new(ServerMetrics::for_most(config.metrics.models)?);
        let (tracer, traces) = Tracer::new(&config.trace)?;
        let downloads =
            DownloadOptions { parts: config.fetch.parts, written: start_write_back, ..DownloadOptions::default() };
        let downloader = Downloader::new(Arc::clone(&repository), downloads, loading.handle.clone());
        let files = Files::new(
            config.fetch.concurrency,
            disk_opener(&config.cache, downloader, loading.handle.clone(), Arc::clone(&metrics)),
        );
        if config.model_repository.as_deref().is_some_and(is_s3) {
            files.open_now()?;
        }
        let loader = Loader {
            repository,
            files,
            retain: config.retain,
            loading: loading.handle.clone(),
            meter: Arc::default(),
            responses: ResponseCache::new(config.cache.response_bytes),
            host: gpus.host_tier(&config.cache),
            backends: Arc::new(backends),
            devices,
            queue_capacity: config.queue_capacity,
            unknown_fields: match config.unknown_config_fields {
                UnknownConfigFields::Error => UnknownFields::Deny,
                UnknownConfigFields::Warn => UnknownFields::Warn,
            },
        };
        let options = ManagerOptions {
            control: config.model_control,
            load_concurrency: config.load_concurrency,
            load_retry: config.load_retry,
            eviction: config.cache.eviction,
            room_wait: config.cache.room_wait,
            repository_poll: config.repository_poll,
            max_copies: config.max_copies,
        };
        let models = ModelManager::new(loader, options, Arc::clone(&metrics));
        let shared_memory = SharedMemory::new(config.allow_client_shm);
        let directory = config.cache.directory.clone();
        let server = InferenceServer::new(models, metrics, monitor, shared_memory, tracer.clone(), directory);
        Ok(Self { config, server, registered, keys, security, neighbours, executors, loading, tracer, traces })
    }

    /// The server inside.
    #[must_use]
    pub fn server(&self) -> &InferenceServer {
        &self.server
    }

    /// Serves until `shutdown`, then lets requests in flight finish within the grace, then frees the models.
    ///
    /// # Errors
    /// `Internal` if the port file cannot be written.
    pub async fn run(self, listeners: Listeners, shutdown: CancellationToken) -> Result<()> {
        let Self { config, server, registered, keys, mut security, neighbours, executors, loading, tracer, traces } =
            self;
        let writing = tokio::spawn(traces.run());
        // Before the first request comes: what nobody wants is not observed.
        let reporter = reporter(&config, &server, &loading.handle);
        let addresses = listeners.addresses()?;
        let connections = TaskTracker::new();
        let stop_accepting = CancellationToken::new();
        let mut fronts = JoinSet::new();
        let serving = Serving::new(stop_accepting.clone(), connections.clone(), config.limits.connections);
        let sagemaker = SageMaker::new(
            server.clone(),
            registered,
            config.sagemaker.clone(),
            keys,
            security.access.clone(),
            config.limits,
        );
        let grpc = GrpcService::new(
            server.clone(),
            security.access.clone(),
            config.limits,
            config.grpc,
            stop_accepting.clone(),
        )?;
        if let Some(listener) = listeners.http {
            let (kserve, sagemaker) =
                (Kserve::new(server.clone(), config.limits, security.access.clone()), sagemaker.clone());
            let grpc = grpc.clone();
            let answer = move |request: http::Request<hyper::body::Incoming>| {
                let (kserve, sagemaker) = (kserve.clone(), sagemaker.clone());
                let grpc = grpc.clone();
                async move {
                    if is_grpc(request.headers()) {
                        return grpc.handle(request).await.map(|answer| answer.map(Either::Right));
                    }
                    let answered = match is_endpoint(request.uri().path()) {
                        false => kserve.handle(request).await,
                        true => sagemaker.handle(request).await.map(|answer| answer.map(Either::Left)),
                    };
                    answered.map(|answer| answer.map(Either::Left))
                }
            };
            let serving = Serving { tls: security.tls(TlsPort::Http), ..serving.clone() };
            fronts.spawn(listener::serve(listener, answer, serving));
        }
        if let Some(listener) = listeners.grpc {
            let tls = security.tls(TlsPort::Grpc);
            let serving = Serving { wire: Wire::Http2, http2: grpc.http2_options(), tls, ..serving.clone() };
            let answer = move |request| grpc.clone().handle(request);
            fronts.spawn(listener::serve(listener, answer, serving));
        }
        if let Some(listener) = listeners.sagemaker {
            let answer = move |request| sagemaker.clone().handle(request);
            let serving = Serving { tls: security.tls(TlsPort::Sagemaker), ..serving.clone() };
            fronts.spawn(listener::serve(listener, answer, serving));
        }
        let (routes, access) = (metrics_http::router(server.clone()), security.access.clone());
        let answer = move |request| metrics_http::handle(routes.clone(), access.clone(), request);
        // Metrics are served to the end of the drain, so that it can be watched.
        let stop_metrics = CancellationToken::new();
        if let Some(listener) = listeners.metrics {
            let serving = Serving::new(stop_metrics.clone(), TaskTracker::new(), METRICS_CONNECTIONS);
            let serving = Serving { tls: security.tls(TlsPort::Metrics), ..serving };
            fronts.spawn(listener::serve(listener, answer, serving));
        }
        if let Some(path) = &config.port_file {
            write_port_file(path, addresses)?;
        }
        let watching = tokio::spawn(watch(std::mem::take(&mut security.watched)));
        let housekeeping = {
            let server = server.clone();
            tokio::spawn(async move { server.keep_house().await })
        };
        let signalling = {
            let server = server.clone();
            tokio::spawn(async move { server.watch_signals().await })
        };
        let stop_reports = CancellationToken::new();
        let reporting = reporter.map(|reporter| {
            let (server, stop) = (server.clone(), stop_reports.clone());
            tokio::spawn(reporter.run(move || server.observe_levels(), stop))
        });
        let neighbours = neighbours.map(|asked| Neighbours { port: addresses.http.map(|own| own.port()), ..asked });
        let starting = tokio::spawn(start_models(server.clone(), config.clone(), neighbours));
        shutdown.cancelled().await;
        server.set_draining();
        starting.abort();
        if !config.drain_notice.is_zero() {
            let notice_s = config.drain_notice.as_secs();
            tracing::info!(notice_s, "on the way out: what is in memory is answered, nothing more is loaded");
            tokio::time::sleep(config.drain_notice).await;
        }
        tracing::info!(
            grace_s = config.drain_grace.as_secs(),
            "draining: no new connections, requests in flight finish"
        );
        stop_accepting.cancel();
        connections.close();
        let end = tokio::time::Instant::now() + config.drain_grace;
        let drained = tokio::time::timeout_at(end, connections.wait()).await.is_ok();
        if !drained {
            tracing::warn!(connections = connections.len(), "the grace is over: cutting what is left");
        }
        stop_reports.cancel();
        if let Some(reporting) = reporting {
            // It keeps to a time of its own; that it panicked is in the log.
            drop(reporting.await);
        }
        // A thread that has answered may still hold the trace of what it answered, and then it would come too late. One that
        // runs for nobody any more is not waited for here.
        let mut joined = tokio::task::spawn_blocking(move || drop(executors));
        let soon = end.min(tokio::time::Instant::now() + ANSWERED);
        let is_joined = tokio::time::timeout_at(soon, &mut joined).await.is_ok();
        tracer.stop();
        if tokio::time::timeout_at(end, writing).await.is_err() {
            tracing::warn!("the grace is over: traces that are not written yet are lost");
        }
        stop_metrics.cancel();
        fronts.abort_all();
        housekeeping.abort();
        signalling.abort();
        watching.abort();
        drop(loading);
        // What still runs: a request that nobody waits for any more, maybe.
        if !is_joined && tokio::time::timeout_at(end, joined).await.is_err() {
            tracing::warn!("the grace is over: leaving models that still run");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Writes the ports where whoever started us looks for them: whole or not at all.
fn write_port_file(path: &Path, addresses: Addresses) -> Result<()> {
    let Addresses { http, grpc, metrics, sagemaker } = addresses;
    let written = [("http", http), ("grpc", grpc), ("metrics", metrics), ("sagemaker", sagemaker)];
    let members =
        written.iter().filter_map(|(name, address)| address.map(|address| format!("\"{name}\": \"{address}\"")));
    let text = format!("{{{}}}\n", members.collect::<Vec<_>>().join(", "));
    let failed = |error| Error::internal(format!("cannot write --port-file {}", path.display())).with_source(error);
    let temporary = path.with_extension("partial");
    std::fs::write(&temporary, text).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

/// Cancels the token at the first SIGTERM or SIGINT, and ends the process at the second.
pub fn cancel_on_signals(shutdown: CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error| Error::internal("cannot listen for signals").with_source(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        shutdown.cancel();
        next().await;
        tracing::warn!("second signal: stopping at once");
        std::process::exit(1);
    });
    Ok(())
}

/// Connections to the metrics port at a time.
const METRICS_CONNECTIONS: usize = 64;

/// How long a thread may take, at the end, to let go of what it has answered.
const ANSWERED: Duration = Duration::from_secs(1);

/// How long the runtime waits for blocking work at the very end.
pub const LAST_WAIT: Duration = Duration::from_secs(1);
