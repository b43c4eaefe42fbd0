//! Values that are one word: numbers, strings, bools and names of enums.

use super::Reader;
use super::lexer::{Number, Token};
use crate::model_config::diagnostic::{ConfigError, quoted};
use crate::model_config::message::Value;
use crate::model_config::schema::FieldType;

impl Reader<'_> {
    /// A value of any type but a message.
    pub(super) fn scalar(&mut self, name: &str, field_type: FieldType) -> Result<Value, ConfigError> {
        let position = self.position;
        let wrong = |text: String| ConfigError::invalid(position, format!("field '{name}': {text}"));
        if matches!(field_type, FieldType::String) {
            return self.text(name).map(Value::String);
        }
        let is_negative = self.token == Token::Sign('-');
        if is_negative {
            self.take()?;
        }
        match (&self.token, field_type) {
            (Token::Identifier("true" | "True" | "t"), FieldType::Bool) if !is_negative => {
                self.taken(Value::Bool(true))
            }
            (Token::Identifier("false" | "False" | "f"), FieldType::Bool) if !is_negative => {
                self.taken(Value::Bool(false))
            }
            (Token::Number(number), FieldType::Bool) if !is_negative => match number.integer() {
                Some(bit @ (0 | 1)) => self.taken(Value::Bool(bit == 1)),
                _ => Err(wrong(format!("expected true or false, got {}", self.token.describe()))),
            },
            (Token::Identifier(value), FieldType::Enum(schema)) if !is_negative => {
                let value = Value::of_enum(schema, value).map_err(wrong)?;
                self.taken(value)
            }
            (Token::Identifier(word), FieldType::Float | FieldType::Double) => match special(word, is_negative) {
                Some(value) => self.taken(float(field_type, value)),
                None => Err(self.expected(name, field_type)),
            },
            (Token::Number(number), FieldType::Float | FieldType::Double) => {
                let value = decimal(*number, field_type, is_negative)
                    .ok_or_else(|| wrong(format!("expected a decimal number, got {}", quoted(number.text))))?;
                self.taken(value)
            }
            (
                Token::Number(number),
                FieldType::Int32 | FieldType::Int64 | FieldType::Uint32 | FieldType::Uint64 | FieldType::Enum(_),
            ) => {
                if number.radix.is_none() {
                    return Err(self.expected(name, field_type));
                }
                let Some(magnitude) = number.integer() else {
                    return Err(wrong(format!("{} is out of range for {}", quoted(number.text), field_type.name())));
                };
                let magnitude = i128::from(magnitude);
                let value = Value::of_integer(field_type, if is_negative { -magnitude } else { magnitude });
                self.taken(value.map_err(wrong)?)
            }
            _ => Err(self.expected(name, field_type)),
        }
    }

    /// One string, of one or more literals side by side.
    fn text(&mut self, name: &str) -> Result<String, ConfigError> {
        let position = self.position;
        let mut bytes = match self.token {
            Token::Literal(_) => Vec::new(),
            _ => return Err(self.expected(name, FieldType::String)),
        };
        while matches!(self.token, Token::Literal(_)) {
            if let (Token::Literal(part), _) = self.take()? {
                bytes.extend(part);
            }
        }
        String::from_utf8(bytes)
            .map_err(|_| ConfigError::invalid(position, format!("field '{name}': the string is not valid UTF-8")))
    }

    fn taken(&mut self, value: Value) -> Result<Value, ConfigError> {
        self.take().map(|_| value)
    }

    fn expected(&self, name: &str, field_type: FieldType) -> ConfigError {
        let mut text = format!("field '{name}': expected {}, got {}", field_type.name(), self.token.describe());
        if matches!((&self.token, field_type), (Token::Identifier(_), FieldType::String)) {
            text.push_str("; put it in quotes");
        }
        ConfigError::invalid(self.position, text)
    }
}

/// Infinity and not-a-number by their names.
fn special(word: &str, is_negative: bool) -> Option<f64> {
    let value = match word.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => f64::INFINITY,
        "nan" => f64::NAN,
        _ => return None,
    };
    Some(if is_negative { -value } else { value })
}

fn float(field_type: FieldType, value: f64) -> Value {
    if matches!(field_type, FieldType::Float) { Value::Float(value as f32) } else { Value::Double(value) }
}

/// A decimal number; each type is read by itself, since going through double would round twice.
fn decimal(number: Number<'_>, field_type: FieldType, is_negative: bool) -> Option<Value> {
    if !matches!(number.radix, None | Some(10)) {
        return None;
    }
    if matches!(field_type, FieldType::Float) {
        let value: f32 = number.text.parse().ok()?;
        return Some(Value::Float(if is_negative { -value } else { value }));
    }
    let value: f64 = number.text.parse().ok()?;
    Some(Value::Double(if is_negative { -value } else { value }))
}
