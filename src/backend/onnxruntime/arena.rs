//! What the arena of a session holds, as ONNX Runtime counts it.
#![expect(unsafe_code, reason = "calls through the C API of ONNX Runtime")]

use std::ffi::CStr;
use std::ptr;

use ort::AsPointer;
use ort::session::Session;

use super::ffi::{check, cpu_memory};
use crate::error::Result;

/// The bytes the session's arena for host memory has taken from the system and keeps: activations of the largest run so
/// far and prepacked weights, but not the weights as they were loaded. Zero where the session has no arena.
///
/// ONNX Runtime copies the numbers under the arena's own lock, so runs may go on meanwhile; about a microsecond.
pub(super) fn total_allocated(session: &Session) -> Result<u64> {
    let api = ort::api();
    let mut allocator = ptr::null_mut();
    // SAFETY: the session and the description of host memory live for the call; the out-pointer is valid.
    check(unsafe { (api.CreateAllocator)(session.inner().ptr(), cpu_memory()?.pointer(), &raw mut allocator) })?;
    let mut pairs = ptr::null_mut();
    // SAFETY: the allocator was just made and is released once, after its last use: it is a handle to the session's
    // arena, which the session keeps.
    let status = unsafe {
        let status = (api.AllocatorGetStats)(allocator, &raw mut pairs);
        (api.ReleaseAllocator)(allocator);
        status
    };
    check(status)?;
    let (mut keys, mut values, mut count) = (ptr::null(), ptr::null(), 0_usize);
    // SAFETY: the pairs were just given; the arrays hold `count` NUL-terminated strings, and live until the pairs are
    // released, once, after the last use.
    unsafe {
        (api.GetKeyValuePairs)(pairs, &raw mut keys, &raw mut values, &raw mut count);
        let text = |at: usize, strings: *const *const std::ffi::c_char| CStr::from_ptr(*strings.add(at)).to_bytes();
        let total = (0..count)
            .find(|&at| text(at, keys) == b"TotalAllocated")
            .and_then(|at| std::str::from_utf8(text(at, values)).ok()?.parse().ok())
            .unwrap_or(0);
        (api.ReleaseKeyValuePairs)(pairs);
        Ok(total)
    }
}
