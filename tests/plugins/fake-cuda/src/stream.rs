//! Streams: work in order, done when somebody waits for it.
//!
//! Nothing runs by itself, so a caller that frees or unmaps before it has waited is found out each time: the work then
//! finds no memory, and the device is broken from then on, as a real one is after an illegal address.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::world::{Code, ILLEGAL_ADDRESS, INVALID_HANDLE, World};

/// The stream that is always there.
pub(crate) const DEFAULT: usize = 0;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Device,
    /// Locked host memory: copied when the work is done.
    Pinned,
    /// Any other: copied before the call returns.
    Host,
}

pub(crate) enum Work {
    Copy { to: (Side, usize), from: (Side, usize), len: usize },
    Set { to: usize, value: u8, len: usize },
    Record { event: usize },
    Wait { stream: usize, until: u64 },
}

#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) device: usize,
    waiting: VecDeque<Work>,
    /// How much was asked for and how much is done.
    asked: u64,
    done: u64,
}

impl Stream {
    pub(crate) fn on(device: usize) -> Self {
        Self { device, ..Self::default() }
    }

    pub(crate) fn pending(&self) -> usize {
        self.waiting.len()
    }
}

#[derive(Default)]
pub(crate) struct Event {
    /// The stream and the piece of work that it marks.
    pub(crate) at: Option<(usize, u64)>,
    pub(crate) happened: Option<Instant>,
}

impl World {
    pub(crate) fn stream(&mut self, stream: usize) -> Result<&mut Stream, Code> {
        if stream == DEFAULT {
            let device = self.here()?;
            self.streams.entry(DEFAULT).or_insert_with(|| Stream::on(device));
        }
        self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)
    }

    /// Adds work; `now` has the caller wait for it.
    pub(crate) fn ask(&mut self, stream: usize, work: Work, now: bool) -> Result<u64, Code> {
        let lazy = self.lazy;
        let line = self.stream(stream)?;
        line.waiting.push_back(work);
        line.asked += 1;
        let number = line.asked;
        if now || !lazy {
            self.finish(stream)?;
        }
        Ok(number)
    }

    /// Copies, in the order of the stream.
    pub(crate) fn copy(
        &mut self,
        stream: usize,
        to: (Side, usize),
        from: (Side, usize),
        len: usize,
        now: bool,
    ) -> Result<(), Code> {
        self.here()?;
        let seen = |side: (Side, usize)| match side {
            (Side::Host, at) if self.is_pinned(at, len) => (Side::Pinned, at),
            side => side,
        };
        let (to, from) = (seen(to), seen(from));
        let now = now || to.0 == Side::Host || from.0 == Side::Host;
        self.ask(stream, Work::Copy { to, from, len }, now)?;
        Ok(())
    }

    /// Does one piece of a stream's work; false where there is none.
    pub(crate) fn step(&mut self, stream: usize) -> bool {
        let Some(line) = self.streams.get_mut(&stream) else { return false };
        let Some(work) = line.waiting.pop_front() else { return false };
        let device = line.device;
        let sound = self.devices.get(device).is_some_and(|device| device.broken == 0);
        let fine = !sound || self.perform(work);
        if let Some(device) = self.devices.get_mut(device)
            && !fine
        {
            device.broken = ILLEGAL_ADDRESS;
        }
        if let Some(line) = self.streams.get_mut(&stream) {
            line.done += 1;
        }
        true
    }

    fn perform(&mut self, work: Work) -> bool {
        match work {
            Work::Copy { to, from, len } => {
                if !self.may_touch(to, len) || !self.may_touch(from, len) {
                    return false;
                }
                // SAFETY: both ranges are mapped, as was just looked at, or the caller's own, as it promises.
                unsafe { std::ptr::copy(from.1 as *const u8, to.1 as *mut u8, len) };
                self.dawdle(len);
                true
            }
            Work::Set { to, value, len } => {
                if !self.may_touch((Side::Device, to), len) {
                    return false;
                }
                // SAFETY: the range is mapped, as was just looked at.
                unsafe { std::ptr::write_bytes(to as *mut u8, value, len) };
                self.dawdle(len);
                true
            }
            Work::Record { event } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.happened = Some(Instant::now());
                }
                true
            }
            Work::Wait { stream, until } => {
                while !self.is_done(stream, until) && self.step(stream) {}
                true
            }
        }
    }

    fn may_touch(&self, side: (Side, usize), len: usize) -> bool {
        match side {
            (Side::Device, at) => self.is_device_memory(at, len),
            (Side::Pinned, at) => self.is_pinned(at, len),
            (Side::Host, _) => true,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a slow device is what is asked for")]
    fn dawdle(&self, len: usize) {
        let nanoseconds = self.slowness.saturating_mul(len as u64) >> 10;
        if nanoseconds > 0 {
            std::thread::sleep(Duration::from_nanos(nanoseconds));
        }
    }

    pub(crate) fn is_done(&self, stream: usize, number: u64) -> bool {
        self.streams.get(&stream).is_none_or(|line| line.done >= number)
    }

    /// Does all of a stream's work.
    pub(crate) fn finish(&mut self, stream: usize) -> Result<(), Code> {
        let device = self.stream(stream)?.device;
        while self.step(stream) {}
        self.devices.get(device).map_or(Ok(()), crate::world::Device::sound)
    }

    /// Does all work there is.
    pub(crate) fn finish_all(&mut self) {
        let streams: Vec<usize> = self.streams.keys().copied().collect();
        for stream in streams {
            while self.step(stream) {}
        }
    }
}
