//! `image_input` and its fellows among the parameters: an input for which clients send pixels, and what is made of them
//! for the model. The model's own input stays as the configuration and the runtime have it; what clients see differs.

use super::ModelConfig;
use super::diagnostic::{ConfigError, Position, quoted};
use crate::kernels::image::{Form, MAX_CHANNELS, MAX_OUT_SIDE, MAX_SIDE};
use crate::tensor::{DataType, Shape};

/// The parameters that are read here.
pub const PARAMETERS: [&str; 4] = [INPUT, SIZE, MEAN, SCALE];

/// The input for which clients send pixels.
const INPUT: &str = "image_input";

/// Height and width at the model, where its own dims leave them open: `224`, or `480x640`.
const SIZE: &str = "image_size";

/// What is taken away of each channel, in grey levels; one number, or one a channel.
const MEAN: &str = "image_mean";

/// What the rest is multiplied with; one number, or one a channel.
const SCALE: &str = "image_scale";

/// The most bytes that pictures take which the model gets at once.
const MAX_BYTES: usize = 2 << 30;

/// An input that is made of pixels: [height, width, channels] UINT8 at the client, [channels, height, width] at the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageInput {
    /// The input's name.
    pub name: String,
    /// FP32 or FP16.
    pub data_type: DataType,
    /// What a picture becomes.
    pub form: Form,
    /// The first of four dims, where there is no batch dimension of the server's; -1 for any.
    count: Option<i64>,
}

impl ImageInput {
    /// The shape that clients send, with the batch dimension where `batched`.
    #[must_use]
    pub fn dims(&self, batched: bool) -> Vec<i64> {
        let first = self.count.or_else(|| batched.then_some(-1));
        // At most four.
        first.into_iter().chain([-1, -1, i64::try_from(self.form.channels).unwrap_or(i64::MAX)]).collect()
    }

    /// The pictures in a tensor of a shape that matches [`ImageInput::dims`], with their height and width.
    ///
    /// # Errors
    /// What is wrong with the shape: a side of no or too many pixels, or more pictures than are made at once.
    pub fn pictures(&self, shape: &Shape) -> Result<(usize, u32, u32), String> {
        let (count, height, width) = match *shape.dims() {
            [height, width, _] => (1, height, width),
            [count, height, width, _] => (count, height, width),
            _ => return Err(format!("a picture has 3 dimensions, not those of {shape}")),
        };
        let side = |name: &str, side: i64| {
            let fits = u32::try_from(side).ok().filter(|side| (1..=MAX_SIDE).contains(side));
            fits.ok_or_else(|| format!("the {name} of a picture must be from 1 to {MAX_SIDE}, got {side}"))
        };
        let (height, width) = (side("height", height)?, side("width", width)?);
        let count = usize::try_from(count).unwrap_or(0);
        match self.bytes(count) {
            Some(_) => Ok((count, height, width)),
            None => Err(format!("{count} pictures are more than {MAX_BYTES} bytes at the model: send fewer at once")),
        }
    }

    /// The bytes that so many pictures take at the model, where they are not too many.
    fn bytes(&self, count: usize) -> Option<usize> {
        let bytes = self.form.elements().checked_mul(count)?.checked_mul(self.data_type.size()?)?;
        (bytes <= MAX_BYTES).then_some(bytes)
    }
}

