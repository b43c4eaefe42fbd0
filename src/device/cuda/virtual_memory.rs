//! Addresses, memory, and memory at addresses: handles whose drop gives back what they stand for.
//!
//! *Lifetime:* a [`Mapping`] holds its [`Reservation`] and its [`PhysicalBytes`], so that addresses outlive what is mapped at
//! them, and all of them hold the [`Context`]. Nobody else may touch memory that is unmapped: whoever drops a mapping has
//! waited for the device's work on it.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::sync::Arc;

use cudarc::driver::sys::{self, CUmemAllocationProp, CUmemGenericAllocationHandle};

use super::context::Context;
use crate::error::{Error, Result};

/// Memory of a device as it is asked for: pinned there, shared with nobody.
pub(super) fn properties(device: i32) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: location(device),
        win32HandleMetaData: std::ptr::null_mut(),
        // SAFETY: numbers alone, of which zero asks for nothing special.
        allocFlags: unsafe { std::mem::zeroed() },
    }
}

const fn location(id: i32) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id }
}

/// Addresses of the device without memory: a touch is an error.
#[derive(Debug)]
pub struct Reservation {
    context: Arc<Context>,
    address: u64,
    len: u64,
}

impl Reservation {
    /// Reserves `len` bytes of addresses, rounded up to the granularity.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(context: &Arc<Context>, len: u64) -> Result<Arc<Self>> {
        context.enter()?;
        let len = len.next_multiple_of(context.granularity());
        let mut address = 0;
        // SAFETY: the place lives through the call; no address is asked for by name.
        let code = unsafe { sys::cuMemAddressReserve(&raw mut address, len as usize, 0, 0, 0) };
        context.check("cuMemAddressReserve", code)?;
        Ok(Arc::new(Self { context: Arc::clone(context), address, len }))
    }

    /// The first address.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes of addresses.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Never: a reservation has one page at least.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: reserved once, freed once; mappings hold the reservation, so nothing is mapped here any more.
        let code = unsafe { sys::cuMemAddressFree(self.address, self.len as usize) };
        self.context.dropped("cuMemAddressFree", code);
    }
}

/// Memory of the device that is at no address by itself.
#[derive(Debug)]
pub struct PhysicalBytes {
    context: Arc<Context>,
    handle: CUmemGenericAllocationHandle,
    len: u64,
}

impl PhysicalBytes {
    /// Takes `len` bytes of the device, a multiple of the granularity. What they hold is not known.
    ///
    /// # Errors
    /// `OutOfDeviceMemory` where the device has none, whoever took it; else as the driver says.
    pub fn new(context: &Arc<Context>, len: u64) -> Result<Self> {
        context.enter()?;
        let (mut handle, properties) = (0, properties(context.device()));
        // SAFETY: the place and the properties live through the call.
        let code = unsafe { sys::cuMemCreate(&raw mut handle, len as usize, &raw const properties, 0) };
        context.check("cuMemCreate", code)?;
        Ok(Self { context: Arc::clone(context), handle, len })
    }

    /// How many bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Never: no memory is nothing to hold.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for PhysicalBytes {
    fn drop(&mut self) {
        // SAFETY: created once, released once; the driver keeps what is still mapped until it is not.
        let code = unsafe { sys::cuMemRelease(self.handle) };
        self.context.dropped("cuMemRelease", code);
    }
}

/// Memory at addresses of a reservation, to be read and written by the device.
#[derive(Debug)]
pub struct Mapping {
    reservation: Arc<Reservation>,
    offset: u64,
    /// There until the mapping is taken apart.
    physical: Option<PhysicalBytes>,
}

impl Mapping {
    /// Maps all of `physical` at `offset` bytes into the reservation, a multiple of the granularity.
    ///
    /// # Errors
    /// As the driver says; nothing is mapped then, and the memory is given back.
    pub fn new(reservation: &Arc<Reservation>, offset: u64, physical: PhysicalBytes) -> Result<Self> {
        let (context, len) = (&reservation.context, physical.len as usize);
        let address = reservation.address + offset;
        context.enter()?;
        // SAFETY: the addresses are reserved by us; the driver refuses what reaches beyond or is mapped already.
        context.check("cuMemMap", unsafe { sys::cuMemMap(address, len, 0, physical.handle, 0) })?;
        let mapping = Self { reservation: Arc::clone(reservation), offset, physical: Some(physical) };
        let access = sys::CUmemAccessDesc {
            location: location(context.device()),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range is what was just mapped; the description lives through the call.
        context.check("cuMemSetAccess", unsafe { sys::cuMemSetAccess(address, len, &raw const access, 1) })?;
        Ok(mapping)
    }

    /// Takes the memory away from its addresses. The device's work on it must be done.
    ///
    /// # Errors
    /// As the driver says, with the mapping, which is still there.
    pub fn unmap(mut self) -> Result<PhysicalBytes, (Self, Error)> {
        match self.take() {
            Ok(Some(physical)) => Ok(physical),
            // Only ever empty in its own drop.
            Ok(None) => Err((self, Error::internal("a mapping without memory"))),
            Err(error) => Err((self, error)),
        }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.physical.as_ref().map_or(0, PhysicalBytes::len)
    }

    /// Never: memory of no length cannot be had.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(&mut self) -> Result<Option<PhysicalBytes>> {
        let Some(physical) = &self.physical else { return Ok(None) };
        let context = &self.reservation.context;
        context.enter()?;
        // SAFETY: exactly what was mapped; the caller has waited for the device's work on it.
        let code = unsafe { sys::cuMemUnmap(self.reservation.address + self.offset, physical.len as usize) };
        context.check("cuMemUnmap", code)?;
        Ok(self.physical.take())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.take().is_err() {
            // Mapped for good: the driver keeps memory while it is mapped.
            self.reservation.context.leaked("cuMemUnmap");
        }
    }
}
