//! A configuration as a tree over the schema: what was written, where, and nothing else. Readers of texts build it,
//! renderers walk it; values always have the type that the schema gives their field.

use std::collections::BTreeMap;

use super::diagnostic::{Position, quoted};
use super::schema::{Cardinality, EnumSchema, FieldSchema, FieldType, KeyType, MessageSchema};

/// A message: the fields that were given.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    schema: &'static MessageSchema,
    // By index in the schema's fields. Sparse, since of thirty fields three are given.
    fields: Vec<(usize, FieldValue)>,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldValue {
    /// Of a singular field.
    One(Item),
    /// Of a repeated field, which may have been given empty.
    Many(Vec<Item>),
    /// Of a map, which may have been given empty.
    Map(BTreeMap<MapKey, Item>),
}

impl FieldValue {
    /// Every value, without the keys.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        let (list, map) = match self {
            Self::One(item) => (std::slice::from_ref(item), None),
            Self::Many(items) => (items.as_slice(), None),
            Self::Map(entries) => (Default::default(), Some(entries.values())),
        };
        list.iter().chain(map.into_iter().flatten())
    }
}

/// A value and where it stands. Two are equal if their values are.
#[derive(Clone, Debug)]
pub struct Item {
    /// The value.
    pub value: Value,
    /// Where it stands.
    pub position: Position,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a `bool` field.
    Bool(bool),
    /// Of an `int32` or `int64` field, within its range.
    Int(i64),
    /// Of a `uint32` or `uint64` field, within its range.
    Uint(u64),
    /// Of a `float` field.
    Float(f32),
    /// Of a `double` field.
    Double(f64),
    /// Of a `string` field.
    String(String),
    /// Of an enum field.
    Enum(EnumValue),
    /// Of a message field.
    Message(Message),
}

/// A value of an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnumValue {
    /// The name.
    pub name: &'static str,
    /// The number.
    pub number: usize,
}

/// The key of a map entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MapKey {
    /// Of a map by text.
    String(String),
    /// Of a map by number.
    Uint(u64),
}

impl MapKey {
    /// The key of an entry that names none.
    #[must_use]
    pub const fn default_of(key_type: KeyType) -> Self {
        match key_type {
            KeyType::String => Self::String(String::new()),
            KeyType::Uint64 => Self::Uint(0),
        }
    }
}

impl std::fmt::Display for MapKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::String(text) => f.write_str(text),
            Self::Uint(number) => write!(f, "{number}"),
        }
    }
}

impl Value {
    /// The value of a field that was not given.
    #[must_use]
    pub fn default_of(field_type: FieldType) -> Self {
        match field_type {
            FieldType::Bool => Self::Bool(false),
            FieldType::Int32 | FieldType::Int64 => Self::Int(0),
            FieldType::Uint32 | FieldType::Uint64 => Self::Uint(0),
            FieldType::Float => Self::Float(0.0),
            FieldType::Double => Self::Double(0.0),
            FieldType::String => Self::String(String::new()),
            FieldType::Enum(schema) => {
                Self::Enum(EnumValue { name: schema.values.first().copied().unwrap_or_default(), number: 0 })
            }
            FieldType::Message(schema) => Self::Message(Message::new(schema)),
        }
    }

    /// Whether this is what the field would hold had it not been given. A message never is: to give it is to say
    /// something.
    #[must_use]
    pub fn is_default(&self) -> bool {
        match self {
            Self::Bool(value) => !value,
            Self::Int(value) => *value == 0,
            Self::Uint(value) => *value == 0,
            Self::Float(value) => *value == 0.0,
            Self::Double(value) => *value == 0.0,
            Self::String(value) => value.is_empty(),
            Self::Enum(value) => value.number == 0,
            Self::Message(_) => false,
        }
    }

