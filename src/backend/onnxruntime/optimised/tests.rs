//! Loads with and without a copy.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::backend::onnxruntime::NAME;
use crate::backend::onnxruntime::encode::{many_operators, products};
use crate::backend::onnxruntime::session::OnnxModel;
use crate::backend::onnxruntime::tests::{backend, named, run};
use crate::backend::placement::Placement;
use crate::backend::{Backend, Model, ModelFiles};
use crate::error::ErrorKind;
use crate::inference::{DeviceId, NamedTensor};
use crate::model_config::ModelConfig;
use crate::tensor::{DataType, Shape, Tensor};

/// A model in a folder, with room for what is made of it.
struct Place(tempfile::TempDir);

impl Place {
    fn of(model: impl AsRef<[u8]>) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("model.onnx"), model).unwrap();
        Self(root)
    }

    fn file(file: &Path) -> Self {
        Self::of(std::fs::read(file).unwrap())
    }

    fn load(&self, keeps: bool) -> crate::error::Result<Box<dyn Model>> {
        self.load_at(keeps, 0)
    }

    /// With the graph rewritten as far as a level says.
    fn load_at(&self, keeps: bool, level: i64) -> crate::error::Result<Box<dyn Model>> {
        let root = self.0.path();
        let files = ModelFiles {
            directory: root.to_owned(),
            version_directory: root.to_owned(),
            version: 1,
            model_file: None,
            derived: keeps.then(|| root.join("derived")),
        };
        let mut config = ModelConfig::minimal("test", NAME);
        config.optimization.graph_level = level;
        backend().load(&files, &config, &Placement::of(DeviceId::Cpu))
    }

    fn copy_to_be(&self, work: impl FnOnce(&OptimisedCopy, &Source<'_>)) {
        let (file, folder) = (self.0.path().join("model.onnx"), self.0.path().join("derived"));
        let environment = backend().environment;
        let source = Source {
            environment,
            file: &file,
            version: 1,
            threads: None,
            level: GraphOptimizationLevel::All,
            derived: None,
            gpu: None,
        };
        work(&OptimisedCopy::at(&folder, &source, file.metadata().unwrap().len()).unwrap(), &source);
    }

    /// The model from a copy, worth it or not.
    fn load_copy(&self) -> OnnxModel {
        let mut loaded = None;
        self.copy_to_be(|copy, source| {
            let draft = copy.draft().unwrap();
            drop(source.commit(Rewriting::Kept(&draft.0)).unwrap());
            copy.keep(&draft).unwrap();
            loaded = Some(OnnxModel::of(copy.session(source).unwrap(), Contents::default()).unwrap());
        });
        loaded.unwrap()
    }

    /// The names of what was made of the model, by their endings.
    fn made(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path().join("derived")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path().extension().unwrap().to_str().unwrap().to_owned()).collect()
    }

    fn copy(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.0.path().join("derived")).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.extension().is_some_and(|ending| ending == "onnx")).unwrap()
    }
}

/// One tensor of each input, of small whole numbers.
fn inputs(model: &dyn Model) -> Vec<NamedTensor> {
    let tensors = model.signature().inputs.iter().map(|input| {
        let dims: Vec<i64> = input.dims.iter().map(|dim| if *dim < 0 { 2 } else { *dim }).collect();
        let count: i64 = dims.iter().product();
        let bytes = match input.data_type {
            DataType::Fp32 => (0..count).flat_map(|index| ((index % 7) as f32 / 4.0).to_le_bytes()).collect(),
            data_type => vec![1_u8; count as usize * data_type.size().unwrap()],
        };
        named(&input.name, Tensor::new(input.data_type, Shape::new(&dims), bytes.into()).unwrap())
    });
    tensors.collect()
}

#[test]
fn a_copy_is_worth_it_where_the_graph_takes_the_time() {
    const MIB: u64 = 1 << 20;
    let (ms, graph) = (Duration::from_millis, |operators| Contents { has_external_data: false, operators });
    assert!(is_worth_trying(graph(300), 2 * MIB));
    assert!(!is_worth_trying(graph(300), 96 * MIB), "it is the weights");
    assert!(!is_worth_trying(graph(30), MIB / 8), "there is little to rewrite");
    assert!(!is_worth_trying(Contents { has_external_data: true, operators: 9000 }, MIB), "the files lie elsewhere");
    assert!(is_worth_keeping(ms(60), 2 * MIB, 3 * MIB));
    assert!(!is_worth_keeping(ms(9), 2 * MIB, 2 * MIB), "quick enough");
    assert!(!is_worth_keeping(ms(60), 2 * MIB, 6 * MIB), "too large a copy");
}

