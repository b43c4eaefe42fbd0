//! Fields outside the schema, of configurations newer than it.

use super::lexer::Token;
use super::{MAX_WARNINGS, Reader};
use crate::model_config::UnknownFields;
use crate::model_config::diagnostic::{ConfigError, Position};
use crate::model_config::schema::MessageSchema;

impl Reader<'_> {
    /// A field that the schema lacks: an error, or skipped with a warning.
    pub(super) fn unknown_field(
        &mut self,
        schema: &'static MessageSchema,
        name: &str,
        position: Position,
    ) -> Result<(), ConfigError> {
        match self.unknown {
            UnknownFields::Deny => Err(ConfigError::invalid(position, schema.unknown_field(name))),
            UnknownFields::Warn => {
                self.skip_field()?;
                // To look for a near name costs more than all the rest.
                let text = if self.warnings.len() < MAX_WARNINGS { schema.unknown_field(name) } else { String::new() };
                self.warn(position, format!("{text} (the field is ignored)"));
                Ok(())
            }
        }
    }

    /// Skips what follows the name of an unknown field: its form alone says where it ends.
    fn skip_field(&mut self) -> Result<(), ConfigError> {
        let has_colon = self.token == Token::Sign(':');
        if has_colon {
            self.take()?;
        }
        match self.token {
            Token::Sign('[' | '{' | '<') => self.skip_value(),
            _ if has_colon => self.skip_value(),
            _ => Err(self.unexpected("':' or '{' after the unknown field's name")),
        }
    }

    fn skip_value(&mut self) -> Result<(), ConfigError> {
        self.count(self.position)?;
        match self.token {
            Token::Sign('[') => {
                self.descend()?;
                self.take()?;
                while self.token != Token::Sign(']') {
                    self.skip_value()?;
                    match self.token {
                        Token::Sign(',') => {
                            self.take()?;
                            if self.token == Token::Sign(']') {
                                return Err(self.unexpected("a value after ','"));
                            }
                        }
                        Token::Sign(']') => {}
                        _ => return Err(self.unexpected("',' or ']' in a list")),
                    }
                }
                self.depth -= 1;
                self.take().map(|_| ())
            }
            Token::Sign('{' | '<') => {
                static ANY: MessageSchema = MessageSchema { name: "an unknown message", fields: &[] };
                let close = self.open("an unknown field")?;
                while self.token != close {
                    self.field_name(&ANY)?;
                    self.skip_field()?;
                    if matches!(self.token, Token::Sign(',' | ';')) {
                        self.take()?;
                    }
                }
                self.depth -= 1;
                self.take().map(|_| ())
            }
            Token::Literal(_) => {
                while matches!(self.token, Token::Literal(_)) {
                    self.take()?;
                }
                Ok(())
            }
            _ => {
                if self.token == Token::Sign('-') {
                    self.take()?;
                }
                match self.token {
                    Token::Identifier(_) | Token::Number(_) => self.take().map(|_| ()),
                    _ => Err(self.unexpected("a value")),
                }
            }
        }
    }
}
