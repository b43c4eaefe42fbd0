//! Who holds what of a device, to the byte, and within which limits. Pure.

use std::collections::HashMap;
use std::fmt;

/// A model on a device, or whoever else memory is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(u64);

/// What an owner holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerUsage {
    /// What it may hold: memory below weights and activations together.
    pub limit: u64,
    /// Its blocks that last.
    pub weights: u64,
    /// The memory mapped for them: whole pages.
    pub weight_memory: u64,
    /// Its blocks of runs now, in memory that the owners of a stream share.
    pub activations: u64,
    /// The most that those were.
    pub activations_peak: u64,
}

impl OwnerUsage {
    const fn held(&self) -> u64 {
        self.weight_memory.saturating_add(self.activations)
    }
}

/// What a device holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceUsage {
    /// What may be taken of the driver.
    pub limit: u64,
    /// What is: below weights, below what streams share, and spare.
    pub memory: u64,
    /// Of that, what is below weights.
    pub weights: u64,
    /// Of that, what nobody uses and the next one gets without asking the driver.
    pub spare: u64,
    /// How many owners there are.
    pub owners: usize,
}

/// Why there is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The owner would hold more than it may.
    OwnerLimit {
        /// Bytes asked for.
        need: u64,
        /// Bytes it holds.
        held: u64,
        /// Bytes it may hold.
        limit: u64,
    },
    /// The device has no such room left.
    DeviceLimit {
        /// Bytes asked for.
        need: u64,
        /// Bytes that are left.
        free: u64,
        /// Bytes there are for all.
        limit: u64,
    },
    /// There is no such owner (any more).
    NoOwner,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnerLimit { need, held, limit } => {
                write!(f, "{need} bytes more than the {held} it holds would pass its limit of {limit} bytes")
            }
            Self::DeviceLimit { need, free, limit } => {
                write!(f, "{need} bytes are asked for and {free} of {limit} are free")
            }
            Self::NoOwner => f.write_str("its owner is gone"),
        }
    }
}

impl std::error::Error for Refused {}

/// The accounts of a device.
#[derive(Debug)]
pub struct Accounts {
    limit: u64,
    /// Memory in use: below weights and below what streams share.
    used: u64,
    /// Of that, what is below weights.
    weights: u64,
    spare: u64,
    owners: HashMap<OwnerId, OwnerUsage>,
    last: u64,
}

