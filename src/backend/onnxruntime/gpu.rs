//! A session on a GPU. Its instances share it, and with it the weights.
//!
//! A run goes in three pieces, so that copies of one instance overlap with what the device computes for another: inputs go
//! through locked memory to the device on a stream for copies; the session's stream waits for them, and the run is
//! asked for, which takes the host as long as it takes to launch it; outputs come back on the stream for copies, which waits
//! for the run. Only the middle piece holds the session: runs of one session are asked for one after the other, and the
//! device does them so anyway.
//!
//! *Lifetime:* memory that a stream may still use is given back after that stream was waited for, also where something
//! failed in between ([`Flight`]). Memory of runs belongs to the session's stream, inputs to that for copies.
#![expect(unsafe_code, reason = "asks the device for copies, whose two sides stay until they are done")]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ort::session::Session;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::super::placement::GpuShare;
use super::super::{Batch, Execution, Model, ModelInstance, ModelMemory};
use super::allocator::MemoryInfo;
use super::binding::{Binding, RunOptions, host_memory, over_device};
use super::ffi::Value;
use super::session::Interface;
use crate::device::cuda::block::Block;
use crate::device::cuda::hooks::{OwnerScope, take_refusal};
use crate::device::cuda::owner::Kind;
use crate::device::cuda::pinned::PinnedBuffer;
use crate::device::cuda::stream::{Event, Stream};
use crate::error::{Error, Result};
use crate::inference::{NamedTensor, NamedTensors};
use crate::model_config::complete::RuntimeSignature;
use crate::tensor::{DataType, Tensor};

/// A loaded ONNX model on a GPU.
pub(super) struct GpuModel {
    shared: Arc<Shared>,
}

struct Shared {
    /// Runs take turns. Goes before what it runs on.
    session: Mutex<Session>,
    interface: Interface,
    memory: MemoryInfo,
    options: RunOptions,
    compute: Arc<Stream>,
    share: GpuShare,
}

impl GpuModel {
    /// The model of a session that was made to compute on a stream of a share's device, whose memory is described.
    pub(super) fn new(
        session: Session,
        interface: Interface,
        memory: MemoryInfo,
        compute: Arc<Stream>,
        share: GpuShare,
    ) -> Result<Self> {
        // What the load asked the device for is done before anything else uses the weights, on whatever stream.
        compute.synchronize()?;
        let session = Mutex::new(session);
        let options = RunOptions::new(&[])?;
        Ok(Self { shared: Arc::new(Shared { session, interface, memory, options, compute, share }) })
    }
}

impl Model for GpuModel {
    fn signature(&self) -> &RuntimeSignature {
        &self.shared.interface.signature
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        let context = self.shared.share.gpu.context();
        let copies = self.shared.share.gpu.copy_stream();
        let (here, done, back) = (Event::new(context)?, Event::new(context)?, Event::new(context)?);
        Ok(Box::new(GpuInstance { copies, here, done, back, shared: Arc::clone(&self.shared) }))
    }

    fn memory(&self) -> ModelMemory {
        // What is on the device is counted by who hands it out.
        ModelMemory::Runs(0)
    }
}

struct GpuInstance {
    /// Brings inputs and fetches outputs.
    copies: Arc<Stream>,
    /// The inputs are there.
    here: Event,
    /// The run is done.
    done: Event,
    /// The outputs are back.
    back: Event,
    shared: Arc<Shared>,
}

/// What a run in flight uses. Its drop waits for the streams first, unless that was done.
struct Flight<'a> {
    copies: &'a Stream,
    compute: &'a Stream,
    is_over: bool,
    staged: SmallVec<[(PinnedBuffer, Block); 4]>,
    /// Values over blocks and over the request, and what the run gave: all of them go before `staged`.
    values: SmallVec<[Value<'a>; 4]>,
    fetched: SmallVec<[Option<PinnedBuffer>; 4]>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // A device that cannot be waited for is lost, and copies nothing any more.
            let _lost = (self.compute.synchronize(), self.copies.synchronize());
        }
        self.values.clear();
    }
}

impl<'a> Flight<'a> {
    fn new(copies: &'a Stream, compute: &'a Stream) -> Self {
        let (staged, values, fetched) = (SmallVec::new(), SmallVec::new(), SmallVec::new());
        Self { copies, compute, is_over: false, staged, values, fetched }
    }

    /// Sends an input on its way to the device; strings stay where they are.
    fn send(&mut self, shared: &Shared, tensor: &'a Tensor) -> Result<()> {
        let value = match tensor.data_type() {
            DataType::Bytes => Value::of(tensor)?,
            data_type => {
                super::ffi::check_bools(tensor)?;
                let data: &[u8] = tensor.data();
                let mut pinned = shared.share.gpu.staging().buffer(data.len() as u64)?;
                pinned.bytes_mut()[..data.len()].copy_from_slice(data);
                let kind = Kind::Activations { stream: self.copies.handle() };
                let block = Block::take(&shared.share.owner, kind, data.len().max(1) as u64)?;
                let (address, part) = (block.address(), pinned.part().start(data.len()));
                self.staged.push((pinned, block));
                if !data.is_empty() {
                    // SAFETY: the block has so many bytes; both stay in `staged` until the stream was waited for.
                    unsafe { self.copies.copy_to_device(address, part)? };
                }
                // SAFETY: the block outlives the value, which `drop` clears first.
                unsafe { over_device(shared.memory, address, data.len(), tensor.shape().dims(), data_type)? }
            }
        };
        self.values.push(value);
        Ok(())
    }

