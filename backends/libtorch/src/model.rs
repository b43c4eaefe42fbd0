//! A TorchScript module, or a package of AOTInductor, as a model of the server.

use std::ffi::CString;
use std::ptr;
use std::sync::Arc;
use std::sync::OnceLock;

use roundhouse_abi as abi;
use roundhouse_abi::plugin::{
    Backend, Failure, Host, Input, Instance, LoadRequest, Model, Output, Outputs, Signature, TensorInfo,
};
use torch_sys::C_tensor;

use crate::archive::Runs;
use crate::names::{Place, Takes, parts, places};
use crate::options::{Optimize, Options};
use crate::shim::{self, Module, RawInput, RawWanted, Runner};
use crate::{archive, names, package};

/// The backend.
pub struct Pytorch;

static HOST: OnceLock<Host> = OnceLock::new();

/// The setting that has packages run.
const ALLOW_PACKAGES: &str = "allow_aotinductor";

/// Runs with zeros before a model is ready: the executor optimises a graph in the first two.
const WARM_UP: u32 = 2;

impl Backend for Pytorch {
    type Model = TorchModel;

    fn initialize(host: Host) -> Result<(), Failure> {
        // Threads of the server run models beside each other, so that operators have one each.
        tch::set_num_threads(1);
        let takes_from_server = host.device().map_or(Ok(false), shim::use_server)?;
        let whose = if takes_from_server { ", whose memory is the server's to hand out" } else { "" };
        host.log(abi::LOG_INFO, &format!("libtorch is open; CUDA devices: {}{whose}", tch::Cuda::device_count()));
        let _ = HOST.set(host);
        Ok(())
    }

    fn load(request: &LoadRequest<'_>) -> Result<TorchModel, Failure> {
        let path = request.model_file().ok_or_else(|| Failure::invalid("the pytorch backend needs a model file"))?;
        let host = HOST.get();
        let allows = |host: &Host| host.settings().any(|(key, value)| key == ALLOW_PACKAGES && value == "true");
        let runs = archive::check(path, host.is_some_and(allows))?;
        let (options, remarks) = Options::read(request.parameters())?;
        for remark in &remarks {
            log(abi::LOG_WARN, &format!("model {}: {remark}", request.model_name()));
        }
        let device = match request.device() {
            (abi::CPU, _) => -1,
            (_, id) if i64::from(id) < tch::Cuda::device_count() => i32::try_from(id).unwrap_or(i32::MAX),
            (_, id) => {
                return Err(Failure::unsupported(format!(
                    "libtorch sees {} GPUs, and the model is to run on number {id}: give --libtorch-dir a torch for CUDA",
                    tch::Cuda::device_count()
                )));
            }
        };
        let (inputs, outputs) = (request.inputs(), request.outputs());
        let how = shim::Options {
            device,
            inference_mode: options.inference_mode.into(),
            optimized: options.optimized.into(),
            optimize: match options.optimize {
                Optimize::Nothing => 0,
                Optimize::Freeze => 1,
                Optimize::Inference => 2,
            },
            threads: options.threads,
            restore_shapes: (inputs.is_empty() || outputs.is_empty()).into(),
        };
        let module = Arc::new(match runs {
            Runs::TorchScript => Module::load(path, how)?,
            Runs::Package => {
                let copy = package::unpin(path, &std::env::temp_dir())?;
                // As many as the server has threads to run them on at a time.
                let instances = host.map_or(1, |host| host.executor_threads().max(1) as usize);
                Module::load_package(path, copy.path(), how, instances)?
            }
        });
        let arguments = module.arguments();
        let inputs = if inputs.is_empty() { traced_inputs(&module, &arguments)? } else { inputs };
        let places = places(&inputs, &arguments)?;
        let mut model =
            TorchModel { signature: Signature::new(&[], &[], false)?, plan: Arc::new(Plan::default()), module };
        let outputs = match outputs.is_empty() {
            false => outputs,
            true => model.probed_outputs(&inputs, &places, &arguments)?,
        };
        model.signature = Signature::new(&inputs, &outputs, false)?;
        model.plan = Arc::new(Plan::new(&inputs, &places, &outputs)?);
        let usual = if options.optimized && !model.module.keeps_state() { WARM_UP } else { 0 };
        model.warm_up(&inputs, options.warmup.unwrap_or(usual), request.model_name());
        shim::synchronize(device)?;
        Ok(model)
    }

