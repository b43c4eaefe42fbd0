//! The `gated` backend: a fake that loads and executes when a test lets it, counts what is alive, and fails by script.
//!
//! It gives back its inputs as `identity` does; a decoupled model gives them back element by element, one an answer. A model
//! holds as many bytes as its parameter `holds_bytes` says. Each model, known by the name in its configuration, has a gate
//! before its loads, one before its executions and one before its answers; all are open until the test closes them.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use super::identity::Identity;
use super::placement::Placement;
use super::repeat::element;
use super::{Backend, Batch, Execution, Model, ModelFiles, ModelInstance, ModelMemory, Streamed};
use crate::error::Error;
use crate::error::Result;
use crate::inference::DeviceId;
use crate::inference::{NamedTensor, NamedTensors};
use crate::model_config::ModelConfig;
use crate::model_config::complete::RuntimeSignature;

/// Its name in `config.pbtxt`.
pub const NAME: &str = "gated";

/// What a gate or a fault stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// `Backend::load`.
    Load,
    /// `Model::instance`; it has no gate.
    Instance,
    /// `ModelInstance::execute` and `ModelInstance::execute_stream`.
    Execute,
    /// Each answer of a decoupled model.
    Answer,
}

/// How a step goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It returns this error.
    Error(Error),
    /// It panics with this text.
    Panic(&'static str),
}

/// What has happened to one model, over all its versions and copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Loads that arrived, those that wait at the gate included.
    pub loads_begun: usize,
    /// Loads that ended, well or not.
    pub loads_ended: usize,
    /// Copies of the model in memory.
    pub live_models: usize,
    /// Instances in memory.
    pub live_instances: usize,
    /// Executions that arrived, those that wait at the gate included.
    pub executions_begun: usize,
    /// Executions that ended, well or not.
    pub executions_ended: usize,
    /// The most executions that were under way at once.
    pub most_at_once: usize,
    /// Answers of decoupled models that passed their gate.
    pub answers: usize,
}

/// One execution: whose, how large, and the first four bytes of its first input as a little-endian number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// The model.
    pub model: String,
    /// What tells its request, the first of its batch, from others.
    pub tag: i32,
    /// Inferences in it: the batch dimension of the first input, 1 where there is none.
    pub items: u64,
    /// Where it ran.
    pub device: DeviceId,
}

/// The backend, and the test's hand on it. Clones are the same backend.
#[derive(Clone, Default)]
pub struct Gated(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// What stands behind the gates; `identity` where it is `None`.
    inner: Option<Box<dyn Backend>>,
    state: Mutex<State>,
    opened: Condvar,
    changed: Notify,
}

#[derive(Default)]
struct State {
    models: HashMap<String, OneModel>,
    order: Vec<Executed>,
}

#[derive(Default)]
struct OneModel {
    counts: Counts,
    gates: HashMap<Step, Gate>,
    /// What the next steps do; `None` goes well.
    faults: HashMap<Step, VecDeque<Option<Fault>>>,
}

/// A gate without an entry is open.
#[derive(Default)]
struct Gate {
    /// How many may pass although it is closed.
    admitted: usize,
    /// Whose executions may, by their tag.
    tags: Vec<i32>,
}

impl Gated {
    /// Gates before another backend than `identity`.
    #[must_use]
    pub fn over(inner: impl Backend + 'static) -> Self {
        Self(Arc::new(Shared { inner: Some(Box::new(inner)), ..Shared::default() }))
    }

    fn inner(&self) -> &dyn Backend {
        self.0.inner.as_deref().unwrap_or(&Identity)
    }

    /// Closes the gate before a step of `model`.
    pub fn close(&self, model: &str, step: Step) {
        self.change(model, |known| {
            known.gates.entry(step).or_default();
        });
    }

    /// Lets `count` through a closed gate.
    pub fn admit(&self, model: &str, step: Step, count: usize) {
        self.change(model, |known| known.gates.entry(step).or_default().admitted += count);
    }

    /// Lets the execution with this tag through a closed gate before the executions of `model`, whoever came before it.
    pub fn admit_tag(&self, model: &str, tag: i32) {
        self.change(model, |known| known.gates.entry(Step::Execute).or_default().tags.push(tag));
    }

    /// Opens the gate before a step of `model`.
    pub fn open(&self, model: &str, step: Step) {
        self.change(model, |known| {
            known.gates.remove(&step);
        });
    }

    /// Opens every gate there is.
    pub fn open_all(&self) {
        self.0.state.lock().models.values_mut().for_each(|known| known.gates.clear());
        self.0.opened.notify_all();
    }

    /// Makes the next step of this kind that is not spoken for yet go wrong.
    pub fn fail_next(&self, model: &str, step: Step, fault: Fault) {
        self.change(model, |known| known.faults.entry(step).or_default().push_back(Some(fault)));
    }

    /// Lets the next step of this kind that is not spoken for yet go well.
    pub fn spare_next(&self, model: &str, step: Step) {
        self.change(model, |known| known.faults.entry(step).or_default().push_back(None));
    }

