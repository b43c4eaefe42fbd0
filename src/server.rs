//! `InferenceServer`: what the server does, in the words of no protocol.

mod cached;
mod devices;
pub mod digest;
mod ensemble;
mod gpu_gauges;
mod observed;
mod page;
mod prepare;
pub mod responses;
mod settings;
pub mod shared_memory;
mod signals;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use self::cached::infer_cached;
use self::ensemble::Passage;
use self::prepare::{prepare, restore_shapes};
use self::responses::Responses;
use self::settings::{trace_begin, trace_end};
use self::shared_memory::SharedMemory;
use crate::backend::registry::Entry;
use crate::device::monitor::DeviceMonitor;
use crate::error::{Error, Result};
use crate::inference::{Deadline, InferenceRequest, InferenceResponse, Parameters, Version};
use crate::lifecycle::handle::{Engine, LoadedVersion, ModelHandle};
use crate::lifecycle::residency::{Explanation, ModelResidency, ResidencyPage, ResidencyQuery};
use crate::lifecycle::{IndexEntry, ModelManager};
use crate::metrics::prometheus::ServerMetrics;
use crate::metrics::signal::Window;
use crate::metrics::statistics::FailureReason;
use crate::model_config::ModelConfig;
use crate::telemetry::trace::Tracer;

/// The server's name in metadata.
pub const NAME: &str = "roundhouse";

/// Its version with the commit it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("ROUNDHOUSE_COMMIT"), ")");

/// The server. Cheap to clone.
#[derive(Clone)]
pub struct InferenceServer(Arc<Inner>);

struct Inner {
    models: ModelManager,
    metrics: Arc<ServerMetrics>,
    monitor: Arc<dyn DeviceMonitor>,
    shared_memory: SharedMemory,
    tracer: Tracer,
    /// The readings that signals are made of.
    signals: Mutex<Window>,
    /// Hits and misses that CloudWatch was told of.
    told_lookups: Mutex<(u64, u64)>,
    /// Where models are fetched to.
    cache_directory: PathBuf,
    /// Whether the models asked for at start have been tried.
    started: AtomicBool,
    draining: AtomicBool,
    /// Which start of the server this is: generations begin anew with each.
    start: u128,
}

/// A backend and, if it cannot be used, the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    /// Its name in `config.pbtxt`.
    pub name: &'static str,
    /// Why it cannot be used.
    pub unavailable: Option<String>,
}

impl InferenceServer {
    /// A server over the models, and what clients may use of shared memory. Models are fetched to `cache_directory`.
    #[must_use]
    pub fn new(
        models: ModelManager,
        metrics: Arc<ServerMetrics>,
        monitor: Arc<dyn DeviceMonitor>,
        shared_memory: SharedMemory,
        tracer: Tracer,
        cache_directory: PathBuf,
    ) -> Self {
        Self(Arc::new(Inner {
            models,
            metrics,
            monitor,
            shared_memory,
            tracer,
            signals: Mutex::default(),
            told_lookups: Mutex::default(),
            cache_directory,
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            start: uuid::Uuid::new_v4().as_u128(),
        }))
    }

    // === health ===

