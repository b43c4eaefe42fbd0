//! Threads that answer go before threads that load.
//!
//! On Linux both the nice value and the slice are a thread's own, whatever POSIX says of the first; threads made later by it
//! begin with its values. Elsewhere nothing is done. A refusal is ignored: the work is done all the same, with more weight
//! than meant.

/// Makes the calling thread give way to others: `nice` from 0 (no less than any) to 19 (only what is left over), and the
/// system's own slice.
pub fn lower_this_thread(nice: i32) {
    set(nice, 0);
}

/// Makes the calling thread run soon when it wakes, by asking for little at a time (sched(7), `sched_runtime` of a normal
/// thread; Linux 6.12 and newer): a thread that loads models, and asks for more, is then interrupted for it at once
/// instead of at the end of its slice. Its share of the processor is what it was.
pub fn hasten_this_thread() {
    set(0, SHORT_SLICE);
}

/// In nanoseconds, the least that Linux grants: a small inference is done in it.
const SHORT_SLICE: u64 = 100_000;

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a system call that neither libc nor rustix wraps")]
fn set(nice: i32, runtime: u64) {
    /// `struct sched_attr` of sched_setattr(2), in its first form.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let size = u32::try_from(size_of::<Attributes>()).unwrap_or_default();
    let attributes = Attributes { size, policy: 0, flags: 0, nice, priority: 0, runtime, deadline: 0, period: 0 };
    // SAFETY: the attributes live through the call and are as large as they say; 0 is the calling thread.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0;
    if refused && nice > 0 {
        // A sandbox may know nothing of that call.
        let _refused = rustix::process::setpriority_process(None, nice);
    }
}

#[cfg(not(target_os = "linux"))]
fn set(_nice: i32, _runtime: u64) {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    #[test]
    fn only_the_calling_thread_gives_way() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let lowered = on_a_thread(|| {
            lower_this_thread(10);
            (nice(), on_a_thread(nice))
        });
        assert_eq!(lowered, (10.max(before), 10.max(before)), "a thread inherits the value of the one that made it");
        assert_eq!(nice(), before);
        assert_eq!(on_a_thread(nice), before);
    }

    #[test]
    fn a_thread_in_haste_keeps_its_nice_value() {
        let nice = || getpriority_process(None).unwrap();
        let hastened = on_a_thread(|| {
            hasten_this_thread();
            nice()
        });
        assert!(hastened <= nice());
    }
}
