//! Backends that are libraries of their own, in a process of their own, since they are opened for good: one in Rust, one in C against the
//! header alone, and many that break their word.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, helpers included")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use roundhouse::backend::conformance::{Case, backend_conformance};
use roundhouse::backend::placement::Placement;
use roundhouse::backend::plugin::discover::plugins;
use roundhouse::backend::plugin::{Opening, Plugin};
use roundhouse::backend::registry::BackendRegistry;
use roundhouse::backend::{Backend, Batch, Execution, Model, ModelFiles, ModelMemory};
use roundhouse::error::{Error, ErrorKind, Result};
use roundhouse::inference::{DeviceId, NamedTensor};
use roundhouse::model_config::{ModelConfig, UnknownFields, parse};
use roundhouse::tensor::{Element, Shape, Tensor};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn opening(executor_threads: usize) -> Opening {
    Opening { executor_threads, ..Opening::default() }
}

/// Builds the echo backend into the folder this test was built to: cargo builds no shared library for a test by itself.
fn echo() -> Plugin {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let path = BUILT.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap();
        let target = profile.parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["build", "--quiet", "--offline", "--locked", "--package", "echo-backend", "--target-dir"])
            .arg(target);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.current_dir(ROOT).status().unwrap().success(), "the echo backend cannot be built");
        profile.join("libroundhouse_echo.so")
    });
    Plugin::open(path, &opening(2)).unwrap()
}

/// Compiles the backend in C.
fn negate(folder: &Path, define: &str) -> PathBuf {
    let library = folder.join("libroundhouse_negate.so");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC", "-o"]).arg(&library);
    // What a broken one leaves out, it leaves unused.
    cc.args(["-Wno-unused-function", "-Wno-unused-const-variable", "-Wno-unused-variable"]);
    cc.arg(format!("-D{define}")).arg("-I").arg(Path::new(ROOT).join("backends/abi"));
    let built = cc.arg(Path::new(ROOT).join("tests/plugins/c/negate.c")).status().unwrap();
    assert!(built.success(), "the backend in C cannot be compiled");
    library
}

fn files() -> ModelFiles {
    let directory = Path::new(ROOT).join("models-examples/identity");
    ModelFiles { version_directory: directory.join("1"), directory, version: 1, model_file: None, derived: None }
}

fn config(text: &str) -> ModelConfig {
    parse(text, UnknownFields::Deny).unwrap().config
}

fn named(name: &str, tensor: Tensor) -> NamedTensor {
    NamedTensor { name: name.into(), tensor }
}

fn tensor<T: Element>(elements: Vec<T>) -> Tensor {
    Tensor::from_vec(Shape::new(&[i64::try_from(elements.len()).unwrap()]), elements).unwrap()
}

fn load(backend: &dyn Backend, text: &str) -> Result<Box<dyn Model>> {
    backend.load(&files(), &config(text), &Placement::of(DeviceId::Cpu))
}

fn run(model: &dyn Model, inputs: &[NamedTensor], outputs: &[usize]) -> Result<Execution> {
    model.instance()?.execute(&Batch { inputs, outputs })
}

/// Two tensors given back, and a parameter.
fn echoed(conduct: &str) -> String {
    let tensors = "input [ { name: 'x' data_type: TYPE_FP32 dims: -1 }, { name: 's' data_type: TYPE_STRING dims: -1 } ]
                   output [ { name: 'y' data_type: TYPE_FP32 dims: -1 }, { name: 't' data_type: TYPE_STRING dims: -1 } ]";
    match conduct {
        "" => format!("name: 'm' backend: 'echo' {tensors}"),
        _ => format!(
            "name: 'm' backend: 'echo' {tensors} parameters {{ key: 'conduct' value {{ string_value: '{conduct}' }} }}"
        ),
    }
}

fn numbers() -> Tensor {
    tensor(vec![1.5_f32, f32::NEG_INFINITY, -0.0])
}

fn strings() -> Tensor {
    Tensor::from_strings(Shape::new(&[2]), &["größer", ""]).unwrap()
}

fn request() -> [NamedTensor; 2] {
    [named("x", numbers()), named("s", strings())]
}

