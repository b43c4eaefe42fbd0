//! The reader of locations against models as they are and as they should not be.

use std::io::Cursor;

use proptest::prelude::*;

use super::super::encode::{Graph, Message, external_tensor, many_operators, products};
use super::*;

fn model(location: &str) -> Vec<u8> {
    Graph::default().weight(&external_tensor("w", &[4], location)).output("w", &[4]).model()
}

fn folder(model: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("1");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(root.path().join("secret"), [0; 16]).unwrap();
    std::fs::write(folder.join("weights"), [0; 16]).unwrap();
    std::fs::write(folder.join("model.onnx"), model).unwrap();
    root
}

fn checked(model: &[u8]) -> Result<Contents> {
    let root = folder(model);
    check(&root.path().join("1/model.onnx"))
}

#[test]
fn a_model_says_whether_its_weights_lie_beside_it() {
    assert!(checked(&model("weights")).unwrap().has_external_data);
    assert!(checked(&model("./weights")).unwrap().has_external_data);
    assert_eq!(checked(&products(4, 1)).unwrap(), Contents { has_external_data: false, operators: 2 });
    assert_eq!(checked(&many_operators(3)).unwrap().operators, 3 * 8 + 1);
    assert_eq!(checked(&model("absent")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_location_outside_of_the_folder_is_refused() {
    for location in
        ["../secret", "/etc/passwd", "x/../../secret", "", "weights/../../secret", "*/_ORT_MEM_ADDR_/*", "a\0b"]
    {
        let error = checked(&model(location)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{location}");
        assert!(error.report().contains("is outside of its folder"), "{}", error.report());
    }
}

#[test]
fn a_link_that_leads_out_of_the_folder_is_refused() {
    let root = folder(&model("link"));
    std::os::unix::fs::symlink("../secret", root.path().join("1/link")).unwrap();
    let error = check(&root.path().join("1/model.onnx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", error.report());
}

#[test]
fn what_is_nested_too_deep_or_cut_off_is_no_model() {
    let mut attribute = Message::default();
    for _ in 0..100 {
        let node = Message::default().bytes(5, &attribute);
        attribute = Message::default().bytes(6, Message::default().bytes(1, node));
    }
    let deep = Message::default().bytes(7, Message::default().bytes(1, Message::default().bytes(5, attribute)));
    assert!(checked(deep.as_ref()).unwrap_err().report().contains("nested too deep"));
    let whole = model("weights");
    let cut = checked(&whole[..whole.len() - 3]).unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::InvalidArgument);
    let long = checked(&model(&"x".repeat(5000))).unwrap_err();
    assert!(long.report().contains("too long"), "{}", long.report());
    // A tag of more than 32 bits, of which protobuf's own parser keeps those of field 7.
    assert!(checked(&[0xba, 0x80, 0x80, 0x80, 0x80, 0x01, 0]).is_err());
    // A group, which ONNX has none of, could hide what follows from one parser and not from the other.
    assert!(checked(&[0x3b, 0x3c]).is_err());
}

/// The ways from a model down to a tensor, as field numbers.
const WAYS: [&[u64]; 8] = [
    &[7, 5],
    &[7, 15, 1],
    &[7, 15, 2],
    &[7, 1, 5, 5],
    &[7, 1, 5, 10],
    &[7, 1, 5, 6, 5],
    &[25, 7, 5, 23, 1],
    &[20, 1, 1, 5, 11, 1, 5, 5],
];

proptest! {
    #[test]
    fn a_location_is_found_wherever_a_tensor_can_lie(way in 0..WAYS.len(), before in 0_u64..1000, location in "[a-z/.]{1,40}") {
        let mut message = external_tensor("w", &[before], &location);
        for field in WAYS[way].iter().rev() {
            // Fields of every other kind at its side.
            message = Message::default().number(40, before).bytes(41, vec![0x6a; 70]).bytes(*field, message).number(42, 1);
        }
        let bytes = message.as_ref();
        let mut found = Vec::new();
        locations(Cursor::new(bytes), bytes.len() as u64, &mut |location| {
            found.push(location.to_owned());
            true
        })
        .unwrap();
        prop_assert_eq!(found, [location]);
    }

    #[test]
    fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..200, byte: u8) {
        let mut calls = 0_usize;
        let _either = locations(Cursor::new(&bytes), bytes.len() as u64, &mut |_| { calls += 1; true });
        let mut model = model("weights");
        let at = at % model.len();
        model[at] = byte;
        let _either = locations(Cursor::new(&model), model.len() as u64, &mut |_| { calls += 1; true });
        prop_assert!(calls <= bytes.len() + model.len());
    }
}
