//! Every backend and every repository against the suite that all of its kind must pass.

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use roundhouse::backend::conformance::{Case, backend_conformance};
use roundhouse::backend::gated::Gated;
use roundhouse::backend::identity::Identity;
use roundhouse::backend::onnxruntime::OnnxRuntime;
use roundhouse::backend::placement::Placement;
use roundhouse::backend::repeat::Repeat;
use roundhouse::backend::runtime_paths::onnxruntime_path;
use roundhouse::backend::{Backend, Batch, Execution, Model, ModelFiles, ModelInstance};
use roundhouse::config::default_runtime_dir;
use roundhouse::error::Result;
use roundhouse::inference::NamedTensor;
use roundhouse::model_config::complete::RuntimeSignature;
use roundhouse::model_config::{ModelConfig, UnknownFields, parse};
use roundhouse::repository::ModelRepository;
use roundhouse::repository::conformance::{Tree, repository_conformance};
use roundhouse::repository::faulty::Faulty;
use roundhouse::repository::local::Local;
use roundhouse::repository::registered::Registered;
use roundhouse::tensor::{Element, Shape, Tensor};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models-examples")
}

fn files(model: &str, version: u64) -> ModelFiles {
    let directory = examples().join(model);
    let version_directory = directory.join(version.to_string());
    ModelFiles { directory, version_directory, version, model_file: None, derived: None }
}

fn config(model: &str) -> ModelConfig {
    let text = std::fs::read_to_string(examples().join(model).join("config.pbtxt")).unwrap();
    parse(&text, UnknownFields::Deny).unwrap().config
}

fn tensor<T: Element>(shape: &[i64], elements: Vec<T>) -> Tensor {
    Tensor::from_vec(Shape::new(shape), elements).unwrap()
}

fn named(name: &str, tensor: Tensor) -> NamedTensor {
    NamedTensor { name: name.into(), tensor }
}