    /// Asks for what a run gave.
    fn fetch(&mut self, shared: &Shared, outputs: &SmallVec<[Value<'static>; 4]>) -> Result<()> {
        for output in outputs {
            let Some((address, bytes)) = output.place()? else {
                self.fetched.push(None);
                continue;
            };
            let pinned = shared.share.gpu.staging().buffer(bytes as u64)?;
            let part = pinned.part().start(bytes);
            self.fetched.push(Some(pinned));
            if bytes > 0 {
                // SAFETY: the output has so many bytes and lives as long as the flight; the buffer stays in `fetched` until
                // the stream was waited for, and nobody else has it.
                unsafe { self.copies.copy_to_host(part, address)? };
            }
        }
        Ok(())
    }

    /// Waits until all has come back.
    fn land(&mut self, back: &Event) -> Result<()> {
        back.record(self.copies)?;
        back.synchronize()?;
        self.is_over = true;
        Ok(())
    }
}

impl GpuInstance {
    fn run(&self, batch: &Batch<'_>) -> Result<Execution> {
        let shared = &*self.shared;
        let interface = &shared.interface;
        // Outputs go after the flight, which waits for whoever reads them.
        let outputs;
        let mut flight = Flight::new(&self.copies, &shared.compute);
        let compute_start;
        {
            let mut named = SmallVec::<[usize; 4]>::new();
            for input in batch.inputs {
                named.push(interface.input(&input.name)?);
                flight
                    .send(shared, &input.tensor)
                    .map_err(|error| error.wrap(format!("input '{}' cannot be given to ONNX Runtime", input.name)))?;
            }
            self.here.record(&self.copies)?;
            shared.compute.wait(&self.here)?;
            let session = shared.session.lock();
            compute_start = Instant::now();
            let mut binding = Binding::new(&session)?;
            for (&index, value) in named.iter().zip(&flight.values) {
                binding.input(&interface.input_names[index], value)?;
            }
            for &index in batch.outputs {
                let is_text = interface.signature.outputs[index].data_type == DataType::Bytes;
                let place = if is_text { host_memory()? } else { shared.memory.pointer() };
                binding.output_in(&interface.output_names[index], place)?;
            }
            {
                let stream = shared.compute.handle();
                let _scope = OwnerScope::enter(&shared.share.owner, Kind::Activations { stream });
                shared.settle_stand_in()?;
                binding.run(&shared.options)?;
            }
            outputs = binding.outputs()?;
            self.done.record(&shared.compute)?;
        }
        self.copies.wait(&self.done)?;
        flight.fetch(shared, &outputs)?;
        self.done.synchronize()?;
        let compute_end = Instant::now();
        flight.land(&self.back)?;

        let mut given = NamedTensors::new();
        for ((&index, value), fetched) in batch.outputs.iter().zip(outputs).zip(&flight.fetched) {
            let name = &interface.signature.outputs[index].name;
            let tensor = match fetched {
                None => value.into_tensor(&[]),
                Some(pinned) => from_device(&value, pinned),
            };
            let tensor = tensor.map_err(|error| error.wrap(format!("output '{name}' cannot be read")))?;
            given.push(NamedTensor { name: name.as_str().into(), tensor });
        }
        Ok(Execution { outputs: given, compute_start, compute_end })
    }
}

impl Shared {
    /// Where host memory stands in for a device's, which is so in tests alone, it is the processor that runs: what the stream
    /// was asked for has to be done by then.
    fn settle_stand_in(&self) -> Result<()> {
        if self.memory.is_host() { self.compute.synchronize() } else { Ok(()) }
    }
}

/// The tensor of an output that was copied to locked memory, which is soon needed again.
fn from_device(value: &Value<'static>, pinned: &PinnedBuffer) -> Result<Tensor> {
    let (data_type, shape) = value.described()?;
    let bytes = shape.element_count().zip(data_type.size()).and_then(|(count, size)| count.checked_mul(size));
    let bytes = bytes.and_then(|bytes| pinned.bytes().get(..bytes));
    let bytes = bytes.ok_or_else(|| Error::internal("an output is larger than its buffer"))?;
    Tensor::new(data_type, shape, Bytes::copy_from_slice(bytes))
}

impl ModelInstance for GpuInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        // What is left of an earlier call says nothing of this one.
        let _earlier = take_refusal();
        // A runtime that gets no memory says no more than that; why is the allocator's to say.
        self.run(batch).map_err(|error| take_refusal().unwrap_or(error))
    }
}
