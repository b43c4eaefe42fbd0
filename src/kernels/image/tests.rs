//! Image pre-processing against its definition.

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn form(channels: usize, height: u32, width: u32) -> Form {
    Form { channels, height, width, mean: [0.0; 4], scale: [1.0; 4] }
}

/// The definition in FP64, one output pixel at a time.
fn exact(picture: &[u8], (height, width): (u32, u32), form: &Form) -> Vec<f64> {
    let mut found = Vec::new();
    let source = |at: u32, size: u32, out: u32| {
        ((f64::from(at) + 0.5) * f64::from(size) / f64::from(out) - 0.5).clamp(0.0, f64::from(size - 1))
    };
    let grey = |y: f64, x: f64, channel: usize| {
        let at = (y as usize * width as usize + x as usize) * form.channels + channel;
        f64::from(picture[at])
    };
    for channel in 0..form.channels {
        for y in 0..form.height {
            for x in 0..form.width {
                let (y, x) = (source(y, height, form.height), source(x, width, form.width));
                let below = (y.floor() + 1.0).min(f64::from(height - 1));
                let right = (x.floor() + 1.0).min(f64::from(width - 1));
                let (v, u) = (y - y.floor(), x - x.floor());
                let upper = grey(y.floor(), x.floor(), channel) * (1.0 - u) + grey(y.floor(), right, channel) * u;
                let lower = grey(below, x.floor(), channel) * (1.0 - u) + grey(below, right, channel) * u;
                let value = upper * (1.0 - v) + lower * v;
                found.push((value - f64::from(form.mean[channel])) * f64::from(form.scale[channel]));
            }
        }
    }
    found
}

fn pictures() -> impl Strategy<Value = (Vec<u8>, u32, u32, usize)> {
    (1_u32..40, 1_u32..40, 1_usize..=4).prop_flat_map(|(height, width, channels)| {
        let bytes = (height * width) as usize * channels;
        vec(any::<u8>(), bytes..=bytes).prop_map(move |bytes| (bytes, height, width, channels))
    })
}

proptest! {
    #[test]
    fn any_picture_is_within_a_ten_thousandth_of_a_grey_level(
        (bytes, height, width, channels) in pictures(),
        (out_height, out_width) in (1_u32..50, 1_u32..50),
        (mean, scale) in ([0.0_f32..255.0, 0.0..255.0, 0.0..255.0, 0.0..255.0], [-2.0_f32..2.0, 0.0..1.0, 0.0..0.1, 0.0..2.0]),
    ) {
        let form = Form { mean, scale, ..form(channels, out_height, out_width) };
        let mut found = vec![0.0_f32; form.elements()];
        preprocess(&mut found, &Pixels { bytes: &bytes, height, width }, &form).unwrap();
        for (at, (found, exact)) in found.iter().zip(exact(&bytes, (height, width), &form)).enumerate() {
            let scale = f64::from(scale[at / (form.elements() / channels)]).abs();
            prop_assert!((f64::from(*found) - exact).abs() <= 1e-4 * scale, "{at}: {found}, exactly {exact}");
        }
        let mut half = vec![f16::ZERO; form.elements()];
        preprocess(&mut half, &Pixels { bytes: &bytes, height, width }, &form).unwrap();
        prop_assert!(half.iter().zip(&found).all(|(half, found)| *half == f16::from_f32(*found)));
    }

    #[test]
    fn a_picture_of_the_right_size_is_only_turned_and_normalised((bytes, height, width, channels) in pictures()) {
        let form = Form { mean: [1.0, 2.0, 3.0, 4.0], scale: [0.5, 0.25, 2.0, 1.0], ..form(channels, height, width) };
        let mut found = vec![0.0_f32; bytes.len()];
        preprocess(&mut found, &Pixels { bytes: &bytes, height, width }, &form).unwrap();
        for (at, grey) in bytes.iter().enumerate() {
            let (pixel, channel) = (at / channels, at % channels);
            let plane = (height * width) as usize;
            prop_assert_eq!(found[channel * plane + pixel], (f32::from(*grey) - form.mean[channel]) * form.scale[channel]);
        }
    }
}

#[test]
fn pictures_behind_each_other_are_taken_one_by_one() {
    let bytes: Vec<u8> = (0..2 * 5 * 4 * 3).map(|at| (at * 37) as u8).collect();
    let form = form(3, 7, 2);
    let mut together = vec![0.0_f32; 2 * form.elements()];
    preprocess(&mut together, &Pixels { bytes: &bytes, height: 5, width: 4 }, &form).unwrap();
    for (picture, together) in bytes.chunks(60).zip(together.chunks(form.elements())) {
        let mut alone = vec![0.0_f32; form.elements()];
        preprocess(&mut alone, &Pixels { bytes: picture, height: 5, width: 4 }, &form).unwrap();
        assert_eq!(alone, together);
    }
}

#[test]
fn the_largest_sides_do_not_overflow() {
    let bytes: Vec<u8> = (0..MAX_SIDE).map(|at| at as u8).collect();
    let form = form(1, 1, MAX_OUT_SIDE);
    let mut found = vec![0.0_f32; form.elements()];
    preprocess(&mut found, &Pixels { bytes: &bytes, height: 1, width: MAX_SIDE }, &form).unwrap();
    let exact = exact(&bytes, (1, MAX_SIDE), &form);
    // Between 255 and the 0 behind it one step of the fraction's rounding is worth the most.
    assert!(found.iter().zip(&exact).all(|(found, exact)| (f64::from(*found) - exact).abs() <= 1e-4));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let refused = |bytes: usize, height: u32, width: u32, elements: usize, form: Form| {
        let bytes = vec![0; bytes];
        preprocess(&mut vec![0.0_f32; elements], &Pixels { bytes: &bytes, height, width }, &form).is_err()
    };
    assert!(!refused(12, 2, 2, 27, form(3, 3, 3)));
    assert!(refused(11, 2, 2, 27, form(3, 3, 3)));
    assert!(refused(24, 2, 2, 27, form(3, 3, 3)));
    assert!(refused(12, 2, 2, 26, form(3, 3, 3)));
    assert!(refused(0, 0, 2, 27, form(3, 3, 3)));
    assert!(refused(0, 2, 0, 0, form(3, 3, 3)));
    assert!(refused(12, 2, 2, 0, form(3, 0, 3)));
    assert!(refused(12, 2, 2, 27, form(0, 3, 3)));
    assert!(refused(20, 2, 2, 45, form(5, 3, 3)));
    assert!(refused(65_536, 1, 65_536, 1, form(1, 1, 1)));
    assert!(refused(1, 1, 1, 16_385, form(1, 1, 16_385)));
}