    /// What has happened to `model`.
    #[must_use]
    pub fn counts(&self, model: &str) -> Counts {
        self.0.state.lock().models.get(model).map(|known| known.counts).unwrap_or_default()
    }

    /// Copies and instances in memory, of all models.
    #[must_use]
    pub fn alive(&self) -> usize {
        let state = self.0.state.lock();
        state.models.values().map(|known| known.counts.live_models + known.counts.live_instances).sum()
    }

    /// The executions so far, in the order in which they arrived.
    #[must_use]
    pub fn order(&self) -> Vec<Executed> {
        self.0.state.lock().order.clone()
    }

    /// Waits until `reached` holds of what has happened to `model`.
    pub async fn until(&self, model: &str, reached: impl Fn(&Counts) -> bool) -> Counts {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let counts = self.counts(model);
            if reached(&counts) {
                return counts;
            }
            changed.await;
        }
    }

    fn change<T>(&self, model: &str, change: impl FnOnce(&mut OneModel) -> T) -> T {
        let result = change(self.0.state.lock().model(model));
        self.0.opened.notify_all();
        self.0.changed.notify_waiters();
        result
    }

    /// Waits at the gate, then does what the script says of this step.
    #[expect(clippy::panic, reason = "the panic is what the test asked for")]
    fn pass(&self, model: &str, step: Step, tag: Option<i32>) -> Result<()> {
        let mut state = self.0.state.lock();
        while !state.may_pass(model, step, tag) {
            self.0.opened.wait(&mut state);
        }
        let fault = state.model(model).faults.get_mut(&step).and_then(VecDeque::pop_front).flatten();
        MutexGuard::unlock_fair(state);
        match fault {
            None => Ok(()),
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Panic(text)) => panic!("{text}"),
        }
    }
}

impl State {
    fn model(&mut self, name: &str) -> &mut OneModel {
        if !self.models.contains_key(name) {
            self.models.insert(name.to_owned(), OneModel::default());
        }
        self.models.entry(name.to_owned()).or_default()
    }

    fn may_pass(&mut self, model: &str, step: Step, tag: Option<i32>) -> bool {
        match self.model(model).gates.get_mut(&step) {
            None => true,
            Some(gate) => {
                if let Some(at) = gate.tags.iter().position(|admitted| Some(*admitted) == tag) {
                    gate.tags.swap_remove(at);
                    return true;
                }
                let is_admitted = gate.admitted > 0;
                gate.admitted -= usize::from(is_admitted);
                is_admitted
            }
        }
    }
}

/// Counts something for as long as it lives.
struct Alive {
    gated: Gated,
    model: String,
    count: fn(&mut Counts) -> &mut usize,
}

impl Alive {
    fn new(gated: &Gated, model: &str, count: fn(&mut Counts) -> &mut usize) -> Self {
        gated.change(model, |known| *count(&mut known.counts) += 1);
        Self { gated: gated.clone(), model: model.to_owned(), count }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let count = self.count;
        self.gated.change(&self.model, |known| *count(&mut known.counts) -= 1);
    }
}

/// Counts the end of a step, however it ends.
struct Ending<'a> {
    gated: &'a Gated,
    model: &'a str,
    count: fn(&mut Counts) -> &mut usize,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let count = self.count;
        self.gated.change(self.model, |known| *count(&mut known.counts) += 1);
    }
}

struct GatedModel {
    inner: Box<dyn Model>,
    device: DeviceId,
    has_batches: bool,
    holds: u64,
    alive: Alive,
}

struct GatedInstance {
    inner: Box<dyn ModelInstance>,
    device: DeviceId,
    signature: RuntimeSignature,
    has_batches: bool,
    alive: Alive,
}

impl Backend for Gated {
    fn name(&self) -> &'static str {
        NAME
    }

    fn default_model_file(&self) -> &'static str {
        ""
    }

    fn on_gpu(&self) -> Result<()> {
        Ok(())
    }

    fn known_parameters(&self) -> &'static [&'static str] {
        match &self.0.inner {
            None => &["holds_bytes"],
            Some(inner) => inner.known_parameters(),
        }
    }

    fn streams(&self) -> bool {
        true
    }

    fn load(&self, files: &ModelFiles, config: &ModelConfig, placement: &Placement) -> Result<Box<dyn Model>> {
        let model = config.name.as_str();
        self.change(model, |known| known.counts.loads_begun += 1);
        let _ending = Ending { gated: self, model, count: |counts| &mut counts.loads_ended };
        self.pass(model, Step::Load, None)?;
        let inner = self.inner().load(files, config, placement)?;
        let holds = config.parameters.get("holds_bytes").and_then(|text| text.parse().ok()).unwrap_or_default();
        let alive = Alive::new(self, model, |counts| &mut counts.live_models);
        let device = placement.device();
        Ok(Box::new(GatedModel { inner, device, has_batches: config.max_batch_size > 0, holds, alive }))
    }
}