    fn device_memory(kind: i32, id: u32) -> Option<abi::RoundhouseDeviceMemory> {
        let (allocated, reserved) = if kind == abi::GPU { shim::device_memory(id)? } else { return None };
        Some(abi::RoundhouseDeviceMemory { allocated, reserved })
    }

    fn empty_cache(kind: i32, _id: u32) {
        if kind == abi::GPU
            && let Err(failure) = shim::empty_cache()
        {
            log(abi::LOG_WARN, &failure.text);
        }
    }
}

fn log(level: i32, text: &str) {
    if let Some(host) = HOST.get() {
        host.log(level, text);
    }
}

/// Where the tensors of a model go and come from.
#[derive(Default)]
struct Plan {
    inputs: Vec<(CString, i32)>,
    /// Names, places in a tuple or list, types.
    outputs: Vec<(CString, i64, i32)>,
}

impl Plan {
    fn new(inputs: &[TensorInfo], places: &[Place], outputs: &[TensorInfo]) -> Result<Self, Failure> {
        let name = |tensor: &TensorInfo| {
            CString::new(tensor.name.as_str()).map_err(|_| Failure::invalid("a tensor's name has a NUL in it"))
        };
        let place = |place: &Place| match place {
            Place::Argument(at) => i32::try_from(*at).unwrap_or(i32::MAX),
            Place::Entry => -1,
        };
        let parts = parts(outputs)?;
        let part = |part: usize| i64::try_from(part).unwrap_or(i64::MAX);
        Ok(Self {
            inputs: inputs
                .iter()
                .zip(places)
                .map(|(input, at)| Ok((name(input)?, place(at))))
                .collect::<Result<_, Failure>>()?,
            outputs: outputs
                .iter()
                .zip(parts)
                .map(|(output, at)| Ok((name(output)?, part(at), output.data_type)))
                .collect::<Result<_, Failure>>()?,
        })
    }
}

/// A loaded module.
pub struct TorchModel {
    signature: Signature,
    plan: Arc<Plan>,
    module: Arc<Module>,
}

/// The inputs of a traced module, by what it was traced with. Of its sizes none is known to be fixed.
fn traced_inputs(module: &Module, arguments: &[names::Argument]) -> Result<Vec<TensorInfo>, Failure> {
    let input = |(at, argument): (usize, &names::Argument)| {
        let example = module.example(at)?;
        let data_type = data_type(example.scalar_type)?;
        Some(TensorInfo { name: argument.name.clone(), data_type, dims: vec![-1; example.dims.len()], optional: false })
    };
    let inputs: Option<Vec<_>> =
        arguments.iter().enumerate().filter(|(_, argument)| !argument.has_default).map(input).collect();
    inputs.filter(|inputs| !inputs.is_empty()).ok_or_else(|| undescribed(arguments))
}

/// What to write where a module does not tell enough.
fn undescribed(arguments: &[names::Argument]) -> Failure {
    let names =
        arguments.iter().filter(|argument| argument.takes != Takes::Other).map(|argument| argument.name.as_str());
    let inputs: Vec<_> =
        names.map(|name| format!("{{ name: \"{name}\" data_type: TYPE_FP32 dims: [ -1 ] }}")).collect();
    Failure::invalid(format!(
        "the module does not say the types and shapes of its tensors: put it into MODEL/1/model.pt, and into \
         MODEL/config.pbtxt what is true of it in the manner of: backend: \"pytorch\" input [ {} ] \
         output [ {{ name: \"OUTPUT__0\" data_type: TYPE_FP32 dims: [ -1 ] }} ]",
        inputs.join(", ")
    ))
}

impl TorchModel {
    /// The outputs as a run on zeros of the traced sizes shows them.
    fn probed_outputs(
        &self,
        inputs: &[TensorInfo],
        places: &[Place],
        arguments: &[names::Argument],
    ) -> Result<Vec<TensorInfo>, Failure> {
        let examples = places.iter().map(|place| match place {
            Place::Argument(at) => self.module.example(*at).map(|example| example.dims),
            Place::Entry => None,
        });
        let dims: Vec<Vec<i64>> = examples.collect::<Option<_>>().ok_or_else(|| undescribed(arguments))?;
        let plan = Plan::new(inputs, places, &[])?;
        let zeros = Zeros::new(inputs, &dims)?;
        let mut runner = Runner::new(Arc::clone(&self.module))?;
        // SAFETY: the inputs point into `zeros`, `dims` and `plan`, which live through the call.
        let probed = unsafe { runner.probe(&zeros.raw(inputs, &dims, &plan)) };
        let outputs = probed?.into_iter().map(|(name, scalar_type, rank)| {
            let data_type = data_type(scalar_type).ok_or_else(|| {
                Failure::unsupported(format!("output '{name}' has elements of a type that cannot be served"))
            })?;
            Ok(TensorInfo { name, data_type, dims: vec![-1; rank], optional: false })
        });
        outputs.collect()
    }

