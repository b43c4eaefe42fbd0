//! Opening a plugin: the library, and the table that it gives, checked.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, OnceLock};

use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
use parking_lot::Mutex;
use roundhouse_abi as abi;

use super::{Opening, check};
use crate::device::cuda::hooks;
use crate::error::{Error, ErrorKind, Result};

/// A library that is open and whose backend is initialised.
pub(super) struct Library {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    pub(super) default_model_file: &'static str,
    pub(super) parameters: &'static [&'static str],
    pub(super) table: Table,
}

/// The functions of a table, those that must be there being there.
pub(super) struct Table {
    pub(super) load: unsafe extern "C" fn(
        *const abi::RoundhouseLoadRequest,
        *mut *mut abi::RoundhouseModel,
        *mut abi::RoundhouseError,
    ) -> abi::RoundhouseStatus,
    pub(super) describe: unsafe extern "C" fn(
        *const abi::RoundhouseModel,
        *mut abi::RoundhouseModelInfo,
        *mut abi::RoundhouseError,
    ) -> abi::RoundhouseStatus,
    pub(super) instantiate: unsafe extern "C" fn(
        *mut abi::RoundhouseModel,
        *mut *mut abi::RoundhouseInstance,
        *mut abi::RoundhouseError,
    ) -> abi::RoundhouseStatus,
    pub(super) infer: unsafe extern "C" fn(
        *mut abi::RoundhouseInstance,
        *const abi::RoundhouseInput,
        usize,
        *const usize,
        *mut abi::RoundhouseOutput,
        usize,
        *mut abi::RoundhouseError,
    ) -> abi::RoundhouseStatus,
    pub(super) release: unsafe extern "C" fn(*mut c_void),
    pub(super) end_instance: unsafe extern "C" fn(*mut abi::RoundhouseInstance),
    pub(super) unload: unsafe extern "C" fn(*mut abi::RoundhouseModel),
    pub(super) model_memory: Option<
        unsafe extern "C" fn(*const abi::RoundhouseModel, *mut abi::RoundhouseModelMemory) -> abi::RoundhouseStatus,
    >,
    pub(super) device_memory: Option<
        unsafe extern "C" fn(abi::RoundhouseDeviceKind, u32, *mut abi::RoundhouseDeviceMemory) -> abi::RoundhouseStatus,
    >,
    pub(super) empty_cache: Option<unsafe extern "C" fn(abi::RoundhouseDeviceKind, u32)>,
}

/// More parameters than this no backend has.
const MOST_PARAMETERS: usize = 256;

type Opened = OnceLock<Result<&'static Library>>;

/// What was opened by this process, so that each is initialised once however many servers are in it.
static OPENED: Mutex<BTreeMap<PathBuf, Arc<Opened>>> = Mutex::new(BTreeMap::new());

/// Opens a plugin, or gives what came of opening it before.
pub(super) fn open(path: &Path, opening: &Opening) -> Result<&'static Library> {
    let path = path.canonicalize().map_err(|error| {
        Error::new(ErrorKind::NotReady, format!("there is no {}", path.display())).with_source(error)
    })?;
    let place = Arc::clone(OPENED.lock().entry(path.clone()).or_default());
    place.get_or_init(|| open_now(&path, opening)).clone()
}

fn open_now(path: &Path, opening: &Opening) -> Result<&'static Library> {
    opening.first.iter().try_for_each(|library| open_handle(library).map(drop))?;
    let handle = open_handle(path)?;
    let unusable = |why: String| Error::new(ErrorKind::NotReady, format!("{} {why}", path.display()));
    // SAFETY: by its name the symbol is the entry point of the ABI.
    let entry = unsafe { handle.get::<abi::RoundhouseEntry>(abi::ENTRY.as_bytes()) };
    let entry =
        entry.map_err(|error| unusable(format!("is no backend: it exports no {}", abi::ENTRY)).with_source(error))?;
    // SAFETY: the entry point takes nothing and gives a table that lives as long as the process.
    let table = unsafe { read_table(entry()) }.map_err(|why| unusable(why.to_string()))?;
    let library = Box::leak(Box::new(describe(&table).map_err(|why| unusable(why.to_string()))?));
    let settings = settings(&opening.settings)?;
    let host = Box::leak(Box::new(abi::RoundhouseHost {
        struct_size: size_of::<abi::RoundhouseHost>(),
        abi_major: abi::ABI_MAJOR,
        abi_minor: abi::ABI_MINOR,
        executor_threads: u32::try_from(opening.executor_threads).unwrap_or(u32::MAX).max(1),
        log: Some(log),
        settings: settings.as_ptr(),
        setting_count: settings.len(),
        device_allocate: Some(device_allocate),
        device_free: Some(device_free),
        device_stream: Some(device_stream),
    }));
    if let Some(initialize) = table.initialize {
        let mut error = abi::RoundhouseError::empty();
        // SAFETY: a function of the table; the host's description is never freed.
        let status = unsafe { initialize(host, &raw mut error) };
        check(status, &error, "start").map_err(|error| {
            Error::new(ErrorKind::NotReady, format!("{} does not start", path.display())).with_source(error)
        })?;
    }
    Ok(library)
}

