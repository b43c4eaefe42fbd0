//! Random configurations for property tests, and a printer that writes them in random legal forms.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::diagnostic::Position;
use super::message::{FieldValue, Item, MapKey, Message, Value};
use super::schema::{Cardinality, FieldSchema, FieldType, KeyType, MessageSchema};

#[derive(Clone, Debug)]
enum Given {
    Values(Vec<Value>),
    Entries(Vec<(MapKey, Value)>),
}

/// Any tree of a schema: all that a text can say.
pub(crate) fn message(schema: &'static MessageSchema) -> BoxedStrategy<Message> {
    let indices: Vec<usize> = (0..schema.fields.len()).collect();
    let most = indices.len().min(4);
    subsequence(indices, 0..=most)
        .prop_flat_map(move |chosen| chosen.into_iter().map(|index| given(&schema.fields[index])).collect::<Vec<_>>())
        .prop_map(move |fields| {
            let mut message = Message::new(schema);
            for (field, given) in fields {
                give(&mut message, field, given);
            }
            message
        })
        .boxed()
}

fn give(message: &mut Message, field: &'static FieldSchema, given: Given) {
    let item = |value| Item { value, position: Position::UNKNOWN };
    if field.cardinality != Cardinality::Singular {
        message.give_empty(field);
    }
    match given {
        // The second of a oneof is left out.
        Given::Values(values) => values.into_iter().for_each(|value| drop(message.give(field, item(value)))),
        Given::Entries(entries) => entries.into_iter().for_each(|(key, value)| {
            message.give_entry(field, key, item(value));
        }),
    }
}

fn given(field: &'static FieldSchema) -> BoxedStrategy<(&'static FieldSchema, Given)> {
    let values = match field.cardinality {
        Cardinality::Singular => vec(value(field.field_type), 1).prop_map(Given::Values).boxed(),
        Cardinality::Repeated => vec(value(field.field_type), 0..3).prop_map(Given::Values).boxed(),
        Cardinality::Map(key) => vec((map_key(key), value(field.field_type)), 0..3).prop_map(Given::Entries).boxed(),
    };
    values.prop_map(move |given| (field, given)).boxed()
}

fn map_key(key: KeyType) -> BoxedStrategy<MapKey> {
    match key {
        KeyType::String => string().prop_map(MapKey::String).boxed(),
        KeyType::Uint64 => any::<u64>().prop_map(MapKey::Uint).boxed(),
    }
}

fn value(field_type: FieldType) -> BoxedStrategy<Value> {
    use proptest::num::{f32, f64};
    match field_type {
        FieldType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        FieldType::Int32 => any::<i32>().prop_map(|number| Value::Int(number.into())).boxed(),
        FieldType::Int64 => any::<i64>().prop_map(Value::Int).boxed(),
        FieldType::Uint32 => any::<u32>().prop_map(|number| Value::Uint(number.into())).boxed(),
        FieldType::Uint64 => any::<u64>().prop_map(Value::Uint).boxed(),
        // Not NaN, which equals nothing.
        FieldType::Float => (f32::POSITIVE | f32::NEGATIVE | f32::NORMAL | f32::SUBNORMAL | f32::ZERO | f32::INFINITE)
            .prop_map(Value::Float)
            .boxed(),
        FieldType::Double => (f64::POSITIVE | f64::NEGATIVE | f64::NORMAL | f64::SUBNORMAL | f64::ZERO | f64::INFINITE)
            .prop_map(Value::Double)
            .boxed(),
        FieldType::String => string().prop_map(Value::String).boxed(),
        FieldType::Enum(schema) => {
            select(schema.values).prop_map(move |name| Value::of_enum(schema, name).unwrap()).boxed()
        }
        FieldType::Message(schema) => message(schema).prop_map(Value::Message).boxed(),
    }
}

fn string() -> BoxedStrategy<String> {
    vec(any::<char>(), 0..6).prop_map(|characters| characters.into_iter().collect()).boxed()
}

/// Prints trees, choosing among the legal forms by a stream of numbers made from a seed.
pub(crate) struct Printer {
    seed: u64,
    out: String,
}

impl Printer {
    /// The text of a whole configuration.
    pub(crate) fn print(message: &Message, seed: u64) -> String {
        let mut printer = Self { seed, out: String::new() };
        printer.fields(message);
        printer.out
    }

