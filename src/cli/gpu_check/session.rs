//! `roundhouse gpu-check session`: how fast a session is when nothing is around it, for what a server makes of it to be
//! held against.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::backend::onnxruntime::{NAME, OnnxRuntime};
use crate::backend::placement::{GpuShare, Placement};
use crate::backend::{Backend, Batch, Model, ModelFiles};
use crate::device::cuda::driver::Driver;
use crate::device::cuda::gpu::{Gpu, SLAB};
use crate::device::cuda::pinned::PinnedPool;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::NamedTensor;
use crate::model_config::ModelConfig;
use crate::model_config::complete::RuntimeSignature;
use crate::tensor::{Shape, Tensor};

/// What `roundhouse gpu-check session` was asked.
#[derive(Debug, clap::Args)]
pub struct SessionArgs {
    /// The ONNX model
    pub model: PathBuf,
    /// The libonnxruntime.so for GPUs
    #[arg(long, value_name = "FILE")]
    pub onnxruntime_library: PathBuf,
    /// Rows a run
    #[arg(long, default_value_t = 1)]
    pub batch: i64,
    /// How long it runs
    #[arg(long, default_value_t = 5, value_name = "S")]
    pub seconds: u64,
    /// The GPU by CUDA's number
    #[arg(long, default_value_t = 0)]
    pub gpu: u32,
}

/// Loads the model on the GPU, runs it again and again on zeros from one thread, and prints figures as JSON.
///
/// # Errors
/// `Unsupported` where there is no GPU, or what is wrong with the model.
pub(super) fn run(args: &SessionArgs) -> Result<()> {
    let driver = Driver::open().map_err(|why| Error::new(ErrorKind::Unsupported, format!("no GPU: {why}")))?;
    let context = driver.context(args.gpu)?;
    let (free, _) = context.memory()?;
    let limit = free / 10 * 9;
    let gpu = Gpu::open(&context, &PinnedPool::new(&context, SLAB, SLAB), limit, 1)?;
    let share = GpuShare { owner: gpu.pool().owner("session", limit)?, gpu };
    let directory = args.model.parent().map(PathBuf::from).unwrap_or_default();
    let files = ModelFiles {
        version_directory: directory.clone(),
        directory,
        version: 1,
        model_file: Some(args.model.clone()),
        derived: None,
    };
    let backend = OnnxRuntime::open(&args.onnxruntime_library, 1)?;
    let began = Instant::now();
    let model = backend.load(&files, &ModelConfig::minimal("session", NAME), &Placement::on(share.clone()))?;
    let load = began.elapsed();
    let times = loop_of(&*model, args.batch, Duration::from_secs(args.seconds))?;
    let all: f64 = times.iter().map(Duration::as_secs_f64).sum();
    let rows = times.len() as f64 * args.batch as f64;
    let usage = share.owner.usage();
    let document = json!({
        "device": context.name(),
        "batch": args.batch,
        "load_ms": load.as_secs_f64() * 1e3,
        "runs": times.len(),
        "median_ms": times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3),
        "rows_per_second": rows / all,
        "weight_bytes": usage.weight_memory,
        "activation_bytes": usage.activations_peak,
    });
    writeln!(io::stdout(), "{document}").map_err(|error| Error::internal("cannot print").with_source(error))
}

/// Runs before times count: libraries choose their kernels in the first ones.
const WARM_UP: usize = 5;

/// How long each run took, sorted.
fn loop_of(model: &dyn Model, batch: i64, duration: Duration) -> Result<Vec<Duration>> {
    let inputs = zeros(model.signature(), batch)?;
    let outputs: Vec<usize> = (0..model.signature().outputs.len()).collect();
    let (mut instance, mut times) = (model.instance()?, Vec::new());
    let mut end = None;
    for run in 0.. {
        let begin = Instant::now();
        if end.is_some_and(|end| begin >= end) {
            break;
        }
        instance.execute(&Batch { inputs: &inputs, outputs: &outputs })?;
        if run < WARM_UP {
            continue;
        }
        times.push(begin.elapsed());
        end.get_or_insert(begin + duration);
    }
    times.sort();
    Ok(times)
}

/// Zeros for every input: `batch` rows, and one of what else may be any size.
fn zeros(signature: &RuntimeSignature, batch: i64) -> Result<Vec<NamedTensor>> {
    let tensor = |input: &crate::model_config::complete::TensorSignature| {
        let size = |(at, dim): (usize, &i64)| {
            if *dim >= 0 {
                *dim
            } else if at == 0 {
                batch
            } else {
                1
            }
        };
        let shape = Shape::new(&input.dims.iter().enumerate().map(size).collect::<Vec<_>>());
        let bytes = input.data_type.size().zip(shape.element_count()).and_then(|(size, count)| size.checked_mul(count));
        let bytes = bytes.ok_or_else(|| Error::unsupported(format!("input '{}' cannot be made up", input.name)))?;
        let tensor = Tensor::new(input.data_type, shape, vec![0; bytes].into())?;
        Ok(NamedTensor { name: input.name.as_str().into(), tensor })
    };
    signature.inputs.iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::complete::TensorSignature;
    use crate::tensor::DataType;

    #[test]
    fn zeros_have_as_many_rows_as_are_asked_for() {
        let input = |data_type, dims: &[i64]| TensorSignature { name: "x".to_owned(), data_type, dims: dims.to_vec() };
        let signature = |input| RuntimeSignature { inputs: vec![input], ..RuntimeSignature::default() };
        let made = zeros(&signature(input(DataType::Fp32, &[-1, 3, -1])), 4).unwrap();
        assert_eq!(made[0].tensor.shape(), &Shape::new(&[4, 3, 1]));
        assert_eq!(zeros(&signature(input(DataType::Fp16, &[2])), 4).unwrap()[0].tensor.data().len(), 4);
        assert!(zeros(&signature(input(DataType::Bytes, &[-1])), 1).is_err());
    }
}
