//! `InferenceServer`: what the server does, in the words of no protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use compact_str::CompactString;
use smallvec::SmallVec;

use crate::backend::registry::Entry;
use crate::device::monitor::DeviceMonitor;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::DeviceId;
use crate::inference::{Deadline, InferenceRequest, InferenceResponse, NamedTensor, NamedTensors, Version};
use crate::lifecycle::handle::{LoadedVersion, ModelHandle, TensorMetadata};
use crate::lifecycle::residency::{Explanation, ModelResidency, ResidencyPage, ResidencyQuery};
use crate::lifecycle::{IndexEntry, ModelManager};
use crate::metrics::defs;
use crate::metrics::prometheus::{ModelSeries, ServerMetrics};
use crate::metrics::statistics::FailureReason;
use crate::model_config::ModelConfig;
use crate::scheduler::queue::Work;
use crate::tensor::Shape;

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
    /// Whether the models asked for at start have been tried.
    started: AtomicBool,
    draining: AtomicBool,
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
    /// A server over the models.
    #[must_use]
    pub fn new(models: ModelManager, metrics: Arc<ServerMetrics>, monitor: Arc<dyn DeviceMonitor>) -> Self {
        Self(Arc::new(Inner {
            models,
            metrics,
            monitor,
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }))
    }

    // === health ===

    /// Whether the server can serve: what was asked for at start has been tried, and it is not on its way out. One bad
    /// model does not make it unready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.started.load(Ordering::Acquire) && !self.is_draining()
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

    /// Says that the server is on its way out: not ready any more, and answering what comes nevertheless.
    pub fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    // === models ===

    /// A handle on a model, loaded if it must be and may be.
    ///
    /// # Errors
    /// As [`ModelManager::acquire`].
    pub async fn model(&self, name: &str, version: Option<Version>, deadline: Option<Deadline>) -> Result<ModelHandle> {
        self.0.models.acquire(name, version, deadline).await
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
        self.0.models.acquire_for(name, None, wanted, deadline).await
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
        self.0.models.resident(name, version)?.ok_or_else(|| Error::not_found(text))
    }

    /// Loads a model, or a fresh copy of it; `config` stands in for the repository's configuration.
    ///
    /// # Errors
    /// The load's error.
    pub async fn load_model(&self, name: &str, config: Option<ModelConfig>) -> Result<()> {
        self.0.models.load(name, config).await
    }

    /// Unloads a model; its memory is free when this returns.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub async fn unload_model(&self, name: &str) -> Result<()> {
        self.0.models.unload(name).await
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
        self.0.models.resident_model(name).map(|model| model.versions().to_vec()).unwrap_or_default()
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
            unavailable: match entry {
                Entry::Available(_) => None,
                Entry::Unavailable(error) => Some(error.report()),
            },
        };
        self.0.models.loader().backends.iter().map(status).collect()
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
        let id = request.id.clone();
        let work = prepare(model, request, arrived).inspect_err(|_| {
            model.statistics.record_failure(FailureReason::Other, arrived.elapsed());
        })?;
        let mut outputs = model.queue.infer(work).await?;
        for output in &mut outputs {
            let metadata = model.outputs.iter().find(|metadata| metadata.name == output.name);
            if let Some(TensorMetadata { reshape: Some(reshape), dims, .. }) = metadata {
                restore_shape(output, dims, reshape, model.max_batch_size > 0)?;
            }
        }
        Ok(InferenceResponse { model: model.id.clone(), id, parameters: Vec::new(), outputs })
    }

    // === metrics ===

    /// The Prometheus page.
    #[must_use]
    pub fn metrics_page(&self) -> String {
        if let Ok(memory) = self.0.monitor.memory(DeviceId::Cpu) {
            #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
            for (family, bytes) in [(defs::CPU_MEMORY_TOTAL, memory.total), (defs::CPU_MEMORY_USED, memory.used)] {
                self.0.metrics.set(family, bytes as f64);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
        for gpu in self.0.monitor.gpus() {
            if let Ok(memory) = self.0.monitor.memory(DeviceId::Gpu(gpu.index)) {
                let labels = [("gpu_uuid", gpu.uuid)];
                self.0.metrics.set_labelled(defs::GPU_MEMORY_TOTAL, &labels, memory.total as f64);
                self.0.metrics.set_labelled(defs::GPU_MEMORY_USED, &labels, memory.used as f64);
            }
        }
        self.0.models.count_uses();
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
        for book in self.0.models.books(&*self.0.monitor) {
            let device = book.device.map_or_else(String::new, |device| device.to_string());
            let labels = [("tier", book.tier.name().to_owned()), ("device", device)];
            self.0.metrics.set_labelled(defs::TIER_LIMIT, &labels, book.limit as f64);
            self.0.metrics.set_labelled(defs::TIER_BOOKED, &labels, book.booked as f64);
            self.0.metrics.set_labelled(defs::TIER_MODELS, &labels, book.models as f64);
        }
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
        self.0.metrics.loads_waiting.set(self.0.models.loads_waiting() as f64);
        let versions = self.resident_versions();
        let series: Vec<_> = versions
            .iter()
            .map(|loaded| ModelSeries {
                model: &loaded.id.name,
                version: loaded.id.version,
                statistics: &loaded.statistics,
                pending: loaded.queue.pending(),
                load_seconds: loaded.load_duration.as_secs_f64(),
            })
            .collect();
        self.0.metrics.render(&series)
    }
}

/// Checks a request against a model and puts its tensors in order. The texts are Triton's where its clients' tests pin
/// them.
fn prepare(model: &LoadedVersion, request: InferenceRequest, arrived: Instant) -> Result<Work> {
    let id = if request.id.is_empty() { "<id_unknown>" } else { request.id.as_str() };
    let wrong = |text: String| Error::invalid(format!("[request id: {id}] {text}"));
    let name = &model.id.name;
    let mut given = request.inputs;
    let mut inputs = NamedTensors::new();
    let mut batch_size = None;
    for metadata in &model.inputs {
        let Some(at) = given.iter().position(|input| input.name == metadata.name) else {
            if metadata.optional {
                continue;
            }
            let unknown = given.iter().find(|input| model.inputs.iter().all(|known| known.name != input.name));
            return Err(match unknown {
                // With as many inputs as the model has, one is misnamed rather than missing.
                Some(unknown) if given.len() + inputs.len() >= model.inputs.len() => {
                    wrong(format!("unexpected inference input '{}' for model '{name}'", unknown.name))
                }
                _ => wrong(missing_input(model, &given, &inputs)),
            });
        };
        let input = given.remove(at);
        let tensor = input.tensor;
        if tensor.data_type() != metadata.data_type {
            return Err(wrong(format!(
                "inference input '{}' data-type is '{}', but model '{name}' expects '{}'",
                metadata.name,
                tensor.data_type(),
                metadata.data_type
            )));
        }
        if model.max_batch_size > 0 {
            check_batch(model, &metadata.name, tensor.shape(), &mut batch_size).map_err(wrong)?;
        }
        if !tensor.shape().matches(&metadata.dims) {
            let note = if model.max_batch_size > 0 {
                "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to \
                 each input shape. If you want to specify the full shape including the batch dim in your input dims config, \
                 try setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
            } else {
                ""
            };
            return Err(wrong(format!(
                "unexpected shape for input '{}' for model '{name}'. Expected {}, got {}. {note}",
                metadata.name,
                Shape::new(&metadata.dims),
                tensor.shape(),
            )));
        }
        let tensor = match &metadata.reshape {
            None => tensor,
            Some(reshape) => {
                let shape = reshaped(tensor.shape(), &metadata.dims, reshape, model.max_batch_size > 0)
                    .ok_or_else(|| Error::internal(format!("reshape of input '{}' does not fit", metadata.name)))?;
                tensor.reshaped(shape)?
            }
        };
        inputs.push(NamedTensor { name: input.name, tensor });
    }
    if let Some(extra) = given.first() {
        let known = model.inputs.iter().any(|metadata| metadata.name == extra.name);
        return Err(wrong(if known {
            format!("input '{}' already exists in request", extra.name)
        } else {
            format!("unexpected inference input '{}' for model '{name}'", extra.name)
        }));
    }
    let outputs = wanted_outputs(model, &request.outputs).map_err(wrong)?;
    let deadline = request.deadline;
    let own = (!model.default_timeout.is_zero()).then(|| Deadline::after(arrived, model.default_timeout)).flatten();
    let deadline = match (deadline, own) {
        (Some(deadline), Some(own)) => Some(deadline.min(own)),
        (deadline, own) => deadline.or(own),
    };
    Ok(Work { inputs, outputs, batch_size: batch_size.unwrap_or(1).max(1), deadline, arrived })
}

/// The batch size of an input: at most the model's, and the same for all inputs.
fn check_batch(model: &LoadedVersion, input: &str, shape: &Shape, batch_size: &mut Option<u64>) -> Result<(), String> {
    let name = &model.id.name;
    let Some(&size) = shape.dims().first() else {
        return Err(format!("input '{input}' has no shape but model requires batch dimension for '{name}'"));
    };
    let size = u64::try_from(size).unwrap_or(0);
    if size > model.max_batch_size {
        return Err(format!("inference request batch-size must be <= {} for '{name}'", model.max_batch_size));
    }
    if batch_size.is_some_and(|first| first != size) {
        return Err(format!("input '{input}' batch size does not match other inputs for '{name}'"));
    }
    *batch_size = Some(size);
    Ok(())
}

/// The outputs asked for, all where none is named, in the model's order whatever the request's.
fn wanted_outputs(model: &LoadedVersion, named: &[CompactString]) -> Result<SmallVec<[usize; 4]>, String> {
    if let Some(unknown) = named.iter().find(|name| model.outputs.iter().all(|output| output.name != **name)) {
        return Err(format!("unexpected inference output '{unknown}' for model '{}'", model.id.name));
    }
    let indexes = model.outputs.iter().zip(&model.output_indexes);
    let wanted = indexes.filter(|(output, _)| named.is_empty() || named.contains(&output.name));
    Ok(wanted.map(|(_, index)| *index).collect())
}

fn missing_input(model: &LoadedVersion, rest: &[NamedTensor], taken: &[NamedTensor]) -> String {
    let list = |names: Vec<&str>| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(",");
    let got: Vec<&str> = taken.iter().chain(rest).map(|input| input.name.as_str()).collect();
    let missing: Vec<&str> = model
        .inputs
        .iter()
        .filter(|metadata| !metadata.optional)
        .map(|metadata| metadata.name.as_str())
        .filter(|name| !got.contains(name))
        .collect();
    format!(
        "expected {} inputs but got {} inputs for model '{}'. Got input(s) [{}], but missing required input(s) [{}]. \
         Please provide all required input(s).",
        model.inputs.len(),
        got.len(),
        model.id.name,
        list(got),
        list(missing)
    )
}

/// The shape the runtime is given: the batch dimension, then `reshape` with each -1 taking, in order, what stands at the
/// -1s of `dims`.
fn reshaped(shape: &Shape, dims: &[i64], reshape: &[i64], batched: bool) -> Option<Shape> {
    let skip = usize::from(batched);
    let mut free = shape.dims().iter().zip(dims).skip(skip).filter(|(_, dim)| **dim == -1).map(|(size, _)| *size);
    let mut result: Shape = shape.dims().iter().take(skip).copied().collect();
    for &dim in reshape {
        result.push(if dim == -1 { free.next()? } else { dim });
    }
    (result.element_count() == shape.element_count()).then_some(result)
}

/// Gives an output the shape its configuration promises: the batch dimension, then `dims` with each -1 taking, in order,
/// what the runtime gave at the -1s of `reshape`.
fn restore_shape(output: &mut NamedTensor, dims: &[i64], reshape: &[i64], batched: bool) -> Result<()> {
    let skip = usize::from(batched);
    let runtime = output.tensor.shape().dims();
    let given = runtime.iter().skip(skip).zip(reshape).filter(|(_, dim)| **dim == -1).map(|(size, _)| *size);
    let mut free = runtime.iter().take(skip).copied().chain(given);
    let shape: Option<Shape> = dims.iter().map(|&dim| if dim == -1 { free.next() } else { Some(dim) }).collect();
    let restored = shape.and_then(|shape| output.tensor.clone().reshaped(shape).ok());
    output.tensor = restored.ok_or_else(|| {
        Error::new(
            ErrorKind::BackendFailed,
            format!(
                "output '{}' came out of the model in shape {}, not in its reshape",
                output.name,
                output.tensor.shape()
            ),
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reshape_keeps_the_batch_and_hands_on_free_dimensions() {
        let shape = Shape::new(&[8, 5, 1]);
        assert_eq!(reshaped(&shape, &[-1, -1, 1], &[-1], true), Some(Shape::new(&[8, 5])));
        assert_eq!(reshaped(&Shape::new(&[4, 1]), &[-1, 1], &[], true), Some(Shape::new(&[4])));
        assert_eq!(reshaped(&Shape::new(&[6]), &[6], &[2, 3], false), Some(Shape::new(&[2, 3])));
        assert_eq!(reshaped(&Shape::new(&[6]), &[6], &[2, 2], false), None);
    }

    #[test]
    fn an_output_gets_its_configured_shape_back_wherever_the_reshape_put_the_free_dimension() {
        let output = |shape: &[i64]| {
            let elements = usize::try_from(shape.iter().product::<i64>()).unwrap();
            let tensor = crate::tensor::Tensor::from_vec(Shape::new(shape), vec![0_u8; elements]).unwrap();
            NamedTensor { name: "y".into(), tensor }
        };
        let mut moved = output(&[1, 2, 3, 2]);
        restore_shape(&mut moved, &[-1, -1, 4], &[2, -1, 2], true).unwrap();
        assert_eq!(moved.tensor.shape().dims(), [1, 3, 4]);
        let mut scalar = output(&[5]);
        restore_shape(&mut scalar, &[-1, 1], &[], true).unwrap();
        assert_eq!(scalar.tensor.shape().dims(), [5, 1]);
        let mut wrong = output(&[7]);
        assert!(restore_shape(&mut wrong, &[6], &[2, 3], false).is_err());
    }
}
