//! Backends that are shared libraries of their own, through the C ABI of `backends/abi`.
//!
//! The server's part of that ABI: a library is opened and its table checked (`plugin/library.rs`), a model is described to it and
//! by it (`request`, `signature`), and what it gives is checked before it is used (`outputs`). Nothing that a table says is taken on
//! trust but that its pointers point to what they claim.
//!
//! A model on a GPU takes its memory there through the server where the backend asks it to: each call is made in the scope of the
//! model's share, and what the allocator refused is the reason of a call that failed.
//!
//! *Architecture invariants:* a library is never closed; `initialize` runs once a process; an output goes back to its
//! backend exactly once; a model is unloaded after its last instance.
#![expect(unsafe_code, reason = "calls through the C ABI of backends")]

pub mod discover;
mod library;
pub mod libtorch;
mod outputs;
mod request;
mod signature;

use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Instant;

use roundhouse_abi as abi;
use smallvec::SmallVec;

use self::library::{Library, Table};
use self::outputs::Given;
use self::request::Request;
use super::placement::{GpuShare, Placement};
use super::{Backend, Batch, Execution, Model, ModelFiles, ModelInstance, ModelMemory};
use crate::device::cuda::hooks::{OwnerScope, take_refusal};
use crate::device::cuda::owner::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{DeviceId, NamedTensor, NamedTensors};
use crate::model_config::ModelConfig;
use crate::model_config::complete::RuntimeSignature;
use crate::tensor::{DataType, Tensor};

/// A backend behind the C ABI.
pub struct Plugin {
    library: &'static Library,
}

/// What a plugin is opened with.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// Libraries that are opened before it, since it needs them and they are found nowhere else.
    pub first: Vec<PathBuf>,
    /// How many threads of the server run models on the CPU at a time.
    pub executor_threads: usize,
    /// What the operator set for the backend as a whole, keys and values. Those of the first opening count.
    pub settings: Vec<(String, String)>,
}

impl Plugin {
    /// Opens a library.
    ///
    /// # Errors
    /// `NotReady` with the reason if a library cannot be opened, is no backend, was built against another version of the
    /// ABI, or says that it cannot be used.
    pub fn open(path: &Path, opening: &Opening) -> Result<Self> {
        Ok(Self { library: library::open(path, opening)? })
    }

    /// What the backend says that it is; may be empty.
    #[must_use]
    pub fn description(&self) -> &'static str {
        self.library.description
    }

    /// What the backend's own allocator holds on a device: bytes in use, and bytes that it took from the device. `None`
    /// where it has none of its own.
    #[must_use]
    pub fn device_memory(&self, device: DeviceId) -> Option<(u64, u64)> {
        let ask = self.library.table.device_memory?;
        let (kind, id) = request::device(device);
        let mut memory = abi::RoundhouseDeviceMemory::default();
        // SAFETY: a function of the table, with room for its answer.
        let status = unsafe { ask(kind, id, &raw mut memory) };
        (status == abi::OK).then_some((memory.allocated, memory.reserved))
    }
}

impl Backend for Plugin {
    fn name(&self) -> &'static str {
        self.library.name
    }

    fn known_parameters(&self) -> &'static [&'static str] {
        self.library.parameters
    }

    fn default_model_file(&self) -> &'static str {
        self.library.default_model_file
    }

    fn on_gpu(&self) -> Result<()> {
        // It tells a GPU's memory where it can use one.
        self.device_memory(DeviceId::Gpu(0)).map(drop).ok_or_else(|| {
            Error::unsupported(format!("the {} backend sees no GPU: it may be built for the cpu", self.name()))
        })
    }

    fn load(&self, files: &ModelFiles, config: &ModelConfig, placement: &Placement) -> Result<Box<dyn Model>> {
        // It counts devices as CUDA does.
        let device = placement.share().map_or(placement.device(), |share| DeviceId::Gpu(share.ordinal()));
        let request = Request::new(files, config, device, self.default_model_file())?;
        let table = &self.library.table;
        let mut error = abi::RoundhouseError::empty();
        let mut pointer = ptr::null_mut();
        let share = placement.share().cloned();
        let status = owned(share.as_ref(), Kind::Weights, || {
            // SAFETY: a function of the table, with a request whose strings and arrays live in `request`, and room for its
            // answers.
            unsafe { (table.load)(&raw const request.raw, &raw mut pointer, &raw mut error) }
        });
        status.check(&error, "load")?;
        let pointer = NonNull::new(pointer).ok_or_else(|| broken("load gave no model and no error"))?;
        let signature = RuntimeSignature::default();
        let mut loaded = Loaded { table, pointer, device, signature, keeps_files: false, share };
        (loaded.signature, loaded.keeps_files) = signature::read(table, pointer)?;
        Ok(Box::new(PluginModel { loaded: Arc::new(loaded) }))
    }
}

