//! Placeholder.
use bytes::Bytes;

use super::failure::ServiceError;

pub fn payload_parts(bytes: Bytes) -> Result<Vec<Bytes>, ServiceError> {
    Ok(vec![bytes])
}