impl Accounts {
    /// Nobody holds anything of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, used: 0, weights: 0, spare: 0, owners: HashMap::new(), last: 0 }
    }

    /// Opens an account that may hold `limit` bytes.
    pub fn open(&mut self, limit: u64) -> OwnerId {
        self.last += 1;
        self.owners.insert(OwnerId(self.last), OwnerUsage { limit, ..OwnerUsage::default() });
        OwnerId(self.last)
    }

    /// Changes what an owner may hold; what it holds already it keeps.
    pub fn set_limit(&mut self, owner: OwnerId, limit: u64) {
        if let Some(usage) = self.owners.get_mut(&owner) {
            usage.limit = limit;
        }
    }

    /// Closes an account and says what was still held on it: nothing, where all is well. What it held counts no more.
    pub fn close(&mut self, owner: OwnerId) -> Option<OwnerUsage> {
        let left = self.owners.remove(&owner)?;
        self.used -= left.weight_memory;
        self.weights -= left.weight_memory;
        Some(left)
    }

    /// Books memory that is to be mapped: for an owner's weights, or for what all share.
    ///
    /// # Errors
    /// A limit would be passed.
    pub fn map(&mut self, owner: Option<OwnerId>, bytes: u64) -> Result<(), Refused> {
        let free = self.limit.saturating_sub(self.used + self.spare);
        if bytes > free {
            return Err(Refused::DeviceLimit { need: bytes, free, limit: self.limit });
        }
        if let Some(owner) = owner {
            self.within(owner, bytes)?.weight_memory += bytes;
            self.weights += bytes;
        }
        self.used += bytes;
        Ok(())
    }

    /// Takes off memory that is not mapped any more.
    pub fn unmap(&mut self, owner: Option<OwnerId>, bytes: u64) {
        match owner.map(|owner| self.owners.get_mut(&owner)) {
            Some(None) => return, // Closed: all of it was taken off then.
            Some(Some(usage)) => {
                usage.weight_memory -= bytes;
                self.weights -= bytes;
            }
            None => {}
        }
        self.used -= bytes;
    }

    /// Counts a block of weights; its memory was booked by `map`.
    pub fn add_weights(&mut self, owner: OwnerId, bytes: u64) {
        if let Some(usage) = self.owners.get_mut(&owner) {
            usage.weights += bytes;
        }
    }

    /// A block of weights was freed.
    pub fn remove_weights(&mut self, owner: OwnerId, bytes: u64) {
        if let Some(usage) = self.owners.get_mut(&owner) {
            usage.weights -= bytes;
        }
    }

    /// Books a block of a run.
    ///
    /// # Errors
    /// The owner would pass its limit.
    pub fn add_activations(&mut self, owner: OwnerId, bytes: u64) -> Result<(), Refused> {
        let usage = self.within(owner, bytes)?;
        usage.activations += bytes;
        usage.activations_peak = usage.activations_peak.max(usage.activations);
        Ok(())
    }

    /// A block of a run was freed.
    pub fn remove_activations(&mut self, owner: OwnerId, bytes: u64) {
        if let Some(usage) = self.owners.get_mut(&owner) {
            usage.activations -= bytes;
        }
    }

    /// Memory that was in use is kept for the next one.
    pub fn add_spare(&mut self, bytes: u64) {
        self.spare += bytes;
    }

    /// Spare memory is used again or given back.
    pub fn remove_spare(&mut self, bytes: u64) {
        self.spare -= bytes;
    }

    /// What an owner holds.
    #[must_use]
    pub fn owner(&self, owner: OwnerId) -> Option<OwnerUsage> {
        self.owners.get(&owner).copied()
    }

    /// What the device holds.
    #[must_use]
    pub fn device(&self) -> DeviceUsage {
        let (memory, owners) = (self.used + self.spare, self.owners.len());
        DeviceUsage { limit: self.limit, memory, weights: self.weights, spare: self.spare, owners }
    }

    fn within(&mut self, owner: OwnerId, bytes: u64) -> Result<&mut OwnerUsage, Refused> {
        let usage = self.owners.get_mut(&owner).ok_or(Refused::NoOwner)?;
        let (held, limit) = (usage.held(), usage.limit);
        if held.checked_add(bytes).is_none_or(|sum| sum > limit) {
            return Err(Refused::OwnerLimit { need: bytes, held, limit });
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 1_000;

    /// One row a booking, added up each time.
    #[derive(Clone, Copy, PartialEq)]
    enum Row {
        Memory(Option<usize>, u64),
        Activations(usize, u64),
        Spare(u64),
    }

    fn sum(rows: &[Row], of: impl Fn(&Row) -> u64) -> u64 {
        rows.iter().map(of).sum()
    }

    fn memory(row: &Row) -> u64 {
        if let Row::Memory(_, bytes) | Row::Spare(bytes) = row { *bytes } else { 0 }
    }

    fn held_by(owner: usize) -> impl Fn(&Row) -> u64 {
        move |row| match row {
            Row::Memory(Some(who), bytes) | Row::Activations(who, bytes) if *who == owner => *bytes,
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn sums_are_exact_limits_hold_and_nothing_stays(
            limits in prop::collection::vec(1..LIMIT, 1..4),
            steps in prop::collection::vec((0..6_u8, any::<prop::sample::Index>(), 1..400_u64), 1..80),
        ) {
            let mut accounts = Accounts::new(LIMIT);
            let owners: Vec<OwnerId> = limits.iter().map(|limit| accounts.open(*limit)).collect();
            let mut rows = Vec::new();
            for (kind, which, bytes) in steps {
                let owner = which.index(owners.len());
                let fits_owner = sum(&rows, held_by(owner)) + bytes <= limits[owner];
                let fits_device = sum(&rows, memory) + bytes <= LIMIT;
                match kind {
                    0 => {
                        let fits = fits_owner && fits_device;
                        prop_assert_eq!(accounts.map(Some(owners[owner]), bytes).is_ok(), fits);
                        rows.extend(fits.then_some(Row::Memory(Some(owner), bytes)));
                    }
                    1 => {
                        prop_assert_eq!(accounts.map(None, bytes).is_ok(), fits_device);
                        rows.extend(fits_device.then_some(Row::Memory(None, bytes)));
                    }
                    2 => {
                        prop_assert_eq!(accounts.add_activations(owners[owner], bytes).is_ok(), fits_owner);
                        rows.extend(fits_owner.then_some(Row::Activations(owner, bytes)));
                    }
                    3 if fits_device => {
                        accounts.add_spare(bytes);
                        rows.push(Row::Spare(bytes));
                    }
                    _ if !rows.is_empty() => match rows.swap_remove(which.index(rows.len())) {
                        Row::Memory(who, bytes) => accounts.unmap(who.map(|who| owners[who]), bytes),
                        Row::Activations(who, bytes) => accounts.remove_activations(owners[who], bytes),
                        Row::Spare(bytes) => accounts.remove_spare(bytes),
                    },
                    _ => {}
                }
                prop_assert_eq!(accounts.device().memory, sum(&rows, memory));
                prop_assert_eq!(accounts.device().weights, sum(&rows, |row| match row {
                    Row::Memory(Some(_), bytes) => *bytes,
                    _ => 0,
                }));
                for (index, owner) in owners.iter().enumerate() {
                    let usage = accounts.owner(*owner).unwrap();
                    prop_assert_eq!(usage.held(), sum(&rows, held_by(index)));
                    prop_assert!(usage.held() <= limits[index] && usage.activations <= usage.activations_peak);
                }
            }
            for (index, owner) in owners.iter().enumerate() {
                prop_assert_eq!(accounts.close(*owner).unwrap().held(), sum(&rows, held_by(index)));
            }
            let shared = |row: &Row| if matches!(row, Row::Memory(Some(_), _)) { 0 } else { memory(row) };
            prop_assert_eq!(accounts.device().memory, sum(&rows, shared));
        }
    }

    #[test]
    fn refusals_name_their_numbers() {
        let mut accounts = Accounts::new(100);
        let owner = accounts.open(50);
        accounts.map(Some(owner), 40).unwrap();
        let text = |refused: Result<(), Refused>| refused.unwrap_err().to_string();
        assert_eq!(
            text(accounts.add_activations(owner, 11)),
            "11 bytes more than the 40 it holds would pass its limit of 50 bytes"
        );
        assert_eq!(text(accounts.map(None, 61)), "61 bytes are asked for and 60 of 100 are free");
        accounts.close(owner);
        assert_eq!(accounts.map(Some(owner), 1), Err(Refused::NoOwner));
        accounts.unmap(Some(owner), 40);
        assert_eq!(accounts.device().memory, 0, "what a closed account held is not taken off twice");
    }

    #[test]
    fn weights_are_counted_beside_the_memory_below_them() {
        let mut accounts = Accounts::new(100);
        let owner = accounts.open(100);
        accounts.map(Some(owner), 64).unwrap();
        accounts.add_weights(owner, 10);
        accounts.add_weights(owner, 20);
        accounts.remove_weights(owner, 10);
        let usage = accounts.owner(owner).unwrap();
        assert_eq!((usage.weights, usage.weight_memory), (20, 64));
    }

    #[test]
    fn a_limit_that_is_raised_lets_more_in() {
        let mut accounts = Accounts::new(100);
        let owner = accounts.open(10);
        assert!(accounts.map(Some(owner), 11).is_err());
        accounts.set_limit(owner, 20);
        assert!(accounts.map(Some(owner), 11).is_ok());
    }
}
