//! Which instance of a fleet answers a request: a pure function of the ring and of what the instances say they hold.
//!
//! No store and no leader: each instance is the only authority on what it has, and tells it in its digest. What is known
//! here is soft. Where it is missing, old or wrong, the ring decides, as it does in a proxy that knows nothing, and a wrong
//! pick costs a load, never an answer. Two pickers with the same instances agree on the ring without talking to each other.
//!
//! - [`hash`], [`ring`]: the ring, which is Envoy's to the bit, so that a picker that dies moves no model.
//! - [`digest`]: what an instance says.
//! - [`choice`]: the decision, over what is known of each candidate.
//! - [`fleet`]: what is known, kept up by digests and by the picks themselves.
//! - [`share`]: what would be whose, for instances that start.

pub mod choice;
pub mod digest;
pub mod fleet;
pub mod hash;
mod member;
mod model;
pub mod ring;
pub mod share;
