//! A loaded version and the handle that keeps it loaded.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use compact_str::CompactString;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::mpsc::UnboundedSender;

use super::composition::Composition;
use super::copies::DeviceCopy;
use super::files::KeptFiles;
use super::loader::Loader;
use super::residency::{Retention, Tier};
use super::{Name, parts};
use crate::cache::memory_pool::Uses;
use crate::cache::response::Responses;
use crate::config::sagemaker::InferenceType;
use crate::error::{Error, Result};
use crate::inference::{ModelId, Version};
use crate::metrics::statistics::ModelStatistics;
use crate::model_config::ModelConfig;
use crate::repository::manifest::Fingerprint;
use crate::scheduler::queue::ModelQueue;
use crate::sync::PinCount;
use crate::tensor::DataType;

/// An input or output as callers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMetadata {
    /// Its name.
    pub name: CompactString,
    /// Its element type.
    pub data_type: DataType,
    /// Its dimensions on the wire, the batch dimension included; -1 for any.
    pub dims: Vec<i64>,
    /// The dimensions the runtime wants instead, where the configuration reshapes; without the batch dimension.
    pub reshape: Option<Vec<i64>>,
    /// Whether it may be left out.
    pub optional: bool,
    /// The names of an output's classes, by index.
    pub labels: Vec<String>,
}

/// A version of a model, in memory and able to answer.
pub struct LoadedVersion {
    /// Its name and number.
    pub id: ModelId,
    /// Its complete configuration as it was loaded; its `instance_group` may have changed since.
    pub config: Arc<ModelConfig>,
    /// The same with the instance groups of now.
    pub(super) now: ArcSwap<ModelConfig>,
    /// What callers may send, in the order of the configuration.
    pub inputs: Vec<TensorMetadata>,
    /// What callers get, in the order of the configuration.
    pub outputs: Vec<TensorMetadata>,
    /// For each of `outputs`, its index in the runtime's signature.
    pub output_indexes: SmallVec<[usize; 4]>,
    /// The largest batch; 0 where tensors have no batch dimension of the server's.
    pub max_batch_size: u64,
    /// How the bodies of its invocations are read on SageMaker's port, where its configuration says so.
    pub inference_type: Option<InferenceType>,
    /// What answers.
    pub engine: Engine,
    /// What it counts.
    pub statistics: Arc<ModelStatistics>,
    /// Its answers, where they are kept.
    pub responses: Option<Arc<Responses>>,
    /// How long its load took.
    pub load_duration: Duration,
    /// How much of that its warm-up took.
    pub(super) warm_up: Duration,
    /// When it became ready.
    pub loaded_at: SystemTime,
    pub(super) pins: PinCount,
    pub(super) home: Arc<Home>,
}

/// What answers the requests of a version.
pub enum Engine {
    /// A queue, and the instances of a backend's model.
    Queue(Arc<ModelQueue>),
    /// Other models, one after the other or beside each other.
    Ensemble(Arc<Composition>),
}

/// What the versions of a model in memory share: who is told of their uses.
pub(super) struct Home {
    pub(super) uses: Arc<Uses>,
    /// Told when a model falls idle that is not to be kept.
    pub(super) dismiss: Option<(Name, UnboundedSender<Name>)>,
}

impl Home {
    fn idle(&self) {
        self.uses.idle();
        if let Some((name, dismiss)) = &self.dismiss {
            // Nobody keeps house any more when the server ends.
            drop(dismiss.send(Arc::clone(name)));
        }
    }
}

impl LoadedVersion {
    /// How many handles there are.
    #[must_use]
    pub fn pins(&self) -> usize {
        self.pins.count()
    }

    /// Its queue; an ensemble has none.
    #[must_use]
    pub const fn queue(&self) -> Option<&Arc<ModelQueue>> {
        match &self.engine {
            Engine::Queue(queue) => Some(queue),
            Engine::Ensemble(_) => None,
        }
    }

    /// Whether its instances may come and go.
    pub(super) fn is_flexible(&self) -> bool {
        self.queue().is_some_and(|queue| queue.is_flexible())
    }

    /// Requests that wait for an instance.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue().map_or(0, |queue| queue.pending())
    }

    /// Whether it came with another model, an ensemble, and is that one's alone.
    #[must_use]
    pub fn is_part(&self) -> bool {
        parts::is_part(&self.id.name)
    }

    /// Its complete configuration, with the instance groups that it has now.
    #[must_use]
    pub fn config_now(&self) -> Arc<ModelConfig> {
        self.now.load_full()
    }

    /// Waits until the last handle is gone and frees the model, on a thread that may block.
    pub(super) async fn dispose(self: Arc<Self>, loader: &Loader) {
        self.pins.retire();
        let queue = self.queue();
        if let Some(queue) = queue {
            queue.hasten();
        }
        self.pins.drained().await;
        let remains = match queue {
            Some(queue) => Some(queue.close().await),
            None => None,
        };
        // Memory that comes back in the middle of a load would be counted for that one.
        let meter = Arc::clone(&loader.meter);
        let responses = self.responses.clone();
        let free = move || {
            drop(remains);
            if let Some(responses) = responses {
                responses.forget();
            }
        };
        let freed = loader.loading.spawn_blocking(move || meter.measure(free)).await;
        if let Err(error) = freed {
            tracing::error!(model = %self.id, %error, "freeing the model failed");
        }
    }
}

