//! Large buffers that messages are gathered in, used again: 1 MiB of fresh memory is 256 page faults, and malloc gives back
//! what is free at the end of its arenas again and again.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// The smallest buffer worth keeping, in bytes.
const LEAST: usize = 256 << 10;

/// What is kept at most, in bytes, all buffers together.
const KEPT: usize = 16 << 20;

/// Buffers at rest. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::frontend) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer with room for `bytes`: one that is at rest if one of about that size is.
    pub(in crate::frontend) fn take(&self, bytes: usize) -> Vec<u8> {
        if bytes >= LEAST {
            let mut at_rest = self.0.lock();
            let fits = |buffer: &Vec<u8>| (bytes..=bytes.saturating_mul(2)).contains(&buffer.capacity());
            if let Some(at) = at_rest.iter().position(fits) {
                return at_rest.swap_remove(at);
            }
        }
        Vec::with_capacity(bytes)
    }

    /// What was written into a buffer, which comes to rest when the last slice of it is dropped.
    pub(in crate::frontend) fn bytes(&self, buffer: Vec<u8>) -> Bytes {
        match buffer.capacity() {
            LEAST..=KEPT => Bytes::from_owner(Lent { buffer, home: self.clone() }),
            _ => buffer.into(),
        }
    }
}

/// A buffer in use.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut at_rest = self.home.0.lock();
        let kept: usize = at_rest.iter().map(Vec::capacity).sum();
        if kept + buffer.capacity() <= KEPT {
            at_rest.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_is_used_again_once_nobody_has_a_slice_of_it() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1 << 20);
        first.extend_from_slice(b"abc");
        let place = first.as_ptr();
        let slice = buffers.bytes(first).slice(1..);
        let second = buffers.take(1 << 20);
        assert_ne!(second.as_ptr(), place, "it is in use");
        assert_eq!(slice, "bc");
        drop(slice);
        let smaller = buffers.take(300 << 10);
        assert_ne!(smaller.as_ptr(), place, "it is too large for that");
        let again = buffers.take(1 << 20);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn no_more_is_kept_than_may_be_and_nothing_small_or_huge() {
        let buffers = Buffers::default();
        let used: Vec<Bytes> = (0..40).map(|_| buffers.bytes(Vec::with_capacity(1 << 20))).collect();
        drop(used);
        drop(buffers.bytes(Vec::with_capacity(KEPT + 1)));
        drop(buffers.bytes(Vec::with_capacity(LEAST - 1)));
        let kept: usize = buffers.0.lock().iter().map(Vec::capacity).sum();
        assert_eq!(kept, KEPT);
    }
}
