//! The host's memory as the C library's allocator has it (placeholder).

/// Attributes memory to loads.
#[derive(Clone, Default)]
pub struct LoadMeter {}

impl LoadMeter {
    /// Runs `load`; how much memory grew by it, where that can be told.
    pub fn measure<T>(&self, load: impl FnOnce() -> T) -> (T, Option<u64>) {
        (load(), None)
    }
}

/// Gives freed memory back.
#[derive(Clone, Default)]
pub struct Trimmer {}

impl Trimmer {
    /// `bytes` were freed.
    pub fn freed(&self, _bytes: u64) {}
}
