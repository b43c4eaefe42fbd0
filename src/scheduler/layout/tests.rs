//! Batches of hand-made requests, and what comes back of them.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::model_config::{UnknownFields, parse};

fn layout(fields: &str) -> Layout {
    let text = format!(
        "max_batch_size: 8 input {{ name: 'x' data_type: TYPE_FP32 dims: -1 {fields} output {{ name: 'y' data_type: \
         TYPE_FP32 dims: -1 }}"
    );
    Layout::of(&parse(&text, UnknownFields::Deny).unwrap().config)
}

fn work(tensors: Vec<(&str, Tensor)>) -> Work {
    let batch_size = tensors[0].1.shape().dims()[0].unsigned_abs();
    let inputs = tensors.into_iter().map(|(name, tensor)| NamedTensor { name: name.into(), tensor }).collect();
    let outputs = SmallVec::from_slice(&[0]);
    Work {
        inputs,
        outputs,
        batch_size,
        deadline: None,
        priority: 0,
        arrived: Instant::now(),
        sequence: None,
        id: "".into(),
        trace: None,
    }
}

fn floats(shape: &[i64], from: f32) -> Tensor {
    let shape = Shape::new(shape);
    let count = u16::try_from(shape.element_count().unwrap()).unwrap();
    Tensor::from_vec(shape, (0..count).map(|index| from + f32::from(index)).collect()).unwrap()
}

#[test]
fn requests_are_stacked_along_the_batch_dimension_and_split_again_without_a_copy() {
    let layout = layout("}");
    let (one, two) = (work(vec![("x", floats(&[1, 2], 0.0))]), work(vec![("x", floats(&[2, 2], 10.0))]));
    let gathered = layout.gather(&[&one, &two]).unwrap();
    assert_eq!(gathered.inputs[0].tensor.elements::<f32>().unwrap(), [0.0, 1.0, 10.0, 11.0, 12.0, 13.0]);
    assert_eq!(gathered.inputs[0].tensor.shape().dims(), [3, 2]);
    let outputs: NamedTensors = [NamedTensor { name: "y".into(), tensor: floats(&[3, 4], 0.0) }].into_iter().collect();
    let answers = layout.split(&gathered.outputs, &outputs, &[&one, &two]).unwrap();
    assert_eq!(answers[0][0].tensor.shape().dims(), [1, 4]);
    assert_eq!(answers[1][0].tensor.shape().dims(), [2, 4]);
    let whole = outputs[0].tensor.data();
    assert_eq!(answers[1][0].tensor.data().as_ptr(), whole.slice(16..).as_ptr());
}

#[test]
fn one_request_is_its_own_batch_without_a_copy() {
    let layout = layout("}");
    let one = work(vec![("x", floats(&[2, 2], 0.0))]);
    let gathered = layout.gather(&[&one]).unwrap();
    assert_eq!(gathered.inputs[0].tensor.data().as_ptr(), one.inputs[0].tensor.data().as_ptr());
}

#[test]
fn strings_are_split_where_they_end() {
    let layout = layout("}");
    let (one, two) = (work(vec![("x", floats(&[1, 1], 0.0))]), work(vec![("x", floats(&[2, 1], 0.0))]));
    let strings = Tensor::from_strings(Shape::new(&[3, 1]), &["a", "", "ccc"]).unwrap();
    let outputs: NamedTensors = [NamedTensor { name: "y".into(), tensor: strings }].into_iter().collect();
    let answers = layout.split(&[0], &outputs, &[&one, &two]).unwrap();
    assert_eq!(answers[0][0].tensor.strings().collect::<Vec<_>>(), [b"a".as_slice()]);
    assert_eq!(answers[1][0].tensor.strings().collect::<Vec<_>>(), [b"".as_slice(), b"ccc"]);
}

#[test]
fn an_output_without_the_batch_dimension_is_an_error_that_names_the_mend() {
    let layout = layout("}");
    let (one, two) = (work(vec![("x", floats(&[1, 1], 0.0))]), work(vec![("x", floats(&[1, 1], 0.0))]));
    let outputs: NamedTensors = [NamedTensor { name: "y".into(), tensor: floats(&[1, 2], 0.0) }].into_iter().collect();
    let error = layout.split(&[0], &outputs, &[&one, &two]).unwrap_err().to_string();
    assert_eq!(
        error,
        "output 'y' came out of the model in shape [1,2]: its first dimension is not the batch of 2; set \
         max_batch_size: 0"
    );
}

