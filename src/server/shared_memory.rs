//! Shared memory that clients register by name (Triton's system and CUDA shared memory extensions).
//!
//! A system region is an open descriptor of a POSIX shared memory object, never a mapping: a client that truncates a mapped
//! object kills whoever touches it (SIGBUS), and bytes that another process changes under a slice are undefined behaviour.
//! Inputs are read into a buffer of their own and outputs are written, one copy each.

pub mod cuda;
mod region;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use compact_str::CompactString;
use parking_lot::RwLock;

use self::cuda::{CudaMemory, CudaRegion, HANDLE_BYTES};
use self::region::Region;
use crate::error::{Error, Result};

/// Regions that may be registered at a time: each holds a descriptor.
pub const MAX_REGIONS: usize = 1024;
/// The longest name of a region, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;
/// What keys may not begin with: Triton's Python backend keeps its own objects under it.
const RESERVED_PREFIX: &str = "triton_python_backend_shm_region_";

/// Where a tensor lies: the parameters `shared_memory_region`, `_offset` and `_byte_size` of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// The region's name.
    pub region: CompactString,
    /// Where in the region the tensor begins, in bytes.
    pub offset: u64,
    /// The tensor's bytes; of an output, those that it may take.
    pub byte_size: u64,
}

/// A registered system region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemRegion {
    /// Its name.
    pub name: CompactString,
    /// The key of the object, as it was given.
    pub key: CompactString,
    /// Where in the object the region begins, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub byte_size: u64,
}

/// The registered regions. Cheap to clone.
#[derive(Clone)]
pub struct SharedMemory(Arc<Inner>);

struct Inner {
    allowed: bool,
    regions: RwLock<BTreeMap<CompactString, Object>>,
}

/// What is registered under a name. Closed with the last reference.
#[derive(Clone)]
enum Object {
    System(Arc<Region>),
    Cuda(Arc<CudaMemory>),
}

impl Object {
    fn byte_size(&self) -> u64 {
        match self {
            Self::System(region) => region.byte_size(),
            Self::Cuda(memory) => memory.range().byte_size(),
        }
    }
}

impl SharedMemory {
    /// No regions yet. Unless `allowed`, everything but [`SharedMemory::is_allowed`] is `Unsupported`.
    #[must_use]
    pub fn new(allowed: bool) -> Self {
        Self(Arc::new(Inner { allowed, regions: RwLock::default() }))
    }