    /// Runs with zeros where all sizes are known; a batch is one. That it fails is no fault: zeros may be no right input.
    fn warm_up(&self, inputs: &[TensorInfo], runs: u32, model: &str) {
        let dims: Vec<Vec<i64>> = inputs
            .iter()
            .map(|input| {
                input.dims.iter().enumerate().map(|(at, dim)| if at == 0 { (*dim).abs() } else { *dim }).collect()
            })
            .collect();
        let is_known = dims.iter().flatten().all(|dim| *dim >= 0);
        let elements = dims.iter().map(|dims| dims.iter().product::<i64>()).sum::<i64>();
        if runs == 0 || !is_known || elements > MOST_WARM_UP_ELEMENTS {
            return;
        }
        let run = || -> Result<(), Failure> {
            let zeros = Zeros::new(inputs, &dims)?;
            let mut runner = Runner::new(Arc::clone(&self.module))?;
            for _ in 0..runs {
                // SAFETY: the inputs point into `zeros`, `dims` and the plan, which live through the call.
                unsafe { runner.probe(&zeros.raw(inputs, &dims, &self.plan)) }?;
            }
            Ok(())
        };
        if let Err(failure) = run() {
            log(abi::LOG_DEBUG, &format!("model {model}: a warm-up run with zeros failed: {}", failure.text));
        }
    }
}

/// Larger inputs are not made up for a warm-up.
const MOST_WARM_UP_ELEMENTS: i64 = 16 << 20;

/// Zeros for every input.
struct Zeros(Vec<Vec<u64>>);

impl Zeros {
    fn new(inputs: &[TensorInfo], dims: &[Vec<i64>]) -> Result<Self, Failure> {
        let zeros = inputs.iter().zip(dims).map(|(input, dims)| {
            let elements = dims.iter().try_fold(1_usize, |all, dim| all.checked_mul(usize::try_from(*dim).ok()?));
            let bytes = elements.and_then(|elements| elements.checked_mul(abi::element_size(input.data_type)));
            let bytes = bytes.ok_or_else(|| Failure::invalid(format!("input '{}' is too large", input.name)))?;
            Ok(vec![0; bytes.div_ceil(8)])
        });
        zeros.collect::<Result<_, Failure>>().map(Self)
    }

    fn raw(&self, inputs: &[TensorInfo], dims: &[Vec<i64>], plan: &Plan) -> Vec<RawInput> {
        let all = self.0.iter().zip(inputs).zip(dims).zip(&plan.inputs);
        all.map(|(((zeros, input), dims), (name, argument))| RawInput {
            data: zeros.as_ptr().cast(),
            dims: dims.as_ptr(),
            rank: dims.len(),
            scalar_type: scalar_type(input.data_type),
            argument: *argument,
            name: name.as_ptr(),
        })
        .collect()
    }
}

impl Model for TorchModel {
    type Instance = TorchInstance;

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn instance(&self) -> Result<TorchInstance, Failure> {
        Ok(TorchInstance {
            runner: Runner::new(Arc::clone(&self.module))?,
            plan: Arc::clone(&self.plan),
            room: Vec::new(),
            error: Box::new(abi::RoundhouseError::empty()),
        })
    }
}

/// Runs a module. What it needs for a call it keeps for the next.
pub struct TorchInstance {
    runner: Runner,
    plan: Arc<Plan>,
    room: Vec<*mut C_tensor>,
    error: Box<abi::RoundhouseError>,
}

// SAFETY: the pointers of `room` are empty or taken over between calls.
unsafe impl Send for TorchInstance {}

impl Instance for TorchInstance {
    type Output = TorchTensor;

