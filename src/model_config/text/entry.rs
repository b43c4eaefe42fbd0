//! Map entries: messages of a key and a value.

use super::Reader;
use super::lexer::Token;
use crate::model_config::diagnostic::{ConfigError, Position, quoted};
use crate::model_config::message::{Item, MapKey, Value};
use crate::model_config::schema::{FieldSchema, FieldType, KeyType};

impl Reader<'_> {
    /// A map entry: a message of a key and a value, either of which may be missing and then is its default.
    pub(super) fn entry(
        &mut self,
        field: &'static FieldSchema,
        key_type: KeyType,
        position: Position,
    ) -> Result<(MapKey, Item), ConfigError> {
        let close = self.open(field.name)?;
        let (mut key, mut value) = (None, None);
        while self.token != close {
            let at = self.position;
            let name = match self.token {
                Token::Identifier(name) => name,
                _ => return Err(self.unexpected(&format!("'key' or 'value' in '{}'", field.name))),
            };
            self.take()?;
            let is_message = name == "value" && matches!(field.field_type, FieldType::Message(_));
            if self.token == Token::Sign(':') {
                self.take()?;
            } else if !is_message && matches!(name, "key" | "value") {
                return Err(self.unexpected(&format!("':' after '{name}'")));
            }
            let twice = match (name, field.field_type) {
                ("key", _) => key.replace(self.key(key_type)?).is_some(),
                ("value", FieldType::Message(schema)) => {
                    value.replace(Value::Message(self.message(name, schema)?)).is_some()
                }
                ("value", scalar) => value.replace(self.scalar(field.name, scalar)?).is_some(),
                _ => {
                    let text = format!(
                        "unknown field {} in an entry of '{}', expected 'key' or 'value'",
                        quoted(name),
                        field.name
                    );
                    return Err(ConfigError::invalid(at, text));
                }
            };
            if twice {
                return Err(ConfigError::invalid(
                    at,
                    format!("'{name}' is given twice in an entry of '{}'", field.name),
                ));
            }
            if matches!(self.token, Token::Sign(',' | ';')) {
                self.take()?;
            }
        }
        self.take()?;
        self.depth -= 1;
        let key = key.unwrap_or_else(|| MapKey::default_of(key_type));
        Ok((key, Item { value: value.unwrap_or_else(|| Value::default_of(field.field_type)), position }))
    }

    fn key(&mut self, key_type: KeyType) -> Result<MapKey, ConfigError> {
        let scalar = match key_type {
            KeyType::String => FieldType::String,
            KeyType::Uint64 => FieldType::Uint64,
        };
        let position = self.position;
        match self.scalar("key", scalar)? {
            Value::String(text) => Ok(MapKey::String(text)),
            Value::Uint(number) => Ok(MapKey::Uint(number)),
            _ => Err(ConfigError::invalid(position, "a key is a string or an unsigned integer")),
        }
    }
}
