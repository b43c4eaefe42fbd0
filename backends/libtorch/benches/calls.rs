//! What a call through the server's side of the plugin costs beside the same module called in the same process by tch, which
//! is C++ behind a thin wrapper: a sum of four numbers, where the call is all there is, and a convolutional network.
//!
//! `make libtorch-bench`. Both are called in turn, in short rounds, and medians are compared, so that what else the machine does
//! meets both alike.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench fails by panicking and prints its figures; the Makefile says where plugin and libtorch are"
)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use roundhouse::backend::placement::Placement;
use roundhouse::backend::plugin::libtorch::Libtorch;
use roundhouse::backend::plugin::{Opening, Plugin};
use roundhouse::backend::{Backend, Batch, ModelFiles};
use roundhouse::inference::{DeviceId, NamedTensor};
use roundhouse::model_config::{UnknownFields, parse};
use roundhouse::tensor::{Shape, Tensor};
use tch::nn::{ConvConfig, ModuleT};
use tch::{CModule, Device, Kind, nn};

/// Rounds of both, one after the other.
const ROUNDS: usize = 61;

fn main() {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from).unwrap();
    let libtorch = Libtorch::find(Some(&named("ROUNDHOUSE_LIBTORCH_DIR")), Path::new("none")).unwrap();
    let opening = Opening { first: libtorch.libraries, executor_threads: 1, ..Opening::default() };
    let plugin = Plugin::open(&named("ROUNDHOUSE_PYTORCH_PLUGIN"), &opening).unwrap();
    tch::set_num_threads(1);

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().unwrap();
    let net = folder.path().join("net.pt");
    make_net(&net);
    println!(
        "median us a call, one thread     | tch, tensors there | tch, from and to bytes | plugin | plugin over bytes"
    );
    for (name, file, dims, arguments, calls) in [
        ("sum of 4 numbers", root.join("tests/fixtures/torch/add.pt"), vec![4], 2, 2000),
        ("17 convolutions of 1x3x112x112", net, vec![1, 3, 112, 112], 1, 1),
    ] {
        let [ready, bytes, through] = measure(&plugin, &file, &dims, arguments, calls);
        let over = match calls {
            1 => format!("{:+.1} %", (through / bytes - 1.0) * 100.0),
            _ => format!("{:+.2} us", through - bytes),
        };
        println!("{name:<32} | {ready:>18.2} | {bytes:>22.2} | {through:>6.2} | {over}");
    }
}

/// Microseconds a call: by tch with its tensors made before, by tch from bytes to bytes, and by the plugin, which does the latter.
fn measure(plugin: &Plugin, file: &Path, dims: &[i64], arguments: usize, calls: usize) -> [f64; 3] {
    let elements: Vec<f32> = (0..dims.iter().product::<i64>()).map(|at| (at % 7) as f32 / 7.0).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&elements);
    let input = |_| tch::Tensor::from_data_size(bytes, dims, Kind::Float);
    let tensors: Vec<_> = (0..arguments).map(input).collect();
    let module = CModule::load(file).unwrap();
    let ready = || drop(tch::no_grad(|| module.forward_ts(&tensors).unwrap()));
    let from_bytes = || {
        tch::no_grad(|| {
            // SAFETY: the bytes outlive the tensors, and are as many as the sizes say.
            let over = |_| unsafe { tch::Tensor::from_blob(bytes.as_ptr(), dims, &[], Kind::Float, Device::Cpu) };
            let tensors: Vec<_> = (0..arguments).map(over).collect();
            let output = module.forward_ts(&tensors).unwrap().contiguous();
            let size: usize = output.size().iter().map(|size| usize::try_from(*size).unwrap()).product();
            // SAFETY: a dense tensor in host memory of so many numbers.
            std::hint::black_box(unsafe { std::slice::from_raw_parts(output.data_ptr().cast::<f32>(), size) }[0]);
        });
    };

    let tensor = |role: &str, at: usize, rank: usize| {
        format!("{role} {{ name: '{role}__{at}' data_type: TYPE_FP32 dims: [ {} ] }}", vec!["-1"; rank].join(", "))
    };
    let text: String = (0..arguments).map(|at| tensor("input", at, dims.len())).collect();
    let text =
        format!("name: 'm' backend: 'pytorch' {text} {}", tensor("output", 0, if arguments == 1 { 2 } else { 1 }));
    let config = parse(&text, UnknownFields::Deny).unwrap().config;
    let directory = file.parent().unwrap().to_owned();
    let files = ModelFiles {
        version_directory: directory.clone(),
        directory,
        version: 1,
        model_file: Some(file.to_owned()),
        derived: None,
    };
    let model = plugin.load(&files, &config, &Placement::of(DeviceId::Cpu)).unwrap();
    let mut instance = model.instance().unwrap();
    let inputs: Vec<NamedTensor> = (0..arguments)
        .map(|at| NamedTensor {
            name: format!("input__{at}").as_str().into(),
            tensor: Tensor::from_vec(Shape::new(dims), elements.clone()).unwrap(),
        })
        .collect();
    let mut through = || drop(instance.execute(&Batch { inputs: &inputs, outputs: &[0] }).unwrap());

    let timed = |work: &mut dyn FnMut()| {
        let begin = Instant::now();
        (0..calls).for_each(|_| work());
        begin.elapsed().as_secs_f64() * 1e6 / calls as f64
    };
    let (mut works, mut times) =
        ([&mut { ready } as &mut dyn FnMut(), &mut { from_bytes }, &mut through], [const { Vec::new() }; 3]);
    for round in 0..ROUNDS + 5 {
        for (work, times) in works.iter_mut().zip(&mut times) {
            let time = timed(work);
            // The executor optimises in the first runs.
            if round >= 5 {
                times.push(time);
            }
        }
    }
    times.map(|mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

/// A network of 17 convolutions with random weights, traced and frozen.
fn make_net(path: &Path) {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let root = variables.root();
    let mut net = nn::seq();
    for layer in 0..17_i64 {
        let width = |layer: i64| 16 << (layer / 5);
        let stride = if layer % 5 == 0 { 2 } else { 1 };
        let config = ConvConfig { stride, padding: 1, ..ConvConfig::default() };
        let from = if layer == 0 { 3 } else { width(layer - 1) };
        net = net.add(nn::conv2d(&root / layer, from, width(layer), 3, config)).add_fn(|tensor| tensor.relu());
    }
    let net = net.add_fn(|tensor| tensor.adaptive_avg_pool2d([1, 1]).flatten(1, -1));
    variables.freeze();
    let example = tch::Tensor::ones([1, 3, 112, 112], (Kind::Float, Device::Cpu));
    let mut forward = |inputs: &[tch::Tensor]| vec![net.forward_t(&inputs[0], false)];
    let traced = CModule::create_by_tracing("Net", "forward", &[example], &mut forward).unwrap();
    traced.save(path).unwrap();
}
