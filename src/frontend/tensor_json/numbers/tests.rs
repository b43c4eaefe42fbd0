//! Numbers against the standard library's reading of the same text.

use proptest::prelude::*;

use super::*;

/// The text amid other text, as in an array, and at the very end of the buffer, by the usual way and the sure one.
fn every_way<T: Copy + PartialEq + std::fmt::Debug>(
    text: &str,
    usual: impl Fn(&[u8]) -> Option<(T, usize)>,
    sure: impl Fn(&[u8]) -> Parsed<T>,
) -> Parsed<T> {
    let amid = format!("{text}, 99999999999999");
    let result = sure(text.as_bytes());
    assert_eq!(result, sure(amid.as_bytes()), "{text}");
    for quick in [usual(text.as_bytes()), usual(amid.as_bytes())].into_iter().flatten() {
        // Taking too little is allowed: the array reader sees that no comma follows.
        assert!(quick.1 < text.len() || Ok(quick) == result, "{text}");
    }
    result
}

fn f32_every_way(text: &str) -> Parsed<f32> {
    let bits = |(value, length): (f32, usize)| (value.to_bits(), length);
    let usual = |text: &[u8]| parse_usual_f32(text).map(bits);
    every_way(text, usual, |text| parse_f32(text).map(bits)).map(|(bits, length)| (f32::from_bits(bits), length))
}

fn f64_every_way(text: &str) -> Parsed<f64> {
    let bits = |(value, length): (f64, usize)| (value.to_bits(), length);
    let usual = |text: &[u8]| parse_short_f64(text).map(bits);
    every_way(text, usual, |text| parse_f64(text).map(bits)).map(|(bits, length)| (f64::from_bits(bits), length))
}

fn integer<T: Integer + PartialEq + std::fmt::Debug>(text: &str) -> Parsed<T> {
    every_way(text, parse_short_integer::<T>, parse_integer::<T>)
}

