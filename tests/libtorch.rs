//! The pytorch backend through its plugin, with real TorchScript files. `make libtorch-test` builds the plugin and runs this; the files
//! are made by `tests/fixtures/torch/make.py`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, helpers included; the Makefile says where plugin and libtorch are"
)]

use std::path::{Path, PathBuf};

use roundhouse::backend::conformance::{Case, backend_conformance};
use roundhouse::backend::placement::Placement;
use roundhouse::backend::plugin::libtorch::Libtorch;
use roundhouse::backend::plugin::{Opening, Plugin};
use roundhouse::backend::{Backend, Batch, Model, ModelFiles};
use roundhouse::config::default_runtime_dir;
use roundhouse::device::allocator::Trimmer;
use roundhouse::device::host::Host;
use roundhouse::device::monitor::DeviceMonitor;
use roundhouse::error::{Error, ErrorKind, Result};
use roundhouse::inference::{DeviceId, NamedTensor};
use roundhouse::model_config::{ModelConfig, UnknownFields, parse};
use roundhouse::tensor::{DataType, Element, Shape, Tensor};

const MIB: u64 = 1 << 20;

fn backend() -> Plugin {
    let plugin = std::env::var_os("ROUNDHOUSE_PYTORCH_PLUGIN").map(PathBuf::from);
    let plugin =
        plugin.unwrap_or_else(|| panic!("ROUNDHOUSE_PYTORCH_PLUGIN names no plugin: run `make libtorch-test`"));
    let named = std::env::var_os("ROUNDHOUSE_LIBTORCH_DIR").map(PathBuf::from);
    let libtorch = Libtorch::find(named.as_deref(), &default_runtime_dir().unwrap()).unwrap();
    Plugin::open(&plugin, &Opening { first: libtorch.libraries, executor_threads: 2, ..Opening::default() })
        .unwrap_or_else(|error| panic!("{}", error.report()))
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

fn files(path: &Path) -> ModelFiles {
    let directory = path.parent().unwrap().to_owned();
    ModelFiles {
        version_directory: directory.clone(),
        directory,
        version: 1,
        model_file: Some(path.to_owned()),
        derived: None,
    }
}

fn config(text: &str) -> ModelConfig {
    parse(&format!("name: 'm' backend: 'pytorch' {text}"), UnknownFields::Deny).unwrap().config
}

/// A configuration of FP32 vectors.
fn vectors(inputs: &[&str], outputs: &[&str]) -> String {
    let tensor = |role: &str, name: &&str| format!("{role} {{ name: '{name}' data_type: TYPE_FP32 dims: -1 }} ");
    inputs.iter().map(|name| tensor("input", name)).chain(outputs.iter().map(|name| tensor("output", name))).collect()
}

fn load(backend: &Plugin, file: &str, text: &str) -> Result<Box<dyn Model>> {
    backend.load(&files(&fixture(file)), &config(text), &Placement::of(DeviceId::Cpu))
}

fn tensor<T: Element>(shape: &[i64], elements: Vec<T>) -> Tensor {
    Tensor::from_vec(Shape::new(shape), elements).unwrap()
}

fn vector(elements: &[f32]) -> Tensor {
    tensor(&[i64::try_from(elements.len()).unwrap()], elements.to_vec())
}

fn named(name: &str, tensor: Tensor) -> NamedTensor {
    NamedTensor { name: name.into(), tensor }
}

/// Runs a model on vectors, and gives all its outputs.
fn run(model: &dyn Model, inputs: &[(&str, &[f32])]) -> Result<Vec<Tensor>> {
    let inputs: Vec<_> = inputs.iter().map(|(name, elements)| named(name, vector(elements))).collect();
    run_on(model, &inputs)
}

fn run_on(model: &dyn Model, inputs: &[NamedTensor]) -> Result<Vec<Tensor>> {
    let wanted: Vec<usize> = (0..model.signature().outputs.len()).collect();
    let execution = model.instance()?.execute(&Batch { inputs, outputs: &wanted })?;
    Ok(execution.outputs.into_iter().map(|output| output.tensor).collect())
}

fn refused(backend: &Plugin, file: &str, text: &str) -> Error {
    load(backend, file, text).err().unwrap_or_else(|| panic!("{file} was loaded"))
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn torchscript_does_what_a_backend_must() {
    let case = Case {
        files: files(&fixture("pair.pt")),
        config: config(&vectors(&["x", "y"], &["sum", "difference"])),
        inputs: vec![named("x", vector(&[1.5, 2.0])), named("y", vector(&[0.5, -2.0]))],
        outputs: vec![vector(&[2.0, 0.0]), vector(&[1.0, 4.0])],
        empty: Some(vec![named("x", vector(&[])), named("y", vector(&[]))]),
        many: None,
        alive: None,
    };
    backend_conformance(&backend(), &case).unwrap();
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn inputs_and_outputs_are_found_by_index_by_name_in_order_and_in_dictionaries() {
    let backend = backend();
    let (x, y) = (("x", &[5.0_f32][..]), ("y", &[3.0_f32][..]));
    let model = load(&backend, "pair.pt", &vectors(&["INPUT__1", "INPUT__0"], &["OUTPUT__1", "OUTPUT__0"])).unwrap();
    let outputs = run(&*model, &[("INPUT__0", x.1), ("INPUT__1", y.1)]).unwrap();
    assert_eq!(outputs, [vector(&[2.0]), vector(&[8.0])]);
    let model = load(&backend, "pair.pt", &vectors(&["y", "x"], &["OUTPUT__1"])).unwrap();
    assert_eq!(run(&*model, &[x, y]).unwrap(), [vector(&[2.0])]);
    let model = load(&backend, "listed.pt", &vectors(&["x"], &["same", "negative", "rest"])).unwrap();
    let outputs = run(&*model, &[("x", &[1.0, 2.0, 3.0])]).unwrap();
    assert_eq!(outputs, [vector(&[1.0, 2.0, 3.0]), vector(&[-1.0, -2.0, -3.0]), vector(&[2.0, 3.0])]);
    let model = load(&backend, "mapped.pt", &vectors(&["a", "b"], &["product", "sum"])).unwrap();
    assert_eq!(run(&*model, &[("a", x.1), ("b", y.1)]).unwrap(), [vector(&[15.0]), vector(&[8.0])]);
    let text = vectors(&["x"], &["OUTPUT__0"]) + "input { name: 'bias' data_type: TYPE_FP32 dims: -1 optional: true }";
    let model = load(&backend, "scaled.pt", &text).unwrap();
    assert_eq!(run(&*model, &[x]).unwrap(), [vector(&[10.0])]);
    assert_eq!(run(&*model, &[x, ("bias", &[1.0])]).unwrap(), [vector(&[11.0])]);
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn types_and_layouts_come_out_as_they_are_configured() {
    let text = "input { name: 'x' data_type: TYPE_FP32 dims: [ -1, -1 ] }
        output [ { name: 'OUTPUT__0' data_type: TYPE_FP16 dims: [ -1, -1 ] }, { name: 'OUTPUT__1' data_type: TYPE_BF16 dims: [ -1, -1 ] },
                 { name: 'OUTPUT__2' data_type: TYPE_BOOL dims: [ -1, -1 ] }, { name: 'OUTPUT__3' data_type: TYPE_FP32 dims: [ -1, -1 ] } ]";
    let backend = backend();
    let model = load(&backend, "types.pt", text).unwrap();
    let outputs = run_on(&*model, &[named("x", tensor(&[1, 3], vec![1.0_f32, 2.0, -0.5]))]).unwrap();
    let halves = [1.0, 2.0, -0.5].map(half::f16::from_f32).to_vec();
    assert_eq!(outputs[0], tensor(&[1, 3], halves));
    assert_eq!(outputs[1], tensor(&[1, 3], [1.0, 2.0, -0.5].map(half::bf16::from_f32).to_vec()));
    assert_eq!(outputs[2], Tensor::new(DataType::Bool, Shape::new(&[1, 3]), vec![0, 1, 0].into()).unwrap());
    assert_eq!(outputs[3], tensor(&[3, 1], vec![1.0_f32, 2.0, -0.5]), "a transposed view is made dense");
    let model = load(&backend, "types.pt", &text.replace("TYPE_BF16", "TYPE_FP64")).unwrap();
    let error = run_on(&*model, &[named("x", tensor(&[1, 1], vec![1.0_f32]))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(
        error.report().contains("output 'OUTPUT__1' is of TYPE_BF16, and the configuration says TYPE_FP64"),
        "{}",
        error.report()
    );
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn a_traced_module_describes_itself_and_a_scripted_one_says_what_to_write() {
    let backend = backend();
    let model = load(&backend, "traced.pt", "").unwrap();
    let signature = model.signature();
    let [input, output] = [&signature.inputs[0], &signature.outputs[0]];
    assert_eq!((signature.inputs.len(), input.data_type, input.dims.as_slice()), (1, DataType::Fp32, &[-1, -1][..]));
    assert_eq!(
        (output.name.as_str(), output.data_type, output.dims.as_slice()),
        ("OUTPUT__0", DataType::Fp32, &[-1, -1][..])
    );
    let outputs = run_on(&*model, &[named(&input.name, tensor(&[3, 4], vec![0.0_f32; 12]))]).unwrap();
    assert_eq!(outputs[0].shape(), &Shape::new(&[3, 3]), "another batch than it was traced with");
    let error = refused(&backend, "add.pt", "");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(
        error.report().contains("input [ { name: \"x\" data_type: TYPE_FP32 dims: [ -1 ] }, { name: \"y\""),
        "{}",
        error.report()
    );
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn what_cannot_be_served_is_refused_with_the_mend_and_others_are_undisturbed() {
    let backend = backend();
    let sound = load(&backend, "add.pt", &vectors(&["x", "y"], &["z"])).unwrap();
    let (one, two) = (vectors(&["x"], &["y"]), vectors(&["x", "y"], &["z"]));
    let strings = one.replace("TYPE_FP32", "TYPE_STRING");
    let cases = [
        ("weights.pt", &one, "weights or a pickled module of torch.save"),
        (
            "exported.pt2",
            &one,
            "is a graph of torch.export.save, which only Python can run: save the model as TorchScript",
        ),
        ("make.py", &one, "is no zip archive"),
        ("missing.pt", &one, "roundhouse::missing"),
        ("repeats.pt", &two, "argument 'times' of forward is a int: only tensors can be served"),
        ("add.pt", &one, "forward needs its argument 'y', which no input of the configuration is for"),
        ("add.pt", &strings, "torch has no tensors of strings"),
        ("nothing.pt", &one, "has no file nothing.pt"),
    ];
    for (file, text, expected) in cases {
        let error = refused(&backend, file, text);
        assert!(error.report().contains(expected), "{file}: {}", error.report());
        assert!(!error.report().contains(env!("CARGO_MANIFEST_DIR")), "{file}: {}", error.report());
        assert_ne!(error.kind(), ErrorKind::BackendFailed, "{file}: a model's fault is the model's");
    }
    let place = tempfile::tempdir().unwrap();
    let torn = place.path().join("torn.pt");
    let whole = std::fs::read(fixture("pair.pt")).unwrap();
    let mut spoiled = whole.clone();
    for byte in &mut spoiled[..whole.len() / 2] {
        *byte ^= 0x55;
    }
    for bytes in [&whole[..whole.len() / 2], &spoiled] {
        std::fs::write(&torn, bytes).unwrap();
        let error = backend.load(&files(&torn), &config(&two), &Placement::of(DeviceId::Cpu)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", error.report());
    }
    assert_eq!(run(&*sound, &[("x", &[1.0]), ("y", &[2.0])]).unwrap(), [vector(&[3.0])]);
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn a_run_that_fails_says_why_and_the_instance_goes_on() {
    let backend = backend();
    let cases = [
        ("throws.pt", vectors(&["x"], &["y"]), "below nothing"),
        ("number.pt", vectors(&["x"], &["y"]), "forward gives a Int: only tensors"),
        ("nested.pt", vectors(&["x"], &["OUTPUT__0", "OUTPUT__1"]), "output 'OUTPUT__1' is a "),
        ("listed.pt", vectors(&["x"], &["OUTPUT__3"]), "forward gives 3 values, and one of place 3 is configured"),
        (
            "mapped.pt",
            vectors(&["a", "b"], &["quotient"]),
            "forward gives a dictionary without 'quotient', it has 'sum', 'product'",
        ),
    ];
    for (file, text, expected) in cases {
        let model = load(&backend, file, &text).unwrap();
        let inputs: Vec<_> = model.signature().inputs.iter().map(|input| (input.name.clone(), [-1.0_f32])).collect();
        let inputs: Vec<_> = inputs.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
        let error = run(&*model, &inputs).unwrap_err();
        assert!(error.report().contains(expected), "{file}: {}", error.report());
    }
    let model = load(&backend, "throws.pt", &vectors(&["x"], &["y"])).unwrap();
    let mut instance = model.instance().unwrap();
    for (value, works) in [(-1.0_f32, false), (1.0, true), (-1.0, false), (2.0, true)] {
        let input = [named("x", vector(&[value]))];
        assert_eq!(instance.execute(&Batch { inputs: &input, outputs: &[0] }).is_ok(), works);
    }
    let add = load(&backend, "add.pt", &vectors(&["x", "y"], &["z"])).unwrap();
    let error = run(&*add, &[("x", &[1.0, 2.0]), ("y", &[1.0, 2.0, 3.0])]).unwrap_err();
    assert!(error.report().contains("must match the size"), "{}", error.report());
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn what_a_module_keeps_outlives_the_request_it_came_with() {
    let backend = backend();
    let model = load(&backend, "remembers.pt", &vectors(&["x"], &["y"])).unwrap();
    assert_eq!(run(&*model, &[("x", &[1.0, 2.0])]).unwrap(), [vector(&[0.0, 0.0])]);
    // What was freed is used again.
    let noise: Vec<Vec<f32>> = (0..64).map(|_| vec![-1.0; 2]).collect();
    assert_eq!(run(&*model, &[("x", &[3.0, 4.0])]).unwrap(), [vector(&[1.0, 2.0])]);
    drop(noise);
    // An output that is the input is a copy of it.
    let listed = load(&backend, "listed.pt", &vectors(&["x"], &["OUTPUT__0"])).unwrap();
    let values: Vec<f32> = (0..10_000_u16).map(f32::from).collect();
    let outputs = run(&*listed, &[("x", &values)]).unwrap();
    let noise: Vec<Vec<f32>> = (0..8).map(|_| vec![-1.0; 10_000]).collect();
    assert_eq!(outputs[0], vector(&values));
    drop(noise);
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn every_way_to_run_a_module_gives_the_same_answer_from_many_threads() {
    let backend = backend();
    let input = [named("INPUT__0", tensor(&[2, 4], (0..8_u8).map(f32::from).collect::<Vec<_>>()))];
    let text = "input { name: 'INPUT__0' data_type: TYPE_FP32 dims: [ -1, 4 ] } output { name: 'OUTPUT__0' data_type: TYPE_FP32 dims: [ -1, 3 ] }";
    let plain = run_on(&*load(&backend, "traced.pt", text).unwrap(), &input).unwrap();
    let with =
        |key: &str, value: &str| format!("{text} parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}");
    let ways = [
        with("INFERENCE_MODE", "false"),
        with("DISABLE_OPTIMIZED_EXECUTION", "true"),
        with("INTRA_OP_THREAD_COUNT", "2"),
        with("optimize", "freeze"),
        with("optimize", "inference"),
        with("warmup", "5"),
    ];
    let models: Vec<_> = ways.iter().map(|way| load(&backend, "traced.pt", way).unwrap()).collect();
    std::thread::scope(|scope| {
        for model in &models {
            scope.spawn(|| {
                for _ in 0..200 {
                    let outputs = run_on(&**model, &input).unwrap();
                    let [got, expected] =
                        [&outputs[0], &plain[0]].map(|tensor| tensor.elements::<f32>().unwrap().to_vec());
                    assert!(
                        got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 1e-5),
                        "{got:?} {expected:?}"
                    );
                }
            });
        }
    });
    let error = refused(&backend, "traced.pt", &with("optimize", "more"));
    assert_eq!(error.report(), "parameter optimize is 'more', expected none, freeze or inference");
}

#[test]
#[ignore = "needs libtorch and the plugin: make libtorch-test"]
fn ten_rounds_of_loading_and_dropping_leave_the_process_as_it_was() {
    roundhouse::device::allocator::fix_thresholds();
    let (backend, trimmer) = (backend(), Trimmer::default());
    let resident = || Host::default().memory(DeviceId::Cpu).unwrap().ours;
    let mut rounds = Vec::new();
    for _ in 0..10 {
        let model = load(&backend, "heavy.pt", &vectors(&["x"], &["y"])).unwrap();
        assert_eq!(run(&*model, &[("x", &[1.0])]).unwrap(), [vector(&[64.0])]);
        let loaded = resident();
        drop(model);
        trimmer.trim(64 * MIB);
        rounds.push((loaded, resident()));
    }
    let slack = 12 * MIB;
    for (loaded, left) in &rounds[1..] {
        assert!(loaded - left > 64 * MIB - slack, "not given back: {rounds:?}");
        assert!(left.abs_diff(rounds[1].1) < slack, "resident memory drifts: {rounds:?}");
    }
}
