//! Sleep and wake: the memory below a model's weights is taken and given back, its addresses and so its session stay.
//!
//! # Awake => (host copy, unmap) => Asleep => (map, copy back) => Awake
//!
//! What fails half-way is undone. A sleep that fails leaves the model awake: the very memory that was unmapped is mapped
//! again. Only where the driver refuses that as well is the model asleep, with its host copy whole. A wake that fails
//! leaves it asleep with its host copy.
#![expect(unsafe_code, reason = "asks for copies, whose two sides it keeps in place until they are done")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::arena::Part;
use super::context::Context;
use super::owner::{Owner, Residence};
use super::pinned::{HostCopy, PinnedPart, PinnedPool};
use super::region::{Backed, Region, State};
use super::stream::Stream;
use super::transfer::{Piece, cut};
use super::virtual_memory::{Mapping, PhysicalBytes};
use crate::error::{Error, Result};

/// What a sleep or a wake has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that were copied; zero where there was nothing to do.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Puts the models of a device to sleep and wakes them, one after the other: they share one copy engine a direction.
#[derive(Debug)]
pub struct Sleeper {
    stream: Stream,
    pinned: Arc<PinnedPool>,
    turn: Mutex<()>,
}

impl Sleeper {
    /// One for the models of `context`, over a pool of locked memory that others may share.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(context: &Arc<Context>, pinned: &Arc<PinnedPool>) -> Result<Self> {
        Ok(Self { stream: Stream::new(context, 0)?, pinned: Arc::clone(pinned), turn: Mutex::new(()) })
    }

    /// Copies an owner's weights to host memory and takes the memory from below them. No run of the owner may be on its
    /// way or begin meanwhile. Waits for the device. Blocking.
    ///
    /// # Errors
    /// `OutOfDeviceMemory` where there is no locked memory for the copy; `NotReady` where the host copy was dropped; else as
    /// the driver says. [`Owner::residence`] tells where the weights are then.
    pub fn sleep(&self, owner: &Owner) -> Result<Moved> {
        let begun = Instant::now();
        let _turn = self.turn.lock();
        let region = owner.region();
        let mut backed = region.inner.lock();
        match backed.state {
            State::Awake => {}
            State::Asleep { .. } => return Ok(Moved::default()),
            State::Dropped => return Err(dropped(owner)),
        }
        let failed = |error: Error| error.wrap(format!("model '{}' cannot be put to sleep", owner.name()));
        let runs = backed.arena.runs();
        let copy = self.pinned.take(runs.iter().map(|run| run.len).sum()).map_err(failed)?;
        let bytes = copy.len();
        // What runs and loads have written on other streams.
        self.stream.context().synchronize().map_err(failed)?;
        let asked = self.ask(region, &pieces(&backed, &runs, &copy), &copy, Direction::ToHost);
        match self.settle() {
            Settled::Done => asked.map_err(failed)?,
            Settled::Failed(error) => return Err(failed(asked.err().unwrap_or(error))),
            Settled::Unknown(error) => {
                // The device may still write there: that memory is nobody's any more.
                std::mem::forget(copy);
                return Err(failed(error));
            }
        }
        match unmap_all(&mut backed) {
            Ok(memory) => {
                region.settle(&mut backed, State::Asleep { copy, runs });
                for physical in memory {
                    owner.pool().give_back(region, physical);
                }
                Ok(Moved { bytes, took: begun.elapsed() })
            }
            Err((taken, error)) => {
                for (offset, physical) in taken {
                    let len = physical.len();
                    match Mapping::new(&region.reservation, offset, physical) {
                        Ok(mapping) => drop(backed.mappings.insert(offset, mapping)),
                        // The driver has that memory again; what was in it is in the host copy.
                        Err(_again) => owner.pool().unbook(region, len),
                    }
                }
                if backed.mappings.len() < backed.arena.extents().count() {
                    region.settle(&mut backed, State::Asleep { copy, runs });
                }
                Err(failed(error))
            }
        }
    }

    /// Puts memory below an owner's weights, copies them back, and drops the host copy. Asks for room once where the device
    /// has none. Blocking.
    ///
    /// # Errors
    /// `OutOfDeviceMemory` where there is no room; `NotReady` where the host copy was dropped; else as the driver says. The
    /// owner is asleep then, as before.
    pub fn wake(&self, owner: &Owner) -> Result<Moved> {
        let begun = Instant::now();
        let bytes = if let Residence::Asleep { bytes } = owner.residence() { bytes } else { 0 };
        let woken = owner.pool().with_room(bytes, || self.try_wake(owner));
        let bytes = woken.map_err(|error| error.wrap(format!("model '{}' cannot be woken", owner.name())))?;
        Ok(if bytes == 0 { Moved::default() } else { Moved { bytes, took: begun.elapsed() } })
    }

    fn try_wake(&self, owner: &Owner) -> Result<u64> {
        let _turn = self.turn.lock();
        let region = owner.region();
        let mut backed = region.inner.lock();
        let (copy, runs) = match std::mem::replace(&mut backed.state, State::Dropped) {
            State::Asleep { copy, runs } => (copy, runs),
            State::Awake => {
                backed.state = State::Awake;
                return Ok(0);
            }
            State::Dropped => return Err(dropped(owner)),
        };
        if backed.mappings.is_empty() {
            backed.arena.reshape();
        }
        let mut fresh = Vec::new();
        let filled = self.fill(owner, &mut backed, (&copy, &runs), &mut fresh);
        // Also where it failed: what was asked for ends before its memory goes.
        let settled = self.settle();
        if matches!(settled, Settled::Unknown(_)) {
            fresh.clear();
        }
        match filled.and(settled.into_result()) {
            Ok(()) => {
                region.settle(&mut backed, State::Awake);
                Ok(copy.len())
            }
            Err(error) => {
                for part in fresh {
                    // What cannot be unmapped stays there, and is used by the next wake.
                    let _kept = owner.pool().unmap(region, &mut backed, part);
                }
                backed.state = State::Asleep { copy, runs };
                Err(error)
            }
        }
    }

    /// Maps extents in order, and asks for the copies into each as soon as it is there, so that mapping and copying
    /// overlap.
    fn fill(
        &self,
        owner: &Owner,
        backed: &mut Backed,
        (copy, runs): (&HostCopy, &[Part]),
        fresh: &mut Vec<Part>,
    ) -> Result<()> {
        let region = owner.region();
        let pieces = pieces(backed, runs, copy);
        let mut rest = pieces.as_slice();
        let extents: Vec<Part> = backed.arena.extents().collect();
        for extent in extents {
            if !backed.mappings.contains_key(&extent.offset) {
                owner.pool().map(region, backed, extent)?;
                fresh.push(extent);
            }
            let (here, later) = rest.split_at(rest.partition_point(|piece| piece.offset < extent.end()));
            self.ask(region, here, copy, Direction::ToDevice)?;
            rest = later;
        }
        Ok(())
    }

    /// Waits for the copies.
    fn settle(&self) -> Settled {
        match self.stream.synchronize() {
            Ok(()) => Settled::Done,
            // Once more, and for everything: as long as copies may be on their way, their memory stays.
            Err(error) if self.stream.context().synchronize().is_ok() => Settled::Failed(error),
            Err(error) => Settled::Unknown(error),
        }
    }

    fn ask(&self, region: &Region, pieces: &[Piece], copy: &HostCopy, direction: Direction) -> Result<()> {
        let parts: Vec<PinnedPart> = copy.parts().collect();
        for piece in pieces {
            let host = parts[piece.part].sub(piece.at, piece.len);
            let device = region.reservation.address() + piece.offset;
            // SAFETY: the piece lies within one extent, which is mapped, and within one part of the copy, which nobody else
            // touches; both stay until the caller, who holds the region's lock, has waited for the stream.
            unsafe {
                match direction {
                    Direction::ToHost => self.stream.copy_to_host(host, device)?,
                    Direction::ToDevice => self.stream.copy_to_device(device, host)?,
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Direction {
    ToHost,
    ToDevice,
}

/// What is known of copies that were waited for.
enum Settled {
    Done,
    /// They are over, and something went wrong.
    Failed(Error),
    /// Nothing: the device is lost.
    Unknown(Error),
}

impl Settled {
    fn into_result(self) -> Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Failed(error) | Self::Unknown(error) => Err(error),
        }
    }
}

fn pieces(backed: &Backed, runs: &[Part], copy: &HostCopy) -> Vec<Piece> {
    let host: Vec<usize> = copy.parts().map(|part| part.len).collect();
    cut(runs, &host, &backed.arena.extents().collect::<Vec<_>>())
}

type Taken = Vec<(u64, PhysicalBytes)>;

/// Unmaps every extent. Where one cannot be, what was unmapped before it, which still holds what it held.
fn unmap_all(backed: &mut Backed) -> Result<Vec<PhysicalBytes>, (Taken, Error)> {
    let mut taken = Vec::new();
    while let Some((offset, mapping)) = backed.mappings.pop_first() {
        match mapping.unmap() {
            Ok(physical) => taken.push((offset, physical)),
            Err((mapping, error)) => {
                backed.mappings.insert(offset, mapping);
                return Err((taken, error));
            }
        }
    }
    Ok(taken.into_iter().map(|(_, physical)| physical).collect())
}

fn dropped(owner: &Owner) -> Error {
    Error::not_ready(format!("the weights of model '{}' were dropped: it has to be loaded again", owner.name()))
}
