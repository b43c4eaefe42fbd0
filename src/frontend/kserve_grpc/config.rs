//! A model's configuration as the message `ModelConfig`: the tree over the schema, written with the numbers of
//! `proto/model_config.proto`.

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};

use super::proto::CONFIG_NUMBERS;
use super::wire::{put_bytes, put_integer, put_varint};
use crate::model_config::ModelConfig;
use crate::model_config::message::{FieldValue, MapKey, Message as Tree, Value};

/// `ModelConfigResponse`, already written.
#[derive(Debug, Default)]
pub(super) struct ConfigAnswer(Vec<u8>);

impl ConfigAnswer {
    pub(super) fn of(config: &ModelConfig) -> Self {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, &written(config.message()));
        Self(out)
    }
}

impl Message for ConfigAnswer {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    /// Answers are not read here.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// The number of each field, by message and name.
static NUMBERS: LazyLock<HashMap<(&str, &str), u32>> =
    LazyLock::new(|| CONFIG_NUMBERS.iter().map(|(message, field, number)| ((*message, *field), *number)).collect());

/// The fields that were given, in the order of the schema.
fn written(message: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    for (field, value) in message.fields() {
        let number = NUMBERS.get(&(message.schema().name, field.name)).copied();
        // A test holds that every field has its number.
        let (Some(number), Some(value)) = (number, value) else { continue };
        match value {
            // A member of a oneof is written even where it holds its default: that it was given says something.
            FieldValue::One(item) if field.oneof.is_none() && item.value.is_default() => {}
            FieldValue::One(item) => put(&mut out, number, &item.value),
            FieldValue::Many(items) => items.iter().for_each(|item| put(&mut out, number, &item.value)),
            FieldValue::Map(entries) => {
                for (key, item) in entries {
                    let mut entry = Vec::new();
                    match key {
                        MapKey::String(key) => put_bytes(&mut entry, 1, key.as_bytes()),
                        MapKey::Uint(key) => put_integer(&mut entry, 1, *key),
                    }
                    put(&mut entry, 2, &item.value);
                    put_bytes(&mut out, number, &entry);
                }
            }
        }
    }
    out
}

/// One value. Repeated numbers are written one by one, which every reader takes as it takes them packed.
fn put(out: &mut Vec<u8>, number: u32, value: &Value) {
    let mut varint = |value: u64| {
        put_varint(out, u64::from(number) << 3);
        put_varint(out, value);
    };
    match value {
        Value::Bool(value) => varint(u64::from(*value)),
        Value::Int(value) => varint(*value as u64),
        Value::Uint(value) => varint(*value),
        Value::Enum(value) => varint(value.number as u64),
        Value::Float(value) => {
            put_varint(out, u64::from(number) << 3 | 5);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Double(value) => {
            put_varint(out, u64::from(number) << 3 | 1);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::String(text) => put_bytes(out, number, text.as_bytes()),
        Value::Message(message) => put_bytes(out, number, &written(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::inference as pb;
    use super::*;
    use crate::model_config::UnknownFields;
    use crate::model_config::schema::{FieldType, MODEL_CONFIG, MessageSchema};

    #[test]
    fn every_field_of_the_schema_has_its_number_and_the_other_way_round() {
        fn visit(schema: &'static MessageSchema, seen: &mut HashMap<&'static str, usize>) {
            if seen.insert(schema.name, schema.fields.len()).is_some() {
                return;
            }
            for field in schema.fields {
                assert!(NUMBERS.contains_key(&(schema.name, field.name)), "{}.{}", schema.name, field.name);
                if let FieldType::Message(inner) = field.field_type {
                    visit(inner, seen);
                }
            }
        }
        let mut seen = HashMap::new();
        visit(&MODEL_CONFIG, &mut seen);
        let in_proto = CONFIG_NUMBERS.iter().filter(|(message, ..)| !message.ends_with("Entry")).count();
        assert_eq!(seen.values().sum::<usize>(), in_proto);
    }

    #[test]
    fn a_configuration_reads_back_as_the_message_that_clients_have() {
        let text = r#"
            name: "rich" backend: "onnxruntime" max_batch_size: 8
            input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [] } }
            output { name: "y" data_type: TYPE_STRING dims: [ 1 ] label_filename: "l.txt" }
            dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100
              priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 2 value { max_queue_size: 7 } } }
            instance_group { count: 2 kind: KIND_CPU }
            version_policy { specific { versions: [ 1, 3 ] } }
            parameters { key: "a" value { string_value: "b" } }
            model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } batch_size: 1 }
        "#;
        let parsed = crate::model_config::parse(text, UnknownFields::Deny).unwrap();
        let config = pb::ModelConfig::decode(written(parsed.config.message()).as_slice()).unwrap();
        assert_eq!((config.name.as_str(), config.backend.as_str(), config.max_batch_size), ("rich", "onnxruntime", 8));
        assert_eq!(config.input[0].dims, [1]);
        assert_eq!(config.input[0].data_type(), pb::DataType::TypeFp32);
        assert_eq!(config.input[0].reshape, Some(pb::ModelTensorReshape::default()));
        assert_eq!(config.output[0].label_filename, "l.txt");
        let Some(pb::model_config::SchedulingChoice::DynamicBatching(batching)) = config.scheduling_choice else {
            panic!("no dynamic batching");
        };
        assert_eq!((batching.preferred_batch_size, batching.priority_queue_policy[&2].max_queue_size), (vec![4, 8], 7));
        assert_eq!(config.instance_group[0].kind(), pb::model_instance_group::Kind::Cpu);
        assert_eq!(config.parameters["a"].string_value, "b");
        assert_eq!(
            config.model_warmup[0].inputs["x"].input_data_type,
            Some(pb::model_warmup::input::InputDataType::ZeroData(true))
        );
    }
}
