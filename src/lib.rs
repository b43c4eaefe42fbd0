//! Roundhouse keeps thousands of models behind one endpoint on a few GPUs.
pub mod error;
pub mod inference;
pub mod tensor;