/// What a call came to: its status, and why the server refused it memory, if it did.
struct Outcome {
    status: abi::RoundhouseStatus,
    refusal: Option<Error>,
}

impl Outcome {
    fn check(self, error: &abi::RoundhouseError, what: &'static str) -> Result<()> {
        // A backend that gets no memory says no more than that; why is the allocator's to say.
        check(self.status, error, what).map_err(|error| self.refusal.unwrap_or(error))
    }
}

/// Makes a call of the table, in which the backend takes memory of a GPU as the owner of a share.
fn owned(share: Option<&GpuShare>, kind: Kind, call: impl FnOnce() -> abi::RoundhouseStatus) -> Outcome {
    let Some(share) = share else { return Outcome { status: call(), refusal: None } };
    // What is left of an earlier call says nothing of this one.
    let _earlier = take_refusal();
    let _scope = OwnerScope::enter(&share.owner, kind);
    Outcome { status: call(), refusal: take_refusal() }
}

/// A fault of the backend against the ABI.
fn broken(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::BackendFailed, format!("the backend breaks its ABI: {what}"))
}

/// Turns a status into our error.
fn check(status: abi::RoundhouseStatus, error: &abi::RoundhouseError, what: &'static str) -> Result<()> {
    let kind = match status {
        abi::OK => return Ok(()),
        abi::NOT_FOUND => ErrorKind::NotFound,
        abi::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        abi::UNSUPPORTED => ErrorKind::Unsupported,
        abi::OUT_OF_DEVICE_MEMORY => ErrorKind::OutOfDeviceMemory,
        abi::NOT_READY => ErrorKind::NotReady,
        _ => ErrorKind::BackendFailed,
    };
    let text = error.text();
    Err(Error::new(
        kind,
        if text.is_empty() { format!("the backend cannot {what} and does not say why") } else { text },
    ))
}

/// A model in the backend's hands, which is unloaded when the last of its instances and its `Model` are gone.
struct Loaded {
    table: &'static Table,
    pointer: NonNull<abi::RoundhouseModel>,
    device: DeviceId,
    signature: RuntimeSignature,
    keeps_files: bool,
    /// Goes last: what the model holds is taken of it.
    share: Option<GpuShare>,
}

// SAFETY: the ABI allows every function on a model from any thread, several at a time.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the model is ours, its instances have ended, and it is unloaded once.
        unsafe { (self.table.unload)(self.pointer.as_ptr()) };
        if let Some(empty_cache) = self.table.empty_cache {
            let (kind, id) = request::device(self.device);
            // SAFETY: a function of the table.
            unsafe { empty_cache(kind, id) };
        }
    }
}

struct PluginModel {
    loaded: Arc<Loaded>,
}

impl Model for PluginModel {
    fn signature(&self) -> &RuntimeSignature {
        &self.loaded.signature
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        let (table, model) = (self.loaded.table, self.loaded.pointer.as_ptr());
        let mut error = Box::new(abi::RoundhouseError::empty());
        let mut pointer = ptr::null_mut();
        let status = owned(self.loaded.share.as_ref(), Kind::Weights, || {
            // SAFETY: a function of the table, with a model that lives and room for the answers.
            unsafe { (table.instantiate)(model, &raw mut pointer, &raw mut *error) }
        });
        status.check(&error, "make an instance")?;
        let pointer = NonNull::new(pointer).ok_or_else(|| broken("instantiate gave no instance and no error"))?;
        Ok(Box::new(PluginInstance { pointer, error, loaded: Arc::clone(&self.loaded) }))
    }

    fn memory(&self) -> ModelMemory {
        let mut memory = abi::RoundhouseModelMemory::default();
        let status = self.loaded.table.model_memory.map(|ask| {
            // SAFETY: a function of the table, with a model that lives and room for the answer.
            unsafe { ask(self.loaded.pointer.as_ptr(), &raw mut memory) }
        });
        match (status, memory.kind) {
            (Some(abi::OK), abi::MEMORY_EXACT) => ModelMemory::Exact(memory.bytes),
            (Some(abi::OK), abi::MEMORY_RUNS) => ModelMemory::Runs(memory.bytes),
            _ => ModelMemory::Runs(0),
        }
    }