    fn choose<'a>(&mut self, forms: &[&'a str]) -> &'a str {
        forms[self.below(forms.len())]
    }

    fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn blank(&mut self) {
        let blank = self.choose(&[" ", "\n", "\t", "  ", "\r\n", " # \"a { comment\n"]);
        self.out.push_str(blank);
    }

    fn fields(&mut self, message: &Message) {
        for (field, value) in message.fields() {
            let Some(value) = value else { continue };
            let printed: Vec<Option<String>> = match value {
                FieldValue::Map(entries) => entries.iter().map(|(key, item)| Some(self.entry(key, item))).collect(),
                other => other.items().map(|item| Some(self.value(&item.value))).collect(),
            };
            let is_message =
                matches!(field.field_type, FieldType::Message(_)) || matches!(field.cardinality, Cardinality::Map(_));
            if field.cardinality != Cardinality::Singular && (printed.is_empty() || self.below(2) == 0) {
                self.name(field.name, is_message);
                let separator = self.choose(&[",", " , ", ",\n"]);
                let list = printed.into_iter().flatten().collect::<Vec<_>>().join(separator);
                self.out.push_str(&format!("[{list}]"));
                self.end();
            } else {
                for text in printed.into_iter().flatten() {
                    self.name(field.name, is_message);
                    self.out.push_str(&text);
                    self.end();
                }
            }
        }
    }

    fn name(&mut self, name: &str, is_message: bool) {
        self.out.push_str(name);
        let colon = if is_message { self.choose(&["", " ", ":", " : "]) } else { self.choose(&[":", ": ", " :\n"]) };
        self.out.push_str(colon);
    }

    fn end(&mut self) {
        let end = self.choose(&[" ", ",", ";", " ;\n", "\n"]);
        self.out.push_str(end);
    }

    fn entry(&mut self, key: &MapKey, item: &Item) -> String {
        let key = match key {
            MapKey::String(text) => self.text(text),
            MapKey::Uint(number) => self.integer((*number).into()),
        };
        let value = self.value(&item.value);
        let colon = if matches!(item.value, Value::Message(_)) { self.choose(&["", ":"]) } else { ":" };
        let separator = self.choose(&[" ", ",", ";"]);
        let (open, close) = self.brackets();
        if self.below(2) == 0 {
            format!("{open} key: {key}{separator} value{colon} {value} {close}")
        } else {
            format!("{open}value{colon}{value}{separator}key:{key}{separator}{close}")
        }
    }

    fn brackets(&mut self) -> (&'static str, &'static str) {
        if self.below(2) == 0 { ("{", "}") } else { ("<", ">") }
    }

    fn value(&mut self, value: &Value) -> String {
        match value {
            Value::Bool(true) => self.choose(&["true", "True", "t", "1", "0x1"]).to_owned(),
            Value::Bool(false) => self.choose(&["false", "False", "f", "0", "00"]).to_owned(),
            Value::Int(number) => self.integer((*number).into()),
            Value::Uint(number) => self.integer((*number).into()),
            Value::Float(number) => format!("{number:?}{}", self.suffix(number.is_finite())),
            Value::Double(number) => format!("{number:?}{}", self.suffix(number.is_finite())),
            Value::String(text) => self.text(text),
            Value::Enum(value) => {
                if self.below(2) == 0 {
                    value.name.to_owned()
                } else {
                    self.integer(value.number as i128)
                }
            }
            Value::Message(message) => {
                let outer = std::mem::take(&mut self.out);
                let (open, close) = self.brackets();
                self.out.push_str(open);
                self.blank();
                self.fields(message);
                self.out.push_str(close);
                std::mem::replace(&mut self.out, outer)
            }
        }
    }

    fn suffix(&mut self, is_finite: bool) -> &'static str {
        if is_finite { self.choose(&["", "f", "F"]) } else { "" }
    }

    fn integer(&mut self, number: i128) -> String {
        let sign = if number < 0 { self.choose(&["-", "- ", "-\n"]) } else { "" };
        let magnitude = number.unsigned_abs();
        match self.below(4) {
            0 => format!("{sign}{magnitude:#x}"),
            1 => format!("{sign}0{magnitude:o}"),
            _ => format!("{sign}{magnitude}"),
        }
    }

    fn text(&mut self, text: &str) -> String {
        let quote = self.choose(&["'", "\""]);
        let mut out = quote.to_owned();
        for character in text.chars() {
            let bytes = character.to_string().into_bytes();
            let is_plain = !matches!(character, '\\' | '\'' | '"' | '\n');
            match self.below(8) {
                0 => bytes.iter().for_each(|byte| out.push_str(&format!("\\{byte:03o}"))),
                1 => bytes.iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}"))),
                2 if u32::from(character) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", u32::from(character))),
                2 => {
                    let mut units = [0; 2];
                    character.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04X}")));
                }
                3 => out.push_str(&format!("\\U{:08x}", u32::from(character))),
                _ if is_plain => out.push(character),
                _ => out.push_str(&format!("\\x{:02X}", u32::from(character))),
            }
            if self.below(6) == 0 {
                // The next literal may stand right beside.
                out.push_str(quote);
                out.push_str(self.choose(&["", " ", "\n"]));
                out.push_str(quote);
            }
        }
        out + quote
    }
}
