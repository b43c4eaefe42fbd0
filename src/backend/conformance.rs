//! What every backend must do, whatever runs below it: one suite for all of them.

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::inference::{DeviceId, NamedTensor, NamedTensors};
use crate::model_config::ModelConfig;
use crate::tensor::Tensor;

use super::placement::Placement;
use super::{Backend, Batch, Model, ModelFiles, ModelInstance};

/// Copies that are made and dropped to see that dropping frees.
const COPIES: usize = 20;

/// A model of the backend under test, and a request that it can answer.
pub struct Case<'a> {
    /// Where the model is.
    pub files: ModelFiles,
    /// Its configuration.
    pub config: ModelConfig,
    /// A right request, in the order of the signature.
    pub inputs: Vec<NamedTensor>,
    /// What it must answer, in the order of the signature; of a decoupled model, its one answer to this request.
    pub outputs: Vec<Tensor>,
    /// The same with no elements, for models that take as many as one likes; a decoupled one has no answer to it.
    pub empty: Option<Vec<NamedTensor>>,
    /// A request with several answers, for decoupled models.
    pub many: Option<Vec<NamedTensor>>,
    /// Counts what the backend holds in memory, for backends that can be asked.
    pub alive: Option<&'a (dyn Fn() -> usize + Sync)>,
}

/// Holds a backend against the contract of [`Backend`], [`Model`] and [`ModelInstance`].
///
/// # Errors
/// Whatever the backend says where it should have worked.
///
/// # Panics
/// Where it does not do what it must.
pub fn backend_conformance(backend: &dyn Backend, case: &Case<'_>) -> Result<()> {
    assert!(!backend.name().is_empty(), "a backend has a name");
    let alive = || case.alive.map_or(0, |alive| alive());
    let before = alive();
    let model = backend.load(&case.files, &case.config, &Placement::of(DeviceId::Cpu))?;
    signature_is_sane(&*model, case);
    answers_are_right_and_repeat(&*model, case)?;
    instances_run_beside_each_other(&*model, case)?;
    only_the_wanted_outputs_come_in_the_wanted_order(&*model, case)?;
    if let Some(empty) = &case.empty {
        nothing_in_gives_nothing_out(&*model, case, empty)?;
    }
    if let Some(many) = &case.many {
        a_reader_that_leaves_stops_the_stream(&*model, many)?;
    }
    an_instance_outlives_its_model(model, case)?;
    copies_are_apart(backend, case)?;
    assert!(backend.streams() || !case.config.decoupled, "a backend that streams says so");
    assert_eq!(alive(), before, "dropping models and instances frees what they held");
    Ok(())
}

fn signature_is_sane(model: &dyn Model, case: &Case<'_>) {
    let signature = model.signature();
    assert!(!signature.outputs.is_empty(), "a model has outputs");
    for tensors in [&signature.inputs, &signature.outputs] {
        for (at, tensor) in tensors.iter().enumerate() {
            assert!(!tensor.name.is_empty(), "tensor {at} has a name");
            assert!(tensor.dims.iter().all(|dim| *dim >= -1), "{} has dims {:?}", tensor.name, tensor.dims);
            let first = tensors.iter().position(|other| other.name == tensor.name);
            assert_eq!(first, Some(at), "the name {} stands for one tensor", tensor.name);
        }
    }
    for name in &signature.optional_inputs {
        assert!(signature.inputs.iter().any(|input| input.name == *name), "optional input {name} is an input");
    }
    assert_eq!(signature.inputs.len(), case.inputs.len(), "the case fills every input");
    for (input, given) in signature.inputs.iter().zip(&case.inputs) {
        assert_eq!((input.name.as_str(), input.data_type), (given.name.as_str(), given.tensor.data_type()));
        assert!(given.tensor.shape().matches(&input.dims), "{} takes the shape of the case", input.name);
    }
}

fn execute(
    instance: &mut dyn ModelInstance,
    case: &Case<'_>,
    inputs: &[NamedTensor],
    wanted: &[usize],
) -> Result<NamedTensors> {
    let batch = Batch { inputs, outputs: wanted };
    if case.config.decoupled {
        let mut answers = stream(instance, &batch, false)?;
        assert!(answers.len() <= 1, "the case has one answer");
        return Ok(answers.pop().unwrap_or_default());
    }
    let execution = instance.execute(&batch)?;
    assert!(execution.compute_start <= execution.compute_end, "the computation begins before it ends");
    Ok(execution.outputs)
}

