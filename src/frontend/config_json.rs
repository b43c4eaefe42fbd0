//! A model's configuration as JSON, in the form in which Triton prints and takes it: protobuf's JSON with the names of
//! the schema, every scalar printed, 64-bit integers as numbers.

use serde_json::{Map, Number, Value as Json};

use crate::error::{Error, Result};
use crate::model_config::diagnostic::{Position, quoted};
use crate::model_config::message::{FieldValue, Item, MapKey, Message, Value};
use crate::model_config::schema::{Cardinality, FieldSchema, FieldType, KeyType, MODEL_CONFIG, MessageSchema};
use crate::model_config::text::{MAX_BYTES, MAX_VALUES};
use crate::model_config::{ModelConfig, Parsed, from_message};

/// The whole configuration. Scalars, lists and maps are printed though they were not given; messages and members of a
/// oneof only if they were.
#[must_use]
pub fn to_json(config: &ModelConfig) -> Json {
    message_to_json(config.message())
}

/// Reads a configuration that came as JSON, such as the `config` parameter of a load request, and checks it as a
/// `config.pbtxt` is checked. Takes what protobuf's JSON allows: names of the schema or in camel case, integers as
/// strings, enums by name or number, `null` for a field that is not given.
///
/// # Errors
/// `InvalidArgument` with the path of the value, `Unsupported` for what is not offered, `TooLarge` over the limits of
/// [`crate::model_config::text`].
pub fn from_json(text: &[u8]) -> Result<Parsed> {
    if text.len() > MAX_BYTES {
        let found = text.len();
        return Err(Error::too_large(format!("the configuration has {found} bytes, at most {MAX_BYTES} are read")));
    }
    let json: Json = serde_json::from_slice(text)
        .map_err(|error| Error::invalid(format!("the configuration is not valid JSON: {error}")))?;
    let message = message_from_json(&json, &MODEL_CONFIG)?;
    Ok(from_message(message)?)
}

fn message_to_json(message: &Message) -> Json {
    let mut object = Map::new();
    for (field, value) in message.fields() {
        let json = match (field.cardinality, value) {
            (Cardinality::Singular, Some(value)) => {
                value.items().next().map(|item| value_to_json(&item.value)).unwrap_or_default()
            }
            (Cardinality::Singular, None) => {
                if field.oneof.is_some() || matches!(field.field_type, FieldType::Message(_)) {
                    continue;
                }
                value_to_json(&Value::default_of(field.field_type))
            }
            (Cardinality::Repeated, value) => {
                let items = value.into_iter().flat_map(FieldValue::items);
                Json::Array(items.map(|item| value_to_json(&item.value)).collect())
            }
            (Cardinality::Map(_), Some(FieldValue::Map(entries))) => {
                Json::Object(entries.iter().map(|(key, item)| (key.to_string(), value_to_json(&item.value))).collect())
            }
            (Cardinality::Map(_), _) => Json::Object(Map::new()),
        };
        object.insert(field.name.to_owned(), json);
    }
    Json::Object(object)
}

fn value_to_json(value: &Value) -> Json {
    match value {
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(number) => Json::from(*number),
        Value::Uint(number) => Json::from(*number),
        // The shortest digits that give the same float, not those of the double it becomes.
        Value::Float(number) => float_to_json(number.to_string().parse().unwrap_or(f64::from(*number))),
        Value::Double(number) => float_to_json(*number),
        Value::String(text) => Json::String(text.clone()),
        Value::Enum(value) => Json::from(value.name),
        Value::Message(message) => message_to_json(message),
    }
}

/// JSON has no numbers that are not finite, so protobuf writes their names.
fn float_to_json(number: f64) -> Json {
    match Number::from_f64(number) {
        Some(number) => Json::Number(number),
        None if number.is_nan() => Json::from("NaN"),
        None if number > 0.0 => Json::from("Infinity"),
        None => Json::from("-Infinity"),
    }
}

