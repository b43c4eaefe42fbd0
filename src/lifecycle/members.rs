//! A model's instance groups as members of its queue: how many instances each has, and their part of the device's time.

use std::sync::Arc;

use super::loader::DevicePlace;
use super::placement::{Placement, Site};
use crate::backend::Model;
use crate::error::{Error, Result};
use crate::model_config::{InstanceGroup, ModelConfig};
use crate::scheduler::queue::Member;
use crate::scheduler::turns::{ResourceName, Share};

/// The most instances of one version.
const MAX_INSTANCES: usize = 1024;

/// Checks that a placement asks for no more instances than are made. `unwritten` of them are on a device where no group is
/// written.
///
/// # Errors
/// `InvalidArgument` for more than that.
pub(super) fn check_count(groups: &[InstanceGroup], placement: &Placement, unwritten: usize) -> Result<()> {
    let count = |at: usize| groups.get(at).map_or(unwritten, |group| group.count as usize);
    let each = placement.groups.iter().enumerate().map(|(at, devices)| count(at).saturating_mul(devices.len()));
    match each.fold(0_usize, usize::saturating_add) {
        ..=MAX_INSTANCES => Ok(()),
        more => {
            Err(Error::invalid(format!("instance_group asks for {more} instances, at most {MAX_INSTANCES} are made")))
        }
    }
}

/// How many instances a version has on a device where no group is written: as many as the device has threads.
pub(super) fn unwritten(place: &DevicePlace) -> usize {
    place.threads.min(MAX_INSTANCES)
}

/// The groups of a complete configuration that run at a site, over the model that was loaded there.
///
/// # Errors
/// `InvalidArgument` where a run needs more of a resource than there is.
pub(super) fn members(
    config: &ModelConfig,
    site: &Site,
    place: &DevicePlace,
    model: &Arc<dyn Model>,
) -> Result<Vec<Member>> {
    groups_at(config, site).map(|group| member(group, place, model)).collect()
}

/// The groups of a complete configuration that run at a site.
pub(super) fn groups_at<'a>(config: &'a ModelConfig, site: &'a Site) -> impl Iterator<Item = &'a InstanceGroup> {
    site.groups.iter().filter_map(|at| config.instance_groups.get(*at))
}

/// One group as a member of a queue.
///
/// # Errors
/// As [`members`].
pub(super) fn member(group: &InstanceGroup, place: &DevicePlace, model: &Arc<dyn Model>) -> Result<Member> {
    Ok(Member {
        model: Arc::clone(model),
        instances: group.count as usize,
        executor: place.executor.clone(),
        share: Arc::new(share(group, place)?),
    })
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
