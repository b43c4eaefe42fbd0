//! What a configuration says of sequences, in the form the sequencer uses.

use std::time::Duration;

use crate::model_config::sequence::{SequenceBatching, Strategy};
use crate::scheduler::batcher::Rules;

/// How sequences are scheduled.
#[derive(Clone, Debug)]
pub struct SequenceRules {
    /// Slots of each instance, at least 1.
    pub slots: u32,
    /// Who runs together.
    pub choice: Choice,
    /// How long a sequence keeps its slot without a request.
    pub idle: Duration,
    /// How many requests may wait.
    pub capacity: usize,
}

/// Who of a lane runs together.
#[derive(Clone, Debug)]
pub enum Choice {
    /// Every slot that has a request, each in its own row.
    Direct {
        /// Slots that must be ready for a batch to run before the delay is over.
        enough: usize,
        /// How long the request that waits longest waits for that.
        delay: Duration,
    },
    /// As the rules say.
    Oldest(Rules),
}

impl SequenceRules {
    /// What a configuration asks for, with at most `max_batch_size` requests a batch (0 for one), of which `capacity` may
    /// wait.
    #[must_use]
    pub fn of(batching: &SequenceBatching, max_batch_size: u32, capacity: usize) -> Self {
        let rows = max_batch_size.max(1);
        let (slots, choice) = match &batching.strategy {
            Strategy::Direct { max_queue_delay, minimum_slot_utilization } => {
                let needed = f64::from(*minimum_slot_utilization) * f64::from(rows);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "from 0 to the rows, a u32"
                )]
                let enough = needed.ceil() as usize;
                let delay = if enough <= 1 { Duration::ZERO } else { *max_queue_delay };
                (rows, Choice::Direct { enough, delay })
            }
            Strategy::Oldest { max_candidate_sequences, preferred_batch_sizes, max_queue_delay, .. } => {
                let mut preferred = preferred_batch_sizes.clone();
                if preferred.is_empty() && max_batch_size > 0 {
                    preferred.push(max_batch_size);
                }
                preferred.sort_unstable();
                preferred.dedup();
                let rules = Rules {
                    max_items: max_batch_size,
                    preferred,
                    delay: *max_queue_delay,
                    // What waits is counted over all slots.
                    capacity: usize::MAX,
                    ..Rules::default()
                };
                (*max_candidate_sequences, Choice::Oldest(rules))
            }
        };
        Self { slots, choice, idle: batching.max_idle, capacity }
    }
}
