//! What a configuration says of batching, in the form the batcher uses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::model_config::{ModelConfig, QueuePolicy, TimeoutAction};

/// The parameter with which a model gives its time from arrival to answer, in place of a constant delay.
const BUDGET: &str = "latency_budget_us";
/// A budget of an hour is one too many zeros.
const LONGEST_BUDGET: Duration = Duration::from_secs(3600);

/// How the requests of a model are batched and bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The largest batch, in items; 0: one request a batch, whatever its size.
    pub max_items: u32,
    /// Batch sizes that run as soon as they can be cut, ascending; empty for the largest alone.
    pub preferred: Vec<u32>,
    /// How long a request may wait for others.
    pub delay: Duration,
    /// In place of `delay`: the time from arrival to answer that a budget keeps.
    pub budget: Option<Duration>,
    /// How many priorities there are, 1 being the highest; 0 for none.
    pub levels: u64,
    /// The level of requests that name none, or one that does not exist.
    pub default_level: u64,
    /// The policy of levels without one of their own.
    pub default_policy: QueuePolicy,
    /// Policies by level.
    pub policies: BTreeMap<u64, QueuePolicy>,
    /// How many requests may wait over all levels.
    pub capacity: usize,
}

/// The place of a request in the queue, and how long it may keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Its level; lower ones go first.
    pub level: u64,
    /// When it is refused.
    pub reject_at: Option<Instant>,
    /// When it goes behind all others of its level.
    pub delay_at: Option<Instant>,
    /// Whether it went there.
    pub(super) late: bool,
}

impl Rules {
    /// The rules of a checked configuration, for a queue of at most `capacity` requests. Without `dynamic_batching`
    /// every request runs alone, in the order they come.
    ///
    /// # Errors
    /// `InvalidArgument` if `latency_budget_us` is not a time, or cannot be kept by this model.
    pub fn of(config: &ModelConfig, capacity: usize) -> Result<Self> {
        let budget = budget(config)?;
        let Some(batching) = &config.dynamic_batching else { return Ok(Self { capacity, ..Self::default() }) };
        let max_items = config.max_batch_size;
        let mut preferred = batching.preferred_batch_sizes.clone();
        if preferred.is_empty() && max_items > 0 {
            preferred.push(max_items);
        }
        preferred.sort_unstable();
        preferred.dedup();
        Ok(Self {
            max_items,
            preferred,
            delay: batching.max_queue_delay,
            budget,
            levels: batching.priority_levels,
            default_level: batching.default_priority_level,
            default_policy: batching.default_queue_policy.clone(),
            policies: batching.priority_queue_policies.clone(),
            capacity,
        })
    }

    /// Where and for how long a request waits. `own_timeout` is the one it brings; it counts only where its policy has
    /// `allow_timeout_override`, and only if it is the shorter one. Other than in Triton it counts also where the policy
    /// has no default.
    #[must_use]
    pub fn admit(&self, priority: u64, own_timeout: Option<Duration>, arrived: Instant) -> Admission {
        let level = if (1..=self.levels).contains(&priority) { priority } else { self.default_level };
        let policy = self.policy(level);
        let default = Some(policy.default_timeout).filter(|timeout| !timeout.is_zero());
        let own = own_timeout.filter(|timeout| policy.allow_timeout_override && !timeout.is_zero());
        // A time that no clock can show never comes.
        let over = default.into_iter().chain(own).min().and_then(|timeout| arrived.checked_add(timeout));
        let (reject_at, delay_at) = match policy.timeout_action {
            TimeoutAction::Reject => (over, None),
            TimeoutAction::Delay => (None, over),
        };
        Admission { level, reject_at, delay_at, late: false }
    }

    /// The policy of a level.
    #[must_use]
    pub fn policy(&self, level: u64) -> &QueuePolicy {
        self.policies.get(&level).unwrap_or(&self.default_policy)
    }

    /// Whether requests never share a batch.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.max_items == 0
    }

    /// The size at which nothing waits for more.
    pub(super) fn largest_preferred(&self) -> u64 {
        u64::from(self.preferred.last().copied().unwrap_or(self.max_items))
    }
}

fn budget(config: &ModelConfig) -> Result<Option<Duration>> {
    let Some(text) = config.parameters.get(BUDGET) else { return Ok(None) };
    let budget = text.trim().parse().ok().map(Duration::from_micros);
    let Some(budget) = budget.filter(|budget| !budget.is_zero() && *budget <= LONGEST_BUDGET) else {
        let most = LONGEST_BUDGET.as_micros();
        let text = format!("parameter '{BUDGET}' must be a number of microseconds from 1 to {most}, got '{text}'");
        return Err(Error::invalid(text));
    };
    let Some(batching) = &config.dynamic_batching else {
        return Err(Error::invalid(format!(
            "parameter '{BUDGET}' needs batches to choose the delay of: add 'dynamic_batching {{ }}'"
        )));
    };
    if !batching.max_queue_delay.is_zero() {
        return Err(Error::invalid(format!(
            "parameter '{BUDGET}' and max_queue_delay_microseconds exclude each other: the budget chooses the delay"
        )));
    }
    if config.max_batch_size < 2 {
        return Err(Error::invalid(format!(
            "parameter '{BUDGET}' needs a max_batch_size of at least 2, got {}",
            config.max_batch_size
        )));
    }
    Ok(Some(budget))
}