    /// Whether clients may use shared memory.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.0.allowed
    }

    fn check_allowed(&self) -> Result<()> {
        if self.0.allowed {
            return Ok(());
        }
        Err(Error::unsupported(
            "shared memory is off here: start the server with --allow-client-shm to have clients use it",
        ))
    }

    // === system ===

    /// Registers `byte_size` bytes from `offset` of the object `key` under a name. Opens the object; blocks no longer than
    /// that.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is taken or no name, a key that is no key, and bytes that the object does not
    /// have; `TooLarge` for one region too many; `Internal` for an object that cannot be opened (Triton's 500).
    pub fn register_system(&self, name: &str, key: &str, offset: u64, byte_size: u64) -> Result<()> {
        self.check_allowed()?;
        check_name(name)?;
        let object = object_name(name, key)?;
        if self.0.regions.read().contains_key(name) {
            return Err(taken(name));
        }
        // Opened without the lock: it is the kernel's work.
        let region = Region::open(name, key, object, offset, byte_size)?;
        self.keep(name, Object::System(Arc::new(region)))
    }

    fn keep(&self, name: &str, object: Object) -> Result<()> {
        let mut regions = self.0.regions.write();
        if regions.contains_key(name) {
            return Err(taken(name));
        }
        if regions.len() >= MAX_REGIONS {
            return Err(Error::too_large(format!(
                "failed to register shared memory region '{name}': {MAX_REGIONS} regions are registered, the most there may \
                 be; unregister some"
            )));
        }
        regions.insert(name.into(), object);
        Ok(())
    }

    /// The region of this name, or all by name.
    ///
    /// # Errors
    /// `NotFound` for a name that is not registered.
    pub fn system_status(&self, name: Option<&str>) -> Result<Vec<SystemRegion>> {
        self.check_allowed()?;
        let regions = self.0.regions.read();
        let row = |(name, object): (&CompactString, &Object)| match object {
            Object::System(region) => Some(region.status(name)),
            Object::Cuda(_) => None,
        };
        let Some(name) = name else { return Ok(regions.iter().filter_map(row).collect()) };
        match regions.get_key_value(name) {
            Some(found) => row(found).map(|row| vec![row]).ok_or_else(|| {
                Error::not_found(format!(
                    "The region named '{name}' is registered as CUDA shared memory, not system shared memory"
                ))
            }),
            None => Err(Error::not_found(format!("Unable to find system shared memory region: '{name}'"))),
        }
    }

    /// Forgets the region of this name, or all. Requests that use one keep it until they end; a name that is not there is
    /// no error, as with Triton.
    ///
    /// # Errors
    /// `Unsupported` where shared memory is off.
    pub fn unregister_system(&self, name: Option<&str>) -> Result<()> {
        self.check_allowed()?;
        self.forget(name, |object| matches!(object, Object::System(_)));
        Ok(())
    }

    /// Forgets those of one kind; what is of another one stays, as with Triton.
    fn forget(&self, name: Option<&str>, is_meant: impl Fn(&Object) -> bool) {
        // Closed when the lock is free again.
        let mut closed = Vec::new();
        let mut regions = self.0.regions.write();
        match name {
            Some(name) if regions.get(name).is_some_and(&is_meant) => closed.extend(regions.remove(name)),
            Some(_) => {}
            None => closed.extend(regions.extract_if(.., |_, object| is_meant(object)).map(|(_, object)| object)),
        }
        drop(regions);
        drop(closed);
    }

    // === CUDA ===

    /// Registers `byte_size` bytes of a GPU by the 64 bytes of their `cudaIpcMemHandle_t`. Blocks as long as the driver takes,
    /// which is long the first time.
    ///
    /// # Errors
    /// `InvalidArgument` for a handle of another length or one that the driver does not take, a GPU that is not there, a name
    /// that is taken; `TooLarge` for one region too many; `Unsupported` without a CUDA driver.
    pub fn register_cuda(&self, name: &str, raw_handle: &[u8], device_id: i64, byte_size: u64) -> Result<()> {
        self.check_allowed()?;
        check_name(name)?;
        let handle: &[u8; HANDLE_BYTES] = raw_handle.try_into().map_err(|_| {
            Error::invalid(format!(
                "'raw_handle' of region '{name}' has {} bytes, a cudaIpcMemHandle_t has {HANDLE_BYTES}",
                raw_handle.len()
            ))
        })?;
        if self.0.regions.read().contains_key(name) {
            return Err(taken(name));
        }
        let memory = CudaMemory::open(name, handle, device_id, byte_size)?;
        self.keep(name, Object::Cuda(Arc::new(memory)))
    }

    /// The CUDA region of this name, or all by name.
    ///
    /// # Errors
    /// `NotFound` for a name that is not registered, or as a system region.
    pub fn cuda_status(&self, name: Option<&str>) -> Result<Vec<CudaRegion>> {
        self.check_allowed()?;
        let regions = self.0.regions.read();
        let row = |(name, object): (&CompactString, &Object)| match object {
            Object::System(_) => None,
            Object::Cuda(memory) => Some(memory.status(name)),
        };
        let Some(name) = name else { return Ok(regions.iter().filter_map(row).collect()) };
        match regions.get_key_value(name) {
            Some(found) => row(found).map(|row| vec![row]).ok_or_else(|| {
                Error::not_found(format!(
                    "The region named '{name}' is registered as system shared memory, not CUDA shared memory"
                ))
            }),
            None => Err(Error::not_found(format!("Unable to find cuda shared memory region: '{name}'"))),
        }
    }

    /// Forgets the CUDA region of this name, or all; a name that is not there is no error.
    ///
    /// # Errors
    /// `Unsupported` where shared memory is off.
    pub fn unregister_cuda(&self, name: Option<&str>) -> Result<()> {
        self.check_allowed()?;
        self.forget(name, |object| matches!(object, Object::Cuda(_)));
        Ok(())
    }

    // === tensors ===

    /// The bytes that a tensor's parameters name, held against unregistering as long as the slice lives.
    ///
    /// # Errors
    /// `NotFound` for a region that is not registered, `InvalidArgument` for bytes outside it.
    pub fn slice(&self, place: &RegionSpec) -> Result<RegionSlice> {
        self.check_allowed()?;
        let RegionSpec { region: name, offset, byte_size } = place;
        let object = self.0.regions.read().get(name).cloned();
        let Some(object) = object else {
            return Err(Error::not_found(format!("Unable to find shared memory region: '{name}'")));
        };
        let whole = object.byte_size();
        if *offset > 0 && *offset >= whole {
            return Err(Error::invalid(format!(
                "Invalid offset for shared memory region: '{name}': {offset}, the region has {whole} bytes"
            )));
        }
        if offset.checked_add(*byte_size).is_none_or(|end| end > whole) {
            return Err(Error::invalid(format!(
                "Invalid offset + byte size for shared memory region: '{name}': {offset} + {byte_size}, the region has \
                 {whole} bytes"
            )));
        }
        Ok(RegionSlice { name: name.clone(), object, offset: *offset, byte_size: *byte_size })
    }
}

