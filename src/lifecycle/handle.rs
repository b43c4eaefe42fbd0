//! A loaded version and the handle that keeps it loaded.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use compact_str::CompactString;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::inference::{ModelId, Version};
use crate::metrics::statistics::ModelStatistics;
use crate::model_config::ModelConfig;
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
    /// Its complete configuration.
    pub config: Arc<ModelConfig>,
    /// What callers may send, in the order of the configuration.
    pub inputs: Vec<TensorMetadata>,
    /// What callers get, in the order of the configuration.
    pub outputs: Vec<TensorMetadata>,
    /// For each of `outputs`, its index in the runtime's signature.
    pub output_indexes: SmallVec<[usize; 4]>,
    /// The largest batch; 0 where tensors have no batch dimension of the server's.
    pub max_batch_size: u64,
    /// How long a request may wait where neither it nor the server says less; zero for no limit of the model's.
    pub default_timeout: Duration,
    /// Where it runs.
    pub device: DeviceId,
    /// Its queue and instances.
    pub queue: Arc<ModelQueue>,
    /// What it counts.
    pub statistics: Arc<ModelStatistics>,
    /// How long its load took.
    pub load_duration: Duration,
    /// When it became ready.
    pub loaded_at: SystemTime,
    pub(super) pins: PinCount,
}

impl LoadedVersion {
    /// How many handles there are.
    #[must_use]
    pub fn pins(&self) -> usize {
        self.pins.count()
    }

    /// Waits until the last handle is gone and frees the model, on a thread that may block.
    pub(super) async fn dispose(self: Arc<Self>) {
        self.pins.retire();
        self.pins.drained().await;
        let remains = self.queue.close().await;
        let freed = tokio::task::spawn_blocking(move || drop(remains)).await;
        if let Err(error) = freed {
            tracing::error!(model = %self.id, %error, "freeing the model failed");
        }
    }
}

/// A pinned version: while a handle lives, the model stays in memory. Dropping it is all the bookkeeping there is.
pub struct ModelHandle(Arc<LoadedVersion>);

impl ModelHandle {
    fn pin(version: &Arc<LoadedVersion>) -> Option<Self> {
        version.pins.try_pin().then(|| Self(Arc::clone(version)))
    }
}

impl Deref for ModelHandle {
    type Target = LoadedVersion;

    fn deref(&self) -> &LoadedVersion {
        &self.0
    }
}

impl Drop for ModelHandle {
    fn drop(&mut self) {
        self.0.pins.unpin();
    }
}

/// The loaded versions of a model, ascending; at least one.
pub struct Resident {
    pub(super) versions: SmallVec<[Arc<LoadedVersion>; 1]>,
}

impl Resident {
    /// The loaded versions, ascending.
    #[must_use]
    pub fn versions(&self) -> &[Arc<LoadedVersion>] {
        &self.versions
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