    /// The value of an integer field.
    ///
    /// # Errors
    /// What is wrong, if the number is outside the type's range or the type is no integer.
    pub fn of_integer(field_type: FieldType, number: i128) -> Result<Self, String> {
        let out_of_range = |low: i128, high: i128| {
            Err(format!("{number} is out of range for {} ({low} to {high})", field_type.name()))
        };
        match field_type {
            FieldType::Int32 => match i32::try_from(number) {
                Ok(value) => Ok(Self::Int(value.into())),
                Err(_) => out_of_range(i32::MIN.into(), i32::MAX.into()),
            },
            FieldType::Int64 => match i64::try_from(number) {
                Ok(value) => Ok(Self::Int(value)),
                Err(_) => out_of_range(i64::MIN.into(), i64::MAX.into()),
            },
            FieldType::Uint32 => match u32::try_from(number) {
                Ok(value) => Ok(Self::Uint(value.into())),
                Err(_) => out_of_range(0, u32::MAX.into()),
            },
            FieldType::Uint64 => match u64::try_from(number) {
                Ok(value) => Ok(Self::Uint(value)),
                Err(_) => out_of_range(0, u64::MAX.into()),
            },
            FieldType::Enum(schema) => {
                let number_and_name = usize::try_from(number).ok().and_then(|at| Some((at, *schema.values.get(at)?)));
                match number_and_name {
                    Some((number, name)) => Ok(Self::Enum(EnumValue { name, number })),
                    None => Err(unknown_enum_value(schema, &number.to_string())),
                }
            }
            other => Err(format!("expected {}, got the integer {number}", other.name())),
        }
    }

    /// The value of an enum field, by name.
    ///
    /// # Errors
    /// What is wrong, listing the names, if the enum has no such value.
    pub fn of_enum(schema: &'static EnumSchema, name: &str) -> Result<Self, String> {
        match schema.values.iter().enumerate().find(|(_, value)| **value == name) {
            Some((number, name)) => Ok(Self::Enum(EnumValue { name, number })),
            None => Err(unknown_enum_value(schema, name)),
        }
    }
}

fn unknown_enum_value(schema: &EnumSchema, found: &str) -> String {
    format!("{} is no {}, expected one of {}", quoted(found), schema.name, schema.values.join(", "))
}

impl Message {
    /// A message in which nothing is given.
    #[must_use]
    pub const fn new(schema: &'static MessageSchema) -> Self {
        Self { schema, fields: Vec::new() }
    }