/// Bytes of a region, within it when the slice was made. The object may have changed since: each use asks again.
#[derive(Clone)]
pub struct RegionSlice {
    name: CompactString,
    object: Object,
    offset: u64,
    byte_size: u64,
}

impl RegionSlice {
    /// Its bytes.
    #[must_use]
    pub const fn byte_size(&self) -> u64 {
        self.byte_size
    }

    /// Whether the bytes lie on a GPU: a copy then waits for the driver, however small it is.
    #[must_use]
    pub const fn is_on_gpu(&self) -> bool {
        matches!(self.object, Object::Cuda(_))
    }

    /// A copy of the bytes as they are now. Blocks for the copy: from about 1 MiB on, call it where that disturbs nobody.
    ///
    /// # Errors
    /// `InvalidArgument` if the object has shrunk below them; `TooLarge` if there is no memory for the copy.
    pub fn read(&self) -> Result<Bytes> {
        match &self.object {
            Object::System(region) => region.read(&self.name, self.offset, self.byte_size),
            Object::Cuda(memory) => {
                memory.range().read(self.offset, self.byte_size).map_err(|error| self.failed("read", error))
            }
        }
    }

    /// Writes `data` to the beginning of the slice. Blocks as [`RegionSlice::read`].
    ///
    /// # Errors
    /// `InvalidArgument` if the slice is smaller than `data` or the object has shrunk below it; then nothing is written.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        if u64::try_from(data.len()).is_ok_and(|length| length <= self.byte_size) {
            return match &self.object {
                Object::System(region) => region.write(&self.name, self.offset, data),
                Object::Cuda(memory) => {
                    memory.range().write(self.offset, data).map_err(|error| self.failed("write", error))
                }
            };
        }
        Err(Error::invalid(format!(
            "{} bytes of region '{}' are too few for {} bytes",
            self.byte_size,
            self.name,
            data.len()
        )))
    }

    #[cold]
    fn failed(&self, what: &str, error: Error) -> Error {
        let text = format!("cannot {what} CUDA shared memory region '{}': {error}", self.name);
        Error::new(error.kind(), text).with_source(error)
    }
}

#[cold]
fn taken(name: &str) -> Error {
    Error::invalid(format!("shared memory region '{name}' already in manager"))
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("'region name' is necessary to register system shared memory region"));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!(
            "the name of a shared memory region has {} bytes, {MAX_NAME_BYTES} are the most",
            name.len()
        )));
    }
    Ok(())
}

/// The file below `/dev/shm` that a key means: the key without its leading slashes, as `shm_open` takes it.
fn object_name<'a>(name: &str, key: &'a str) -> Result<&'a str> {
    let object = key.trim_start_matches('/');
    let wrong = |reason: String| {
        let shown: String = key.chars().take(64).collect();
        Err(Error::invalid(format!(
            "cannot register shared memory region '{name}' with key '{shown}' as the key {reason}"
        )))
    };
    if object.is_empty() {
        return wrong("names no object".to_owned());
    }
    if object.starts_with(RESERVED_PREFIX) {
        return wrong(format!("contains the reserved prefix '{RESERVED_PREFIX}'"));
    }
    if object.len() > 255 {
        return wrong("is longer than 255 bytes".to_owned());
    }
    if object.contains(['/', '\0']) || matches!(object, "." | "..") {
        return wrong("is no plain name: a slash may only stand in front".to_owned());
    }
    Ok(object)
}

#[cfg(test)]
mod tests;