#[test]
fn each_request_gets_the_outputs_it_wants() {
    let layout = layout("}");
    let (mut one, mut two) = (work(vec![("x", floats(&[1, 1], 0.0))]), work(vec![("x", floats(&[1, 1], 0.0))]));
    one.outputs = SmallVec::from_slice(&[2]);
    two.outputs = SmallVec::from_slice(&[2, 0]);
    let gathered = layout.gather(&[&one, &two]).unwrap();
    assert_eq!(gathered.outputs.as_slice(), [0, 2]);
    let named = |name: &str, from| NamedTensor { name: name.into(), tensor: floats(&[2, 1], from) };
    let outputs: NamedTensors = [named("a", 0.0), named("c", 20.0)].into_iter().collect();
    let answers = layout.split(&gathered.outputs, &outputs, &[&one, &two]).unwrap();
    let values = |answer: &NamedTensors| -> Vec<(String, f32)> {
        answer.iter().map(|output| (output.name.to_string(), output.tensor.elements::<f32>().unwrap()[0])).collect()
    };
    assert_eq!(values(&answers[0]), [("c".to_owned(), 20.0)]);
    assert_eq!(values(&answers[1]), [("c".to_owned(), 21.0), ("a".to_owned(), 1.0)]);
}

#[test]
fn only_shapes_that_must_match_make_requests_unlike() {
    let (plain, ragged) = (layout("}"), layout("allow_ragged_batch: true }"));
    let short = || work(vec![("x", floats(&[1, 2], 0.0))]);
    let long = || work(vec![("x", floats(&[3, 5], 0.0))]);
    assert_ne!(plain.likeness(&short()), plain.likeness(&long()));
    assert_eq!(plain.likeness(&short()), plain.likeness(&work(vec![("x", floats(&[4, 2], 0.0))])));
    assert_eq!(ragged.likeness(&short()), ragged.likeness(&long()));
}

#[test]
fn a_ragged_batch_lies_end_to_end_and_is_described() {
    let kinds = [
        ("BATCH_ELEMENT_COUNT", vec![2.0, 6.0], vec![2]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", vec![2.0, 8.0], vec![2]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", vec![0.0, 2.0, 8.0], vec![3]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", vec![0.0; 6], vec![6]),
        ("BATCH_ITEM_SHAPE", vec![2.0, 3.0, 3.0], vec![3, 1]),
        ("BATCH_ITEM_SHAPE_FLATTEN", vec![2.0, 3.0, 3.0], vec![3]),
    ];
    for (kind, values, shape) in kinds {
        let layout = layout(&format!(
            "allow_ragged_batch: true }} batch_input {{ kind: {kind} target_name: 'n' data_type: TYPE_FP32 source_input: \
             'x' }} batch_output {{ target_name: 'y' source_input: 'x' }}"
        ));
        let (one, two) = (work(vec![("x", floats(&[1, 2], 0.0))]), work(vec![("x", floats(&[2, 3], 10.0))]));
        let gathered = layout.gather(&[&one, &two]).unwrap();
        assert_eq!(gathered.inputs[0].tensor.shape().dims(), [8]);
        assert_eq!(gathered.inputs[1].name, "n");
        assert_eq!(gathered.inputs[1].tensor.elements::<f32>().unwrap(), values, "{kind}");
        assert_eq!(gathered.inputs[1].tensor.shape().dims(), shape, "{kind}");
        let outputs: NamedTensors = [NamedTensor { name: "y".into(), tensor: floats(&[8], 0.0) }].into_iter().collect();
        let answers = layout.split(&[0], &outputs, &[&one, &two]).unwrap();
        assert_eq!(answers[1][0].tensor, floats(&[2, 3], 2.0), "{kind}");
        assert!(!layout.passes_through());
    }
}

proptest! {
    #[test]
    fn what_is_gathered_and_split_is_what_came(
        rows in proptest::collection::vec((1_i64..5, 0_u16..1000), 1..12),
        width in 1_i64..6,
    ) {
        let layout = layout("}");
        let works: Vec<_> =
            rows.iter().map(|(rows, from)| work(vec![("x", floats(&[*rows, width], f32::from(*from)))])).collect();
        let works: Vec<_> = works.iter().collect();
        let gathered = layout.gather(&works).unwrap();
        let outputs: NamedTensors =
            [NamedTensor { name: "y".into(), tensor: gathered.inputs[0].tensor.clone() }].into_iter().collect();
        let answers = layout.split(&gathered.outputs, &outputs, &works).unwrap();
        for (work, answer) in works.iter().zip(&answers) {
            prop_assert_eq!(&answer[0].tensor, &work.inputs[0].tensor);
        }
    }
}