    /// Its schema.
    #[must_use]
    pub const fn schema(&self) -> &'static MessageSchema {
        self.schema
    }

    /// Every field of the schema in declared order, with its value if it was given.
    pub fn fields(&self) -> impl Iterator<Item = (&'static FieldSchema, Option<&FieldValue>)> {
        let mut given = self.fields.iter().peekable();
        self.schema.fields.iter().enumerate().map(move |(index, field)| {
            let value = given.next_if(|(at, _)| *at == index).map(|(_, value)| value);
            (field, value)
        })
    }

    /// The value of a field, if it was given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        let index = self.index_of(name)?;
        self.fields.iter().find(|(at, _)| *at == index).map(|(_, value)| value)
    }

    /// Adds a value to a field as a configuration gives it: sets a singular one, appends to a repeated one.
    ///
    /// # Errors
    /// What is wrong, if the field is singular and given already, or another of its oneof is.
    pub fn give(&mut self, field: &'static FieldSchema, item: Item) -> Result<(), String> {
        self.refuse_second_of_oneof(field)?;
        let name = field.name;
        match self.slot(field) {
            Some((FieldValue::Many(items), _)) => items.push(item),
            Some((slot, true)) => *slot = FieldValue::One(item),
            Some(_) => return Err(format!("field '{name}' is given twice")),
            None => return Err(format!("{} has no field '{name}'", self.schema.name)),
        }
        Ok(())
    }

    /// Marks a repeated field or map as given, be it empty.
    pub fn give_empty(&mut self, field: &'static FieldSchema) {
        let _ = self.slot(field);
    }

    /// Adds an entry to a map; an entry under the same key is replaced, as protobuf does.
    ///
    /// Returns whether one was replaced.
    pub fn give_entry(&mut self, field: &'static FieldSchema, key: MapKey, item: Item) -> bool {
        let Some((FieldValue::Map(entries), _)) = self.slot(field) else { return false };
        entries.insert(key, item).is_some()
    }

    /// Sets a field, whatever it held. A value the server itself fills in has no position.
    pub(super) fn set(&mut self, name: &str, value: FieldValue) {
        let Some(index) = self.index_of(name) else {
            debug_assert!(false, "{} has no field '{name}'", self.schema.name);
            return;
        };
        match self.fields.binary_search_by_key(&index, |(at, _)| *at) {
            Ok(at) => {
                if let Some((_, slot)) = self.fields.get_mut(at) {
                    *slot = value;
                }
            }
            Err(at) => self.fields.insert(at, (index, value)),
        }
    }

    /// Sets a singular field.
    pub(super) fn set_one(&mut self, name: &str, value: Value) {
        self.set(name, FieldValue::One(Item { value, position: Position::UNKNOWN }));
    }

    /// Sets a repeated field.
    pub(super) fn set_many(&mut self, name: &str, values: impl IntoIterator<Item = Value>) {
        let items = values.into_iter().map(|value| Item { value, position: Position::UNKNOWN }).collect();
        self.set(name, FieldValue::Many(items));
    }

    /// Where a field stands: its first value's place, or unknown.
    pub(super) fn position_of(&self, name: &str) -> Position {
        self.items(name).next().map_or(Position::UNKNOWN, |item| item.position)
    }

    /// The values of a field; none if it was not given.
    pub(super) fn items(&self, name: &str) -> impl Iterator<Item = &Item> {
        self.get(name).into_iter().flat_map(FieldValue::items)
    }

    /// The messages of a field, each with its place.
    pub(super) fn messages(&self, name: &str) -> impl Iterator<Item = (&Self, Position)> {
        self.items(name).filter_map(|item| match &item.value {
            Value::Message(message) => Some((message, item.position)),
            _ => None,
        })
    }

    /// A singular message, if it was given.
    pub(super) fn message(&self, name: &str) -> Option<&Self> {
        self.messages(name).next().map(|(message, _)| message)
    }

    /// A string or the name of an enum value; the default if it was not given.
    pub(super) fn text(&self, name: &str) -> &str {
        match self.items(name).next().map(|item| &item.value) {
            Some(Value::String(text)) => text,
            Some(Value::Enum(value)) => value.name,
            _ => match self.schema_of(name) {
                Some(FieldType::Enum(schema)) => schema.values.first().copied().unwrap_or_default(),
                _ => "",
            },
        }
    }

    /// A bool; false if it was not given.
    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.items(name).next().map(|item| &item.value), Some(Value::Bool(true)))
    }

    /// A signed integer; 0 if it was not given.
    pub(super) fn int(&self, name: &str) -> i64 {
        self.ints(name).next().unwrap_or(0)
    }

    /// The values of a repeated signed integer.
    pub(super) fn ints(&self, name: &str) -> impl Iterator<Item = i64> {
        self.items(name).filter_map(|item| match item.value {
            Value::Int(number) => Some(number),
            _ => None,
        })
    }

    /// An unsigned integer; 0 if it was not given.
    pub(super) fn uint(&self, name: &str) -> u64 {
        match self.items(name).next().map(|item| &item.value) {
            Some(Value::Uint(number)) => *number,
            _ => 0,
        }
    }

    /// The entries of a map.
    pub(super) fn entries(&self, name: &str) -> impl Iterator<Item = (&MapKey, &Item)> {
        match self.get(name) {
            Some(FieldValue::Map(entries)) => Some(entries),
            _ => None,
        }
        .into_iter()
        .flatten()
    }

    fn schema_of(&self, name: &str) -> Option<FieldType> {
        debug_assert!(self.index_of(name).is_some(), "{} has no field '{name}'", self.schema.name);
        self.schema.field(name).map(|field| field.field_type)
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.schema.fields.iter().position(|field| field.name == name)
    }

    /// Where the field's value goes, and whether it was not there before.
    fn slot(&mut self, field: &'static FieldSchema) -> Option<(&mut FieldValue, bool)> {
        let index = self.index_of(field.name)?;
        let (at, is_new) = match self.fields.binary_search_by_key(&index, |(at, _)| *at) {
            Ok(at) => (at, false),
            Err(at) => {
                let empty = match field.cardinality {
                    // Replaced at once by the caller.
                    Cardinality::Singular => FieldValue::One(Item {
                        value: Value::default_of(field.field_type),
                        position: Position::UNKNOWN,
                    }),
                    Cardinality::Repeated => FieldValue::Many(Vec::new()),
                    Cardinality::Map(_) => FieldValue::Map(BTreeMap::new()),
                };
                self.fields.insert(at, (index, empty));
                (at, true)
            }
        };
        self.fields.get_mut(at).map(|(_, value)| (value, is_new))
    }

    fn refuse_second_of_oneof(&self, field: &FieldSchema) -> Result<(), String> {
        let Some(oneof) = field.oneof else { return Ok(()) };
        let other = self
            .fields()
            .find(|(other, value)| value.is_some() && other.oneof == Some(oneof) && other.name != field.name);
        match other {
            Some((other, _)) => {
                Err(format!("'{}' and '{}' exclude each other: both are the {oneof}", other.name, field.name))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::schema::MODEL_CONFIG;

    fn item(value: Value) -> Item {
        Item { value, position: Position::UNKNOWN }
    }

    #[test]
    fn fields_come_in_declared_order_whatever_order_they_were_given_in() {
        let mut message = Message::new(&MODEL_CONFIG);
        for name in ["backend", "name", "platform"] {
            message.give(MODEL_CONFIG.field(name).unwrap(), item(Value::String(name.to_owned()))).unwrap();
        }
        let given: Vec<_> =
            message.fields().filter(|(_, value)| value.is_some()).map(|(field, _)| field.name).collect();
        assert_eq!(given, ["name", "platform", "backend"]);
        assert_eq!(message.fields().count(), MODEL_CONFIG.fields.len());
    }

    #[test]
    fn a_field_of_another_message_is_refused() {
        let foreign = crate::model_config::schema::FieldSchema {
            name: "foreign",
            field_type: FieldType::Bool,
            cardinality: Cardinality::Singular,
            oneof: None,
        };
        let foreign: &'static FieldSchema = Box::leak(Box::new(foreign));
        let error = Message::new(&MODEL_CONFIG).give(foreign, item(Value::Bool(true))).unwrap_err();
        assert_eq!(error, "ModelConfig has no field 'foreign'");
    }

    #[test]
    fn the_default_of_a_field_is_a_default_unless_it_is_a_message() {
        for field in MODEL_CONFIG.fields {
            let is_message = matches!(field.field_type, FieldType::Message(_));
            assert_eq!(Value::default_of(field.field_type).is_default(), !is_message, "{}", field.name);
        }
    }

    #[test]
    fn integers_are_held_to_their_range() {
        assert_eq!(Value::of_integer(FieldType::Uint32, 4_294_967_295), Ok(Value::Uint(4_294_967_295)));
        assert!(Value::of_integer(FieldType::Uint32, 4_294_967_296).is_err());
        assert!(Value::of_integer(FieldType::Uint64, -1).is_err());
        assert!(Value::of_integer(FieldType::Int64, i128::from(i64::MAX) + 1).is_err());
        assert!(Value::of_integer(FieldType::Bool, 1).is_err());
    }
}