fn message_from_json(json: &Json, schema: &'static MessageSchema) -> Result<Message> {
    let mut values = 0;
    read_message(json, schema, &mut values).map_err(|fault| match fault {
        Fault::Wrong { path, text } if path.is_empty() => Error::invalid(text),
        Fault::Wrong { path, text } => Error::invalid(format!("{}: {text}", path.strip_prefix('.').unwrap_or(&path))),
        Fault::TooMany => Error::too_large(format!("the configuration holds more than {MAX_VALUES} values")),
    })
}

/// What is wrong, and where: the path grows towards the root on the way out.
enum Fault {
    Wrong { path: String, text: String },
    TooMany,
}

impl Fault {
    fn inside(self, step: &str) -> Self {
        match self {
            Self::Wrong { path, text } => Self::Wrong { path: format!("{step}{path}"), text },
            Self::TooMany => Self::TooMany,
        }
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self::Wrong { path: String::new(), text }
    }
}

fn read_message(json: &Json, schema: &'static MessageSchema, values: &mut usize) -> Result<Message, Fault> {
    let Json::Object(object) = json else { return Err(expected(schema.name, json)) };
    let mut message = Message::new(schema);
    for (name, json) in object {
        let field = schema
            .fields
            .iter()
            .find(|field| field.name == name || is_camel_case_of(field.name, name))
            .ok_or_else(|| Fault::from(schema.unknown_field(name)))?;
        if !json.is_null() {
            let step = format!(".{}", field.name);
            read_field(json, field, &mut message, values).map_err(|fault| fault.inside(&step))?;
        }
    }
    Ok(message)
}

fn read_field(
    json: &Json,
    field: &'static FieldSchema,
    message: &mut Message,
    values: &mut usize,
) -> Result<(), Fault> {
    match (field.cardinality, json) {
        (Cardinality::Singular, json) => {
            let item = read_value(json, field.field_type, values)?;
            Ok(message.give(field, item)?)
        }
        (Cardinality::Repeated, Json::Array(array)) => {
            message.give_empty(field);
            for (index, json) in array.iter().enumerate() {
                let step = format!("[{index}]");
                let item = read_value(json, field.field_type, values).map_err(|fault| fault.inside(&step))?;
                message.give(field, item)?;
            }
            Ok(())
        }
        (Cardinality::Map(key_type), Json::Object(object)) => {
            message.give_empty(field);
            for (name, json) in object {
                let step = format!("[{}]", quoted(name));
                let key = match key_type {
                    KeyType::String => MapKey::String(name.clone()),
                    KeyType::Uint64 => MapKey::Uint(
                        name.parse()
                            .map_err(|_| Fault::from(format!("the key {} is no unsigned integer", quoted(name))))?,
                    ),
                };
                let item = read_value(json, field.field_type, values).map_err(|fault| fault.inside(&step))?;
                if message.give_entry(field, key, item) {
                    return Err(Fault::from(format!("the key {} is given twice", quoted(name))));
                }
            }
            Ok(())
        }
        (Cardinality::Repeated, json) => Err(expected("an array", json)),
        (Cardinality::Map(_), json) => Err(expected("an object", json)),
    }
}

fn read_value(json: &Json, field_type: FieldType, values: &mut usize) -> Result<Item, Fault> {
    *values += 1;
    if *values > MAX_VALUES {
        return Err(Fault::TooMany);
    }
    let value = match (field_type, json) {
        (FieldType::Message(schema), json) => Value::Message(read_message(json, schema, values)?),
        (FieldType::Bool, Json::Bool(value)) => Value::Bool(*value),
        (FieldType::String, Json::String(text)) => Value::String(text.clone()),
        (FieldType::Enum(schema), Json::String(name)) => Value::of_enum(schema, name)?,
        (FieldType::Float | FieldType::Double, json) => {
            float_from_json(field_type, json).ok_or_else(|| expected(field_type.name(), json))?
        }
        (FieldType::Int32 | FieldType::Int64 | FieldType::Uint32 | FieldType::Uint64 | FieldType::Enum(_), json) => {
            let number = integer_from_json(json).ok_or_else(|| expected(field_type.name(), json))?;
            Value::of_integer(field_type, number)?
        }
        (FieldType::Bool | FieldType::String, json) => return Err(expected(field_type.name(), json)),
    };
    Ok(Item { value, position: Position::UNKNOWN })
}

