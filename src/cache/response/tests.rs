//! Keys, bounds and whose answers they are.

use proptest::prelude::*;

use super::*;
use crate::tensor::{DataType, Shape};

fn input(name: &str, data_type: DataType, dims: &[i64], data: &[u8]) -> NamedTensor {
    let tensor = Tensor::new(data_type, Shape::new(dims), Bytes::copy_from_slice(data)).unwrap();
    NamedTensor { name: name.into(), tensor }
}

fn answer(bytes: usize) -> NamedTensors {
    let tensor = Tensor::from_vec(Shape::new(&[i64::try_from(bytes).unwrap()]), vec![7_u8; bytes]).unwrap();
    std::iter::once(NamedTensor { name: "y".into(), tensor }).collect()
}

fn number(responses: &Responses, number: u64) -> Key {
    responses.key(&[input("x", DataType::Uint64, &[1], &number.to_le_bytes())], &[0], &Vec::new())
}

#[test]
fn questions_that_differ_in_anything_have_other_keys() {
    let cache = ResponseCache::new(1 << 20).unwrap();
    let (one, other) = (cache.responses(), cache.responses());
    let parameter = |value| vec![("p".into(), value)];
    let x = |data_type, dims: &[i64]| vec![input("x", data_type, dims, &[1, 0, 0, 0, 0, 0, 0, 0])];
    let ab = |a: &[u8], b: &[u8]| {
        let of = |name, data: &[u8]| input(name, DataType::Uint8, &[i64::try_from(data.len()).unwrap()], data);
        vec![of("a", a), of("b", b)]
    };
    let none = Vec::new();
    let keys = [
        one.key(&x(DataType::Int32, &[2]), &[0], &none),
        other.key(&x(DataType::Int32, &[2]), &[0], &none),
        one.key(&x(DataType::Uint32, &[2]), &[0], &none),
        one.key(&x(DataType::Fp32, &[2]), &[0], &none),
        one.key(&x(DataType::Int64, &[1]), &[0], &none),
        one.key(&x(DataType::Int32, &[2, 1]), &[0], &none),
        one.key(&x(DataType::Int32, &[1, 2]), &[0], &none),
        one.key(&x(DataType::Int32, &[2]), &[1], &none),
        one.key(&x(DataType::Int32, &[2]), &[0, 1], &none),
        one.key(&x(DataType::Int32, &[2]), &[], &none),
        one.key(&[input("z", DataType::Int32, &[2], &[1, 0, 0, 0, 0, 0, 0, 0])], &[0], &none),
        one.key(&ab(&[1, 2], &[3]), &[0], &none),
        one.key(&ab(&[1], &[2, 3]), &[0], &none),
        one.key(&ab(&[], &[1, 2, 3]), &[0], &none),
        one.key(&x(DataType::Int32, &[2]), &[0], &parameter(ParameterValue::Bool(true))),
        one.key(&x(DataType::Int32, &[2]), &[0], &parameter(ParameterValue::Int(1))),
        one.key(&x(DataType::Int32, &[2]), &[0], &parameter(ParameterValue::Uint(1))),
        one.key(&x(DataType::Int32, &[2]), &[0], &parameter(ParameterValue::Double(f64::from_bits(1)))),
        one.key(&x(DataType::Int32, &[2]), &[0], &parameter(ParameterValue::String("1".into()))),
        one.key(&x(DataType::Int32, &[2]), &[0], &vec![("q".into(), ParameterValue::Int(1))]),
    ];
    for (index, key) in keys.iter().enumerate() {
        for (at, before) in keys.iter().take(index).enumerate() {
            assert!(key != before, "{index} and {at}");
        }
    }
    assert!(one.key(&x(DataType::Int32, &[2]), &[0], &none) == keys[0]);
}

#[test]
fn an_answer_is_given_again_bit_by_bit_and_in_memory_of_its_own() {
    let cache = ResponseCache::new(1 << 20).unwrap();
    let responses = cache.responses();
    let answer = answer(100);
    assert!(responses.get(&number(&responses, 1)).is_none());
    responses.keep(number(&responses, 1), &answer);
    let first = responses.get(&number(&responses, 1)).unwrap();
    assert_eq!(first, answer);
    assert_ne!(first[0].tensor.data().as_ptr(), answer[0].tensor.data().as_ptr());
    let again = responses.get(&number(&responses, 1)).unwrap();
    assert_eq!(first[0].tensor.data().as_ptr(), again[0].tensor.data().as_ptr(), "a hit copies nothing");
}

#[test]
fn what_a_version_answered_goes_with_it_and_others_stay() {
    let cache = ResponseCache::new(1 << 20).unwrap();
    let (one, other) = (cache.responses(), cache.responses());
    for at in 0..10 {
        one.keep(number(&one, at), &answer(100));
        other.keep(number(&other, at), &answer(50));
    }
    one.forget();
    assert_eq!(cache.answers(), 10);
    assert_eq!(cache.bytes(), 10 * weight(&answer(50)));
    assert!(one.get(&number(&one, 1)).is_none() && other.get(&number(&other, 1)).is_some());
    other.forget();
    assert_eq!((cache.answers(), cache.bytes()), (0, 0));
}

#[test]
fn what_is_large_beside_the_cache_is_not_kept() {
    let cache = ResponseCache::new(1 << 20).unwrap();
    let responses = cache.responses();
    responses.keep(number(&responses, 1), &answer(257 << 10));
    assert!(responses.get(&number(&responses, 1)).is_none());
    responses.keep(number(&responses, 2), &answer(250 << 10));
    assert!(responses.get(&number(&responses, 2)).is_some());
    assert!(ResponseCache::new(0).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_never_holds_more_than_it_may_and_never_another_answer(
        capacity in 4_096_u64..200_000,
        steps in prop::collection::vec((0_u64..40, 0_usize..20_000, 0_usize..3, any::<bool>()), 1..200),
    ) {
        let cache = ResponseCache::new(capacity).unwrap();
        let versions = [cache.responses(), cache.responses(), cache.responses()];
        let mut kept = std::collections::HashMap::new();
        for (question, bytes, version, forgets) in steps {
            let responses = &versions[version];
            let key = number(responses, question);
            if forgets && bytes < 500 {
                responses.forget();
                kept.retain(|(of, _), _| *of != version);
            }
            if let Some(found) = responses.get(&key) {
                prop_assert_eq!(Some(&found), kept.get(&(version, question)));
            }
            responses.keep(key, &answer(bytes));
            if weight(&answer(bytes)) <= cache.largest {
                kept.insert((version, question), answer(bytes));
            }
            prop_assert!(cache.bytes() <= capacity, "{} of {capacity}", cache.bytes());
        }
    }
}

#[test]
#[ignore = "measures; says something in a release build alone"]
fn a_mebibyte_is_hashed_within_a_millisecond_and_a_half() {
    let cache = ResponseCache::new(1 << 20).unwrap();
    let responses = cache.responses();
    for bytes in [64_usize, 1 << 10, 1 << 20] {
        let inputs = [input("x", DataType::Uint8, &[i64::try_from(bytes).unwrap()], &vec![3; bytes])];
        let rounds = 64;
        let began = std::time::Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(responses.key(&inputs, &[0], &Vec::new()));
        }
        let each = began.elapsed() / rounds;
        assert!(each < std::time::Duration::from_micros(1500), "{bytes} bytes took {each:?}");
    }
}
