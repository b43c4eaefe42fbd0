//! What is read of `sequence_batching`, and every fault of one with its place.

use super::*;
use crate::error::ErrorKind;
use crate::model_config::{UnknownFields, parse};

const X: &str = "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: 1 } \
                 output { name: 'y' data_type: TYPE_FP32 dims: 1 }\n";

fn read(fields: &str) -> SequenceBatching {
    let parsed = parse(&format!("{X} sequence_batching {{ {fields} }}"), UnknownFields::Deny).unwrap();
    parsed.config.sequence_batching.unwrap()
}

fn control(name: &str, fields: &str) -> String {
    format!("control_input {{ name: '{name}' control {{ {fields} }} }}\n")
}

const START: &str = "kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1]";
const STATE: &str = "input_name: 'i' output_name: 'o' data_type: TYPE_FP32 dims: [ 2, -1 ]";

#[test]
fn everything_is_read() {
    let read = read(&format!(
        "oldest {{ max_candidate_sequences: 7 preferred_batch_size: [2, 4] max_queue_delay_microseconds: 5
         preserve_ordering: true }} max_sequence_idle_microseconds: 3000000 {} {} {} {} state {{ {STATE} initial_state {{
         name: 'a' data_type: TYPE_FP32 dims: [2, 3] data_file: 'f' }} }}",
        control("s", START),
        control("e", "kind: CONTROL_SEQUENCE_END fp32_false_true: [0.5, 2]"),
        control("r", "kind: CONTROL_SEQUENCE_READY bool_false_true: [true, false]"),
        control("c", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING"),
    ));
    let expected = Strategy::Oldest {
        max_candidate_sequences: 7,
        preferred_batch_sizes: vec![2, 4],
        max_queue_delay: Duration::from_micros(5),
        preserve_ordering: true,
    };
    assert_eq!((&read.strategy, read.max_idle), (&expected, Duration::from_secs(3)));
    let kinds: Vec<_> = read.controls.iter().map(|control| control.kind).collect();
    let flags = [
        ControlKind::Start(Flag::Int32([0, 1])),
        ControlKind::End(Flag::Fp32([0.5, 2.0])),
        ControlKind::Ready(Flag::Bool([true, false])),
        ControlKind::CorrelationId(DataType::Bytes),
    ];
    assert_eq!(kinds, flags);
    let state = &read.states[0];
    assert_eq!((state.dims.as_slice(), state.initial_dims.as_slice()), (&[2, -1][..], &[2, 3][..]));
    assert_eq!(state.initial_file.as_deref(), Some("f"));
    let inputs: Vec<_> = read.inputs().map(|(name, ..)| name).collect();
    assert_eq!(inputs, ["s", "e", "r", "c", "i"]);
    assert!(read.makes("c") && !read.makes("x"));
}

#[test]
fn what_is_left_out_is_as_in_triton() {
    let read = read(&format!("state {{ {STATE} }}"));
    let direct = Strategy::Direct { max_queue_delay: Duration::ZERO, minimum_slot_utilization: 0.0 };
    assert_eq!((&read.strategy, read.max_idle), (&direct, Duration::from_secs(1)));
    assert_eq!((read.states[0].initial_dims.as_slice(), &read.states[0].initial_file), (&[2, 1][..], &None));
}

