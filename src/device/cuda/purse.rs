//! The memory of a device that is nobody's now but ours, and who holds the rest: one short lock over both.

use std::collections::BTreeMap;

use super::accounts::{Accounts, OwnerId, Refused};
use super::virtual_memory::PhysicalBytes;

/// Accounts, and spare memory by its length: asking the driver for memory takes it tens of microseconds.
#[derive(Debug)]
pub(super) struct Purse {
    pub(super) accounts: Accounts,
    spare: BTreeMap<u64, Vec<PhysicalBytes>>,
    /// The most that is kept.
    keep: u64,
}

impl Purse {
    pub(super) fn new(limit: u64, keep: u64) -> Self {
        Self { accounts: Accounts::new(limit), spare: BTreeMap::new(), keep }
    }

    /// Books `len` bytes, and gives spare memory where there is a piece of that length; else the caller asks the driver.
    pub(super) fn take(&mut self, owner: Option<OwnerId>, len: u64) -> Result<Option<PhysicalBytes>, Refused> {
        let spare = self.spare.get_mut(&len).and_then(Vec::pop);
        if spare.is_some() {
            self.accounts.remove_spare(len);
        }
        match self.accounts.map(owner, len) {
            Ok(()) => Ok(spare),
            Err(refused) => {
                if let Some(spare) = spare {
                    self.keep(spare);
                }
                Err(refused)
            }
        }
    }

    /// Takes memory off its owner's account. It is kept where that is wanted, else it comes back to be dropped, which the
    /// caller does outside of the lock.
    pub(super) fn put(&mut self, owner: Option<OwnerId>, memory: PhysicalBytes) -> Option<PhysicalBytes> {
        self.accounts.unmap(owner, memory.len());
        if self.accounts.device().spare.saturating_add(memory.len()) > self.keep {
            return Some(memory);
        }
        self.keep(memory);
        None
    }

    /// Takes out all spare memory, to be dropped outside of the lock.
    pub(super) fn empty(&mut self) -> Vec<PhysicalBytes> {
        let all: Vec<PhysicalBytes> = std::mem::take(&mut self.spare).into_values().flatten().collect();
        self.accounts.remove_spare(all.iter().map(PhysicalBytes::len).sum());
        all
    }

    fn keep(&mut self, memory: PhysicalBytes) {
        self.accounts.add_spare(memory.len());
        self.spare.entry(memory.len()).or_default().push(memory);
    }
}