#[test]
fn rounding_is_right_where_it_is_hard() {
    for text in [
        "16777217",
        "16777217.0",
        "16777217.000000001",
        "16777216.999999999",
        "16777219",
        "0",
        "-0",
        "-0.0",
        "0e5",
        "0.000",
        "1.1754943508222875e-38",
        "1.17549435e-38",
        "1e-45",
        "7.006492321624085e-46",
        "7.1e-46",
        "1e-60",
        "3.4028234663852886e38",
        "3.4028235677973366e38",
        "3.402823567797336e38",
        "0.1",
        "0.3745401203632355",
        "1.00000005960464477539062",
        "1.000000059604644775390625",
        "1.0000000596046447753906250000000000000001",
        "9999999999999999999",
        "99999999999999999999",
        "0.00000000000000000000000000000123456789012345678",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615.5",
        "123456789012345678901234567890e-20",
        "1e10",
        "1E+10",
        "1e-10",
        "8.5",
        "0.5e1",
        "1e00000000000000000001",
    ] {
        let (value, length) = f32_every_way(text).unwrap();
        assert_eq!(value.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{text}");
        assert_eq!(length, text.len());
    }
}

#[test]
fn what_json_does_not_allow_is_refused() {
    for text in ["", "-", "+1", ".5", "1.", "1.e5", "1e", "1e+", "01", "-01", "00", "--1", "nan", "inf", "x", " 1"] {
        assert_eq!(f32_every_way(text).unwrap_err(), Fault::Malformed, "{text}");
        assert_eq!(f64_every_way(text), Err(Fault::Malformed), "{text}");
        assert_eq!(integer::<i32>(text), Err(Fault::Malformed), "{text}");
    }
    // 0x1 is the number 0 and then something else, which the array reader refuses.
    assert_eq!(parse_f32(b"0x1"), Ok((0.0, 1)));
}

#[test]
fn numbers_beyond_the_type_are_out_of_range() {
    for text in ["3.5e38", "-3.5e38", "1e39", "1e99999999999", "3.4028236e38"] {
        assert_eq!(f32_every_way(text).unwrap_err(), Fault::OutOfRange, "{text}");
    }
    assert_eq!(parse_f64(b"1e309"), Err(Fault::OutOfRange));
    assert_eq!(parse_f16(b"65520"), Err(Fault::OutOfRange));
    assert_eq!(parse_f16(b"65519.99"), Ok((half::f16::MAX, 8)));
    assert_eq!(parse_bf16(b"3.4e38"), Err(Fault::OutOfRange));
    assert_eq!(parse_bf16(b"1e39"), Err(Fault::OutOfRange));
    assert_eq!(integer::<u8>("256"), Err(Fault::OutOfRange));
    assert_eq!(integer::<u8>("-1"), Err(Fault::OutOfRange));
    assert_eq!(integer::<i8>("-129"), Err(Fault::OutOfRange));
    assert_eq!(integer::<u64>("18446744073709551616"), Err(Fault::OutOfRange));
    assert_eq!(integer::<i64>("-9223372036854775809"), Err(Fault::OutOfRange));
    assert_eq!(integer::<i64>("100000000000000000000000"), Err(Fault::OutOfRange));
}

#[test]
fn integers_are_exact_to_their_ends_and_nothing_else() {
    assert_eq!(integer::<u64>("18446744073709551615"), Ok((u64::MAX, 20)));
    assert_eq!(integer::<i64>("-9223372036854775808"), Ok((i64::MIN, 20)));
    assert_eq!(integer::<u8>("-0"), Ok((0, 2)));
    assert_eq!(integer::<i32>("1.0"), Err(Fault::NotInteger));
    assert_eq!(integer::<i32>("1e3"), Err(Fault::NotInteger));
    assert_eq!(integer::<i32>("NaN"), Err(Fault::NotFinite));
    assert_eq!(integer::<i32>("-Infinity"), Err(Fault::NotFinite));
}

#[test]
fn sixteen_bit_types_are_rounded_once() {
    // Above the middle of two by less than an FP32 can tell: rounding twice would give 1.0.
    let (value, _) = parse_f16(b"1.000488281250001").unwrap();
    assert_eq!(value.to_bits(), half::f16::from_f32(1.0).to_bits() + 1);
    let (value, _) = parse_bf16(b"1.003906250000001").unwrap();
    assert_eq!(value.to_bits(), half::bf16::from_f32(1.0).to_bits() + 1);
    assert!(parse_f16(b"NaN").unwrap().0.is_nan());
    assert_eq!(parse_bf16(b"-Infinity"), Ok((half::bf16::NEG_INFINITY, 9)));
}

#[test]
fn every_16_bit_value_comes_back() {
    for bits in 0..=u16::MAX {
        let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
        if f16.is_finite() {
            assert_eq!(parse_f16(f16.to_f32().to_string().as_bytes()).unwrap().0.to_bits(), bits);
        }
        if bf16.is_finite() {
            assert_eq!(parse_bf16(bf16.to_f32().to_string().as_bytes()).unwrap().0.to_bits(), bits);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn f32_equals_the_standard_library(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,24})?([eE][-+]?[0-9]{1,2})?") {
        let expected: f32 = text.parse().unwrap();
        match f32_every_way(&text) {
            Ok((value, length)) => prop_assert_eq!((value.to_bits(), length), (expected.to_bits(), text.len())),
            Err(fault) => prop_assert!(fault == Fault::OutOfRange && expected.is_infinite(), "{}", text),
        }
    }

    #[test]
    fn f64_equals_the_standard_library(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,24})?([eE][-+]?[0-9]{1,3})?") {
        let expected: f64 = text.parse().unwrap();
        match f64_every_way(&text) {
            Ok((value, length)) => prop_assert_eq!((value.to_bits(), length), (expected.to_bits(), text.len())),
            Err(fault) => prop_assert!(fault == Fault::OutOfRange && expected.is_infinite(), "{}", text),
        }
    }

    #[test]
    fn f32_is_right_beside_the_middle_of_two(bits in 0x0080_0000_u32..0x7f00_0000, nudge in -20_i64..20) {
        let low = f64::from(f32::from_bits(bits));
        let high = f64::from(f32::from_bits(bits + 1));
        let middle = f64::from_bits((low / 2.0 + high / 2.0).to_bits().wrapping_add_signed(nudge));
        for text in [format!("{middle:e}"), format!("{middle:.20e}"), middle.to_string(), format!("{middle:.18e}")] {
            let (value, _) = f32_every_way(&text).unwrap();
            prop_assert_eq!(value.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{}", text);
        }
    }

    #[test]
    fn every_f32_comes_back_from_its_shortest_and_its_double_text(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        prop_assume!(value.is_finite());
        for text in [format!("{value}"), format!("{value:e}"), format!("{}", f64::from(value))] {
            prop_assert_eq!(f32_every_way(&text).unwrap().0.to_bits(), bits);
        }
    }

    #[test]
    fn integers_equal_the_standard_library(text in "-?(0|[1-9][0-9]{0,21})") {
        prop_assert_eq!(integer::<u64>(&text).ok().map(|(value, _)| value),
            text.parse().ok().or((text == "-0").then_some(0)));
        prop_assert_eq!(integer::<i64>(&text).ok().map(|(value, _)| value), text.parse().ok());
        prop_assert_eq!(integer::<i16>(&text).ok().map(|(value, _)| value), text.parse().ok());
    }
}
