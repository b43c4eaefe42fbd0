//! The bodies of the traits, as the configuration asks for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::artifact::Limits;
use crate::cache::cost_aware::CostAware;
use crate::cache::disk::{DiskCache, DiskOptions};
use crate::cache::eviction::{EvictionPolicy, Lru};
use crate::cache::memory_pool::{MemoryPool, Name};
use crate::config::amount::{Amount, Limited, limit_of};
use crate::config::metrics::CloudWatch;
use crate::config::rate_limit::{RateLimit, RateLimitConfig, ResourcePlace};
use crate::config::{CacheConfig, EvictionRule, ServerConfig};
use crate::device::devices::Devices;
use crate::device::monitor::DeviceMonitor;
use crate::device::nvml::Nvml;
use crate::device::priority::lower_this_thread;
use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::lifecycle::files::{DiskMetrics, OpenDisk};
use crate::metrics::cloudwatch::{Embedded, Identity, Put, PutOptions, Reporter, Sink};
use crate::metrics::prometheus::ServerMetrics;
use crate::repository::ModelRepository;
use crate::repository::download::Downloader;
use crate::repository::local::Local;
use crate::repository::s3::uri::is_s3;
use crate::repository::s3::{S3, S3Options};
use crate::scheduler::turns::{ResourceName, Resources};
use crate::server::InferenceServer;

pub(super) fn open_repository(uri: &str, config: &ServerConfig, loading: &Handle) -> Result<Arc<dyn ModelRepository>> {
    if is_s3(uri) {
        let fetch = &config.fetch;
        let options = S3Options {
            anonymous: fetch.s3_anonymous,
            region: fetch.s3_region.clone(),
            endpoint: fetch.s3_endpoint.clone(),
            path_style: fetch.s3_path_style,
            attempt_timeout: fetch.timeout,
            ..S3Options::default()
        };
        let uri = uri.parse().map_err(|error: Error| error.wrap("--model-repository"))?;
        return Ok(Arc::new(S3::open(&uri, options, loading.clone())?));
    }
    if let Some((scheme, _)) = uri.split_once("://")
        && scheme != "file"
    {
        return Err(Error::unsupported(format!(
            "--model-repository {uri}: models are read from a folder or from s3://BUCKET/PREFIX, not from {scheme}"
        )));
    }
    let path = PathBuf::from(uri.strip_prefix("file://").unwrap_or(uri));
    Ok(Arc::new(Local::open(&path)?))
}

/// The host, and the GPUs where there is a driver.
pub(super) fn open_devices() -> Devices {
    let nvml = match Nvml::open(None) {
        Ok(nvml) => Some(nvml),
        Err(reason) => {
            tracing::debug!(reason, "no GPU can be seen");
            None
        }
    };
    Devices { nvml, ..Devices::default() }
}

/// Opens the disk cache when something is to be fetched.
pub(super) fn disk_opener(
    config: &CacheConfig,
    downloader: Downloader,
    loading: Handle,
    metrics: Arc<ServerMetrics>,
) -> Arc<OpenDisk> {
    let config = config.clone();
    Arc::new(move || {
        let policy: Box<dyn EvictionPolicy<_>> = match config.rule {
            EvictionRule::CostAware => Box::new(CostAware::default()),
            EvictionRule::Lru => Box::new(Lru::default()),
        };
        let options = DiskOptions {
            directory: config.directory.clone(),
            capacity: disk_capacity(&config)?,
            min_residency: config.min_residency,
            room_wait: config.room_wait,
            policy,
            limits: Limits::default(),
            events: Arc::new(DiskMetrics(Arc::clone(&metrics))),
        };
        DiskCache::open(options, downloader.clone(), loading.clone())
    })
}