/// How much of the echo backend lives. Its tests are one test, since they share it.
fn alive(echo: &Plugin) -> usize {
    let (allocated, _) = echo.device_memory(DeviceId::Cpu).unwrap();
    usize::try_from(allocated).unwrap()
}

#[test]
fn the_echo_backend_does_what_a_backend_must_and_its_misconduct_stays_its_own() {
    let echo = echo();
    assert_eq!(
        (echo.name(), echo.description(), echo.known_parameters()),
        ("echo", "echo, for tests", &["conduct", "device_bytes"][..])
    );
    let none = || Tensor::from_strings::<&str>(Shape::new(&[0]), &[]).unwrap();
    let case = Case {
        files: files(),
        config: config(&echoed("")),
        inputs: request().to_vec(),
        outputs: vec![numbers(), strings()],
        empty: Some(vec![named("x", tensor::<f32>(Vec::new())), named("s", none())]),
        many: None,
        alive: Some(&|| alive(&echo)),
    };
    backend_conformance(&echo, &case).unwrap();

    let sound = load(&echo, &echoed("")).unwrap();
    assert_eq!(sound.memory(), ModelMemory::Exact(4096));
    let before = alive(&echo);
    let at_load = [
        ("panic at load", ErrorKind::BackendFailed, "the backend panicked: asked to panic"),
        ("fail at load", ErrorKind::InvalidArgument, "asked to fail"),
        ("other", ErrorKind::InvalidArgument, "parameter conduct is 'other'"),
    ];
    for (conduct, kind, text) in at_load {
        let error = load(&echo, &echoed(conduct)).err().unwrap();
        assert_eq!((error.kind(), error.report().as_str()), (kind, text));
    }
    let at_run = [
        ("panic at instance", "the backend panicked: asked to panic"),
        ("panic at run", "the backend panicked: asked to panic"),
        ("panic after outputs", "the backend panicked: asked to panic"),
        ("fail at run", "asked to fail"),
        ("give too few", "the backend gave 1 outputs where 2 were wanted"),
        ("give another type", "output 'y' cannot be read: the backend breaks its ABI: 99 is no data type"),
        ("give too many bytes", "shape [3] of FP32 needs 12 bytes, got 13"),
    ];
    for (conduct, text) in at_run {
        let model = load(&echo, &echoed(conduct)).unwrap();
        let error = run(&*model, &request(), &[0, 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BackendFailed, "{conduct}");
        assert!(error.report().contains(text), "{conduct}: {}", error.report());
        let outputs = run(&*sound, &request(), &[0, 1]).unwrap().outputs;
        assert_eq!(outputs[1].tensor, strings(), "another model is undisturbed by {conduct}");
    }
    assert_eq!(alive(&echo), before, "nothing of a failed run is kept");

    let outputs = run(&*sound, &request(), &[0, 1]).unwrap().outputs;
    drop(sound);
    assert_eq!(outputs[0].tensor, numbers(), "outputs outlive their model");
    drop(outputs);
    assert_eq!(alive(&echo), before - 1);
}

#[test]
fn bytes_at_an_odd_address_reach_the_backend_aligned_and_a_bool_must_be_one() {
    let echo = echo();
    let text = "backend: 'echo' input { name: 'x' data_type: TYPE_FP64 dims: -1 } output { name: 'y' data_type: TYPE_FP64 dims: -1 }";
    let model = load(&echo, text).unwrap();
    let mut body = vec![0_u8; 1];
    body.extend_from_slice(bytemuck::cast_slice(&[1.0_f64, 2.0]));
    let odd =
        Tensor::new(roundhouse::tensor::DataType::Fp64, Shape::new(&[2]), bytes::Bytes::from(body).slice(1..)).unwrap();
    let outputs = run(&*model, &[named("x", odd)], &[0]).unwrap().outputs;
    assert_eq!(outputs[0].tensor, tensor(vec![1.0_f64, 2.0]));
    let model = load(&echo, &text.replace("FP64", "BOOL")).unwrap();
    let two = Tensor::new(roundhouse::tensor::DataType::Bool, Shape::new(&[1]), vec![2_u8].into()).unwrap();
    let error = run(&*model, &[named("x", two)], &[0]).unwrap_err();
    assert!(error.report().contains("BOOL element 0 is 2"), "{}", error.report());
}

#[test]
fn a_backend_in_c_against_the_header_alone_is_found_opened_and_run() {
    let folder = tempfile::tempdir().unwrap();
    negate(folder.path(), "BROKEN=SOUND");
    let found = plugins(folder.path()).pop().unwrap();
    assert_eq!(found.name, "negate");
    let path = found.path.clone();
    let registry =
        BackendRegistry::default().with_installed("negate", move || Ok(Arc::new(Plugin::open(&path, &opening(2))?)));
    let backend = registry.get("negate").unwrap();
    let case = Case {
        files: files(),
        config: config("name: 'm' backend: 'negate'"),
        inputs: vec![named("x", numbers())],
        outputs: vec![tensor(vec![-1.5_f32, f32::INFINITY, 0.0])],
        empty: Some(vec![named("x", tensor::<f32>(Vec::new()))]),
        many: None,
        alive: None,
    };
    backend_conformance(&**backend, &case).unwrap();
    let refused = load(&**backend, "parameters { key: 'refuse' value { string_value: 'not today' } }").err().unwrap();
    assert_eq!((refused.kind(), refused.report()), (ErrorKind::InvalidArgument, "not today".to_owned()));
    assert_eq!(load(&**backend, "").unwrap().memory(), ModelMemory::Runs(0));
}

/// Opens a broken backend in C, loads a model, and runs it: the first error.
fn broken(define: &str) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let library = negate(folder.path(), define);
    let tried = Plugin::open(&library, &opening(2)).and_then(|plugin| {
        let model = load(&plugin, "")?;
        run(&*model, &[named("x", numbers())], &[0])
    });
    tried.expect_err(define)
}

