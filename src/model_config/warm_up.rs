//! `model_warmup`: requests that a model answers before it is ready, read and checked.

use super::diagnostic::{ConfigError, Position, quoted};
use super::message::{Item, Message, Value};
use super::validate::stays_inside;
use super::{ModelConfig, ModelInput};
use crate::tensor::DataType;

/// The folder in the model's own that holds the data of samples.
pub const FOLDER: &str = "warmup";

/// The most samples of a model.
const MAX_SAMPLES: usize = 1024;

/// The most runs of one sample: a load that takes longer than that is a slip.
const MAX_RUNS: u32 = 100_000;

/// A request made up for the model, Triton's `ModelWarmup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmUp {
    /// What errors and logs call it.
    pub name: String,
    /// How many items its batch has, all alike. 0 leaves the sample out, as in Triton.
    pub batch_size: u32,
    /// The inputs, by name.
    pub inputs: Vec<WarmUpInput>,
    /// How often each instance runs it; at least 1.
    pub count: u32,
}

/// An input of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmUpInput {
    /// The model's name for it.
    pub name: String,
    /// The element type.
    pub data_type: DataType,
    /// The shape of one item, without the batch dimension; every dimension is known.
    pub dims: Vec<i64>,
    /// Where its elements come from.
    pub data: WarmUpData,
}

/// Where the elements of a sample's input come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WarmUpData {
    /// Zeros; empty strings for BYTES.
    Zero,
    /// Numbers that look random and are the same at each load.
    Random,
    /// A file in the model's `warmup` folder with the bytes of one item, as they stand on the wire.
    File(String),
}

impl WarmUp {
    /// Holds the sample against the model's inputs.
    ///
    /// # Errors
    /// What is wrong and the input it is wrong with; `None` for an input that is not there.
    pub fn check(&self, inputs: &[ModelInput]) -> Result<(), (Option<&str>, String)> {
        for input in &self.inputs {
            let name = Some(input.name.as_str());
            let Some(known) = inputs.iter().find(|known| known.name == input.name) else {
                let names: Vec<_> = inputs.iter().map(|known| known.name.as_str()).collect();
                return Err((name, format!("is no input of the model, which has {}", names.join(", "))));
            };
            if known.data_type != input.data_type {
                let (given, wanted) = (input.data_type.config_name(), known.data_type.config_name());
                return Err((name, format!("has data_type {given}, but the model's is {wanted}")));
            }
            let fits = |(dim, wanted): (&i64, &i64)| *wanted == -1 || dim == wanted;
            if input.dims.len() != known.dims.len() || !input.dims.iter().zip(&known.dims).all(fits) {
                return Err((name, format!("has dims {:?}, but the model's are {:?}", input.dims, known.dims)));
            }
        }
        let is_given = |known: &ModelInput| self.inputs.iter().any(|input| input.name == known.name);
        match inputs.iter().find(|known| !known.optional && !is_given(known)) {
            Some(missing) => Err((None, format!("lacks input {}", quoted(&missing.name)))),
            None => Ok(()),
        }
    }
}

/// Reads a sample.
pub(super) fn read(sample: &Message, position: Position) -> Result<WarmUp, ConfigError> {
    let name = sample.text("name").to_owned();
    let wrong = |position: Position, text: String| ConfigError::invalid(position, format!("{} {text}", shown(&name)));
    // Of 32 bits by its schema.
    let number = |field: &str| u32::try_from(sample.uint(field)).unwrap_or(u32::MAX);
    let count = number("count").max(1);
    if count > MAX_RUNS {
        let text = format!("has a count of {count}, at most {MAX_RUNS} runs are made");
        return Err(wrong(sample.position_of("count"), text));
    }
    let mut inputs = Vec::new();
    for (key, Item { value, position: at }) in sample.entries("inputs") {
        let (Value::Message(input), key) = (value, key.to_string()) else { continue };
        let wrong = |position: Position, text: String| wrong(position, format!("input {}: {text}", quoted(&key)));
        let Some(data_type) = DataType::from_config_name(input.text("data_type")) else {
            return Err(wrong(*at, "must have a data_type such as TYPE_FP32".to_owned()));
        };
        for item in input.items("dims") {
            if let Value::Int(dim) = item.value
                && dim < 1
            {
                return Err(wrong(item.position, format!("dimension {dim} must be at least 1")));
            }
        }
        let data = if input.get("zero_data").is_some() {
            WarmUpData::Zero
        } else if input.get("random_data").is_some() {
            WarmUpData::Random
        } else if input.get("input_data_file").is_some() {
            let file = input.text("input_data_file");
            if file.is_empty() || !stays_inside(file) {
                let text = format!("input_data_file {} must name a file in the model's {FOLDER} folder", quoted(file));
                return Err(wrong(input.position_of("input_data_file"), text));
            }
            WarmUpData::File(file.to_owned())
        } else {
            return Err(wrong(*at, "must have one of zero_data, random_data and input_data_file".to_owned()));
        };
        inputs.push(WarmUpInput { name: key, data_type, dims: input.ints("dims").collect(), data });
    }
    if inputs.is_empty() {
        return Err(wrong(position, "has no inputs".to_owned()));
    }
    Ok(WarmUp { batch_size: number("batch_size"), count, inputs, name })
}

