//! The parameters of tensors that lie in shared memory (Triton's shared memory extensions).

use compact_str::CompactString;

use super::Limits;
use super::decode::too_many_elements;
use super::parameters::{check_name, check_once, unsigned, wrong};
use crate::error::{Error, Result};
use crate::frontend::json::{Cursor, Kind};
use crate::server::shared_memory::RegionSpec;
use crate::tensor::{DataType, Shape};

/// The parameters as far as they were read. Boxed where a tensor is read: few have any.
#[derive(Debug, Default)]
pub struct SharedParameters {
    /// The region's name.
    pub region: Option<CompactString>,
    /// Where in the region the tensor begins, in bytes.
    pub offset: Option<u64>,
    /// The tensor's bytes.
    pub byte_size: Option<u64>,
}

/// Whether a parameter is one of these.
pub fn is_shared(key: &str) -> bool {
    key.starts_with("shared_memory_")
}

impl SharedParameters {
    /// Reads the parameter `key`, for which [`is_shared`] holds; what only looks like one of these is skipped.
    pub(super) fn read(&mut self, cursor: &mut Cursor<'_>, key: &str, limits: &Limits) -> Result<()> {
        match key {
            "shared_memory_region" => {
                check_once(&self.region, key)?;
                if cursor.kind()? != Kind::String {
                    return Err(wrong(key, "a string"));
                }
                let region = cursor.string()?;
                check_name(&region, "a shared memory region", limits)?;
                self.region = Some(CompactString::from(region));
            }
            "shared_memory_offset" => {
                check_once(&self.offset, key)?;
                self.offset = Some(unsigned(cursor, key)?);
            }
            "shared_memory_byte_size" => {
                check_once(&self.byte_size, key)?;
                self.byte_size = Some(unsigned(cursor, key)?);
            }
            _ => cursor.skip_value()?,
        }
        Ok(())
    }

    /// What they say of the tensor of this name, if they say where it lies.
    ///
    /// # Errors
    /// `InvalidArgument` where one of them lacks another that it needs.
    pub fn finish(self, tensor: &str) -> Result<Option<RegionSpec>> {
        match self {
            Self { region: Some(region), offset, byte_size: Some(byte_size) } => {
                Ok(Some(RegionSpec { region, offset: offset.unwrap_or(0), byte_size }))
            }
            Self { region: Some(_), byte_size: None, .. } => Err(Error::invalid(format!(
                "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor '{tensor}'"
            ))),
            Self { region: None, offset, byte_size } => {
                let alone = match (offset, byte_size) {
                    (None, None) => return Ok(None),
                    (Some(_), _) => "shared_memory_offset",
                    (None, Some(_)) => "shared_memory_byte_size",
                };
                Err(Error::invalid(format!(
                    "'{alone}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor}'"
                )))
            }
        }
    }
}

/// Checks that a tensor in shared memory has the bytes of its shape, before anything is read.
///
/// # Errors
/// `InvalidArgument` naming the input where it has not.
pub fn check_size(name: &str, data_type: DataType, shape: &Shape, byte_size: u64) -> Result<()> {
    let elements = shape.element_count().ok_or_else(|| too_many_elements(name, shape))?;
    let Some(size) = data_type.size() else { return Ok(()) };
    if elements.checked_mul(size).and_then(|bytes| u64::try_from(bytes).ok()) == Some(byte_size) {
        return Ok(());
    }
    // Triton's text, without its model.
    Err(Error::invalid(format!(
        "input byte size mismatch for input '{name}'. Expected {}, got {byte_size}",
        (elements as u128) * (size as u128)
    )))
}
