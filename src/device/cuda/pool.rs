//! A device's memory, handed out to owners: weights on memory of their own, runs on memory that the owners of a stream
//! share.
//!
//! *Rules.* Weights of an owner lie in a range of addresses of its own, so that they can lose their memory and get it back.
//! Blocks of runs lie in a range per stream: a freed block is given to the next run of that stream at once, whoever's it
//! is, since the stream does one after the other. Memory is unmapped only after the device was waited for (`trim`, an
//! owner's end, sleep), never by a free. No driver call is made under a lock that another model's run takes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::accounts::{DeviceUsage, OwnerId, OwnerUsage, Refused};
use super::arena::Part;
use super::context::Context;
use super::owner::{Kind, Owner};
use super::purse::Purse;
use super::region::{Backed, Region, State};
use super::virtual_memory::{Mapping, PhysicalBytes, Reservation};
use crate::error::{Error, ErrorKind, Result};

/// How a pool is cut.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// What may be taken of the device, in bytes.
    pub memory: u64,
    /// What may stay taken while nobody uses it, in bytes: so that who comes does not ask the driver for what who went
    /// gave back. `trim` gives it back.
    pub spare: u64,
    /// The largest piece that is mapped at once, in bytes; rounded up to the device's granularity. Large pieces make few
    /// calls, small ones leave less unused.
    pub piece: u64,
}

impl PoolLimits {
    /// 32 MiB: a copy of it takes a millisecond, mapping it some tens of microseconds.
    pub const PIECE: u64 = 32 << 20;
}

/// Asked for room when there is none: so many bytes are lacking. Frees what it can of this device, in the meantime holds
/// no lock of the pool, and says whether to try again.
pub type MakeRoom = Box<dyn Fn(u64) -> bool + Send + Sync>;

/// The memory of a device.
pub struct VramPool {
    context: Arc<Context>,
    limits: PoolLimits,
    purse: Mutex<Purse>,
    /// Every region by its first address.
    regions: RwLock<BTreeMap<u64, Arc<Region>>>,
    /// Scratch by stream.
    scratch: Mutex<HashMap<usize, Arc<Region>>>,
    make_room: OnceLock<MakeRoom>,
}

impl fmt::Debug for VramPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VramPool").field("device", &self.context.id()).field("usage", &self.usage()).finish()
    }
}

impl VramPool {
    /// A pool that holds nothing yet.
    #[must_use]
    pub fn new(context: &Arc<Context>, limits: PoolLimits) -> Arc<Self> {
        let piece = limits.piece.max(1).next_multiple_of(context.granularity());
        Arc::new(Self {
            context: Arc::clone(context),
            limits: PoolLimits { piece, ..limits },
            purse: Mutex::new(Purse::new(limits.memory, limits.spare)),
            regions: RwLock::default(),
            scratch: Mutex::default(),
            make_room: OnceLock::new(),
        })
    }

    /// Registers who is asked for room. Once; later calls change nothing.
    pub fn on_shortage(&self, make_room: MakeRoom) {
        let _registered_before = self.make_room.set(make_room);
    }

    /// The device.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// What the device holds.
    #[must_use]
    pub fn usage(&self) -> DeviceUsage {
        self.purse.lock().accounts.device()
    }

    /// Opens an owner, called `name` in errors, that may hold `limit` bytes.
    ///
    /// # Errors
    /// As the driver says.
    pub fn owner(self: &Arc<Self>, name: &str, limit: u64) -> Result<Arc<Owner>> {
        // Addresses cost nothing, and with twice as many as memory none are lacking for want of a hole that is large enough.
        self.owner_within(name, limit, limit.min(self.limits.memory).saturating_mul(2))
    }

    /// The same with so many bytes of addresses, for one whose limit may be raised.
    ///
    /// # Errors
    /// As the driver says.
    pub fn owner_within(self: &Arc<Self>, name: &str, limit: u64, addresses: u64) -> Result<Arc<Owner>> {
        let addresses = addresses.max(1);
        let reservation = Reservation::new(&self.context, addresses)?;
        let id = self.purse.lock().accounts.open(limit);
        let weights = self.enter(reservation, Some(id));
        Ok(Arc::new(Owner::new(Arc::clone(self), id, name.to_owned(), weights)))
    }