/// The settings as the ABI has them, for as long as the process lives.
fn settings(given: &[(String, String)]) -> Result<&'static [abi::RoundhouseParameter]> {
    let string = |text: &str| -> Result<*const c_char> {
        let string = CString::new(text).map_err(|_| Error::invalid(format!("setting '{text}' has a NUL in it")))?;
        Ok(Box::leak(string.into_boxed_c_str()).as_ptr())
    };
    let made: Result<Vec<_>> = given
        .iter()
        .map(|(key, value)| Ok(abi::RoundhouseParameter { key: string(key)?, value: string(value)? }))
        .collect();
    Ok(made?.leak())
}

/// Opens a library for good: it is never closed, since threads and destructors of its may run to the end.
fn open_handle(path: &Path) -> Result<&'static Handle> {
    // SAFETY: the operator vouches for the library, whose initialisers run here.
    let handle = unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let handle = handle.map_err(|error| {
        Error::new(ErrorKind::NotReady, format!("{} cannot be opened", path.display())).with_source(error)
    })?;
    Ok(Box::leak(Box::new(handle)))
}

/// Why a table cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum BadTable {
    #[error("gives no table")]
    Null,
    #[error(
        "was built against version {0}.{1} of the ABI, and this server knows {major}.{minor}: build it against this \
         server's header",
        major = abi::ABI_MAJOR,
        minor = abi::ABI_MINOR
    )]
    Version(u32, u32),
    #[error("says that its table has {0} bytes, fewer than those of version 1.0")]
    Size(usize),
    #[error("has no function {0} in its table")]
    Missing(&'static str),
    #[error("says of itself a {0} that is null, too many or not UTF-8")]
    Text(&'static str),
}

/// What of the table every minor version has: nothing was added yet.
const FIRST_SIZE: usize = size_of::<abi::RoundhouseBackend>();

/// Copies as much of a table as there is; the rest is null.
///
/// # Safety
/// `table` is null or points to a table whose first three fields are those of the ABI, and whose others are where the
/// version says, `struct_size` bytes in all.
unsafe fn read_table(table: *const abi::RoundhouseBackend) -> Result<abi::RoundhouseBackend, BadTable> {
    if table.is_null() {
        return Err(BadTable::Null);
    }
    // SAFETY: these three are there in every version.
    let (size, major, minor) = unsafe {
        (
            (&raw const (*table).struct_size).read(),
            (&raw const (*table).abi_major).read(),
            (&raw const (*table).abi_minor).read(),
        )
    };
    if !abi::accepts(major, minor) {
        return Err(BadTable::Version(major, minor));
    }
    if size < FIRST_SIZE {
        return Err(BadTable::Size(size));
    }
    // SAFETY: integers, pointers and optional functions may all be zero.
    let mut copy: abi::RoundhouseBackend = unsafe { std::mem::zeroed() };
    let known = size.min(size_of::<abi::RoundhouseBackend>());
    // SAFETY: both are that long and apart.
    unsafe { ptr::copy_nonoverlapping(table.cast::<u8>(), (&raw mut copy).cast::<u8>(), known) };
    Ok(copy)
}

fn describe(table: &abi::RoundhouseBackend) -> Result<Library, BadTable> {
    let name = text(table.name, "name")?.filter(|name| !name.is_empty()).ok_or(BadTable::Text("name"))?;
    if table.parameter_count > MOST_PARAMETERS || (table.parameter_count > 0 && table.parameters.is_null()) {
        return Err(BadTable::Text("parameter"));
    }
    let keys = match table.parameter_count {
        0 => &[][..],
        // SAFETY: so many pointers, as the table says; it lives as long as the process.
        count => unsafe { std::slice::from_raw_parts(table.parameters, count) },
    };
    let keys: Vec<&'static str> =
        keys.iter().map(|key| text(*key, "parameter")?.ok_or(BadTable::Text("parameter"))).collect::<Result<_, _>>()?;
    macro_rules! must {
        ($($function:ident),* ; $($maybe:ident),*) => {
            Table {
                $($function: table.$function.ok_or(BadTable::Missing(stringify!($function)))?,)*
                $($maybe: table.$maybe,)*
            }
        };
    }
    Ok(Library {
        name,
        description: text(table.description, "description")?.unwrap_or_default(),
        default_model_file: text(table.default_model_file, "default_model_file")?.unwrap_or_default(),
        parameters: keys.leak(),
        table: must!(load, describe, instantiate, infer, release, end_instance, unload;
                     model_memory, device_memory, empty_cache),
    })
}

/// A string of a table; `None` where there is none.
fn text(string: *const c_char, what: &'static str) -> Result<Option<&'static str>, BadTable> {
    if string.is_null() {
        return Ok(None);
    }
    // SAFETY: the strings of a table end with a NUL and live as long as the process.
    unsafe { CStr::from_ptr(string) }.to_str().map(Some).map_err(|_| BadTable::Text(what))
}

/// Writes a backend's line to the log. A panic here aborts, as it must not reach C; tracing has none.
unsafe extern "C" fn log(level: abi::RoundhouseLogLevel, message: *const c_char) {
    if message.is_null() {
        return;
    }
    // SAFETY: the backend passes a string that ends with a NUL.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    match level {
        abi::LOG_ERROR => tracing::error!("{text}"),
        abi::LOG_WARN => tracing::warn!("{text}"),
        abi::LOG_INFO => tracing::info!("{text}"),
        _ => tracing::debug!("{text}"),
    }
}

unsafe extern "C" fn device_allocate(bytes: usize, device_id: u32, stream: *mut c_void, flags: u32) -> *mut c_void {
    hooks::stream_allocate(bytes, device_id, stream.addr(), flags & abi::MEMORY_SHARED != 0)
}

unsafe extern "C" fn device_free(at: *mut c_void) {
    hooks::stream_free(at);
}

unsafe extern "C" fn device_stream(device_id: u32) -> *mut c_void {
    // A name of the driver's, which nobody here follows.
    ptr::without_provenance_mut(hooks::next_stream(device_id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> abi::RoundhouseBackend {
        unsafe extern "C" fn release(_: *mut c_void) {}
        // SAFETY: as in `read_table`.
        let mut table: abi::RoundhouseBackend = unsafe { std::mem::zeroed() };
        table.struct_size = size_of::<abi::RoundhouseBackend>();
        (table.abi_major, table.abi_minor) = (abi::ABI_MAJOR, abi::ABI_MINOR);
        table.name = c"m".as_ptr();
        table.release = Some(release);
        table
    }

    proptest! {
        #[test]
        fn a_table_of_any_head_is_taken_whole_or_refused(size in prop_oneof![any::<usize>(), 0_usize..400], major in 0_u32..3, minor in 0_u32..3) {
            let mut given = table();
            (given.struct_size, given.abi_major, given.abi_minor) = (size, major, minor);
            // SAFETY: at most its own size is read of it.
            let read = unsafe { read_table(&raw const given) };
            match read {
                Ok(read) => {
                    prop_assert!(abi::accepts(major, minor) && size >= FIRST_SIZE);
                    prop_assert!(read.release.is_some());
                }
                Err(BadTable::Version(..)) => prop_assert!(!abi::accepts(major, minor)),
                Err(why) => prop_assert!(why == BadTable::Size(size) && size < FIRST_SIZE, "{why}"),
            }
        }
    }

    #[test]
    fn what_a_table_lacks_is_named() {
        // SAFETY: null is allowed.
        assert_eq!(unsafe { read_table(ptr::null()) }.err(), Some(BadTable::Null));
        assert_eq!(describe(&table()).err(), Some(BadTable::Missing("load")));
        for name in [ptr::null(), c"".as_ptr(), c"\xff".as_ptr()] {
            let nameless = abi::RoundhouseBackend { name, ..table() };
            assert_eq!(describe(&nameless).err(), Some(BadTable::Text("name")));
        }
        for count in [1, usize::MAX] {
            let keys = abi::RoundhouseBackend { parameter_count: count, ..table() };
            assert_eq!(describe(&keys).err(), Some(BadTable::Text("parameter")));
        }
    }

    #[test]
    fn what_is_no_library_is_refused() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let error = open(&file, &Opening::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotReady);
        assert!(error.report().contains("Cargo.toml cannot be opened"), "{}", error.report());
        let error = open(Path::new("/no/such/library.so"), &Opening::default()).err().unwrap();
        assert!(error.report().starts_with("there is no /no/such/library.so"), "{}", error.report());
    }
}
