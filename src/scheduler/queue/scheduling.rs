//! How a model's requests are scheduled, and on what.

use std::sync::Arc;
use std::time::Duration;

use super::super::answer::READER_PATIENCE;
use super::super::batcher::Rules;
use super::super::executor::ExecutorHandle;
use super::super::layout::Layout;
use super::super::sequence::line::Sequencing;
use super::super::turns::Share;
use crate::backend::Model;
use crate::error::Result;
use crate::model_config::ModelConfig;

/// Names a member of a queue for as long as the queue lives; the next one's is greater.
pub type MemberId = usize;

/// Instances that run at the threads of one device, in turns of one share.
#[derive(Clone)]
pub struct Member {
    /// The model, on that device.
    pub model: Arc<dyn Model>,
    /// How many instances of it, at least one.
    pub instances: usize,
    /// The device's threads.
    pub executor: ExecutorHandle,
    /// Their share of the device's time.
    pub share: Arc<Share>,
}

/// How a model's requests are scheduled.
#[derive(Debug)]
pub struct Scheduling {
    /// What waits, how long, and what runs together.
    pub rules: Rules,
    /// How the tensors of a batch are laid out.
    pub layout: Layout,
    /// Whether answers leave in the order of their requests.
    pub preserve_ordering: bool,
    /// Whether a request may have any number of answers.
    pub decoupled: bool,
    /// How sequences are kept together, where requests come in sequences.
    pub sequences: Option<Sequencing>,
    /// How long a reader of many answers may be behind while others want the model.
    pub patience: Duration,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            layout: Layout::default(),
            preserve_ordering: false,
            decoupled: false,
            sequences: None,
            patience: READER_PATIENCE,
        }
    }
}

impl Scheduling {
    /// What a configuration asks for, on a server that lets `capacity` requests wait where it does not say.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters of the scheduler that are wrong.
    pub fn of(config: &ModelConfig, capacity: usize) -> Result<Self> {
        let mut rules = Rules::of(config, capacity)?;
        if config.decoupled {
            // Each has answers of its own, whenever the model gives them.
            rules.max_items = 0;
        }
        Ok(Self {
            rules,
            layout: Layout::of(config),
            preserve_ordering: config.preserves_ordering(),
            decoupled: config.decoupled,
            ..Self::default()
        })
    }

    /// Each request alone, in the order they come.
    #[must_use]
    pub fn one_by_one(capacity: usize) -> Self {
        Self { rules: Rules { capacity, ..Rules::default() }, ..Self::default() }
    }
}

/// Each instance as a member of its own.
pub(super) fn one_by_one(members: Vec<Member>) -> Vec<Member> {
    let each = members.into_iter().flat_map(|member| {
        let instances = member.instances.max(1);
        std::iter::repeat_n(member, instances)
    });
    each.map(|member| Member { instances: 1, ..member }).collect()
}