    /// Whether the server can serve: what was asked for at start has been tried, and it is not on its way out. One bad
    /// model does not make it unready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.started.load(Ordering::Acquire) && !self.is_draining() && !self.has_lost_its_gpus()
    }

    /// Whether it is on its way out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Says that the models asked for at start have been tried.
    pub fn set_started(&self) {
        self.0.started.store(true, Ordering::Release);
    }

    /// Says that the server is on its way out: not ready any more, and answering what comes nevertheless, where the model
    /// is in memory or on its way there.
    pub fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.models.close();
        for loaded in self.resident_versions() {
            if let Some(queue) = loaded.queue() {
                queue.hasten();
            }
        }
    }

    // === models ===

    /// A handle on a model, loaded if it must be and may be.
    ///
    /// # Errors
    /// As [`ModelManager::acquire`].
    pub async fn model(&self, name: &str, version: Option<Version>, deadline: Option<Deadline>) -> Result<ModelHandle> {
        let acquired = self.0.models.acquire(name, version, deadline).await;
        acquired.and_then(|handle| by_its_own_name(handle, name)).inspect_err(|error| self.observe_failure(error))
    }

    /// The same for somebody who wants the model by `wanted`, and whose load goes on until `deadline`.
    ///
    /// # Errors
    /// As [`ModelManager::acquire`].
    pub async fn model_for(
        &self,
        name: &str,
        wanted: Option<Deadline>,
        deadline: Option<Deadline>,
    ) -> Result<ModelHandle> {
        let acquired = self.0.models.acquire_for(name, None, wanted, deadline).await;
        acquired.and_then(|handle| by_its_own_name(handle, name)).inspect_err(|error| self.observe_failure(error))
    }

    /// A handle on a model that is in memory; nothing is loaded.
    ///
    /// # Errors
    /// `NotFound` if the model, or the version, is not in memory.
    pub fn resident_model(&self, name: &str, version: Option<Version>) -> Result<ModelHandle> {
        let text = match version {
            None => format!("Request for unknown model: '{name}' is not found"),
            Some(version) => format!("Request for unknown model: '{name}' version {version} is not found"),
        };
        let handle = self.0.models.resident(name, version)?.filter(|handle| !handle.is_part());
        handle.ok_or_else(|| Error::not_found(text))
    }

    /// Whether a model, or a version of it, answers without a load: it is in memory, or sleeps and is woken by a request.
    #[must_use]
    pub fn is_model_ready(&self, name: &str, version: Option<Version>) -> bool {
        self.resident_model(name, version).is_ok() || self.0.models.is_asleep(name, version)
    }

    /// Loads a model, or a fresh copy of it; `config` stands in for the repository's configuration.
    ///
    /// # Errors
    /// The load's error.
    pub async fn load_model(&self, name: &str, config: Option<ModelConfig>) -> Result<()> {
        self.0.models.load(name, config).await
    }

    /// Unloads a model; its memory is free when this returns. With `dependents` the models of an ensemble's steps go with
    /// it, where no other ensemble in memory asks them.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub async fn unload_model(&self, name: &str, dependents: bool) -> Result<()> {
        if dependents { self.0.models.unload_with_dependents(name).await } else { self.0.models.unload(name).await }
    }

    /// Forgets what happened to a model that is not in memory.
    pub fn forget_model(&self, name: &str) {
        self.0.models.forget(name);
    }

    /// Loads a model and keeps it for good.
    ///
    /// # Errors
    /// The load's error.
    pub async fn pin_model(&self, name: &str) -> Result<()> {
        self.0.models.pin(name).await
    }

    /// Lets a model be evicted again.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub fn unpin_model(&self, name: &str) -> Result<()> {
        self.0.models.unpin(name)
    }

    /// Brings a model to this machine's disk, and to memory where there is room.
    ///
    /// # Errors
    /// The load's error.
    pub async fn prefetch_model(&self, name: &str) -> Result<()> {
        self.0.models.prefetch(name).await
    }

    /// Does what is to be done without being asked, until the future is dropped.
    pub async fn keep_house(&self) {
        self.0.models.keep_house().await;
    }

    /// Sees where queues pay for more copies of their model as of `now`, as the house does once a second.
    pub fn spread_copies(&self, now: Instant) {
        self.0.models.spread(now);
    }

    /// What is where.
    #[must_use]
    pub fn residency(&self, query: &ResidencyQuery) -> ResidencyPage {
        self.0.models.residency(query, &*self.0.monitor)
    }

    /// Where one model is; `None` where nothing is known of it here.
    #[must_use]
    pub fn model_residency(&self, name: &str) -> Option<ModelResidency> {
        self.0.models.model_residency(name)
    }

    /// Why a model is where it is.
    ///
    /// # Errors
    /// `NotFound` for a model that is neither here nor in the repository.
    pub async fn explain(&self, name: &str) -> Result<Explanation> {
        self.0.models.explain(name).await
    }

    /// The models of the repository and their states.
    ///
    /// # Errors
    /// `RepositoryFailed` if the repository cannot be read.
    pub async fn repository_index(&self) -> Result<Vec<IndexEntry>> {
        self.0.models.index().await
    }

    /// The versions of one model that are in memory, ascending.
    #[must_use]
    pub fn versions_of(&self, name: &str) -> Vec<Arc<LoadedVersion>> {
        self.0.models.resident_or_asleep(name).map(|model| model.versions().to_vec()).unwrap_or_default()
    }

    /// The names of the models in memory, in no order.
    #[must_use]
    pub fn resident_names(&self) -> Vec<Arc<str>> {
        self.0.models.resident_names()
    }

    /// Every version in memory, by name and version.
    #[must_use]
    pub fn resident_versions(&self) -> Vec<Arc<LoadedVersion>> {
        let mut versions: Vec<_> =
            self.0.models.all_resident().iter().flat_map(|model| model.versions().to_vec()).collect();
        versions.sort_by(|one, other| one.id.cmp(&other.id));
        versions
    }

    /// The backends, and why some cannot be used.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendStatus> {
        let status = |(name, entry): (&'static str, &Entry)| BackendStatus {
            name,
            unavailable: entry.unavailable().map(Error::report),
        };
        self.0.models.loader().backends.iter().map(status).collect()
    }

    /// The regions that clients have registered.
    #[must_use]
    pub fn shared_memory(&self) -> &SharedMemory {
        &self.0.shared_memory
    }

    // === inference ===

    /// Checks the request against the model and runs it.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor that is wrong, `Overloaded`, `DeadlineExceeded`, or the runtime's error.
    pub async fn infer(
        &self,
        model: &ModelHandle,
        request: InferenceRequest,
        arrived: Instant,
    ) -> Result<InferenceResponse> {
        let begin = self.is_observed().then(Instant::now);
        let answered = self.infer_at(model, request, arrived, 0).await;
        if let Some(begin) = begin {
            self.observe_invocation(arrived, begin, answered.as_ref().err());
        }
        answered
    }

    /// The same for a step in as many ensembles as `depth` says.
    async fn infer_at(
        &self,
        model: &ModelHandle,
        request: InferenceRequest,
        arrived: Instant,
        depth: usize,
    ) -> Result<InferenceResponse> {
        let Some(trace) = request.trace.clone() else { return self.answer(model, request, arrived, depth).await };
        trace_begin(&trace, model, &request);
        let answered = self.answer(model, request, arrived, depth).await;
        trace_end(&trace, &answered);
        answered
    }

    async fn answer(
        &self,
        model: &ModelHandle,
        request: InferenceRequest,
        arrived: Instant,
        depth: usize,
    ) -> Result<InferenceResponse> {
        let id = request.id.clone();
        let parameters = kept_parameters(model, &request);
        let work = prepare(model, request, arrived).inspect_err(|_| {
            model.statistics.record_failure(FailureReason::Other, arrived.elapsed());
        })?;
        let mut outputs = match &model.engine {
            Engine::Ensemble(composition) => {
                let ensemble = (model.version(), Arc::clone(composition));
                Passage::new(self, ensemble, work, parameters, depth)?.once().await?
            }
            Engine::Queue(queue) => match &model.responses {
                Some(responses) => infer_cached(model, queue, responses, &parameters, work).await?,
                None => queue.infer(work).await?,
            },
        };
        restore_shapes(model, &mut outputs)?;
        Ok(InferenceResponse { model: model.id.clone(), id, parameters: Vec::new(), outputs, last: true })
    }

    /// Checks the request against the model and runs it, for a caller that takes any number of answers. The handle is held
    /// until the model has given the last one; what was not read yet does not keep the model in memory.
    ///
    /// # Errors
    /// As [`InferenceServer::infer`], where nothing was answered yet; later errors are items of the answers.
    pub async fn infer_stream(
        &self,
        model: ModelHandle,
        request: InferenceRequest,
        arrived: Instant,
    ) -> Result<Responses> {
        if !model.config.decoupled {
            return self.infer(&model, request, arrived).await.map(Responses::single);
        }
        let answers = self.infer_stream_at(model, request, arrived, 0).await;
        match &answers {
            Ok(_) => self.observe_stream(),
            Err(error) => self.observe_failure(error),
        }
        answers
    }

    /// The same for a step in as many ensembles as `depth` says.
    async fn infer_stream_at(
        &self,
        model: ModelHandle,
        request: InferenceRequest,
        arrived: Instant,
        depth: usize,
    ) -> Result<Responses> {
        if !model.config.decoupled {
            return self.infer_at(&model, request, arrived, depth).await.map(Responses::single);
        }
        let (id, trace) = (request.id.clone(), request.trace.clone());
        let parameters = kept_parameters(&model, &request);
        if let Some(trace) = &trace {
            // It ends with the last of its answers, or where they are dropped.
            trace_begin(trace, &model, &request);
        }
        let work = prepare(&model, request, arrived).inspect_err(|_| {
            model.statistics.record_failure(FailureReason::Other, arrived.elapsed());
        })?;
        let version = model.version();
        match &version.engine {
            Engine::Ensemble(composition) => {
                let ensemble = (Arc::clone(&version), Arc::clone(composition));
                let passage = Passage::new(self, ensemble, work, parameters, depth)?;
                Ok(Responses::passing(passage, model, id, trace))
            }
            Engine::Queue(queue) => {
                let answers = queue.infer_stream(work, model)?;
                Ok(Responses::many(answers, version, id, trace))
            }
        }
    }
}

/// A model that came with an ensemble is that one's alone.
fn by_its_own_name(handle: ModelHandle, name: &str) -> Result<ModelHandle> {
    if handle.is_part() {
        return Err(Error::not_found(format!("Request for unknown model: '{name}' is not found")));
    }
    Ok(handle)
}

/// The parameters of a request, where they matter once it is checked.
fn kept_parameters(model: &LoadedVersion, request: &InferenceRequest) -> Parameters {
    let wanted = model.responses.is_some() || model.queue().is_none();
    if wanted { request.parameters.clone() } else { Parameters::new() }
}
