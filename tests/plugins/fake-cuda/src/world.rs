//! All that the double knows, behind one lock.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::os::fd::OwnedFd;

use crate::control::Usage;
use crate::stream::{Event, Stream};
use crate::system;

/// A code of `CUresult`.
pub(crate) type Code = c_int;

pub(crate) const INVALID_VALUE: Code = 1;
pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const NO_DEVICE: Code = 100;
pub(crate) const INVALID_DEVICE: Code = 101;
pub(crate) const INVALID_CONTEXT: Code = 201;
pub(crate) const MAP_FAILED: Code = 205;
pub(crate) const ALREADY_MAPPED: Code = 208;
pub(crate) const INVALID_HANDLE: Code = 400;
pub(crate) const NOT_FOUND: Code = 500;
pub(crate) const NOT_READY: Code = 600;
pub(crate) const ILLEGAL_ADDRESS: Code = 700;
pub(crate) const NOT_SUPPORTED: Code = 801;

/// What physical memory, mappings and reservations are multiples of.
pub(crate) const GRANULARITY: usize = 2 << 20;

thread_local! {
    /// The device of the calling thread's context.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

pub(crate) fn current() -> Option<usize> {
    CURRENT.get()
}

pub(crate) fn set_current(device: Option<usize>) {
    CURRENT.set(device);
}

#[derive(Default)]
pub(crate) struct Device {
    pub(crate) total: u64,
    /// Taken by this process.
    pub(crate) used: u64,
    /// Taken by other processes.
    pub(crate) others: u64,
    /// How often the primary context is held.
    pub(crate) held: u32,
    /// What every call answers once the device is lost, or once work on it went wrong.
    pub(crate) broken: Code,
}

/// Physical memory: gone when it is neither held by its handle nor mapped.
pub(crate) struct Physical {
    pub(crate) len: usize,
    pub(crate) device: usize,
    memory: OwnedFd,
    held: bool,
    mapped: u32,
}

pub(crate) struct Mapping {
    pub(crate) len: usize,
    handle: u64,
    /// Whether access was given.
    pub(crate) open: bool,
}

/// What `cuMemAlloc` gave, or what another process shares.
pub(crate) struct Plain {
    pub(crate) len: usize,
    pub(crate) device: usize,
    pub(crate) memory: Option<OwnedFd>,
}

pub(crate) struct Fault {
    pub(crate) symbol: String,
    /// Which of the calls from now on; 0 for each.
    pub(crate) nth: u64,
    pub(crate) code: Code,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) devices: Vec<Device>,
    pub(crate) version: c_int,
    pub(crate) faults: Vec<Fault>,
    pub(crate) calls: BTreeMap<&'static str, u64>,
    pub(crate) physical: HashMap<u64, Physical>,
    pub(crate) reservations: BTreeMap<usize, usize>,
    pub(crate) mappings: BTreeMap<usize, Mapping>,
    pub(crate) plain: BTreeMap<usize, Plain>,
    pub(crate) pinned: BTreeMap<usize, usize>,
    pub(crate) streams: HashMap<usize, Stream>,
    pub(crate) events: HashMap<usize, Event>,
    /// Others count the devices from the last.
    pub(crate) backwards: bool,
    /// Work is done when somebody waits for it, not when it is asked for.
    pub(crate) lazy: bool,
    /// Nanoseconds that a KiB takes to copy.
    pub(crate) slowness: u64,
    pub(crate) usage: Option<Usage>,
    pub(crate) last_handle: u64,
}

impl World {
    pub(crate) fn new_handle(&mut self) -> u64 {
        self.last_handle += 1;
        // No small number, so that a handle is never taken for an index.
        0x1000 + self.last_handle * 16
    }

    /// Counts a call and lets it fail if it is to.
    pub(crate) fn begin(&mut self, name: &'static str) -> Result<(), Code> {
        *self.calls.entry(name).or_default() += 1;
        let mut failure = None;
        self.faults.retain_mut(|fault| {
            if fault.symbol != name || failure.is_some() {
                return true;
            }
            match fault.nth {
                0 => failure = Some(fault.code),
                1 => {
                    failure = Some(fault.code);
                    return false;
                }
                _ => fault.nth -= 1,
            }
            true
        });
        match failure {
            Some(code) => Err(code),
            None => current().and_then(|device| self.devices.get(device)).map_or(Ok(()), Device::sound),
        }
    }