/// The input that is made of pixels, if there is one and the inputs are known; what is written is checked in any case.
pub(super) fn read(config: &ModelConfig) -> Result<Option<ImageInput>, ConfigError> {
    let text = |key: &str| config.parameters.get(key).map(|text| text.trim());
    let Some(name) = text(INPUT) else {
        return match PARAMETERS.into_iter().find(|key| text(key).is_some()) {
            Some(key) => Err(wrong(config, key, &format!("needs '{INPUT}', the input that clients send pixels for"))),
            None => Ok(None),
        };
    };
    if config.ensemble.is_some() {
        return Err(wrong(config, INPUT, "is for a model that runs itself: give it to the step's model"));
    }
    let exclusive = [
        (config.sequence_batching.is_some(), "sequence_batching"),
        (config.decoupled, "model_transaction_policy.decoupled"),
    ];
    if let Some((_, field)) = exclusive.into_iter().find(|(is_set, _)| *is_set) {
        let text = format!("parameter '{INPUT}' is not offered together with {field}; leave one of them out");
        return Err(ConfigError::unsupported(position(config, INPUT), text));
    }
    let size =
        text(SIZE).map(|text| size(text).ok_or_else(|| wrong(config, SIZE, &expected_size(text)))).transpose()?;
    let mean = numbers(config, MEAN, text(MEAN).unwrap_or("0"))?;
    let scale = numbers(config, SCALE, text(SCALE).unwrap_or("1"))?;
    if config.inputs.is_empty() {
        return Ok(None);
    }
    let Some(input) = config.inputs.iter().find(|input| input.name == name) else {
        let names: Vec<_> = config.inputs.iter().take(16).map(|input| quoted(&input.name)).collect();
        let text = format!("names {}, which is no input; the inputs are {}", quoted(name), names.join(", "));
        return Err(wrong(config, INPUT, &text));
    };
    let refused = |text: String| Err(wrong(config, INPUT, &format!("names {}: {text}", quoted(name))));
    if !matches!(input.data_type, DataType::Fp32 | DataType::Fp16) {
        return refused(format!("the model must take TYPE_FP32 or TYPE_FP16, not {}", input.data_type.config_name()));
    }
    if input.allow_ragged_batch {
        return refused("allow_ragged_batch is for inputs of any size, and the model gets pictures of one".to_owned());
    }
    let (count, [channels, height, width]) = match *input.runtime_dims() {
        [channels, height, width] => (None, [channels, height, width]),
        [count, channels, height, width] if config.max_batch_size == 0 => (Some(count), [channels, height, width]),
        ref dims => return refused(format!("the model must take [channels, height, width], not {}", Shape::new(dims))),
    };
    let Some(channels) = usize::try_from(channels).ok().filter(|channels| (1..=MAX_CHANNELS).contains(channels)) else {
        return refused(format!("the channels at the model must be from 1 to {MAX_CHANNELS}, got {channels}"));
    };
    let side = |what: &str, dim: i64, given: Option<u32>| match (u32::try_from(dim), given) {
        (Err(_), None) => {
            Err(wrong(config, INPUT, &format!("names {}, whose {what} is open: set '{SIZE}'", quoted(name))))
        }
        (Err(_), Some(side)) => Ok(side),
        (Ok(side), Some(other)) if side != other => {
            Err(wrong(config, SIZE, &format!("says a {what} of {other}, the model takes {side}; leave it out")))
        }
        (Ok(side), _) if side <= MAX_OUT_SIDE => Ok(side),
        (Ok(side), _) => {
            Err(wrong(config, INPUT, &format!("names {}, whose {what} {side} is above {MAX_OUT_SIDE}", quoted(name))))
        }
    };
    let form = Form {
        channels,
        height: side("height", height, size.map(|size| size[0]))?,
        width: side("width", width, size.map(|size| size[1]))?,
        mean: by_channel(config, MEAN, &mean, channels)?,
        scale: by_channel(config, SCALE, &scale, channels)?,
    };
    let image = ImageInput { name: name.to_owned(), data_type: input.data_type, form, count };
    let most = config.max_batch_size.max(1);
    if image.bytes(most as usize).is_none() {
        return refused(format!("{most} pictures are more than {MAX_BYTES} bytes: lower max_batch_size"));
    }
    Ok(Some(image))
}

/// Where a parameter stands.
fn position(config: &ModelConfig, key: &str) -> Position {
    let mut entries = config.message().entries("parameters");
    entries.find(|(name, _)| name.to_string() == key).map(|(_, item)| item.position).unwrap_or_default()
}

fn wrong(config: &ModelConfig, key: &str, text: &str) -> ConfigError {
    ConfigError::invalid(position(config, key), format!("parameter '{key}' {text}"))
}

fn expected_size(text: &str) -> String {
    format!("must be one number or HEIGHTxWIDTH, each from 1 to {MAX_OUT_SIDE}, got {}", quoted(text))
}

fn size(text: &str) -> Option<[u32; 2]> {
    let side = |text: &str| text.trim().parse().ok().filter(|side| (1..=MAX_OUT_SIDE).contains(side));
    match text.split_once('x') {
        Some((height, width)) => Some([side(height)?, side(width)?]),
        None => side(text).map(|side| [side, side]),
    }
}

