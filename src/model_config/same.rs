//! Whether two configurations say the same but for where their instances are.

use super::message::{FieldValue, Message, Value};
use super::{InstanceKind, ModelConfig};
use crate::inference::DeviceId;

impl ModelConfig {
    /// Whether nothing but `instance_group` differs. What is left out is as good as its default written out, so that a
    /// configuration that was read from the server, changed and given back counts as what was changed.
    #[must_use]
    pub fn is_same_but_instance_groups(&self, other: &Self) -> bool {
        let bare = |config: &Self| {
            let mut message = without_defaults(config.message());
            message.set_many("instance_group", []);
            message
        };
        bare(self) == bare(other)
    }

    /// Writes down where the groups are: what `KIND_AUTO` came to, and which GPUs. `places` has the devices of each group;
    /// where no group is written, those of the one that is added, which has `instances` on each.
    ///
    /// # Errors
    /// `Internal` if the result is no configuration, which would be a fault of ours.
    pub fn place_groups(&mut self, places: &[Vec<DeviceId>], instances: u32) -> crate::error::Result<()> {
        self.write_groups(places.len(), |index, group, is_written| {
            let devices = places.get(index).map_or(&[][..], Vec::as_slice);
            let gpus: Vec<u32> = devices
                .iter()
                .filter_map(|device| match device {
                    DeviceId::Gpu(gpu) => Some(*gpu),
                    DeviceId::Cpu => None,
                })
                .collect();
            let kind = match gpus.is_empty() {
                true => InstanceKind::Cpu,
                false => InstanceKind::Gpu,
            };
            if group.text("kind") != InstanceKind::Model.config_name() {
                super::complete::set_enum(group, "kind", kind.config_name());
                group.set_many("gpus", gpus.into_iter().map(|gpu| Value::Int(i64::from(gpu))));
            }
            if !is_written {
                group.set_one("count", Value::Int(i64::from(instances)));
            }
        })
    }
}

fn without_defaults(message: &Message) -> Message {
    let mut bare = Message::new(message.schema());
    for (field, value) in message.fields().filter_map(|(field, value)| Some((field.name, value?))) {
        let one = |value: &Value| match value {
            Value::Message(inner) => Value::Message(without_defaults(inner)),
            other => other.clone(),
        };
        match value {
            // That a message is there may mean something even where it is empty.
            FieldValue::One(item) => match &item.value {
                Value::Message(inner) => bare.set_one(field, Value::Message(without_defaults(inner))),
                scalar if scalar.is_default() => {}
                scalar => bare.set_one(field, scalar.clone()),
            },
            FieldValue::Many(items) if items.is_empty() => {}
            FieldValue::Many(items) => bare.set_many(field, items.iter().map(|item| one(&item.value))),
            FieldValue::Map(entries) if entries.is_empty() => {}
            map @ FieldValue::Map(_) => bare.set(field, map.clone()),
        }
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::{UnknownFields, parse};

    fn config(text: &str) -> ModelConfig {
        parse(text, UnknownFields::Deny).unwrap().config
    }

    #[test]
    fn other_instances_and_written_defaults_are_no_difference_and_anything_else_is() {
        let base = config("name: 'm' backend: 'identity' max_batch_size: 4");
        let same = [
            "name: 'm' backend: 'identity' max_batch_size: 4 instance_group { count: 7 }",
            "instance_group [] max_batch_size: 4 name: 'm' backend: 'identity' input [] platform: ''",
        ];
        for text in same {
            assert!(base.is_same_but_instance_groups(&config(text)), "{text}");
        }
        let others = [
            "name: 'm' backend: 'identity' max_batch_size: 5",
            "name: 'm' backend: 'identity' max_batch_size: 4 dynamic_batching { }",
            "name: 'm' backend: 'identity' max_batch_size: 4 parameters { key: 'a' value { string_value: '' } }",
        ];
        for text in others {
            assert!(!base.is_same_but_instance_groups(&config(text)), "{text}");
        }
    }

    #[test]
    fn groups_are_written_as_they_were_placed() {
        let mut one = config("backend: 'identity'");
        one.place_groups(&[vec![DeviceId::Gpu(1)]], 3).unwrap();
        let groups = |config: &ModelConfig| {
            let each = config.instance_groups.iter().map(|group| (group.kind, group.count, group.gpus.clone()));
            each.collect::<Vec<_>>()
        };
        assert_eq!(groups(&one), [(InstanceKind::Gpu, 3, vec![1])]);
        let mut two = config("backend: 'identity' instance_group [ { gpus: 0 }, { count: 2 kind: KIND_GPU } ]");
        two.place_groups(&[vec![DeviceId::Cpu], vec![DeviceId::Gpu(0), DeviceId::Gpu(1)]], 9).unwrap();
        assert_eq!(groups(&two), [(InstanceKind::Cpu, 1, vec![]), (InstanceKind::Gpu, 2, vec![0, 1])]);
    }
}
