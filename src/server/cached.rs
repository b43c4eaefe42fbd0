//! Inference where answers are kept: looked for before the queue, kept after the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::response::{Key, Responses};
use crate::error::{Error, Result};
use crate::inference::{NamedTensors, Parameters};
use crate::lifecycle::handle::LoadedVersion;
use crate::scheduler::queue::ModelQueue;
use crate::scheduler::work::Work;

/// Inputs above this are hashed on a thread that may block: they take a tenth of a millisecond.
const HASHED_HERE: usize = 128 << 10;

/// The kept answer to the same question, or the model's own, which is then kept. Two callers who ask at once what nobody
/// asked before are both computed.
///
/// # Errors
/// As [`ModelQueue::infer`](crate::scheduler::queue::ModelQueue::infer); errors are not kept.
pub(super) async fn infer_cached(
    model: &LoadedVersion,
    queue: &Arc<ModelQueue>,
    responses: &Arc<Responses>,
    parameters: &Parameters,
    work: Work,
) -> Result<NamedTensors> {
    let began = Instant::now();
    let key = key(responses, parameters, &work).await?;
    let found = responses.get(&key);
    let looked = began.elapsed();
    if let Some(outputs) = found {
        model.statistics.cache_hit.add(looked);
        model.statistics.record_success(work.arrived.elapsed(), Duration::ZERO);
        return Ok(outputs);
    }
    let wanted = work.outputs.len();
    let outputs = queue.infer(work).await?;
    let keeping = Instant::now();
    if outputs.len() == wanted {
        responses.keep(key, &outputs);
    }
    model.statistics.cache_miss.add(looked + keeping.elapsed());
    Ok(outputs)
}

async fn key(responses: &Arc<Responses>, parameters: &Parameters, work: &Work) -> Result<Key> {
    let bytes: usize = work.inputs.iter().map(|input| input.tensor.data().len()).sum();
    if bytes <= HASHED_HERE {
        return Ok(responses.key(&work.inputs, &work.outputs, parameters));
    }
    let (responses, parameters) = (Arc::clone(responses), parameters.clone());
    let (inputs, outputs) = (work.inputs.clone(), work.outputs.clone());
    let hashed = tokio::task::spawn_blocking(move || responses.key(&inputs, &outputs, &parameters)).await;
    hashed.map_err(|error| Error::internal("hashing a request's inputs failed").with_source(error))
}