fn numbers(config: &ModelConfig, key: &str, text: &str) -> Result<Vec<f32>, ConfigError> {
    let number = |text: &str| text.trim().parse().ok().filter(|number: &f32| number.is_finite());
    let numbers: Option<Vec<f32>> = text.split(',').map(number).collect();
    numbers.filter(|numbers| numbers.len() <= MAX_CHANNELS).ok_or_else(|| {
        wrong(config, key, &format!("must be one number, or one a channel with commas between, got {}", quoted(text)))
    })
}

/// The numbers of the channels; those of channels that are not there mean nothing.
fn by_channel(config: &ModelConfig, key: &str, numbers: &[f32], channels: usize) -> Result<[f32; 4], ConfigError> {
    match *numbers {
        [all] => Ok([all; MAX_CHANNELS]),
        _ if numbers.len() == channels => {
            let mut by_channel = [0.0; MAX_CHANNELS];
            by_channel.iter_mut().zip(numbers).for_each(|(to, number)| *to = *number);
            Ok(by_channel)
        }
        _ => {
            let text = format!("has {} numbers for {channels} channels: give one, or one a channel", numbers.len());
            Err(wrong(config, key, &text))
        }
    }
}

/// Whether the parameters ask for an input of pixels that the model turned out not to have.
pub(super) fn is_left_over(config: &ModelConfig) -> bool {
    config.image_input.is_none() && config.parameters.contains_key(INPUT)
}

