//! What was learnt of names a moment ago: a bounded map that forgets by time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Names, each remembered for a while.
#[derive(Debug)]
pub(super) struct Memory {
    keep: Duration,
    most: usize,
    until: Mutex<HashMap<String, Instant>>,
}

impl Memory {
    /// Remembers at most `most` names, each for `keep`.
    pub(super) fn new(keep: Duration, most: usize) -> Self {
        Self { keep, most, until: Mutex::default() }
    }

    pub(super) fn remember(&self, name: &str, now: Instant) {
        if self.keep.is_zero() || self.most == 0 {
            return;
        }
        let mut until = self.until.lock();
        if until.len() >= self.most {
            until.retain(|_, until| *until > now);
        }
        if until.len() >= self.most {
            // Somebody asks for names by the thousand: any of them may go.
            let some = until.keys().next().cloned();
            some.map(|name| until.remove(&name));
        }
        until.insert(name.to_owned(), now + self.keep);
    }

    pub(super) fn forget(&self, name: &str) {
        self.until.lock().remove(name);
    }

    pub(super) fn knows(&self, name: &str, now: Instant) -> bool {
        let mut until = self.until.lock();
        match until.get(name) {
            Some(end) if *end > now => true,
            Some(_) => {
                until.remove(name);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_for_its_time_and_no_longer() {
        let memory = Memory::new(Duration::from_secs(1), 10);
        let begun = Instant::now();
        memory.remember("a", begun);
        let just_before = begun + Duration::from_millis(999);
        assert!(memory.knows("a", just_before) && !memory.knows("b", just_before));
        assert!(!memory.knows("a", begun + Duration::from_secs(1)));
        let none = Memory::new(Duration::ZERO, 10);
        none.remember("a", begun);
        assert!(!none.knows("a", begun));
    }

    #[test]
    fn it_never_grows_past_its_bound_and_lets_go_of_the_old_first() {
        let memory = Memory::new(Duration::from_secs(1), 10);
        let begun = Instant::now();
        for name in 0..10 {
            memory.remember(&format!("old {name}"), begun);
        }
        let later = begun + Duration::from_secs(2);
        memory.remember("new", later);
        assert_eq!(memory.until.lock().len(), 1);
        for name in 0..1000 {
            memory.remember(&name.to_string(), later);
        }
        assert_eq!(memory.until.lock().len(), 10);
        assert!(memory.knows("999", later), "the newest is kept");
    }
}