/// A pinned version: while a handle lives, the model stays in memory. Dropping it is all the bookkeeping there is.
pub struct ModelHandle {
    version: Arc<LoadedVersion>,
    from: Tier,
    waited: Duration,
}

impl ModelHandle {
    fn pin(version: &Arc<LoadedVersion>) -> Option<Self> {
        let pinned = version.pins.try_pin();
        if pinned {
            version.home.uses.count();
        }
        // Not `then_some`: a handle that is made is a handle that unpins.
        pinned.then(|| Self { version: Arc::clone(version), from: Tier::Device, waited: Duration::ZERO })
    }

    /// The same handle of somebody who had to wait until the model came.
    pub(super) fn after(self, from: Tier, waited: Duration) -> Self {
        let mut handle = self;
        handle.from = from;
        handle.waited = waited;
        handle
    }

    /// Where the model was when it was asked for.
    #[must_use]
    pub const fn from(&self) -> Tier {
        self.from
    }

    /// The version alone, which may be out of memory when it is looked at.
    #[must_use]
    pub fn version(&self) -> Arc<LoadedVersion> {
        Arc::clone(&self.version)
    }

    /// How long its load was waited for.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }
}

impl Deref for ModelHandle {
    type Target = LoadedVersion;

    fn deref(&self) -> &LoadedVersion {
        &self.version
    }
}

impl Drop for ModelHandle {
    fn drop(&mut self) {
        if self.version.pins.unpin() {
            self.version.home.idle();
        }
    }
}

pub(super) type Versions = SmallVec<[Arc<LoadedVersion>; 1]>;

/// The loaded versions of a model, ascending; at least one. Does not change: where copies come or go, another one takes its
/// place in the slot, with the same versions.
pub struct Resident {
    pub(super) versions: Versions,
    /// One a device, in the order of the devices as it was loaded.
    pub(super) copies: Vec<Arc<DeviceCopy>>,
    /// The configuration before it was completed.
    pub(super) source: Arc<ModelConfig>,
    pub(super) fingerprint: Fingerprint,
    /// What its files are but for the text of its configuration, where that is known.
    pub(super) weights: Option<Fingerprint>,
    pub(super) retention: Retention,
    /// Whether it was loaded with a configuration that is not the repository's.
    pub(super) given_config: bool,
    /// Whether the server chose its device, and may choose more.
    pub(super) is_free: bool,
    pub(super) files: Arc<Mutex<Option<KeptFiles>>>,
}

impl Resident {
    /// Handles on any of its versions.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.versions.iter().map(|version| version.pins()).sum()
    }

    /// Whether a sequence of requests has begun that has not ended: what it left in an instance would go with the model.
    #[must_use]
    pub fn has_sequences(&self) -> bool {
        self.versions.iter().filter_map(|version| version.queue()).any(|queue| queue.live_sequences().0 > 0)
    }

    /// Whether anybody counts on it: a request, or a sequence between two of its requests.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use() > 0 || self.has_sequences()
    }

    /// Bytes booked for it, on all devices.
    pub(super) fn booked(&self) -> u64 {
        self.copies.iter().map(|copy| copy.booked()).sum()
    }

    /// Its memory is free: whoever still looks at what it was holds none of it.
    pub(super) fn give_back(&self) {
        for copy in &self.copies {
            copy.give_back();
        }
        drop(self.files.lock().take());
    }

    /// The loaded versions, ascending.
    #[must_use]
    pub fn versions(&self) -> &[Arc<LoadedVersion>] {
        &self.versions
    }

    /// What its versions are made of, where it is an ensemble.
    pub(super) fn compositions(&self) -> impl Iterator<Item = &Composition> {
        self.versions.iter().filter_map(|version| match &version.engine {
            Engine::Queue(_) => None,
            Engine::Ensemble(composition) => Some(&**composition),
        })
    }

    /// The models that came with it.
    pub(super) fn parts(&self) -> BTreeSet<Name> {
        self.compositions().flat_map(Composition::parts).collect()
    }

    /// Pins a version, the latest if none is named. `None` if it is on its way out.
    ///
    /// # Errors
    /// `NotFound` for a version that is not loaded.
    pub(super) fn pin(&self, name: &str, version: Option<Version>) -> Result<Option<ModelHandle>> {
        let found = match version {
            None => self.versions.last(),
            Some(version) => self.versions.iter().find(|loaded| loaded.id.version == version),
        };
        match (found, version) {
            (Some(found), _) => Ok(ModelHandle::pin(found)),
            (None, Some(version)) => {
                Err(Error::not_found(format!("Request for unknown model: '{name}' version {version} is not found")))
            }
            (None, None) => Err(Error::internal(format!("model '{name}' is loaded without a version"))),
        }
    }
}