#[test]
fn every_fault_has_its_place_and_its_text() {
    let state = |more: &str| format!("state {{ {STATE} initial_state {{ {more} }} }}");
    let corrid = |more: &str| control("c", &format!("kind: CONTROL_SEQUENCE_CORRID {more}"));
    let cases = [
        (
            "direct { minimum_slot_utilization: 1.5 }".to_owned(),
            "minimum_slot_utilization must be from 0 to 1, got 1.5",
        ),
        ("oldest { max_candidate_sequences: -1 }".to_owned(), "max_candidate_sequences must not be negative, got -1"),
        ("oldest { preferred_batch_size: 0 }".to_owned(), "a preferred_batch_size must be at least 1"),
        ("oldest { preferred_batch_size: 5 }".to_owned(), "preferred_batch_size 5 is above max_batch_size 4"),
        (control("", START), "a control_input must have a name"),
        ("control_input { name: 'c' }".to_owned(), "control_input 'c' has no control"),
        (
            control("s", START) + &control("s", "kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1]"),
            "'s' is given twice",
        ),
        (control("x", START), "control_input 'x' is given twice, or is an input of callers"),
        (control("s", START) + &control("t", START), "'t' is of a control kind that another one has already"),
        (control("s", "kind: CONTROL_SEQUENCE_START"), "must specify one of 'int32_false_true', "),
        (
            control("s", "int32_false_true: 1"),
            "'int32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_START",
        ),
        (control("s", &format!("{START} bool_false_true: [false, true]")), "specifies more than one of "),
        (control("s", &format!("{START} data_type: TYPE_INT32")), "data_type is for CONTROL_SEQUENCE_CORRID, not for "),
        (
            corrid("data_type: TYPE_FP32"),
            "unexpected data type for control CONTROL_SEQUENCE_CORRID. Allowed data types",
        ),
        (corrid(""), "unexpected data type for control CONTROL_SEQUENCE_CORRID"),
        (
            corrid("data_type: TYPE_INT32 int32_false_true: [0, 1]"),
            "int32_false_true is not for CONTROL_SEQUENCE_CORRID",
        ),
        ("state { output_name: 'o' }".to_owned(), "a state must have an input_name"),
        ("state { input_name: 'i' output_name: 'o' }".to_owned(), "state 'i' must have a data_type such as TYPE_FP32"),
        (format!("state {{ {STATE} }} state {{ {STATE} }}"), "state input_name 'i' is given twice"),
        (
            "state { input_name: 'i' output_name: 'y' data_type: TYPE_FP32 dims: 2 }".to_owned(),
            "state output_name 'y' is an output of callers too, with another data_type or other dims",
        ),
        (
            state("data_type: TYPE_FP32 dims: [2, 1] zero_data: true"),
            "field 'name' must be set when using initial_state",
        ),
        (state("name: 'a' dims: [2, 1] zero_data: true"), "the data type of initial_state does not match the state's"),
        (state("name: 'a' data_type: TYPE_FP32 dims: [3, 1] zero_data: true"), "has dims [3, 1], but the state's are"),
        (state("name: 'a' data_type: TYPE_FP32 dims: [2, -1] zero_data: true"), "dimension -1 must be at least 1"),
        (state("name: 'a' data_type: TYPE_FP32 dims: [2, 1]"), "must have one of zero_data and data_file"),
        (
            state("name: 'a' data_type: TYPE_FP32 dims: [2, 1] data_file: '../f'"),
            "data_file '../f' must name a file in",
        ),
    ];
    for (fields, expected) in cases {
        let error = parse(&format!("{X}sequence_batching {{ {fields} }}"), UnknownFields::Deny).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{fields}");
        assert!(error.message.starts_with("sequence_batching: "), "{}", error.message);
        assert!(error.message.contains(expected), "{fields}\n found {}\n  want {expected}", error.message);
        assert!(error.line >= 2, "{} at {}", error.message, error.line);
    }
}

#[test]
fn what_cannot_be_served_is_said() {
    let decoupled =
        format!("{X} model_transaction_policy {{ decoupled: true }} sequence_batching {{ state {{ {STATE} }} }}");
    assert_eq!(parse(&decoupled, UnknownFields::Deny).unwrap_err().kind, ErrorKind::Unsupported);
    let iterative = format!("{X} sequence_batching {{ iterative_sequence: true }}");
    let error = parse(&iterative, UnknownFields::Deny).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(
        error.message.starts_with("'sequence_batching.iterative_sequence' is not supported yet"),
        "{}",
        error.message
    );
    let buffers = format!("{X} sequence_batching {{ state {{ {STATE} use_growable_memory: true }} }}");
    assert_eq!(parse(&buffers, UnknownFields::Deny).unwrap().warnings.len(), 1);
}
