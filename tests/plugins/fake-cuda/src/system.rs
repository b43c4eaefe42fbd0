//! What the double takes from the C library: memory files and mappings of them.

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const READ_WRITE: c_int = 1 | 2;
const NO_ACCESS: c_int = 0;
const SHARED: c_int = 1;
const PRIVATE: c_int = 2;
const FIXED: c_int = 0x10;
const ANONYMOUS: c_int = 0x20;
const NO_RESERVE: c_int = 0x4000;
const CLOSE_ON_EXEC: u32 = 1;

unsafe extern "C" {
    fn mmap(at: *mut c_void, len: usize, access: c_int, flags: c_int, file: c_int, offset: i64) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn mprotect(at: *mut c_void, len: usize, access: c_int) -> c_int;
    fn memfd_create(name: *const c_char, flags: u32) -> c_int;
}

/// Addresses that may not be touched: multiples of `align`, which is a power of two.
pub(crate) fn reserve(len: usize, align: usize) -> Option<usize> {
    let all = len.checked_add(align)?;
    // SAFETY: asks for new addresses and names no old ones.
    let at = unsafe { mmap(std::ptr::null_mut(), all, NO_ACCESS, PRIVATE | ANONYMOUS | NO_RESERVE, -1, 0) } as usize;
    if at == usize::MAX {
        return None;
    }
    let start = at.next_multiple_of(align);
    give_back(at, start - at);
    give_back(start + len, at + all - start - len);
    Some(start)
}

/// Gives addresses back to the system.
pub(crate) fn give_back(at: usize, len: usize) {
    if len > 0 {
        // SAFETY: only what `reserve` or `map_anywhere` gave comes here, once.
        unsafe { munmap(at as *mut c_void, len) };
    }
}

/// Memory that can be mapped many times, all zero.
pub(crate) fn memory(len: usize) -> Option<OwnedFd> {
    // SAFETY: the name ends in a zero; a descriptor that comes back is ours alone.
    let file = unsafe {
        match memfd_create(c"fake-cuda".as_ptr(), CLOSE_ON_EXEC) {
            -1 => return None,
            descriptor => OwnedFd::from_raw_fd(descriptor),
        }
    };
    std::fs::File::from(file.try_clone().ok()?).set_len(len as u64).ok()?;
    Some(file)
}

/// Puts memory at reserved addresses, where nobody may touch it before `open`.
pub(crate) fn map_at(at: usize, len: usize, file: &OwnedFd) -> bool {
    // SAFETY: the addresses are the double's own: they lie in a reservation.
    let got = unsafe { mmap(at as *mut c_void, len, NO_ACCESS, SHARED | FIXED, file.as_raw_fd(), 0) };
    got as usize == at
}

/// Lets everybody read and write what `map_at` put there.
pub(crate) fn open(at: usize, len: usize) -> bool {
    // SAFETY: the addresses are the double's own.
    unsafe { mprotect(at as *mut c_void, len, READ_WRITE) == 0 }
}

/// Takes memory away; its addresses stay reserved.
pub(crate) fn unmap(at: usize, len: usize) -> bool {
    let flags = PRIVATE | ANONYMOUS | NO_RESERVE | FIXED;
    // SAFETY: the addresses are the double's own: a mapping in a reservation.
    let got = unsafe { mmap(at as *mut c_void, len, NO_ACCESS, flags, -1, 0) };
    got as usize == at
}

/// Maps memory wherever there is room, to be read and written.
pub(crate) fn map_anywhere(len: usize, file: &impl AsRawFd) -> Option<usize> {
    // SAFETY: asks for new addresses and names no old ones.
    let at = unsafe { mmap(std::ptr::null_mut(), len, READ_WRITE, SHARED, file.as_raw_fd(), 0) } as usize;
    (at != usize::MAX).then_some(at)
}