impl Model for GatedModel {
    fn signature(&self) -> &RuntimeSignature {
        self.inner.signature()
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        let Alive { gated, model, .. } = &self.alive;
        gated.pass(model, Step::Instance, None)?;
        let alive = Alive::new(gated, model, |counts| &mut counts.live_instances);
        let signature = self.inner.signature().clone();
        let inner = self.inner.instance()?;
        let Self { device, has_batches, .. } = *self;
        Ok(Box::new(GatedInstance { inner, device, signature, has_batches, alive }))
    }

    fn memory(&self) -> ModelMemory {
        ModelMemory::Exact(self.holds)
    }
}

/// What tells a batch from others.
fn tag(batch: &Batch<'_>) -> i32 {
    let data = batch.inputs.first().map(|input| input.tensor.data().as_ref()).unwrap_or_default();
    data.first_chunk::<4>().map_or(0, |bytes| i32::from_le_bytes(*bytes))
}

/// Notes an execution on a device, which lasts until what this gives is dropped.
fn begin<'a>(alive: &'a Alive, device: DeviceId, has_batches: bool, batch: &Batch<'_>) -> Ending<'a> {
    let Alive { gated, model, .. } = alive;
    let first = batch.inputs.first().map(|input| &input.tensor);
    let tag = tag(batch);
    let dims = first.map(|tensor| tensor.shape().dims()).unwrap_or_default();
    let items = dims.first().filter(|_| has_batches).map_or(1, |dim| dim.unsigned_abs());
    gated.0.state.lock().order.push(Executed { model: model.clone(), tag, items, device });
    gated.change(model, |known| {
        let counts = &mut known.counts;
        counts.executions_begun += 1;
        counts.most_at_once = counts.most_at_once.max(counts.executions_begun - counts.executions_ended);
    });
    Ending { gated, model, count: |counts| &mut counts.executions_ended }
}

impl ModelInstance for GatedInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        let _ending = begin(&self.alive, self.device, self.has_batches, batch);
        self.alive.gated.pass(&self.alive.model, Step::Execute, Some(tag(batch)))?;
        self.inner.execute(batch)
    }

    fn execute_stream(
        &mut self,
        batch: &Batch<'_>,
        answer: &mut dyn FnMut(NamedTensors) -> ControlFlow<()>,
    ) -> Result<Streamed> {
        let _ending = begin(&self.alive, self.device, self.has_batches, batch);
        let Alive { gated, model, .. } = &self.alive;
        gated.pass(model, Step::Execute, Some(tag(batch)))?;
        let compute_start = Instant::now();
        for at in 0..batch.inputs.first().map_or(0, |input| input.tensor.element_count()) {
            gated.pass(model, Step::Answer, None)?;
            gated.change(model, |known| known.counts.answers += 1);
            let mut outputs = NamedTensors::new();
            for &index in batch.outputs {
                let name = self.signature.outputs.get(index).map_or("", |output| output.name.as_str());
                let tensor = batch.inputs.get(index).and_then(|input| element(&input.tensor, at));
                let tensor =
                    tensor.ok_or_else(|| Error::invalid("inputs of one length and no BYTES can be streamed"))?;
                outputs.push(NamedTensor { name: name.into(), tensor });
            }
            if answer(outputs).is_break() {
                break;
            }
        }
        Ok(Streamed { compute_start, compute_end: Instant::now() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::{UnknownFields, parse};

    fn files() -> ModelFiles {
        ModelFiles { directory: ".".into(), version_directory: ".".into(), version: 1, model_file: None, derived: None }
    }

    fn config(name: &str) -> ModelConfig {
        let tensor = "[ { name: \"x\" data_type: TYPE_INT32 dims: [ -1 ] } ]";
        let text = format!("name: \"{name}\" backend: \"gated\" input {tensor} output {tensor}");
        parse(&text, UnknownFields::Deny).unwrap().config
    }

    #[tokio::test]
    async fn a_closed_gate_holds_a_load_until_it_is_opened_and_what_lives_is_counted() {
        let gated = Gated::default();
        gated.close("m", Step::Load);
        let loading = tokio::task::spawn_blocking({
            let gated = gated.clone();
            move || gated.load(&files(), &config("m"), &Placement::of(DeviceId::Cpu))
        });
        let counts = gated.until("m", |counts| counts.loads_begun == 1).await;
        assert_eq!(counts.loads_ended, 0);
        gated.open("m", Step::Load);
        let model = loading.await.unwrap().unwrap();
        let instance = model.instance().unwrap();
        let counts = gated.counts("m");
        assert_eq!((counts.loads_ended, counts.live_models, counts.live_instances), (1, 1, 1));
        drop((instance, model));
        assert_eq!(gated.alive(), 0);
    }

    #[test]
    fn faults_come_in_the_order_of_the_script_and_then_no_more() {
        let gated = Gated::default();
        gated.fail_next("m", Step::Load, Fault::Error(Error::internal("first")));
        gated.fail_next("m", Step::Load, Fault::Panic("second"));
        let load = || gated.load(&files(), &config("m"), &Placement::of(DeviceId::Cpu));
        assert_eq!(load().err().unwrap().to_string(), "first");
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)).is_err());
        assert!(load().is_ok());
        assert_eq!(gated.counts("m").loads_ended, 3);
    }
}