    fn infer(
        &mut self,
        inputs: &[Input<'_>],
        wanted: &[usize],
        outputs: &mut Outputs<'_, TorchTensor>,
    ) -> Result<(), Failure> {
        let plan = &*self.plan;
        let unknown = || Failure::invalid("a tensor that the model does not have");
        let mut given = Vec::with_capacity(inputs.len());
        for input in inputs {
            let (name, argument) = plan.inputs.get(input.index()).ok_or_else(unknown)?;
            given.push(RawInput {
                data: input.data().as_ptr().cast(),
                dims: input.dims().as_ptr(),
                rank: input.dims().len(),
                scalar_type: scalar_type(input.data_type()),
                argument: *argument,
                name: name.as_ptr(),
            });
        }
        let mut parts = Vec::with_capacity(wanted.len());
        for &index in wanted {
            let (name, index, _) = plan.outputs.get(index).ok_or_else(unknown)?;
            parts.push(RawWanted { name: name.as_ptr(), index: *index });
        }
        // SAFETY: the server's inputs live through the call, and the names as long as the plan.
        unsafe { self.runner.infer(&given, &parts, &mut self.room, &mut self.error) }?;
        // All of them are owned before one is looked at.
        let tensors: Vec<tch::Tensor> = self
            .room
            .iter_mut()
            // SAFETY: the shim gave tensors that are ours now.
            .map(|pointer| unsafe { tch::Tensor::from_ptr(std::mem::replace(pointer, ptr::null_mut())) })
            .collect();
        for (tensor, &index) in tensors.into_iter().zip(wanted) {
            let (name, _, expected) = &plan.outputs[index];
            let found = data_type(shim::scalar_type(&tensor));
            if found != Some(*expected) {
                let found = found.map_or("a type that cannot be served", type_name);
                return Err(Failure::invalid(format!(
                    "output '{}' is of {found}, and the configuration says {}",
                    name.to_string_lossy(),
                    type_name(*expected)
                )));
            }
            outputs.push(TorchTensor { dims: tensor.size(), data_type: *expected, tensor });
        }
        Ok(())
    }
}

/// A tensor that a run gave: dense and in host memory, by the shim.
pub struct TorchTensor {
    tensor: tch::Tensor,
    dims: Vec<i64>,
    data_type: i32,
}

impl Output for TorchTensor {
    fn data_type(&self) -> i32 {
        self.data_type
    }

    fn dims(&self) -> &[i64] {
        &self.dims
    }

    fn data(&self) -> &[u8] {
        let bytes = self.tensor.numel() * abi::element_size(self.data_type);
        if bytes == 0 {
            return &[];
        }
        // SAFETY: the tensor is dense and in host memory, its elements are of this type, and it lives as long as this.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), bytes) }
    }
}

/// The types of the ABI with torch's numbers (c10/core/ScalarType.h) and Triton's names. Those of more than one byte without a
/// sign are younger than tch's.
const TYPES: [(i32, i32, &str); 13] = [
    (abi::UINT8, 0, "TYPE_UINT8"),
    (abi::INT8, 1, "TYPE_INT8"),
    (abi::INT16, 2, "TYPE_INT16"),
    (abi::INT32, 3, "TYPE_INT32"),
    (abi::INT64, 4, "TYPE_INT64"),
    (abi::FP16, 5, "TYPE_FP16"),
    (abi::FP32, 6, "TYPE_FP32"),
    (abi::FP64, 7, "TYPE_FP64"),
    (abi::BOOL, 11, "TYPE_BOOL"),
    (abi::BF16, 15, "TYPE_BF16"),
    (abi::UINT16, 27, "TYPE_UINT16"),
    (abi::UINT32, 28, "TYPE_UINT32"),
    (abi::UINT64, 29, "TYPE_UINT64"),
];

/// Torch's number of a type; the server sends only types of `TYPES`, strings being refused at load.
fn scalar_type(data_type: i32) -> i32 {
    TYPES.iter().find(|(known, ..)| *known == data_type).map_or(0, |(_, number, _)| *number)
}

fn data_type(scalar_type: i32) -> Option<i32> {
    TYPES.iter().find(|(_, number, _)| *number == scalar_type).map(|(known, ..)| *known)
}

fn type_name(data_type: i32) -> &'static str {
    TYPES.iter().find(|(known, ..)| *known == data_type).map_or("TYPE_INVALID", |(.., name)| *name)
}