/// How samples fit the configuration they stand in.
pub(super) fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
    for (index, (sample, (written, position))) in
        config.warm_ups.iter().zip(config.message().messages("model_warmup")).enumerate()
    {
        if index >= MAX_SAMPLES {
            return Err(ConfigError::too_large(position, format!("model_warmup: more than {MAX_SAMPLES} samples")));
        }
        let shown = shown(&sample.name);
        let most = config.max_batch_size.max(1);
        if sample.batch_size > most {
            let text = match config.max_batch_size {
                0 => format!("{shown} has batch_size {}, which must be 1 where max_batch_size is 0", sample.batch_size),
                most => format!("{shown} has batch_size {}, above max_batch_size {most}", sample.batch_size),
            };
            return Err(ConfigError::invalid(written.position_of("batch_size"), text));
        }
        // Those that the configuration leaves to the model are checked at the load.
        if !config.inputs.is_empty()
            && let Err((input, text)) = sample.check(&config.inputs)
        {
            let at = written.entries("inputs").find(|(key, _)| Some(key.to_string().as_str()) == input);
            let position = at.map_or(position, |(_, item)| item.position);
            return Err(ConfigError::invalid(position, fault(&sample.name, input, &text)));
        }
    }
    Ok(())
}

/// What is wrong with a sample, as errors say it.
#[must_use]
pub fn fault(sample: &str, input: Option<&str>, text: &str) -> String {
    match input {
        Some(input) => format!("{} input {} {text}", shown(sample), quoted(input)),
        None => format!("{} {text}", shown(sample)),
    }
}

fn shown(name: &str) -> String {
    format!("model_warmup sample {}", quoted(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::{UnknownFields, parse};

    fn text(input: &str, more: &str) -> String {
        format!(
            "max_batch_size: 4 input {{ name: 'x' data_type: TYPE_FP32 dims: [ 2, -1 ] }}\n\
             model_warmup {{ name: 'w' batch_size: 2 {more} inputs {{ key: 'x' value {{ {input} }} }} }}"
        )
    }

    const GOOD: &str = "data_type: TYPE_FP32 dims: [ 2, 3 ] random_data: true";

    #[test]
    fn a_sample_is_read() {
        let config = parse(&text(GOOD, "count: 3"), UnknownFields::Deny).unwrap();
        assert_eq!(config.warnings, []);
        let input =
            WarmUpInput { name: "x".to_owned(), data_type: DataType::Fp32, dims: vec![2, 3], data: WarmUpData::Random };
        let expected = WarmUp { name: "w".to_owned(), batch_size: 2, inputs: vec![input], count: 3 };
        assert_eq!(config.config.warm_ups, [expected]);
    }

    #[test]
    fn every_fault_of_a_sample_names_it_and_its_place() {
        let cases = [
            (text("dims: 1 zero_data: true", ""), "2:41: ", "input 'x': must have a data_type such as TYPE_FP32"),
            (
                text("data_type: TYPE_FP32 dims: [2, 3]", ""),
                "2:41: ",
                "input 'x': must have one of zero_data, random_data and input_data_file",
            ),
            (text("data_type: TYPE_FP32 dims: [2, -1] zero_data: true", ""), "", "input 'x': dimension -1 must be"),
            (
                text("data_type: TYPE_INT8 dims: [2, 3] zero_data: true", ""),
                "",
                "input 'x' has data_type TYPE_INT8, but the model's is TYPE_FP32",
            ),
            (
                text("data_type: TYPE_FP32 dims: [3, 3] zero_data: true", ""),
                "",
                "input 'x' has dims [3, 3], but the model's are [2, -1]",
            ),
            (
                text("data_type: TYPE_FP32 dims: [2, 3] input_data_file: '../x'", ""),
                "",
                "input_data_file '../x' must name a file in the model's warmup folder",
            ),
            (
                text("data_type: TYPE_FP32 dims: [2, 3] input_data_file: ''", ""),
                "",
                "input_data_file '' must name a file in the model's warmup folder",
            ),
            (text(GOOD, "").replace("key: 'x'", "key: 'z'"), "", "input 'z' is no input of the model, which has x"),
            (
                text(GOOD, "").replace("batch_size: 2", "batch_size: 5"),
                "2:",
                "has batch_size 5, above max_batch_size 4",
            ),
            (
                text(GOOD, "").replace("max_batch_size: 4", "max_batch_size: 0"),
                "2:",
                "has batch_size 2, which must be 1 where max_batch_size is 0",
            ),
            (text(GOOD, "count: 100001"), "2:", "has a count of 100001, at most 100000 runs are made"),
            (
                text(GOOD, "") + " input { name: 'b' data_type: TYPE_BOOL dims: 1 }",
                "2:",
                "model_warmup sample 'w' lacks input 'b'",
            ),
            ("model_warmup { name: 'w' batch_size: 1 }".to_owned(), "1:1: ", "model_warmup sample 'w' has no inputs"),
        ];
        for (text, place, expected) in cases {
            let found = parse(&text, UnknownFields::Deny).unwrap_err().to_string();
            assert!(found.contains("model_warmup sample 'w' "), "{found}");
            assert!(found.contains(expected), "{text}\n found {found}\n  want {expected}");
            assert!(found.starts_with(&format!("config.pbtxt:{place}")), "{found} at {place}");
        }
    }

    #[test]
    fn two_sources_of_data_exclude_each_other() {
        let both = text("data_type: TYPE_FP32 dims: [2, 3] zero_data: true random_data: true", "");
        let found = parse(&both, UnknownFields::Deny).unwrap_err().to_string();
        assert!(found.contains("'zero_data' and 'random_data' exclude each other"), "{found}");
    }

    #[test]
    fn inputs_that_the_model_alone_knows_are_checked_later() {
        let alone = "model_warmup { name: 'w' batch_size: 1 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 1
            zero_data: true } } }";
        let sample = &parse(alone, UnknownFields::Deny).unwrap().config.warm_ups[0];
        let (input, text) = sample.check(&[]).unwrap_err();
        assert!(fault("w", input, &text).starts_with("model_warmup sample 'w' input 'x' is no input of the model"));
    }
}