    /// Gives back all that nobody uses, after the device's work is done. Blocking; waits for all runs on the device.
    ///
    /// # Errors
    /// As the driver says; what could be given back before is.
    pub fn trim(&self) -> Result<()> {
        let regions: Vec<Arc<Region>> = self.regions.read().values().cloned().collect();
        let idle: Vec<_> = regions
            .into_iter()
            .filter_map(|region| {
                let idle: Vec<_> = region.inner.lock().arena.idle().collect();
                (!idle.is_empty()).then_some((region, idle))
            })
            .collect();
        if !idle.is_empty() {
            // Whatever used that memory was asked for before it was seen to be idle.
            self.context.synchronize()?;
        }
        for (region, idle) in idle {
            let mut backed = region.inner.lock();
            for seen in idle {
                if backed.arena.is_still(&seen) && matches!(backed.state, State::Awake) {
                    self.unmap(&region, &mut backed, seen.part)?;
                    backed.arena.forget(seen.part);
                }
            }
        }
        self.release_spare();
        Ok(())
    }

    /// Gives back what is spare. Cheap: waits for nothing.
    pub fn release_spare(&self) {
        let spare = self.purse.lock().empty();
        drop(spare);
    }

    /// Whether an address is of this pool, and then what is there is freed.
    pub fn free(&self, address: u64) -> bool {
        let region = self.regions.read().range(..=address).next_back().map(|(_, region)| Arc::clone(region));
        let Some(region) = region.filter(|region| region.holds(address)) else { return false };
        let mut backed = region.inner.lock();
        let offset = address - region.reservation.address();
        let Some(len) = backed.arena.free(offset) else { return false };
        let holder = backed.holders.remove(&offset);
        drop(backed);
        let mut purse = self.purse.lock();
        match (region.owner, holder) {
            (Some(owner), _) => purse.accounts.remove_weights(owner, len),
            (None, Some(owner)) => purse.accounts.remove_activations(owner, len),
            (None, None) => {}
        }
        true
    }

    pub(super) fn allocate(&self, owner: &Owner, kind: Kind, bytes: u64) -> Result<u64> {
        let region = match kind {
            Kind::Weights => Arc::clone(owner.region()),
            Kind::Activations { stream } => self.scratch(stream)?,
        };
        let place = || self.place(&region, owner.id(), bytes);
        let mut placed = self.with_room(bytes, place);
        if let Some(Refused::OwnerLimit { need, held, limit }) = placed.as_ref().err().and_then(refused)
            && owner.asks_for_more(held.saturating_add(need).saturating_sub(limit))
        {
            placed = self.with_room(bytes, place);
        }
        placed.map_err(|error| {
            error.wrap(format!("model '{}' gets no {bytes} bytes of {}", owner.name(), self.context.id()))
        })
    }

    pub(super) fn set_owner_limit(&self, owner: OwnerId, bytes: u64) {
        self.purse.lock().accounts.set_limit(owner, bytes);
    }

    /// Does what needs memory; where the device has none, after spare memory was given back, and once more after room was
    /// asked for.
    pub(super) fn with_room<T>(&self, bytes: u64, work: impl Fn() -> Result<T>) -> Result<T> {
        let is_short = |error: &Error| error.kind() == ErrorKind::OutOfDeviceMemory && error.is_retryable();
        let first = work();
        if !first.as_ref().is_err_and(is_short) {
            return first;
        }
        self.release_spare();
        let second = work();
        if !second.as_ref().is_err_and(is_short) {
            return second;
        }
        if self.make_room.get().is_some_and(|make_room| make_room(bytes)) { work() } else { second }
    }

    fn place(&self, region: &Region, owner: OwnerId, bytes: u64) -> Result<u64> {
        let mut backed = region.inner.lock();
        if !matches!(backed.state, State::Awake) {
            return Err(Error::not_ready("it is asleep"));
        }
        let Some(placement) = backed.arena.place(bytes) else {
            let text = format!("no {bytes} bytes of addresses are left in one piece");
            return Err(Error::new(ErrorKind::OutOfDeviceMemory, text).with_retryable(false));
        };
        let block = placement.block;
        let mut booked = Ok(());
        if region.owner.is_none() {
            booked = self.purse.lock().accounts.add_activations(owner, block.len).map_err(refuse);
        }
        let mut mapped = Vec::new();
        let outcome = booked.and_then(|()| {
            for part in &placement.missing {
                self.map(region, &mut backed, *part).inspect_err(|_error| {
                    if region.owner.is_none() {
                        self.purse.lock().accounts.remove_activations(owner, block.len);
                    }
                })?;
                mapped.push(*part);
            }
            Ok(())
        });
        if let Err(error) = outcome {
            backed.arena.free(block.offset);
            for part in &placement.missing {
                // Nothing was done on it yet. What cannot be unmapped stays, idle, for the next block.
                if !mapped.contains(part) || self.unmap(region, &mut backed, *part).is_ok() {
                    backed.arena.forget(*part);
                }
            }
            return Err(error);
        }
        match region.owner {
            Some(owner) => self.purse.lock().accounts.add_weights(owner, block.len),
            None => drop(backed.holders.insert(block.offset, owner)),
        }
        Ok(region.reservation.address() + block.offset)
    }

