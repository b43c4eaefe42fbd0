//! The pytorch backend.