    fn keeps_files(&self) -> bool {
        self.loaded.keeps_files
    }
}

struct PluginInstance {
    pointer: NonNull<abi::RoundhouseInstance>,
    /// Kept, so that a call does not clear so much memory.
    error: Box<abi::RoundhouseError>,
    loaded: Arc<Loaded>,
}

// SAFETY: the ABI binds an instance to one call at a time, not to a thread.
unsafe impl Send for PluginInstance {}

impl Drop for PluginInstance {
    fn drop(&mut self) {
        // SAFETY: the instance is ours, in no call, and ends once; its model lives until the field is dropped.
        unsafe { (self.loaded.table.end_instance)(self.pointer.as_ptr()) };
    }
}

impl ModelInstance for PluginInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        let loaded = &*self.loaded;
        let mut copies = SmallVec::<[Vec<u64>; 2]>::new();
        let mut inputs = SmallVec::<[abi::RoundhouseInput; 4]>::new();
        for NamedTensor { name, tensor } in batch.inputs {
            let known = loaded.signature.inputs.iter().position(|input| *input.name == **name);
            let index =
                known.ok_or_else(|| Error::internal(format!("input '{name}' came to the backend unchecked")))?;
            let data = aligned(tensor, &mut copies)
                .map_err(|error| error.wrap(format!("input '{name}' cannot be given to the backend")))?;
            inputs.push(abi::RoundhouseInput {
                index,
                data: data.cast(),
                bytes: tensor.data().len(),
                dims: tensor.shape().dims().as_ptr(),
                rank: tensor.shape().rank(),
                data_type: outputs::code(tensor.data_type()),
                reserved: 0,
            });
        }
        let mut room = SmallVec::<[_; 4]>::from_elem(outputs::NONE, batch.outputs.len());
        self.error.message[0] = 0;
        let compute_start = Instant::now();
        // The backend names the stream.
        let status = owned(loaded.share.as_ref(), Kind::Activations { stream: 0 }, || {
            // SAFETY: a function of the table, with an instance that is in no other call; the arrays are as long as is
            // said and live until it returns: what inputs point to is borrowed by `batch` or lies in `copies`.
            unsafe {
                (loaded.table.infer)(
                    self.pointer.as_ptr(),
                    inputs.as_ptr(),
                    inputs.len(),
                    batch.outputs.as_ptr(),
                    room.as_mut_ptr(),
                    room.len(),
                    &raw mut *self.error,
                )
            }
        });
        let compute_end = Instant::now();
        status.check(&self.error, "run the model")?;
        // All of them are taken before one is looked at, so that a faulty one does not keep others from going back.
        let given: SmallVec<[Given; 4]> = room.iter().map(|output| Given::new(*output, loaded.table.release)).collect();
        let mut outputs = NamedTensors::new();
        for (given, &index) in given.into_iter().zip(batch.outputs) {
            let name = &loaded.signature.outputs[index].name;
            let tensor = given.into_tensor().map_err(|error| error.wrap(format!("output '{name}' cannot be read")))?;
            outputs.push(NamedTensor { name: name.as_str().into(), tensor });
        }
        Ok(Execution { outputs, compute_start, compute_end })
    }
}

/// Where a tensor's bytes lie at a multiple of its element's size: themselves, or a copy.
fn aligned(tensor: &Tensor, copies: &mut SmallVec<[Vec<u64>; 2]>) -> Result<*const u8> {
    let data: &[u8] = tensor.data();
    if tensor.data_type() == DataType::Bool
        && let Some(index) = data.iter().position(|&byte| byte > 1)
    {
        // A C++ bool that is neither 0 nor 1 is undefined behaviour in the backend.
        return Err(Error::invalid(format!("BOOL element {index} is {}, expected 0 or 1", data[index])));
    }
    if data.as_ptr().addr().is_multiple_of(tensor.data_type().size().unwrap_or(1)) {
        return Ok(data.as_ptr());
    }
    let mut copy = vec![0_u64; data.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut copy)[..data.len()].copy_from_slice(data);
    let address = copy.as_ptr().cast();
    copies.push(copy);
    Ok(address)
}