    pub(crate) fn device(&mut self, index: c_int) -> Result<&mut Device, Code> {
        usize::try_from(index).ok().and_then(|index| self.devices.get_mut(index)).ok_or(INVALID_DEVICE)
    }

    /// The device of the calling thread's context.
    pub(crate) fn here(&self) -> Result<usize, Code> {
        let device = current().ok_or(INVALID_CONTEXT)?;
        let held = self.devices.get(device).is_some_and(|device| device.held > 0);
        held.then_some(device).ok_or(INVALID_CONTEXT)
    }

    fn take(&mut self, device: usize, len: usize) -> Result<(), Code> {
        let device = self.devices.get_mut(device).ok_or(INVALID_DEVICE)?;
        if len as u64 > device.free() {
            return Err(OUT_OF_MEMORY);
        }
        device.used += len as u64;
        self.publish();
        Ok(())
    }

    fn give(&mut self, device: usize, len: usize) {
        if let Some(device) = self.devices.get_mut(device) {
            device.used -= len as u64;
        }
        self.publish();
    }

    /// Tells the double of NVML.
    pub(crate) fn publish(&self) {
        if let Some(usage) = &self.usage {
            usage.publish(&self.devices, self.backwards);
        }
    }

    // === Virtual memory ===

    pub(crate) fn reserve(&mut self, len: usize, align: usize) -> Result<usize, Code> {
        if len == 0 || !len.is_multiple_of(GRANULARITY) || !(align == 0 || align.is_power_of_two()) {
            return Err(INVALID_VALUE);
        }
        let at = system::reserve(len, align.max(GRANULARITY)).ok_or(OUT_OF_MEMORY)?;
        self.reservations.insert(at, len);
        Ok(at)
    }

    pub(crate) fn free_addresses(&mut self, at: usize, len: usize) -> Result<(), Code> {
        let is_whole = self.reservations.get(&at) == Some(&len);
        if !is_whole || self.mappings.range(at..at + len).next().is_some() {
            return Err(INVALID_VALUE);
        }
        self.reservations.remove(&at);
        system::give_back(at, len);
        Ok(())
    }

    pub(crate) fn create(&mut self, len: usize, device: c_int) -> Result<u64, Code> {
        self.device(device)?.sound()?;
        let device = device as usize;
        if len == 0 || !len.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        self.take(device, len)?;
        let Some(memory) = system::memory(len) else {
            self.give(device, len);
            return Err(OUT_OF_MEMORY);
        };
        let handle = self.new_handle();
        self.physical.insert(handle, Physical { len, device, memory, held: true, mapped: 0 });
        Ok(handle)
    }

    pub(crate) fn release(&mut self, handle: u64) -> Result<(), Code> {
        let physical = self.physical.get_mut(&handle).filter(|physical| physical.held).ok_or(INVALID_VALUE)?;
        physical.held = false;
        self.settle(handle);
        Ok(())
    }

    fn settle(&mut self, handle: u64) {
        let is_over = |physical: &Physical| !physical.held && physical.mapped == 0;
        if self.physical.get(&handle).is_some_and(is_over)
            && let Some(gone) = self.physical.remove(&handle)
        {
            self.give(gone.device, gone.len);
        }
    }

    pub(crate) fn map(&mut self, at: usize, len: usize, offset: usize, handle: u64) -> Result<(), Code> {
        let reserved = self.reservations.range(..=at).next_back();
        let inside = reserved.is_some_and(|(start, size)| at + len <= start + size);
        let physical = self.physical.get_mut(&handle).filter(|physical| physical.held).ok_or(INVALID_VALUE)?;
        if !inside || offset != 0 || len != physical.len || !at.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        let before = self.mappings.range(..at).next_back();
        if before.is_some_and(|(start, old)| start + old.len > at) || self.mappings.range(at..at + len).next().is_some()
        {
            return Err(ALREADY_MAPPED);
        }
        if !system::map_at(at, len, &physical.memory) {
            return Err(MAP_FAILED);
        }
        physical.mapped += 1;
        self.mappings.insert(at, Mapping { len, handle, open: false });
        Ok(())
    }