/// Two inputs of different types, given back.
fn two_of_them(backend: &str) -> Case<'static> {
    let text = format!(
        "name: \"m\" backend: \"{backend}\"
         input [ {{ name: \"x\" data_type: TYPE_FP32 dims: [ -1 ] }}, {{ name: \"s\" data_type: TYPE_STRING dims: [ -1 ] }} ]
         output [ {{ name: \"y\" data_type: TYPE_FP32 dims: [ -1 ] }}, {{ name: \"t\" data_type: TYPE_STRING dims: [ -1 ] }} ]"
    );
    let numbers = || tensor(&[3], vec![1.5_f32, f32::NEG_INFINITY, -0.0]);
    let strings = || Tensor::from_strings(Shape::new(&[2]), &["größer", ""]).unwrap();
    let none = || Tensor::from_strings::<&str>(Shape::new(&[0]), &[]).unwrap();
    Case {
        files: files("identity", 1),
        config: parse(&text, UnknownFields::Deny).unwrap().config,
        inputs: vec![named("x", numbers()), named("s", strings())],
        outputs: vec![numbers(), strings()],
        empty: Some(vec![named("x", tensor::<f32>(&[0], Vec::new())), named("s", none())]),
        many: None,
        alive: None,
    }
}

#[test]
fn identity_does_what_a_backend_must() {
    backend_conformance(&Identity, &two_of_them("identity")).unwrap();
}

#[test]
fn the_gated_fake_does_what_a_backend_must() {
    let gated = Gated::default();
    let alive = || gated.alive();
    backend_conformance(&gated, &Case { alive: Some(&alive), ..two_of_them("gated") }).unwrap();
}

/// Numbers that come back one by one.
fn one_by_one(backend: &str) -> Case<'static> {
    let number = |name| format!("{{ name: \"{name}\" data_type: TYPE_INT16 dims: [ -1 ] }}");
    let text = format!(
        "name: \"m\" backend: \"{backend}\" model_transaction_policy {{ decoupled: true }}
         input {} output {}",
        number("x"),
        number("y")
    );
    let some = |values: &[i16]| tensor(&[i64::try_from(values.len()).unwrap()], values.to_vec());
    Case {
        files: files("identity", 1),
        config: parse(&text, UnknownFields::Deny).unwrap().config,
        inputs: vec![named("x", some(&[-7]))],
        outputs: vec![some(&[-7])],
        empty: Some(vec![named("x", some(&[]))]),
        many: Some(vec![named("x", some(&[1, 2, 3]))]),
        alive: None,
    }
}

#[test]
fn the_gated_fake_streams_as_a_backend_must() {
    let gated = Gated::default();
    let alive = || gated.alive();
    backend_conformance(&gated, &Case { alive: Some(&alive), ..one_by_one("gated") }).unwrap();
}

#[test]
fn repeat_does_what_a_backend_must() {
    let inputs = |values: &[i32]| {
        let length = i64::try_from(values.len()).unwrap();
        let delays = tensor(&[length], vec![0_u32; values.len()]);
        vec![
            named("IN", tensor(&[length], values.to_vec())),
            named("DELAY", delays),
            named("WAIT", tensor(&[1], vec![0_u32])),
        ]
    };
    let case = Case {
        files: files("repeat", 1),
        config: config("repeat"),
        inputs: inputs(&[-7]),
        outputs: vec![tensor(&[1], vec![-7_i32]), tensor(&[1], vec![0_u32])],
        empty: Some(inputs(&[])),
        many: Some(inputs(&[1, 2, 3])),
        alive: None,
    };
    backend_conformance(&Repeat, &case).unwrap();
}

#[test]
fn onnxruntime_does_what_a_backend_must() {
    let library = onnxruntime_path(&default_runtime_dir().unwrap());
    let mend = "run `make runtime`, or `roundhouse runtime install onnxruntime`";
    assert!(library.is_file(), "{} is missing: {mend}", library.display());
    let onnxruntime = OnnxRuntime::open(&library, 2).unwrap_or_else(|error| panic!("{}: {mend}", error.report()));

    let row: Vec<f32> = (0_u8..16).map(f32::from).collect();
    let twos = vec![2.0_f32; 16];
    let sum: Vec<f32> = row.iter().map(|value| value + 2.0).collect();
    let difference: Vec<f32> = row.iter().map(|value| value - 2.0).collect();
    let empty = || tensor::<f32>(&[0, 16], Vec::new());
    let add_sub = Case {
        files: files("add_sub", 1),
        config: config("add_sub"),
        inputs: vec![named("INPUT0", tensor(&[1, 16], row)), named("INPUT1", tensor(&[1, 16], twos))],
        outputs: vec![tensor(&[1, 16], sum), tensor(&[1, 16], difference)],
        empty: Some(vec![named("INPUT0", empty()), named("INPUT1", empty())]),
        many: None,
        alive: None,
    };
    backend_conformance(&onnxruntime, &add_sub).unwrap();

    for (version, factor) in [(1, 2.0_f32), (2, 3.0)] {
        let scale = Case {
            files: files("scale", version),
            config: config("scale"),
            inputs: vec![named("x", tensor(&[3], vec![1.0_f32, -2.0, 0.5]))],
            outputs: vec![tensor(&[3], vec![factor, -2.0 * factor, 0.5 * factor])],
            empty: Some(vec![named("x", tensor::<f32>(&[0], Vec::new()))]),
            many: None,
            alive: None,
        };
        backend_conformance(&onnxruntime, &scale).unwrap();
    }

    let text = Case {
        files: files("text", 1),
        config: config("text"),
        inputs: vec![named("TEXT", Tensor::from_strings(Shape::new(&[2]), &["two words", "12.5"]).unwrap())],
        outputs: vec![
            Tensor::from_strings(Shape::new(&[2]), &["Hello, two words!", "Hello, 12.5!"]).unwrap(),
            tensor(&[2], vec![2_i64, 1]),
            Tensor::new(roundhouse::tensor::DataType::Bool, Shape::new(&[2]), vec![0, 1].into()).unwrap(),
        ],
        empty: None,
        many: None,
        alive: None,
    };
    backend_conformance(&onnxruntime, &text).unwrap();
}

/// A backend whose instances give every output in the model's order, whatever was wanted.
struct Heedless;

struct HeedlessModel(Box<dyn Model>);

struct HeedlessInstance(Box<dyn ModelInstance>, Vec<usize>);

impl Backend for Heedless {
    fn name(&self) -> &'static str {
        "heedless"
    }

    fn default_model_file(&self) -> &'static str {
        ""
    }

    fn load(&self, files: &ModelFiles, config: &ModelConfig, placement: &Placement) -> Result<Box<dyn Model>> {
        Ok(Box::new(HeedlessModel(Identity.load(files, config, placement)?)))
    }
}

impl Model for HeedlessModel {
    fn signature(&self) -> &RuntimeSignature {
        self.0.signature()
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        let all = (0..self.0.signature().outputs.len()).collect();
        Ok(Box::new(HeedlessInstance(self.0.instance()?, all)))
    }
}

impl ModelInstance for HeedlessInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        self.0.execute(&Batch { outputs: &self.1, ..*batch })
    }
}

#[test]
#[should_panic(expected = "outputs bear the names of the signature")]
fn a_backend_that_does_not_heed_what_is_wanted_is_caught() {
    backend_conformance(&Heedless, &two_of_them("heedless")).unwrap();
}

#[test]
#[should_panic(expected = "dropping models and instances frees what they held")]
fn a_backend_that_keeps_what_was_dropped_is_caught() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let alive = || count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    backend_conformance(&Identity, &Case { alive: Some(&alive), ..two_of_them("identity") }).unwrap();
}

/// A repository in a temporary folder.
struct Folder<R> {
    root: tempfile::TempDir,
    repository: R,
}

impl<R: ModelRepository> Tree for Folder<R> {
    fn repository(&self) -> &dyn ModelRepository {
        &self.repository
    }

    fn put<'a>(&'a self, path: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>> {
        let path = self.root.path().join(path);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap()
        } else {
            std::fs::remove_file(path).unwrap()
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

#[tokio::test]
async fn a_folder_does_what_a_repository_must() {
    let root = tempfile::tempdir().unwrap();
    let repository = Local::open(root.path()).unwrap();
    repository_conformance(&Folder { root, repository }).await.unwrap();
}

#[tokio::test]
async fn the_fault_injector_without_faults_does_what_a_repository_must() {
    let root = tempfile::tempdir().unwrap();
    let repository = Faulty::new(std::sync::Arc::new(Local::open(root.path()).unwrap()));
    repository_conformance(&Folder { root, repository }).await.unwrap();
}

#[tokio::test]
async fn registered_models_over_a_folder_do_what_a_repository_must() {
    let root = tempfile::tempdir().unwrap();
    let repository = Registered::over(Some(std::sync::Arc::new(Local::open(root.path()).unwrap())));
    repository_conformance(&Folder { root, repository }).await.unwrap();
}