/// The answers of a decoupled model to a reader that may leave after the first.
fn stream(instance: &mut dyn ModelInstance, batch: &Batch<'_>, leave: bool) -> Result<Vec<NamedTensors>> {
    let mut answers = Vec::new();
    let streamed = instance.execute_stream(batch, &mut |outputs| {
        answers.push(outputs);
        if leave { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    assert!(streamed.compute_start <= streamed.compute_end, "the computation begins before it ends");
    Ok(answers)
}

/// `inputs` have several answers.
fn a_reader_that_leaves_stops_the_stream(model: &dyn Model, inputs: &[NamedTensor]) -> Result<()> {
    let mut instance = model.instance()?;
    let batch = Batch { inputs, outputs: &all_outputs(model) };
    let all = stream(&mut *instance, &batch, false)?;
    assert!(all.len() > 1, "the request has several answers");
    let first = stream(&mut *instance, &batch, true)?;
    assert_eq!(first, all[..1], "nothing is told to a reader that has left");
    assert_eq!(stream(&mut *instance, &batch, false)?, all, "an instance goes on after a reader that left");
    Ok(())
}

fn all_outputs(model: &dyn Model) -> Vec<usize> {
    (0..model.signature().outputs.len()).collect()
}

/// Fails if the outputs are not those of the case.
fn compare(model: &dyn Model, outputs: &[NamedTensor], wanted: &[usize], case: &Case<'_>) {
    assert_eq!(outputs.len(), wanted.len(), "as many outputs come as were wanted");
    for (output, &index) in outputs.iter().zip(wanted) {
        assert_eq!(output.name, model.signature().outputs[index].name, "outputs bear the names of the signature");
        assert_eq!(output.tensor, case.outputs[index], "output {} is right", output.name);
        assert_eq!(output.tensor.data(), case.outputs[index].data(), "output {} is right bit by bit", output.name);
        assert!(
            output.tensor.shape().matches(&model.signature().outputs[index].dims),
            "output {} has the shape of the signature",
            output.name
        );
    }
}

fn answers_are_right_and_repeat(model: &dyn Model, case: &Case<'_>) -> Result<()> {
    let wanted = all_outputs(model);
    let mut instance = model.instance()?;
    for _ in 0..2 {
        let outputs = execute(&mut *instance, case, &case.inputs, &wanted)?;
        compare(model, &outputs, &wanted, case);
    }
    Ok(())
}

fn instances_run_beside_each_other(model: &dyn Model, case: &Case<'_>) -> Result<()> {
    let wanted = all_outputs(model);
    let threads = 4;
    let start = std::sync::Barrier::new(threads);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let run = || -> Result<()> {
            // On an error nobody else may be left waiting, so all pass the barrier first.
            let instance = model.instance();
            start.wait();
            let mut instance = instance?;
            for _ in 0..25 {
                let outputs = execute(&mut *instance, case, &case.inputs, &wanted)?;
                compare(model, &outputs, &wanted, case);
            }
            Ok(())
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let joined = running.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|joined| joined.unwrap_or_else(|_| Err(Error::internal("an instance panicked")))).collect()
    });
    results.into_iter().collect()
}

fn only_the_wanted_outputs_come_in_the_wanted_order(model: &dyn Model, case: &Case<'_>) -> Result<()> {
    let mut instance = model.instance()?;
    let mut backwards = all_outputs(model);
    backwards.reverse();
    let outputs = execute(&mut *instance, case, &case.inputs, &backwards)?;
    compare(model, &outputs, &backwards, case);
    for index in all_outputs(model) {
        let outputs = execute(&mut *instance, case, &case.inputs, &[index])?;
        compare(model, &outputs, &[index], case);
    }
    Ok(())
}

fn nothing_in_gives_nothing_out(model: &dyn Model, case: &Case<'_>, empty: &[NamedTensor]) -> Result<()> {
    let mut instance = model.instance()?;
    for output in execute(&mut *instance, case, empty, &all_outputs(model))? {
        assert_eq!(output.tensor.element_count(), 0, "{} of no elements has none", output.name);
        assert!(output.tensor.data().is_empty());
    }
    Ok(())
}

/// The order in which a queue drops them is its own affair.
fn an_instance_outlives_its_model(model: Box<dyn Model>, case: &Case<'_>) -> Result<()> {
    let mut instance = model.instance()?;
    let wanted = all_outputs(&*model);
    drop(model);
    let outputs = execute(&mut *instance, case, &case.inputs, &wanted)?;
    for (output, expected) in outputs.iter().zip(&case.outputs) {
        assert_eq!(output.tensor, *expected, "an instance works on when its model is dropped");
    }
    Ok(())
}

/// Copies of a model, loaded and dropped one beside the other, as a reload does it.
fn copies_are_apart(backend: &dyn Backend, case: &Case<'_>) -> Result<()> {
    let mut old = backend.load(&case.files, &case.config, &Placement::of(DeviceId::Cpu))?;
    for _ in 0..COPIES {
        let fresh = backend.load(&case.files, &case.config, &Placement::of(DeviceId::Cpu))?;
        drop(std::mem::replace(&mut old, fresh));
        answers_are_right_and_repeat(&*old, case)?;
    }
    Ok(())
}