fn integer_from_json(json: &Json) -> Option<i128> {
    match json {
        Json::Number(number) => {
            if let Some(number) = number.as_i64() {
                return Some(number.into());
            }
            if let Some(number) = number.as_u64() {
                return Some(number.into());
            }
            // `1.0` and `1e3` are integers too. Beyond 64 bits the cast saturates, and the range check answers.
            number.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i128)
        }
        Json::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn float_from_json(field_type: FieldType, json: &Json) -> Option<Value> {
    let number = match json {
        Json::Number(number) => number.as_f64()?,
        Json::String(text) => match text.as_str() {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            text => text.parse().ok().filter(|number: &f64| number.is_finite())?,
        },
        _ => return None,
    };
    match field_type {
        FieldType::Float => Some(Value::Float(number as f32)),
        _ => Some(Value::Double(number)),
    }
}

fn expected(what: &str, found: &Json) -> Fault {
    let found = match found {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(text) => format!("the string {}", quoted(text)),
        Json::Array(_) => "an array".to_owned(),
        Json::Object(_) => "an object".to_owned(),
    };
    Fault::from(format!("expected {what}, got {found}"))
}

/// Whether `name` is `snake`, written in camel case.
fn is_camel_case_of(snake: &str, name: &str) -> bool {
    let mut after_underscore = false;
    let camel = snake.chars().filter_map(|next| {
        let shown = if after_underscore { next.to_ascii_uppercase() } else { next };
        after_underscore = next == '_';
        (next != '_').then_some(shown)
    });
    camel.eq(name.chars())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;
    use crate::model_config::arbitrary::message;
    use crate::model_config::complete::{RuntimeSignature, TensorSignature};
    use crate::model_config::{InstanceKind, UnknownFields, parse};
    use crate::tensor::DataType;

    fn error(text: &str) -> String {
        from_json(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_completed_configuration_has_the_form_of_triton() {
        let mut config = ModelConfig::minimal("digits", "onnxruntime");
        let tensor =
            |name: &str| TensorSignature { name: name.to_owned(), data_type: DataType::Fp32, dims: vec![-1, 4] };
        let signature =
            RuntimeSignature { inputs: vec![tensor("x")], outputs: vec![tensor("y")], ..RuntimeSignature::default() };
        config.complete(&signature).unwrap();
        config.normalize("model.onnx", InstanceKind::Cpu, 1).unwrap();
        let expected = json!({
            "name": "digits", "platform": "", "backend": "onnxruntime", "runtime": "",
            "version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 0,
            "input": [{
                "name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [-1, 4],
                "is_shape_tensor": false, "allow_ragged_batch": false, "optional": false,
                "is_non_linear_format_io": false
            }],
            "output": [{
                "name": "y", "data_type": "TYPE_FP32", "dims": [-1, 4], "label_filename": "", "is_shape_tensor": false,
                "is_non_linear_format_io": false
            }],
            "batch_input": [], "batch_output": [],
            "optimization": {
                "priority": "PRIORITY_DEFAULT", "input_pinned_memory": {"enable": true},
                "output_pinned_memory": {"enable": true}, "gather_kernel_buffer_threshold": 0, "eager_batching": false
            },
            "instance_group": [{
                "name": "digits_0", "kind": "KIND_CPU", "count": 1, "gpus": [], "secondary_devices": [], "profile": [],
                "passive": false, "host_policy": ""
            }],
            "default_model_filename": "model.onnx", "cc_model_filenames": {}, "metric_tags": {}, "parameters": {},
            "model_warmup": []
        });
        assert_eq!(to_json(&config).to_string(), expected.to_string());
    }

    #[test]
    fn what_we_print_we_read_back_without_a_warning() {
        let text = "backend: 'onnxruntime' max_batch_size: 8 input { name: 'x' data_type: TYPE_FP32 dims: [] }
            output { name: 'y' data_type: TYPE_INT64 dims: 1 reshape { shape: [] } }
            parameters { key: 'a' value { string_value: 'b' } } version_policy { specific { versions: [1, 3] } }";
        let mut config = parse(text, UnknownFields::Deny).unwrap().config;
        config.normalize("model.onnx", InstanceKind::Cpu, 1).unwrap();
        let printed = to_json(&config).to_string();
        let parsed = from_json(printed.as_bytes()).unwrap();
        assert_eq!(parsed.warnings, []);
        assert_eq!(to_json(&parsed.config).to_string(), printed);
        assert_eq!(parsed.config.inputs, config.inputs);
    }

    #[test]
    fn faults_name_the_path() {
        let cases = [
            (r#"{"max_batchsize": 1}"#, "unknown field 'max_batchsize' in ModelConfig, did you mean 'max_batch_size'?"),
            (
                r#"{"input": [{"name": "a"}, {"dimz": []}]}"#,
                "input[1]: unknown field 'dimz' in ModelInput, did you mean 'dims'?",
            ),
            (r#"{"input": [{"dims": [1, "x"]}]}"#, "input[0].dims[1]: expected int64, got the string 'x'"),
            (r#"{"input": {"name": "a"}}"#, "input: expected an array, got an object"),
            (
                r#"{"max_batch_size": 2147483648}"#,
                "max_batch_size: 2147483648 is out of range for int32 (-2147483648 to 2147483647)",
            ),
            (r#"{"max_batch_size": 1.5}"#, "max_batch_size: expected int32, got 1.5"),
            (r#"{"max_batch_size": true}"#, "max_batch_size: expected int32, got true"),
            (r#"{"parameters": {"a": "b"}}"#, "parameters['a']: expected ModelParameter, got the string 'b'"),
            (
                r#"{"dynamic_batching": {"priority_queue_policy": {"x": {}}}}"#,
                "dynamic_batching.priority_queue_policy: the key 'x' is no unsigned integer",
            ),
            (r#"{"maxBatchSize": 1, "max_batch_size": 1}"#, "max_batch_size: field 'max_batch_size' is given twice"),
            (
                r#"{"sequence_batching": {}, "dynamic_batching": {}}"#,
                "dynamic_batching: 'sequence_batching' and 'dynamic_batching' exclude each other: both are the \
                 scheduling_choice",
            ),
            (r#"{"name": "a"#, "the configuration is not valid JSON: EOF while parsing a string at line 1 column 11"),
            ("[]", "expected ModelConfig, got an array"),
            (r#"{"version_policy": {}}"#, "version_policy must have one of latest, all and specific"),
        ];
        for (text, expected) in cases {
            assert_eq!(error(text), expected, "{text}");
        }
        assert_eq!(
            from_json(br#"{"model_operations": {"op_library_filename": ["a.so"]}}"#).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        let many = format!(r#"{{"input": [{{"dims": [{}1]}}]}}"#, "1,".repeat(MAX_VALUES));
        assert_eq!(from_json(many.as_bytes()).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(from_json(&vec![b' '; MAX_BYTES + 1]).unwrap_err().kind(), ErrorKind::TooLarge);
        assert!(from_json("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn other_forms_of_protobuf_json_are_taken() {
        let text =
            br#"{"maxBatchSize": "8", "name": null, "backend": "x", "versionPolicy": {"latest": {"numVersions": 2.0}},
            "input": [{"name": "a", "data_type": 11, "dims": ["-1", 1e1]}]}"#;
        let config = from_json(text).unwrap().config;
        assert_eq!(config.max_batch_size, 8);
        assert_eq!((config.inputs[0].data_type, config.inputs[0].dims.as_slice()), (DataType::Fp32, &[-1, 10][..]));
    }

    proptest! {
        #[test]
        fn every_tree_goes_through_json_unharmed(message in message(&MODEL_CONFIG)) {
            let printed = message_to_json(&message);
            let read = message_from_json(&printed, &MODEL_CONFIG).unwrap();
            prop_assert_eq!(message_to_json(&read), printed);
        }

        #[test]
        fn any_bytes_are_an_answer_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = from_json(&bytes);
        }
    }
}