    /// The mappings that make up a range, if they do, whole and without a gap.
    fn exact(&self, at: usize, len: usize) -> Result<Vec<usize>, Code> {
        let mut end = at;
        let mut found = Vec::new();
        for (start, mapping) in self.mappings.range(at..at + len) {
            if *start != end {
                return Err(INVALID_VALUE);
            }
            found.push(*start);
            end += mapping.len;
        }
        if end == at + len { Ok(found) } else { Err(INVALID_VALUE) }
    }

    pub(crate) fn unmap(&mut self, at: usize, len: usize) -> Result<(), Code> {
        for start in self.exact(at, len)? {
            let Some(mapping) = self.mappings.remove(&start) else { continue };
            system::unmap(start, mapping.len);
            if let Some(physical) = self.physical.get_mut(&mapping.handle) {
                physical.mapped -= 1;
            }
            self.settle(mapping.handle);
        }
        Ok(())
    }

    pub(crate) fn open(&mut self, at: usize, len: usize) -> Result<(), Code> {
        for start in self.exact(at, len)? {
            let Some(mapping) = self.mappings.get_mut(&start) else { continue };
            if !system::open(start, mapping.len) {
                return Err(MAP_FAILED);
            }
            mapping.open = true;
        }
        Ok(())
    }

    /// Whether all bytes of a range are device memory that may be touched.
    pub(crate) fn is_device_memory(&self, at: usize, len: usize) -> bool {
        let end = at + len;
        if self.plain.range(..=at).next_back().is_some_and(|(start, plain)| end <= start + plain.len) {
            return true;
        }
        let mut next = at;
        while next < end {
            match self.mappings.range(..=next).next_back() {
                Some((start, mapping)) if mapping.open && next < start + mapping.len => next = start + mapping.len,
                _ => return false,
            }
        }
        true
    }

    pub(crate) fn is_pinned(&self, at: usize, len: usize) -> bool {
        self.pinned.range(..=at).next_back().is_some_and(|(start, size)| at + len <= start + size)
    }

    // === Plain memory ===

    pub(crate) fn allocate(&mut self, len: usize) -> Result<usize, Code> {
        let device = self.here()?;
        if len == 0 {
            return Err(INVALID_VALUE);
        }
        self.take(device, len)?;
        let mapped = system::memory(len).and_then(|memory| Some((system::map_anywhere(len, &memory)?, memory)));
        let Some((at, memory)) = mapped else {
            self.give(device, len);
            return Err(OUT_OF_MEMORY);
        };
        self.plain.insert(at, Plain { len, device, memory: Some(memory) });
        Ok(at)
    }

    /// `shared`: it is another process's, and is only closed here.
    pub(crate) fn free(&mut self, at: usize, shared: bool) -> Result<(), Code> {
        if self.plain.get(&at).is_none_or(|plain| plain.memory.is_none() != shared) {
            return Err(INVALID_VALUE);
        }
        self.finish_all();
        if let Some(plain) = self.plain.remove(&at) {
            system::give_back(at, plain.len);
            if !shared {
                self.give(plain.device, plain.len);
            }
        }
        Ok(())
    }

    pub(crate) fn allocate_host(&mut self, len: usize) -> Result<usize, Code> {
        self.here()?;
        if len == 0 {
            return Err(INVALID_VALUE);
        }
        let at = system::memory(len).and_then(|memory| system::map_anywhere(len, &memory)).ok_or(OUT_OF_MEMORY)?;
        self.pinned.insert(at, len);
        Ok(at)
    }

    pub(crate) fn free_host(&mut self, at: usize) -> Result<(), Code> {
        if !self.pinned.contains_key(&at) {
            return Err(INVALID_VALUE);
        }
        self.finish_all();
        if let Some(len) = self.pinned.remove(&at) {
            system::give_back(at, len);
        }
        Ok(())
    }
}

impl Device {
    pub(crate) fn free(&self) -> u64 {
        self.total.saturating_sub(self.used + self.others)
    }

    pub(crate) fn sound(&self) -> Result<(), Code> {
        if self.broken == 0 { Ok(()) } else { Err(self.broken) }
    }
}
