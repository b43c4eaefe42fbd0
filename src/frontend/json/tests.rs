//! What the JSON cursor takes and refuses.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

fn skip(text: &str) -> Result<()> {
    let mut cursor = Cursor::new(text.as_bytes(), 100);
    cursor.skip_value()?;
    cursor.end()
}

#[test]
fn members_and_elements_are_walked_in_order() {
    let mut cursor =
        Cursor::new(br#" { "a" : [ 1 , -2.5, 18446744073709551615 ] ,"b":{}, "c":[ ], "d\n":true } "#, 100);
    cursor.enter_object().unwrap();
    assert_eq!(cursor.next_key().unwrap().as_deref(), Some("a"));
    cursor.enter_array().unwrap();
    let mut numbers = Vec::new();
    while cursor.next_element().unwrap() {
        numbers.push(cursor.number().unwrap());
    }
    assert_eq!(numbers, [Number::Int(1), Number::Double(-2.5), Number::Uint(u64::MAX)]);
    assert_eq!(cursor.next_key().unwrap().as_deref(), Some("b"));
    cursor.enter_object().unwrap();
    assert_eq!(cursor.next_key().unwrap(), None);
    assert_eq!(cursor.next_key().unwrap().as_deref(), Some("c"));
    cursor.enter_array().unwrap();
    assert!(!cursor.next_element().unwrap());
    assert_eq!(cursor.next_key().unwrap().as_deref(), Some("d\n"));
    assert!(cursor.bool().unwrap());
    assert_eq!(cursor.next_key().unwrap(), None);
    cursor.end().unwrap();
}

#[test]
fn faults_name_what_and_where() {
    for (text, what) in [
        ("", "unexpected end of text, expected a value at 0"),
        ("[1,]", "expected a value at 3"),
        ("[,1]", "expected a value at 1"),
        ("[1 2]", "expected ',' or ']' at 3"),
        (r#"{"a" 1}"#, "expected ':' at 5"),
        (r#"{"a":1,}"#, "expected a key in quotes at 7"),
        ("{1:2}", "expected a key in quotes at 1"),
        (r#"{"a":1]"#, "expected ',' or '}' at 6"),
        ("[1", "unexpected end of text at 2"),
        ("[01]", "expected a number at 1"),
        ("[1.]", "expected a number at 1"),
        ("[-]", "expected a number at 1"),
        ("[1e]", "expected a number at 1"),
        ("tru", "expected true or false at 0"),
        ("nul", "expected null at 0"),
        ("1 1", "unexpected text after the document at 2"),
        ("\u{feff}1", "expected a value at 0"),
    ] {
        let error = skip(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert_eq!(error.to_string(), format!("failed to parse the request JSON buffer: {what}"), "{text}");
    }
}

#[test]
fn the_depth_limit_holds_for_every_way_down() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        skip(&nested(100)).unwrap();
        let error = skip(&nested(101)).unwrap_err();
        assert!(error.to_string().contains("JSON nesting depth exceeds maximum allowed limit (100)"), "{error}");
        assert!(skip(&nested(10_000)).is_err());
        assert!(skip(&open.repeat(1_000_000)).is_err());
    }
    let array = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    Cursor::new(array(100).as_bytes(), 100).skip_array_unchecked().unwrap();
    assert!(Cursor::new(array(101).as_bytes(), 100).skip_array_unchecked().is_err());
    assert!(Cursor::new(array(10_000).as_bytes(), 100).skip_array_unchecked().is_err());
}

#[test]
fn a_number_beyond_64_bits_is_a_double_or_an_error() {
    let number = |text: &str| Cursor::new(text.as_bytes(), 1).number();
    assert_eq!(number("-9223372036854775808").unwrap(), Number::Int(i64::MIN));
    assert_eq!(number("18446744073709551616").unwrap(), Number::Double(18_446_744_073_709_551_616.0));
    assert_eq!(number("1e3").unwrap(), Number::Double(1000.0));
    assert!(number("1e999").is_err());
    for literal in ["NaN", "Infinity", "-Infinity"] {
        assert!(number(literal).unwrap_err().to_string().contains("expected a finite number"));
        skip(literal).unwrap();
    }
}

fn document() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        "[\\[\\]{}\",\\\\]{0,80}".prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 200, 12, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..12).prop_map(Into::into),
            prop::collection::vec((any::<String>(), inner), 0..6).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn every_document_is_skipped_whole_by_both_ways(document in document(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
        let text = format!("{} ", text.unwrap());
        prop_assert!(skip(&text).is_ok(), "{:?} {text}", skip(&text));
        let mut cursor = Cursor::new(text.as_bytes(), 100);
        cursor.skip_array_unchecked().unwrap();
        prop_assert_eq!(cursor.position(), text.len() - 1);
    }

    #[test]
    fn what_serde_refuses_is_refused(document in document(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = serde_json::to_vec(&document).unwrap();
        let at = at.index(text.len());
        text[at] = byte;
        let mut cursor = Cursor::new(&text, 100);
        let ours = cursor.skip_value().and_then(|()| cursor.end());
        // Skipping leaves escapes alone and lets numbers be of any size; all else is the same grammar.
        if serde_json::from_slice::<serde_json::Value>(&text).is_ok() {
            prop_assert!(ours.is_ok(), "{ours:?}");
        } else if !text.contains(&b'\\') && !text.contains(&b'e') && !text.contains(&b'E') {
            prop_assert!(ours.is_err());
        }
    }

    #[test]
    fn bytes_of_any_kind_never_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut cursor = Cursor::new(&text, 8);
        let _ = cursor.skip_value();
        let mut cursor = Cursor::new(&text, 8);
        let _ = cursor.skip_array_unchecked();
        let _ = Cursor::new(&text, 8).string();
        let _ = Cursor::new(&text, 8).number();
    }
}