/// A parameter as the tree holds it, for tests of the layers above.
#[cfg(test)]
pub(crate) fn written(key: &str, value: &str) -> String {
    format!("parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::model_config::{UnknownFields, parse};

    fn config(fields: &str, parameters: &[(&str, &str)]) -> Result<ModelConfig, ConfigError> {
        let parameters: String = parameters.iter().map(|(key, value)| written(key, value)).collect();
        parse(&format!("{fields} {parameters}"), UnknownFields::Deny).map(|parsed| parsed.config)
    }

    fn input(data_type: &str, dims: &str) -> String {
        format!("input {{ name: 'x' data_type: {data_type} dims: {dims} }}")
    }

    #[test]
    fn what_clients_send_and_what_the_model_gets_are_read() {
        let batched = format!("max_batch_size: 8 {}", input("TYPE_FP32", "[3, 224, 160]"));
        let found = config(&batched, &[("image_input", "x"), ("image_mean", "1, 2.5,3"), ("image_scale", "0.5")]);
        let image = found.unwrap().image_input.unwrap();
        assert_eq!((image.name.as_str(), image.data_type), ("x", DataType::Fp32));
        assert_eq!((image.form.channels, image.form.height, image.form.width), (3, 224, 160));
        assert_eq!((image.form.mean, image.form.scale), ([1.0, 2.5, 3.0, 0.0], [0.5; 4]));
        assert_eq!(image.dims(true), [-1, -1, -1, 3]);
        for (dims, size, sides, wire) in [
            ("[1, -1, -1]", "480x640", (480, 640), vec![-1, -1, 1]),
            ("[-1, 4, -1, 32]", "32", (32, 32), vec![-1, -1, -1, 4]),
            ("[1, 3, 8, 9]", " 8 x 9 ", (8, 9), vec![1, -1, -1, 3]),
        ] {
            let found = config(&input("TYPE_FP16", dims), &[("image_input", "x"), ("image_size", size)]);
            let image = found.unwrap().image_input.unwrap();
            assert_eq!(((image.form.height, image.form.width), image.dims(false)), (sides, wire), "{dims}");
        }
    }

    #[test]
    fn it_is_off_where_nothing_is_written_and_waits_where_the_inputs_are_not_known() {
        assert_eq!(config(&input("TYPE_FP32", "[3, 8, 8]"), &[]).unwrap().image_input, None);
        let waits = config("backend: 'onnxruntime'", &[("image_input", "x")]).unwrap();
        assert!(waits.image_input.is_none() && is_left_over(&waits));
    }

    #[test]
    fn every_fault_names_its_parameter_and_the_mend() {
        let picture = input("TYPE_FP32", "[3, 8, 8]");
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case<'_>; 15] = [
            (&picture, &[("image_mean", "1")], "parameter 'image_mean' needs 'image_input'"),
            (
                &picture,
                &[("image_input", "y")],
                "parameter 'image_input' names 'y', which is no input; the inputs are 'x'",
            ),
            (
                &input("TYPE_UINT8", "[3, 8, 8]"),
                &[("image_input", "x")],
                "must take TYPE_FP32 or TYPE_FP16, not TYPE_UINT8",
            ),
            (&input("TYPE_FP32", "[8, 8]"), &[("image_input", "x")], "must take [channels, height, width], not [8,8]"),
            (
                &input("TYPE_FP32", "[8, 8, 3]"),
                &[("image_input", "x")],
                "channels at the model must be from 1 to 4, got 8",
            ),
            (
                &input("TYPE_FP32", "[-1, 8, 8]"),
                &[("image_input", "x")],
                "channels at the model must be from 1 to 4, got -1",
            ),
            (&input("TYPE_FP32", "[3, -1, 8]"), &[("image_input", "x")], "whose height is open: set 'image_size'"),
            (&input("TYPE_FP32", "[3, 8, 16385]"), &[("image_input", "x")], "whose width 16385 is above 16384"),
            (
                &picture,
                &[("image_input", "x"), ("image_size", "9")],
                "'image_size' says a height of 9, the model takes 8",
            ),
            (
                &picture,
                &[("image_input", "x"), ("image_size", "8x0")],
                "one number or HEIGHTxWIDTH, each from 1 to 16384",
            ),
            (&picture, &[("image_input", "x"), ("image_mean", "1,2")], "'image_mean' has 2 numbers for 3 channels"),
            (
                &picture,
                &[("image_input", "x"), ("image_scale", "1,,2")],
                "'image_scale' must be one number, or one a channel",
            ),
            (
                &picture,
                &[("image_input", "x"), ("image_scale", "inf")],
                "'image_scale' must be one number, or one a channel",
            ),
            (
                "max_batch_size: 2147483647 input { name: 'x' data_type: TYPE_FP32 dims: [3, 8, 8] }",
                &[("image_input", "x")],
                "2147483647 pictures are more than 2147483648 bytes: lower max_batch_size",
            ),
            (
                "max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: [3, 8, 8] allow_ragged_batch: true }",
                &[("image_input", "x")],
                "allow_ragged_batch is for inputs of any size",
            ),
        ];
        for (fields, parameters, expected) in cases {
            let found = config(fields, parameters).unwrap_err();
            assert_eq!(found.kind, ErrorKind::InvalidArgument);
            assert!(found.to_string().contains(expected), "{found}\nshould say {expected}");
            assert!(found.to_string().starts_with("config.pbtxt:1:"), "{found}");
        }
        let ensemble = "platform: 'ensemble' ensemble_scheduling { step { model_name: 'a' model_version: -1 \
                        input_map { key: 'x' value: 'x' } output_map { key: 'y' value: 'y' } } } \
                        output { name: 'y' data_type: TYPE_FP32 dims: 1 }";
        let found = config(&format!("{picture} {ensemble}"), &[("image_input", "x")]).unwrap_err();
        assert!(found.to_string().contains("give it to the step's model"), "{found}");
        let decoupled = format!("{picture} model_transaction_policy {{ decoupled: true }}");
        let found = config(&decoupled, &[("image_input", "x")]).unwrap_err();
        assert_eq!(found.kind, ErrorKind::Unsupported);
    }

    #[test]
    fn a_request_that_would_take_all_memory_is_refused_before_it_does() {
        let found = config(&input("TYPE_FP32", "[-1, 3, 1024, 1024]"), &[("image_input", "x")]);
        let image = found.unwrap().image_input.unwrap();
        assert_eq!(image.pictures(&Shape::new(&[170, 1, 1, 3])), Ok((170, 1, 1)));
        let refused = image.pictures(&Shape::new(&[171, 1, 1, 3])).unwrap_err();
        assert!(refused.contains("171 pictures are more than 2147483648 bytes"), "{refused}");
        assert!(image.pictures(&Shape::new(&[i64::MAX, 1, 1, 3])).is_err());
        for shape in [[1, 0, 1, 3], [1, 1, 0, 3], [1, 65_536, 1, 3]] {
            let refused = image.pictures(&Shape::new(&shape)).unwrap_err();
            assert!(refused.contains("of a picture must be from 1 to 65535"), "{refused}");
        }
    }
}
