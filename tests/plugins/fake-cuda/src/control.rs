//! What a test says to the double and asks of it, and what the double tells the one of NVML.

use std::ffi::{CStr, c_char, c_int};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{LazyLock, MutexGuard};

use crate::world::{Code, Device, Fault, GRANULARITY, INVALID_VALUE, World};

#[expect(clippy::disallowed_types, reason = "nothing but the standard library here")]
static WORLD: LazyLock<std::sync::Mutex<World>> = LazyLock::new(|| std::sync::Mutex::new(World::at_first()));

pub(crate) fn world() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The most devices that the file of usage has room for.
const MOST_DEVICES: usize = 16;

/// A file beside the library: how many devices there are, and three numbers for each: total, ours, others'; native
/// numbers of eight bytes.
pub(crate) struct Usage(std::fs::File);

impl Usage {
    pub(crate) fn publish(&self, devices: &[Device], backwards: bool) {
        let row = |device: &Device| [device.total, device.used, device.others];
        let mut rows: Vec<_> = devices.iter().take(MOST_DEVICES).map(row).collect();
        if backwards {
            rows.reverse();
        }
        let numbers = std::iter::once(rows.len() as u64).chain(rows.into_iter().flatten());
        let bytes: Vec<u8> = numbers.flat_map(u64::to_ne_bytes).collect();
        // The double of NVML then answers with what was there before, and its test fails.
        let _failed = self.0.write_all_at(&bytes, 0);
    }
}

/// The folder this library was loaded from: that of the mapping of our own code.
fn folder() -> Option<PathBuf> {
    let own = folder as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        let path = PathBuf::from(line.splitn(6, ' ').last().unwrap_or_default().trim());
        range.contains(&own).then(|| path.parent().map(PathBuf::from))?
    })
}

impl World {
    fn at_first() -> Self {
        let folder = folder();
        let mut world = Self { version: 13_000, lazy: true, ..Self::default() };
        world.usage =
            folder.as_ref().and_then(|folder| std::fs::File::create(folder.join("cuda-usage")).ok().map(Usage));
        let text = folder.and_then(|folder| std::fs::read_to_string(folder.join("cuda")).ok());
        for line in text.as_deref().unwrap_or("device 8589934592").lines() {
            // A line that is not understood leaves a machine that no test expects.
            let _wrong = world.say(line);
        }
        world.publish();
        world
    }

    fn say(&mut self, line: &str) -> Result<(), Code> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).ok_or(INVALID_VALUE);
        let small = |at: usize| c_int::try_from(number(at)?).map_err(|_large| INVALID_VALUE);
        match words.first().copied() {
            None => {}
            Some("device") => self.devices.push(Device { total: number(1)?, ..Device::default() }),
            Some("backwards") => self.backwards = true,
            Some("others") => self.device(small(1)?)?.others = number(2)?,
            Some("lost") => self.device(small(1)?)?.broken = small(2)?,
            Some("version") => self.version = small(1)?,
            Some("slow") => self.slowness = number(1)?,
            Some("lazy") => self.lazy = true,
            Some("eager") => self.lazy = false,
            Some("heal") => self.faults.clear(),
            Some("fail") => {
                let symbol = (*words.get(1).ok_or(INVALID_VALUE)?).to_owned();
                self.faults.push(Fault { symbol, nth: number(2)?, code: small(3)? });
            }
            Some(_) => return Err(INVALID_VALUE),
        }
        self.publish();
        Ok(())
    }

    fn count(&self, what: &str) -> Option<u64> {
        let of_device = |index: &str| self.devices.get(index.parse::<usize>().ok()?);
        let sum = |lens: &mut dyn Iterator<Item = usize>| lens.sum::<usize>() as u64;
        Some(match what.split_once(' ') {
            Some(("used", index)) => of_device(index)?.used,
            Some(("contexts", index)) => u64::from(of_device(index)?.held),
            Some(("calls", symbol)) => self.calls.get(symbol).copied().unwrap_or(0),
            Some(_) => return None,
            None => match what {
                "handles" => self.physical.len() as u64,
                "physical" => sum(&mut self.physical.values().map(|physical| physical.len)),
                "reservations" => self.reservations.len() as u64,
                "reserved" => sum(&mut self.reservations.values().copied()),
                "mappings" => self.mappings.len() as u64,
                "mapped" => sum(&mut self.mappings.values().map(|mapping| mapping.len)),
                "plain" => sum(&mut self.plain.values().map(|plain| plain.len)),
                "pinned" => sum(&mut self.pinned.values().copied()),
                "streams" => self.streams.keys().filter(|stream| **stream != crate::stream::DEFAULT).count() as u64,
                "events" => self.events.len() as u64,
                "pending" => sum(&mut self.streams.values().map(crate::stream::Stream::pending)),
                "granularity" => GRANULARITY as u64,
                _ => return None,
            },
        })
    }
}

/// # Safety
/// `text` is null or ends in a zero.
unsafe fn words<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// Changes the machine. One statement a line, as in the file `cuda` beside the library, which is read at the first call;
/// without it there is one device of 8 GiB:
///
/// ```text
/// device TOTAL             one more device, bytes
/// backwards                NVML counts the devices from the last, and so do their identifiers
/// others DEVICE BYTES      so much of it other processes take
/// lost DEVICE CODE         from now on every call for it answers CODE; 0 heals it
/// version NUMBER           what cuDriverGetVersion says: 13000
/// fail SYMBOL NTH CODE     the NTH call from now on of SYMBOL (without _v2) answers CODE and does nothing; 0: each call
/// heal                     no more such failures
/// slow NANOSECONDS         what a KiB takes to copy
/// lazy | eager             work is done when it is waited for | when it is asked for; lazy at first
/// ```
///
/// # Safety
/// `text` is null or ends in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_cuda_say(text: *const c_char) -> c_int {
    // SAFETY: as the caller promises.
    let Some(text) = (unsafe { words(text) }) else { return INVALID_VALUE };
    let mut world = world();
    text.lines().try_for_each(|line| world.say(line)).err().unwrap_or(0)
}

/// How much there is of something: `handles`, `physical` (bytes), `reservations`, `reserved` (bytes), `mappings`, `mapped`
/// (bytes), `plain` and `pinned` (bytes), `streams`, `events`, `pending` (work), `used DEVICE` (bytes), `contexts DEVICE`,
/// `calls SYMBOL`. The largest number for anything else.
///
/// # Safety
/// `what` is null or ends in a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_cuda_count(what: *const c_char) -> u64 {
    // SAFETY: as the caller promises.
    unsafe { words(what) }.and_then(|what| world().count(what)).unwrap_or(u64::MAX)
}
