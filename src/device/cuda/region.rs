//! Addresses of one owner's weights, or of a stream's scratch, with the memory below them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::accounts::OwnerId;
use super::arena::{Arena, Part};
use super::owner::Residence;
use super::pinned::HostCopy;
use super::virtual_memory::{Mapping, Reservation};

/// A reserved range of addresses. Its lock is held while memory is mapped below it: what else goes on on the device does
/// not wait for that.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) reservation: Arc<Reservation>,
    /// Whose weights; `None` for the scratch of a stream, which all share that run on it.
    pub(super) owner: Option<OwnerId>,
    pub(super) inner: Mutex<Backed>,
    /// What `inner` says of it, to be read while a sleep or a wake holds that.
    residence: Mutex<Residence>,
}

/// What a region holds.
#[derive(Debug)]
pub(super) struct Backed {
    pub(super) arena: Arena,
    /// The extents that are mapped, by their offsets.
    pub(super) mappings: BTreeMap<u64, Mapping>,
    /// Whose blocks these are, by their offsets; scratch alone.
    pub(super) holders: HashMap<u64, OwnerId>,
    pub(super) state: State,
}

/// # Awake => Asleep => (Awake | Dropped)
#[derive(Debug)]
pub(super) enum State {
    /// All extents are mapped.
    Awake,
    /// What the runs held lies in host memory; no extent need be mapped. Where the driver took memory and would not
    /// give it back, some are.
    Asleep { copy: HostCopy, runs: Vec<Part> },
    /// What it held is gone. Its blocks can be freed and no more.
    Dropped,
}

impl Region {
    pub(super) fn new(reservation: Arc<Reservation>, owner: Option<OwnerId>, page: u64, piece: u64) -> Self {
        let arena = Arena::new(reservation.len(), page, piece);
        let inner = Backed { arena, mappings: BTreeMap::new(), holders: HashMap::new(), state: State::Awake };
        Self { reservation, owner, inner: Mutex::new(inner), residence: Mutex::new(Residence::Awake) }
    }

    /// Where its weights are, as it was last settled. Waits for no sleep or wake.
    pub(super) fn residence(&self) -> Residence {
        *self.residence.lock()
    }

    /// Changes the state of what is locked.
    pub(super) fn settle(&self, backed: &mut Backed, state: State) {
        *self.residence.lock() = match &state {
            State::Awake => Residence::Awake,
            State::Asleep { copy, .. } => Residence::Asleep { bytes: copy.len() },
            State::Dropped => Residence::Dropped,
        };
        backed.state = state;
    }

    /// Whether an address is one of its.
    pub(super) fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.reservation.address()).is_some_and(|offset| offset < self.reservation.len())
    }
}