#[test]
fn a_backend_that_breaks_its_word_is_told_so_and_the_process_goes_on() {
    let unavailable = [
        ("BROKEN=OTHER_MAJOR", "was built against version 2.1 of the ABI"),
        ("BROKEN=NEWER_MINOR", "was built against version 1.2 of the ABI"),
        ("BROKEN=SHORT_TABLE", "its table has 24 bytes"),
        ("BROKEN=NO_TABLE", "gives no table"),
        ("BROKEN=NO_INFER", "has no function infer"),
        ("BROKEN=NO_NAME", "a name that is null"),
        ("BROKEN=FAILS_TO_START", "does not start: its licence has run out"),
        ("NO_ENTRY", "is no backend: it exports no roundhouse_backend"),
    ];
    for (define, text) in unavailable {
        let error = broken(define);
        assert_eq!(error.kind(), ErrorKind::NotReady, "{define}");
        assert!(error.report().contains(text), "{define}: {}", error.report());
    }
    let failed = [
        ("BROKEN=NO_MODEL", "load gave no model and no error"),
        ("BROKEN=NO_INSTANCE", "instantiate gave no instance and no error"),
        ("BROKEN=NO_OUTPUTS_DESCRIBED", "the model has no outputs"),
        ("BROKEN=OUTPUT_LEFT_OUT", "0 is no data type"),
        ("BROKEN=OUTPUT_NOWHERE", "12 bytes lie nowhere"),
        ("BROKEN=OUTPUT_OF_NEGATIVE_SIZE", "negative dimension"),
        ("BROKEN=ODD_STATUS", "the backend cannot run the model and does not say why"),
        ("BROKEN=TEXT_WITHOUT_END", "xxxx"),
    ];
    for (define, text) in failed {
        let error = broken(define);
        assert_eq!(error.kind(), ErrorKind::BackendFailed, "{define}");
        assert!(error.report().contains(text), "{define}: {}", error.report());
    }
}

#[test]
fn what_a_plugin_needs_first_is_opened_first_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let library = negate(folder.path(), "BROKEN=SOUND");
    let missing = folder.path().join("libc10.so");
    let error = Plugin::open(&library, &Opening { first: vec![missing], ..opening(1) }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(error.report().contains("libc10.so cannot be opened"), "{}", error.report());
}