    /// Maps memory below an extent and books it.
    pub(super) fn map(&self, region: &Region, backed: &mut Backed, part: Part) -> Result<()> {
        let spare = self.purse.lock().take(region.owner, part.len).map_err(refuse)?;
        let physical = spare.map_or_else(|| PhysicalBytes::new(&self.context, part.len), Ok);
        let mapping = physical.and_then(|physical| Mapping::new(&region.reservation, part.offset, physical));
        let mapping = mapping.inspect_err(|_error| self.purse.lock().accounts.unmap(region.owner, part.len))?;
        backed.mappings.insert(part.offset, mapping);
        Ok(())
    }

    /// Takes the memory from below an extent, on which the device's work is done.
    pub(super) fn unmap(&self, region: &Region, backed: &mut Backed, part: Part) -> Result<()> {
        let Some(mapping) = backed.mappings.remove(&part.offset) else { return Ok(()) };
        match mapping.unmap() {
            Ok(physical) => {
                self.give_back(region, physical);
                Ok(())
            }
            Err((mapping, error)) => {
                backed.mappings.insert(part.offset, mapping);
                Err(error)
            }
        }
    }

    /// Takes memory that is mapped no more off its account; it is spare or the driver's then.
    pub(super) fn give_back(&self, region: &Region, physical: PhysicalBytes) {
        let surplus = self.purse.lock().put(region.owner, physical);
        drop(surplus);
    }

    /// Takes memory off its account that the driver has again.
    pub(super) fn unbook(&self, region: &Region, len: u64) {
        self.purse.lock().accounts.unmap(region.owner, len);
    }

    pub(super) fn owner_usage(&self, owner: OwnerId) -> OwnerUsage {
        self.purse.lock().accounts.owner(owner).unwrap_or_default()
    }

    /// Takes everything that an owner holds, and says what it had not freed by itself.
    pub(super) fn end(&self, owner: OwnerId, weights: &Region) -> OwnerUsage {
        self.regions.write().remove(&weights.reservation.address());
        // Where that fails the device is lost, and nothing runs on it.
        let _lost = self.context.synchronize();
        let scratch: Vec<Arc<Region>> = self.scratch.lock().values().cloned().collect();
        for region in scratch {
            let mut backed = region.inner.lock();
            let of_owner: Vec<u64> =
                backed.holders.extract_if(|_, holder| *holder == owner).map(|(at, _)| at).collect();
            for offset in of_owner {
                backed.arena.free(offset);
            }
        }
        let mut backed = weights.inner.lock();
        weights.settle(&mut backed, State::Dropped);
        let extents: Vec<Part> = backed.arena.extents().collect();
        for part in extents {
            // What cannot be unmapped is tried once more, and logged, by its drop.
            let _kept = self.unmap(weights, &mut backed, part);
        }
        backed.mappings.clear();
        drop(backed);
        self.purse.lock().accounts.close(owner).unwrap_or_default()
    }

    /// The scratch of a stream.
    fn scratch(&self, stream: usize) -> Result<Arc<Region>> {
        if let Some(region) = self.scratch.lock().get(&stream) {
            return Ok(Arc::clone(region));
        }
        // Not under the lock; who comes second drops theirs.
        let reservation = Reservation::new(&self.context, self.limits.memory.max(1))?;
        let mut scratch = self.scratch.lock();
        if let Some(region) = scratch.get(&stream) {
            return Ok(Arc::clone(region));
        }
        let region = self.enter(reservation, None);
        scratch.insert(stream, Arc::clone(&region));
        Ok(region)
    }

    fn enter(&self, reservation: Arc<Reservation>, owner: Option<OwnerId>) -> Arc<Region> {
        let address = reservation.address();
        let region = Arc::new(Region::new(reservation, owner, self.context.granularity(), self.limits.piece));
        self.regions.write().insert(address, Arc::clone(&region));
        region
    }
}

impl Drop for VramPool {
    fn drop(&mut self) {
        // Owners hold the pool, so what is left is scratch that the last runs used.
        let _lost = self.context.synchronize();
    }
}

/// What accounts refused, where that is what went wrong.
fn refused(error: &Error) -> Option<Refused> {
    std::error::Error::source(error)?.downcast_ref::<Refused>().copied()
}

/// What accounts refuse as an error. That an owner's own limit is reached is nothing that others could make room for.
fn refuse(refused: Refused) -> Error {
    let can_change = matches!(refused, Refused::DeviceLimit { .. });
    let text = match refused {
        Refused::DeviceLimit { .. } => "the device has no such room",
        Refused::OwnerLimit { .. } => "its limit is reached",
        Refused::NoOwner => "its owner is gone",
    };
    Error::new(ErrorKind::OutOfDeviceMemory, text).with_retryable(can_change).with_source(refused)
}