#[test]
fn a_graph_that_is_rewritten_less_answers_the_same_and_leaves_no_copy() {
    let place = Place::of(many_operators(300));
    let whole = place.load(false).unwrap();
    let inputs = inputs(&*whole);
    let expected = run(&*whole, &inputs, &[0]).unwrap().outputs;
    for level in [-1, 1, 2] {
        let less = place.load_at(true, level).unwrap();
        assert_eq!(run(&*less, &inputs, &[0]).unwrap().outputs[0].tensor, expected[0].tensor, "level {level}");
        assert_eq!(place.made(), Vec::<String>::new());
    }
    assert_eq!(
        [-1, 0, 1, 2, 7].map(super::super::level),
        [
            GraphOptimizationLevel::Level1,
            GraphOptimizationLevel::All,
            GraphOptimizationLevel::Level2,
            GraphOptimizationLevel::Disable,
            GraphOptimizationLevel::All,
        ]
    );
}

#[test]
fn the_second_load_takes_the_copy_and_answers_the_same() {
    let place = Place::of(many_operators(300));
    let [without, first, second] = [false, true, true].map(|keeps| place.load(keeps).unwrap());
    assert_eq!(place.made(), ["onnx"]);
    let inputs = inputs(&*without);
    let expected = run(&*without, &inputs, &[0]).unwrap().outputs;
    for model in [first, second] {
        assert_eq!(model.signature().inputs, without.signature().inputs);
        assert_eq!(model.signature().outputs, without.signature().outputs);
        assert_eq!(run(&*model, &inputs, &[0]).unwrap().outputs, expected);
    }
    // It is the copy that was loaded: there is no other file.
    std::fs::write(place.0.path().join("model.onnx"), [0_u8; 0]).unwrap();
    assert_eq!(place.load(true).err().unwrap().kind(), ErrorKind::InvalidArgument, "another size, another copy");
}

#[test]
fn a_model_that_a_copy_was_not_worth_for_is_not_tried_again() {
    let place = Place::of(many_operators(300));
    std::fs::create_dir(place.0.path().join("derived")).unwrap();
    place.copy_to_be(|copy, _| copy.keep_none());
    drop(place.load(true).unwrap());
    assert_eq!(place.made(), ["none"]);
}

#[test]
fn a_model_of_few_operators_has_nothing_made_of_it() {
    let place = Place::of(products(64, 1));
    drop(place.load(true).unwrap());
    assert!(!place.0.path().join("derived").exists());
}

#[test]
fn a_copy_that_cannot_be_loaded_is_dropped_and_the_model_serves() {
    let place = Place::of(many_operators(300));
    let first = place.load(true).unwrap();
    let inputs = inputs(&*first);
    let copy = place.copy();
    let whole = std::fs::read(&copy).unwrap();
    std::fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
    let second = place.load(true).unwrap();
    assert_eq!(run(&*second, &inputs, &[0]).unwrap().outputs, run(&*first, &inputs, &[0]).unwrap().outputs);
    assert_eq!(place.made(), ["none"]);
}

#[test]
fn where_nothing_can_be_written_the_model_loads_all_the_same() {
    let place = Place::of(many_operators(10));
    std::fs::write(place.0.path().join("derived"), "a file in the place of the folder").unwrap();
    assert!(place.load(true).is_ok());
}

#[test]
fn what_is_no_model_leaves_nothing_behind() {
    let place = Place::of(many_operators(2));
    let path = place.0.path().join("model.onnx");
    let mut bytes = std::fs::read(&path).unwrap();
    // An operator that does not exist.
    let at = bytes.windows(4).position(|window| window == b"Tanh").unwrap();
    bytes[at..at + 4].copy_from_slice(b"Xanh");
    std::fs::write(&path, bytes).unwrap();
    assert!(place.load(true).is_err());
    assert_eq!(place.made(), Vec::<String>::new());
}

#[test]
fn the_example_models_answer_the_same_from_a_copy() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-examples");
    for name in ["digits", "iris", "add_sub", "half", "scale"] {
        let place = Place::file(&examples.join(name).join("1/model.onnx"));
        let without = place.load(false).unwrap();
        let with = place.load_copy();
        let inputs = inputs(&*without);
        let all: Vec<usize> = (0..without.signature().outputs.len()).collect();
        assert_eq!(with.signature(), without.signature(), "{name}");
        assert_eq!(
            run(&with, &inputs, &all).unwrap().outputs,
            run(&*without, &inputs, &all).unwrap().outputs,
            "{name}"
        );
    }
}
