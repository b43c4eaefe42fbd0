//! A model's instance groups as members of its queue: how many instances each has, and their part of the device's time.

use std::sync::Arc;

use super::loader::DevicePlace;
use crate::backend::Model;
use crate::error::{Error, Result};
use crate::model_config::{InstanceGroup, ModelConfig};
use crate::scheduler::queue::Member;
use crate::scheduler::turns::{ResourceName, Share};

/// The most instances of one version.
const MAX_INSTANCES: usize = 1024;

/// How many instances a configuration asks for, or as many as the device has threads.
///
/// # Errors
/// `InvalidArgument` for more than are made.
pub(super) fn count(config: &ModelConfig, place: &DevicePlace) -> Result<usize> {
    let asked = config.instance_groups.iter().map(|group| group.count as usize).sum();
    match asked {
        0 => Ok(place.threads.min(MAX_INSTANCES)),
        1..=MAX_INSTANCES => Ok(asked),
        more => {
            Err(Error::invalid(format!("instance_group asks for {more} instances, at most {MAX_INSTANCES} are made")))
        }
    }
}

/// The groups of a normalised configuration.
///
/// # Errors
/// `InvalidArgument` where a run needs more of a resource than there is.
pub(super) fn members(config: &ModelConfig, place: &DevicePlace, model: &Arc<dyn Model>) -> Result<Vec<Member>> {
    let member = |group: &InstanceGroup| {
        Ok(Member {
            model: Arc::clone(model),
            instances: group.count as usize,
            executor: place.executor.clone(),
            share: Arc::new(share(group, place)?),
        })
    };
    config.instance_groups.iter().map(member).collect()
}

fn share(group: &InstanceGroup, place: &DevicePlace) -> Result<Share> {
    let limiter = &group.rate_limiter;
    let Some(resources) = &place.resources else { return Ok(Share::new(limiter.priority, Vec::new())) };
    let need = |resource: &crate::model_config::RateLimiterResource| {
        let device = (!resource.global).then(|| place.device());
        (ResourceName { name: resource.name.clone(), device }, u64::from(resource.count))
    };
    let needs: Vec<_> = limiter.resources.iter().map(need).collect();
    resources.admit(&needs)?;
    Ok(Share::new(limiter.priority, needs))
}
