//! `ObjectReader`: an object's bytes in order, while the parts ahead come in parallel.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::part::{Part, Sink};
use crate::error::Error;
use crate::repository::FetchError;

/// The most parts that are fetched ahead for one reader, the one being read among them.
pub const WINDOW: usize = 4;

/// Bytes of the first part after a jump: who jumps about reads little at each place. Each next part is twice as long.
const FIRST_AFTER_JUMP: u64 = 1 << 20;

/// Bytes that came and were not read yet, counted while they exist.
struct Frame {
    bytes: Bytes,
    length: u64,
    shared: Arc<Shared>,
}

impl Frame {
    fn new(bytes: Bytes, shared: &Arc<Shared>) -> Self {
        let length = bytes.len() as u64;
        shared.buffered.add(length);
        Self { bytes, length, shared: Arc::clone(shared) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.shared.buffered.remove(self.length);
    }
}

/// Hands frames to the reader as they come. It holds at most its part: nothing is dropped, and no connection stands
/// still because somebody reads slowly.
struct Channel {
    frames: UnboundedSender<Result<Frame, FetchError>>,
    shared: Arc<Shared>,
}

impl Sink for Channel {
    fn take(&mut self, _at: u64, bytes: Bytes) -> Result<(), FetchError> {
        // A reader that is gone aborts the task.
        let _gone = self.frames.send(Ok(Frame::new(bytes, &self.shared)));
        Ok(())
    }

    fn begin_anew(&mut self) -> bool {
        false
    }
}

/// A part on its way.
struct Coming {
    end: u64,
    frames: UnboundedReceiver<Result<Frame, FetchError>>,
    _task: AbortOnDropHandle<()>,
}

/// The parts on their way, in order.
struct Window {
    /// The offset of the next byte that comes out.
    at: u64,
    frame: Option<Frame>,
    coming: VecDeque<Coming>,
    /// Where the next part to ask for begins, and how long it is.
    next: u64,
    part_bytes: u64,
}

/// An object's bytes in order. Blocks: for a thread of its own, or one of `spawn_blocking`. Who needs to know that all
/// bytes were right reads on until there are none: a wrong checksum is an error at the end.
///
/// An error is a [`FetchError`] inside an [`io::Error`]; after one, every read fails with it.
pub struct ObjectReader {
    /// The object as a whole; parts are made of it.
    object: Part,
    size: u64,
    part_bytes: u64,
    cancel: CancellationToken,
    position: u64,
    window: Option<Window>,
    failed: Option<FetchError>,
}

impl ObjectReader {
    pub(super) fn new(object: Part, size: u64, part_bytes: u64, cancel: CancellationToken) -> Self {
        Self { object, size, part_bytes, cancel, position: 0, window: None, failed: None }
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The window at the position: the old one if it is there or comes there soon.
    fn window(&mut self) -> Result<&mut Window, FetchError> {
        let position = self.position;
        let reaches = |window: &Window| position >= window.at && position - window.at < self.part_bytes;
        let mut window = match self.window.take().filter(reaches) {
            Some(window) => window,
            None => {
                let part_bytes = if position == 0 { self.part_bytes } else { FIRST_AFTER_JUMP.min(self.part_bytes) };
                Window { at: position, frame: None, coming: VecDeque::new(), next: position, part_bytes }
            }
        };
        loop {
            let skipped = usize::try_from(position - window.at).unwrap_or(usize::MAX);
            if let Some(frame) = &mut window.frame {
                let length = skipped.min(frame.bytes.len());
                frame.bytes.advance(length);
                window.at += length as u64;
                if !frame.bytes.is_empty() {
                    return Ok(self.window.insert(window));
                }
            }
            window.frame = None;
            self.fetch_ahead(&mut window);
            self.next_frame(&mut window)?;
        }
    }

    /// At the end: hears whether the last part ended well, if it was read. A checksum speaks after the last byte.
    fn end(&mut self) -> Result<(), FetchError> {
        if let Some(mut window) = self.window.take()
            && window.at == self.size
            && let Some(part) = window.coming.front_mut()
            && let Some(Err(error)) = part.frames.blocking_recv()
        {
            return Err(error);
        }
        Ok(())
    }

    /// Asks for parts until the window is full.
    fn fetch_ahead(&self, window: &mut Window) {
        while window.coming.len() < WINDOW && window.next < self.size {
            let end = self.size.min(window.next + window.part_bytes);
            let part = Part { range: window.next..end, ..self.object.clone() };
            let (sender, frames) = unbounded_channel();
            let (shared, cancel) = (Arc::clone(&part.shared), self.cancel.clone());
            let work = async move {
                let mut sink = Channel { frames: sender, shared };
                let ended = tokio::select! {
                    biased;
                    () = cancel.cancelled() => Err(FetchError::Failed(Error::not_ready("the download was given up"))),
                    ended = part.fetch(&mut sink) => ended,
                };
                if let Err(error) = ended {
                    let _gone = sink.frames.send(Err(error));
                }
            };
            let _task = AbortOnDropHandle::new(self.object.shared.runtime.spawn(work));
            window.coming.push_back(Coming { end, frames, _task });
            window.next = end;
            window.part_bytes = self.part_bytes.min(window.part_bytes * 2);
        }
    }

    fn next_frame(&self, window: &mut Window) -> Result<(), FetchError> {
        let Some(part) = window.coming.front_mut() else {
            return Err(FetchError::Failed(Error::internal("an object was read past its end")));
        };
        match part.frames.blocking_recv() {
            Some(frame) => window.frame = Some(frame?),
            None if window.at == part.end => drop(window.coming.pop_front()),
            None => return Err(FetchError::Failed(Error::not_ready("the server is shutting down"))),
        }
        Ok(())
    }
}

impl BufRead for ObjectReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        let ready = if self.position >= self.size { self.end() } else { self.window().map(drop) };
        if let Err(error) = ready {
            self.window = None;
            self.failed = Some(error.clone());
            return Err(io::Error::other(error));
        }
        let frame = self.window.as_ref().and_then(|window| window.frame.as_ref());
        Ok(frame.map_or(&[], |frame| &frame.bytes[..]))
    }

    fn consume(&mut self, amount: usize) {
        if let Some(Window { at, frame: Some(frame), .. }) = &mut self.window
            && *at == self.position
        {
            let length = amount.min(frame.bytes.len());
            frame.bytes.advance(length);
            *at += length as u64;
        }
        self.position += amount as u64;
    }
}

impl Read for ObjectReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let mut available = self.fill_buf()?;
        let length = available.read(out)?;
        self.consume(length);
        Ok(length)
    }
}

impl Seek for ObjectReader {
    /// A jump forward over less than a part reads on; any other begins a new window at the next read.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

/// Why an [`ObjectReader`] failed, however often its error was wrapped since.
#[must_use]
pub fn fetch_error(error: &io::Error) -> Option<&FetchError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<FetchError>() {
            return Some(found);
        }
        // An `io::Error` hides what it holds from `source`.
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as _),
            None => error.source(),
        };
    }
    None
}
