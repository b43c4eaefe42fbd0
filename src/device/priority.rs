//! The priority of threads that must not slow others down.

use rustix::process::setpriority_process;

/// Makes the calling thread give way to others: `nice` from 0 (no less than any) to 19 (only what is left over).
///
/// On Linux a nice value is a thread's own, whatever POSIX says: `setpriority` with `PRIO_PROCESS` and 0 acts on the
/// calling thread alone, and threads made later by it begin with its value. Elsewhere the call would act on the whole
/// process, so nothing is done there. A refusal is ignored: the work is done all the same, with more weight than meant.
pub fn lower_this_thread(nice: i32) {
    if cfg!(target_os = "linux") {
        let _refused = setpriority_process(None, nice);
    }
}

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
}