/// How much the disk cache may hold: of what is free, with what it holds already.
fn disk_capacity(config: &CacheConfig) -> Result<u64> {
    let failed = |error: std::io::Error| {
        let folder = config.directory.display();
        Error::invalid(format!("the cache folder {folder} cannot be used: name another one with --cache-dir"))
            .with_source(error)
    };
    std::fs::create_dir_all(&config.directory).map_err(failed)?;
    let disk = rustix::fs::statvfs(&config.directory).map_err(|error| failed(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(config.capacity.of(free.saturating_add(bytes_below(&config.directory))))
}

/// What the files below a folder take of the disk.
fn bytes_below(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = folder.read_dir() else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    bytes.fold(0, u64::saturating_add)
}

/// The book of a device's memory: as large as the configuration says, of what is free now. Of the host's, models that sleep
/// may take `asleep` bytes.
pub(super) fn open_pool(
    config: &CacheConfig,
    device: DeviceId,
    monitor: &dyn DeviceMonitor,
    asleep: u64,
) -> Result<MemoryPool> {
    let memory = monitor.memory(device)?;
    let free = memory.total.saturating_sub(memory.used);
    let limited = match device {
        DeviceId::Cpu => Limited::Cpu,
        DeviceId::Gpu(index) => Limited::Gpu(index),
    };
    let given = limit_of(&config.memory_limits, limited);
    // Answers that are kept lie beside the models, and so do models that sleep.
    let others = if device == DeviceId::Cpu { config.response_bytes.saturating_add(asleep) } else { 0 };
    let limit = given.unwrap_or(Amount::Fraction(0.9)).of(free.saturating_sub(others));
    let policy = eviction_policy(config.rule);
    tracing::info!(%device, limit, free, "memory for models");
    Ok(MemoryPool::new(device, limit, config.min_residency, policy))
}

/// Who leaves a tier first.
pub(super) fn eviction_policy(rule: EvictionRule) -> Box<dyn EvictionPolicy<Name>> {
    match rule {
        EvictionRule::CostAware => Box::new(CostAware::default()),
        EvictionRule::Lru => Box::new(Lru::default()),
    }
}

/// What tells CloudWatch, if it is to be told.
pub(super) fn reporter(config: &ServerConfig, server: &InferenceServer, loading: &Handle) -> Option<Reporter> {
    let told = &config.metrics.cloudwatch;
    let identity = Identity {
        namespace: told.namespace.clone(),
        endpoint: config.sagemaker.endpoint.name.clone().unwrap_or_else(|| "roundhouse".to_owned()),
        variant: told.variant.clone(),
    };
    let sink: Box<dyn Sink> = match told.mode {
        CloudWatch::Off => return None,
        CloudWatch::Embedded => Box::new(Embedded::new(identity)),
        CloudWatch::Put => {
            let options = PutOptions { endpoint: told.endpoint.clone(), region: told.region.clone() };
            Box::new(Arc::new(Put::new(identity, options, loading.clone())))
        }
    };
    Some(Reporter::new(server.observations(), sink, told.period))
}

/// The threads that fetch, unpack and load: at a lower priority than those that answer. They end with it, without a
/// wait for what still runs.
pub(super) struct LoadingRuntime {
    pub(super) handle: Handle,
    runtime: Option<tokio::runtime::Runtime>,
}

impl LoadingRuntime {
    pub(super) fn start(config: &ServerConfig) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(LOADING_THREADS)
            .thread_name("loading")
            // What is loaded and fetched at once, and what they need done beside.
            .max_blocking_threads(config.load_concurrency + config.fetch.concurrency + SPARE_THREADS)
            .on_thread_start(|| lower_this_thread(LOADING_NICE))
            .enable_all()
            .build()
            .map_err(|error| Error::internal("cannot start the threads that load models").with_source(error))?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for LoadingRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// How much they give way to threads that answer: a tenth of a processor is theirs where both want it.
const LOADING_NICE: i32 = 10;

/// Threads for unlinking, trimming, looking into folders, and for putting models to sleep and waking them.
const SPARE_THREADS: usize = 8;

/// Threads that drive fetches. What blocks has threads of its own.
const LOADING_THREADS: usize = 2;

/// How much there is of what runs take, where rates are limited.
pub(super) fn resources(config: &RateLimitConfig, devices: &[DeviceId]) -> Option<Arc<Resources>> {
    if config.mode == RateLimit::Off {
        return None;
    }
    let amounts = config.resources.iter().flat_map(|resource| {
        let name = |device| (ResourceName { name: resource.name.clone(), device }, resource.count);
        match resource.place {
            ResourcePlace::Global => vec![name(None)],
            ResourcePlace::Gpu(gpu) => vec![name(Some(DeviceId::Gpu(gpu)))],
            ResourcePlace::EachDevice => devices.iter().map(|device| name(Some(*device))).collect(),
        }
    });
    Some(Arc::new(Resources::of(amounts)))
}
