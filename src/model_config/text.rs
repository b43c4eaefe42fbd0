//! A reader of protobuf's text format over the schema: every legal form, and nothing else.
//!
//! *Architecture invariant:* whatever the bytes, it answers with a tree or one error; its work is bounded by
//! [`MAX_BYTES`], [`MAX_DEPTH`] and [`MAX_VALUES`].

mod entry;
mod lexer;
mod scalar;
mod unknown;

use self::lexer::{Lexer, Token};
use super::UnknownFields;
use super::diagnostic::{ConfigError, ConfigWarning, Position, quoted};
use super::message::{Item, Message, Value};
use super::schema::{Cardinality, FieldSchema, FieldType, MessageSchema};

/// The longest text that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// How deep messages and lists may be nested.
pub const MAX_DEPTH: usize = 64;
/// How many values a configuration may hold, those of unknown fields included. Bounds memory at a few MiB.
pub const MAX_VALUES: usize = 100_000;
/// After how many warnings the rest is left out.
pub const MAX_WARNINGS: usize = 100;

/// Reads a text into a tree.
pub(super) fn read(
    text: &str,
    schema: &'static MessageSchema,
    unknown: UnknownFields,
) -> Result<(Message, Vec<ConfigWarning>), ConfigError> {
    if text.len() > MAX_BYTES {
        return Err(ConfigError::too_large(
            Position::UNKNOWN,
            format!("the configuration has {} bytes, at most {MAX_BYTES} are read", text.len()),
        ));
    }
    let mut lexer = Lexer::new(text);
    let (token, position) = lexer.next()?;
    let mut reader = Reader { lexer, token, position, unknown, values: 0, depth: 0, warnings: Vec::new() };
    let mut message = Message::new(schema);
    reader.fields(&mut message, Token::End)?;
    Ok((message, reader.warnings))
}

struct Reader<'a> {
    lexer: Lexer<'a>,
    // The next word, not yet taken.
    token: Token<'a>,
    position: Position,
    unknown: UnknownFields,
    values: usize,
    depth: usize,
    warnings: Vec<ConfigWarning>,
}

impl<'a> Reader<'a> {
    /// The fields of a message up to its closing word, which is taken unless it is the end of the text.
    fn fields(&mut self, message: &mut Message, close: Token<'_>) -> Result<(), ConfigError> {
        while self.token != close {
            let schema = message.schema();
            let position = self.position;
            let name = self.field_name(schema)?;
            match schema.field(&name) {
                Some(field) => self.field(message, field, position)?,
                None => self.unknown_field(schema, &name, position)?,
            }
            if matches!(self.token, Token::Sign(',' | ';')) {
                self.take()?;
            }
        }
        if close != Token::End {
            self.take()?;
        }
        Ok(())
    }

    /// A name, or an extension's in brackets (which no field of the schema has).
    fn field_name(&mut self, schema: &MessageSchema) -> Result<String, ConfigError> {
        match self.token {
            Token::Identifier(name) => {
                self.take()?;
                Ok(name.to_owned())
            }
            Token::Sign('[') => {
                self.take()?;
                let mut name = String::from("[");
                while name.len() < 256 {
                    match self.token {
                        Token::Identifier(part) => name.push_str(part),
                        Token::Sign(sign @ ('.' | '/' | '-')) => name.push(sign),
                        Token::Sign(']') => {
                            self.take()?;
                            name.push(']');
                            return Ok(name);
                        }
                        _ => break,
                    }
                    self.take()?;
                }
                Err(self.unexpected("']' after the name of an extension"))
            }
            _ => Err(self.unexpected(&format!("a field of {}", schema.name))),
        }
    }

    fn field(
        &mut self,
        message: &mut Message,
        field: &'static FieldSchema,
        position: Position,
    ) -> Result<(), ConfigError> {
        let name = field.name;
        let is_message =
            matches!(field.field_type, FieldType::Message(_)) || matches!(field.cardinality, Cardinality::Map(_));
        if self.token == Token::Sign(':') {
            self.take()?;
        } else if !is_message {
            return Err(self.unexpected(&format!("':' after '{name}'")));
        }
        if self.token != Token::Sign('[') {
            return self.value(message, field, position);
        }
        if field.cardinality == Cardinality::Singular {
            return Err(ConfigError::invalid(
                self.position,
                format!("field '{name}' takes one {}, not a list", field.field_type.name()),
            ));
        }
        self.take()?;
        message.give_empty(field);
        if self.token == Token::Sign(']') {
            return self.take().map(|_| ());
        }
        loop {
            // Errors about an element point at the element.
            let position = self.position;
            self.value(message, field, position)?;
            match self.token {
                Token::Sign(',') => self.take()?,
                Token::Sign(']') => return self.take().map(|_| ()),
                _ => return Err(self.unexpected(&format!("',' or ']' in the list of '{name}'"))),
            };
        }
    }

