//! What the first request of a sequence finds: the states that `sequence_batching` begins with, zeros or files.

use std::path::Path;

use super::warm_up::read_file;
use crate::error::{Error, Result};
use crate::model_config::sequence::{FOLDER, SequenceBatching};
use crate::tensor::{Shape, Tensor};

/// The most bytes that the initial states of one version take together: they are in memory as long as it is.
const MAX_BYTES: usize = 1 << 28;

/// One item of each state, without the batch dimension, in the order of the configuration. Files are looked for in the
/// model's `folder`. Blocking.
///
/// # Errors
/// Naming the state: `InvalidArgument` for a file that is missing or of another size, `TooLarge` over 256 MiB together,
/// `RepositoryFailed` for a file that cannot be read.
pub(super) fn initial_states(batching: &SequenceBatching, folder: Option<&Path>) -> Result<Vec<Tensor>> {
    let mut room = MAX_BYTES;
    let mut states = Vec::with_capacity(batching.states.len());
    for state in &batching.states {
        let shown = || format!("sequence_batching: state '{}'", state.input);
        let shape = Shape::new(&state.initial_dims);
        let bytes = shape.element_count().and_then(|count| count.checked_mul(state.data_type.size().unwrap_or(4)));
        let Some(bytes) = bytes.filter(|bytes| *bytes <= room) else {
            return Err(Error::too_large(format!(
                "{}: the states of a model begin with at most {MAX_BYTES} bytes",
                shown()
            )));
        };
        let data = match &state.initial_file {
            None => Ok(vec![0; bytes]),
            Some(name) => read_file(folder, ("data_file", FOLDER), name, room),
        };
        let tensor = data.and_then(|data| Tensor::new(state.data_type, shape, data.into()));
        let tensor = tensor.map_err(|error| error.wrap(shown()))?;
        room -= tensor.data().len();
        states.push(tensor);
    }
    Ok(states)
}