    /// One value of a field, given to the message.
    fn value(
        &mut self,
        message: &mut Message,
        field: &'static FieldSchema,
        position: Position,
    ) -> Result<(), ConfigError> {
        self.count(position)?;
        if let Cardinality::Map(key_type) = field.cardinality {
            let (key, item) = self.entry(field, key_type, position)?;
            let shown = key.to_string();
            if message.give_entry(field, key, item) {
                let text = format!("'{}' gives the key {} twice: the last value counts", field.name, quoted(&shown));
                self.warn(position, text);
            }
            return Ok(());
        }
        let value = match field.field_type {
            FieldType::Message(schema) => Value::Message(self.message(field.name, schema)?),
            scalar => self.scalar(field.name, scalar)?,
        };
        message.give(field, Item { value, position }).map_err(|text| ConfigError::invalid(position, text))
    }

    fn message(&mut self, name: &str, schema: &'static MessageSchema) -> Result<Message, ConfigError> {
        let mut message = Message::new(schema);
        let close = self.open(name)?;
        self.fields(&mut message, close)?;
        self.depth -= 1;
        Ok(message)
    }

    /// Takes the word that opens a message and says which closes it. One level deeper from here.
    fn open(&mut self, name: &str) -> Result<Token<'static>, ConfigError> {
        let close = match self.token {
            Token::Sign('{') => Token::Sign('}'),
            Token::Sign('<') => Token::Sign('>'),
            _ => return Err(self.unexpected(&format!("'{{' after {}", quoted(name)))),
        };
        self.descend()?;
        self.take()?;
        Ok(close)
    }

    fn descend(&mut self) -> Result<(), ConfigError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ConfigError::too_large(self.position, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    /// Takes the next word: returns it, and reads the one after it.
    fn take(&mut self) -> Result<(Token<'a>, Position), ConfigError> {
        let (token, position) = self.lexer.next()?;
        Ok((std::mem::replace(&mut self.token, token), std::mem::replace(&mut self.position, position)))
    }

    fn count(&mut self, position: Position) -> Result<(), ConfigError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(ConfigError::too_large(
                position,
                format!("the configuration holds more than {MAX_VALUES} values"),
            ));
        }
        Ok(())
    }

    fn warn(&mut self, position: Position, text: String) {
        match self.warnings.len() {
            ..MAX_WARNINGS => self.warnings.push(ConfigWarning::new(position, text)),
            MAX_WARNINGS => self.warnings.push(ConfigWarning::new(position, "further warnings are left out")),
            _ => {}
        }
    }

    fn unexpected(&self, expected: &str) -> ConfigError {
        ConfigError::invalid(self.position, format!("expected {expected}, got {}", self.token.describe()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model_config::arbitrary::{Printer, message};
    use crate::model_config::schema::MODEL_CONFIG;

    fn read_strictly(text: &str) -> Result<Message, ConfigError> {
        read(text, &MODEL_CONFIG, UnknownFields::Deny).map(|(message, _)| message)
    }

    fn error(text: &str) -> String {
        read_strictly(text).unwrap_err().to_string()
    }

    fn field(name: &'static str) -> &'static FieldSchema {
        MODEL_CONFIG.field(name).unwrap()
    }

    #[test]
    fn every_legal_form_of_a_list_reads_the_same() {
        let forms = [
            "input [ { name: 'a' dims: [1, 2] }, { name: 'b' dims: [] } ]",
            "input: [ < name: 'a', dims: 1, dims: 2 >, { dims: [] name: \"b\"; } ]",
            "input { name: 'a' dims: [1] dims: 2 } input { name: '' 'b' dims: [] }",
            "input: { name: 'a'; dims: 0x1; dims: 02; }; input < name: \"\\142\" dims: [] >,",
            "# a comment\ninput[{name:'a'dims:[1,2]},{name:'b'dims:[]}]#",
        ];
        let first = read_strictly(forms[0]).unwrap();
        for form in forms {
            assert_eq!(read_strictly(form).unwrap(), first, "{form}");
        }
    }

    #[test]
    fn maps_take_their_entries_singly_or_listed_and_lack_what_they_like() {
        let text = "parameters { key: 'a' value: { string_value: 'b' } } parameters [ { value {} key: 'c' }, {} ] \
                    metric_tags { key: 'x' }";
        let message = read_strictly(text).unwrap();
        let keys: Vec<_> = message.entries("parameters").map(|(key, _)| key.to_string()).collect();
        assert_eq!(keys, ["", "a", "c"]);
        assert_eq!(message.entries("metric_tags").count(), 1);
    }

    #[test]
    fn a_key_given_twice_is_warned_about_and_the_last_counts() {
        let text = "metric_tags { key: 'x' value: '1' }\nmetric_tags { key: 'x' value: '2' }";
        let (message, warnings) = read(text, &MODEL_CONFIG, UnknownFields::Deny).unwrap();
        let values: Vec<_> = message.items("metric_tags").map(|item| item.value.clone()).collect();
        assert_eq!(values, [Value::String("2".to_owned())]);
        let shown = "config.pbtxt:2:1: 'metric_tags' gives the key 'x' twice: the last value counts";
        assert_eq!(warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [shown]);
    }

    #[test]
    fn numbers_and_bools_take_every_form() {
        let text = "model_metrics { metric_control { histogram_options {
            buckets: [1, .5, 1e3, 2.5f, -inf, NaN, 7.] } } }
            response_cache { enable: t } max_batch_size: - 0x10
            input { optional: 1 data_type: 11 format: FORMAT_NHWC }";
        let message = read_strictly(text).unwrap();
        assert_eq!(message.int("max_batch_size"), -16);
        let input = message.message("input").unwrap();
        assert!(input.flag("optional"));
        assert_eq!((input.text("data_type"), input.text("format")), ("TYPE_FP32", "FORMAT_NHWC"));
        let control = message.message("model_metrics").unwrap().message("metric_control").unwrap();
        let buckets: Vec<_> =
            control.message("histogram_options").unwrap().items("buckets").map(|item| item.value.clone()).collect();
        assert_eq!(buckets[..5], [1.0, 0.5, 1000.0, 2.5, f64::NEG_INFINITY].map(Value::Double));
        assert!(matches!(buckets[5], Value::Double(value) if value.is_nan()));
        assert_eq!(buckets[6], Value::Double(7.0));
    }

    #[test]
    fn faults_name_the_place_and_the_field() {
        let cases = [
            (
                "name: 'x'\n\n  max_batchsize: 8",
                "3:3: unknown field 'max_batchsize' in ModelConfig, did you mean 'max_batch_size'?",
            ),
            ("name: 'a'\nname: 'b'", "2:1: field 'name' is given twice"),
            ("name 'a'", "1:6: expected ':' after 'name', got the string 'a'"),
            ("name: a", "1:7: field 'name': expected string, got 'a'; put it in quotes"),
            ("name: ['a']", "1:7: field 'name' takes one string, not a list"),
            (
                "max_batch_size: 2147483648",
                "1:17: field 'max_batch_size': 2147483648 is out of range for int32 (-2147483648 to 2147483647)",
            ),
            ("max_batch_size: 1.5", "1:17: field 'max_batch_size': expected int32, got '1.5'"),
            (
                "max_batch_size: 99999999999999999999",
                "1:17: field 'max_batch_size': '99999999999999999999' is out of range for int32",
            ),
            (
                "input { data_type: TYPE_FP8 }",
                "1:20: field 'data_type': 'TYPE_FP8' is no DataType, expected one of TYPE_INVALID, ",
            ),
            ("input { data_type: 15 }", "1:20: field 'data_type': '15' is no DataType"),
            ("input { optional: yes }", "1:19: field 'optional': expected bool, got 'yes'"),
            ("input { optional: 2 }", "1:19: field 'optional': expected true or false, got '2'"),
            (
                "dynamic_batching { }\nsequence_batching { }",
                "2:1: 'dynamic_batching' and 'sequence_batching' exclude each other: both are the scheduling_choice",
            ),
            ("input { name: 'a' >", "1:19: expected a field of ModelInput, got '>'"),
            ("input { name: 'a'", "1:18: expected a field of ModelInput, got the end of the text"),
            ("input [ { } { } ]", "1:13: expected ',' or ']' in the list of 'input', got '{'"),
            ("input [ { }, ]", "1:14: expected '{' after 'input', got ']'"),
            ("input 'a'", "1:7: expected '{' after 'input', got the string 'a'"),
            (
                "parameters { key: 'a' val: 'b' }",
                "1:23: unknown field 'val' in an entry of 'parameters', expected 'key' or 'value'",
            ),
            ("metric_tags { key: 'a' key: 'b' }", "1:24: 'key' is given twice in an entry of 'metric_tags'"),
            ("name: '\\377'", "1:7: field 'name': the string is not valid UTF-8"),
            ("} ", "1:1: expected a field of ModelConfig, got '}'"),
            ("[a.b/c]: 1", "1:1: unknown field '[a.b/c]' in ModelConfig"),
        ];
        for (text, expected) in cases {
            let found = error(text);
            assert!(
                found.starts_with(&format!("config.pbtxt:{expected}")),
                "{text}\n found {found}\n  want {expected}"
            );
        }
    }

    #[test]
    fn unknown_fields_are_skipped_whatever_their_form_and_warned_about_once() {
        let text =
            "new_a: 1 new_b { x: [1, 2] y [ <z: 'a' 'b'>, {} ] w: { v: -inf } } new_c: [ [1], {a: b} ]; new_d [],
            new_e: 'a' \"b\" new_f < [x.y/z] { } > name: 'kept' input { new_g: -1.5e3, name: 'i' }";
        let (message, warnings) = read(text, &MODEL_CONFIG, UnknownFields::Warn).unwrap();
        assert_eq!(message.text("name"), "kept");
        assert_eq!(message.message("input").unwrap().text("name"), "i");
        assert_eq!(warnings.len(), 7);
        assert_eq!(
            warnings[0].to_string(),
            "config.pbtxt:1:1: unknown field 'new_a' in ModelConfig (the field is ignored)"
        );
        for bad in ["new: ", "new }", "new: [1,]", "new: [1 2]", "new: { a }", "new 1", "new: {", "new: [ ( ]"] {
            assert!(read(bad, &MODEL_CONFIG, UnknownFields::Warn).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_named() {
        let kinds = [
            (format!("#{}", " ".repeat(MAX_BYTES)), "the configuration has 4194305 bytes, at most 4194304 are read"),
            (format!("a{}", "{a".repeat(100_000)), "nested deeper than 64 levels"),
            (format!("a:{}", "[".repeat(100_000)), "nested deeper than 64 levels"),
            (
                format!("input{{dims:[{}1]}}", "1,".repeat(MAX_VALUES)),
                "the configuration holds more than 100000 values",
            ),
            (format!("a:[{}1]", "1,".repeat(MAX_VALUES)), "the configuration holds more than 100000 values"),
        ];
        for (text, expected) in kinds {
            let error = read(&text, &MODEL_CONFIG, UnknownFields::Warn).unwrap_err();
            assert_eq!(error.kind, crate::error::ErrorKind::TooLarge);
            assert_eq!(error.message, expected);
        }
    }

    #[test]
    fn warnings_have_an_end() {
        let (_, warnings) = read(&"new: 1 ".repeat(1000), &MODEL_CONFIG, UnknownFields::Warn).unwrap();
        assert_eq!(warnings.len(), MAX_WARNINGS + 1);
        assert_eq!(warnings[MAX_WARNINGS].message, "further warnings are left out");
    }

    #[test]
    fn a_value_keeps_its_place() {
        let message = read_strictly("name: 'a'\n input [\n  { name: 'b' },\n  { }\n]").unwrap();
        let places: Vec<_> = message.items("input").map(|item| (item.position.line, item.position.column)).collect();
        assert_eq!(places, [(3, 3), (4, 3)]);
        assert!(message.get(field("name").name).is_some());
    }

    proptest! {
        #[test]
        fn whatever_is_printed_reads_back_the_same(message in message(&MODEL_CONFIG), seed: u64) {
            let text = Printer::print(&message, seed);
            let read = read_strictly(&text);
            prop_assert_eq!(read.as_ref(), Ok(&message), "{}", text);
        }

        #[test]
        fn changed_bytes_never_panic(
            message in message(&MODEL_CONFIG),
            seed: u64,
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = Printer::print(&message, seed).into_bytes();
            for (at, byte) in changes {
                // Signs are where the grammar turns.
                let signs = b"{}<>[]:,;'\"\\-#.0a";
                let byte = if at % 2 == 0 { signs[usize::from(byte) % signs.len()] } else { byte };
                if !bytes.is_empty() {
                    let place = at % bytes.len();
                    if byte % 3 == 0 { bytes.insert(place, byte) } else { bytes[place] = byte }
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let _ = super::super::parse(&text, UnknownFields::Deny);
            let _ = super::super::parse(&text, UnknownFields::Warn);
        }
    }
}
