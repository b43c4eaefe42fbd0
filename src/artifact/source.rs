//! The archive's bytes on their way to a decoder: buffered, counted, and with the reader's own failures kept apart from
//! what a decoder has to say about the bytes.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::rc::Rc;

use crate::error::{Error, ErrorKind, Result};

/// The buffer's length in bytes.
pub(super) const BUFFER: usize = 256 << 10;

/// What became of a source; shared with it, since decoders swallow it.
#[derive(Default)]
pub(super) struct Tally {
    consumed: Cell<u64>,
    budget: Cell<Option<u64>>,
    over_budget: Cell<bool>,
    failure: RefCell<Option<io::Error>>,
}

impl Tally {
    /// The bytes that were read from the source and used.
    pub(super) fn consumed(&self) -> u64 {
        self.consumed.get()
    }

    /// Lets the source give so many bytes more and then fail; `None` lifts that.
    pub(super) fn set_budget(&self, bytes: Option<u64>) {
        self.budget.set(bytes);
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.over_budget.get()
    }

    /// What an error of a decoder means: the reader's own failure where there was one, or wrong bytes.
    pub(super) fn fault(&self, error: io::Error) -> Error {
        if let Err(failure) = self.check() {
            return failure;
        }
        let text = if error.kind() == io::ErrorKind::UnexpectedEof {
            "the archive ends early: upload it again"
        } else {
            "the archive is damaged: pack and upload it again"
        };
        Error::invalid(text).with_source(error)
    }

    /// The reader's own failure, also where a decoder went on after it.
    pub(super) fn check(&self) -> Result<()> {
        match self.failure.take() {
            Some(failure) => {
                Err(Error::new(ErrorKind::RepositoryFailed, "cannot read the archive").with_source(failure))
            }
            None => Ok(()),
        }
    }

    fn spend(&self, bytes: usize) {
        self.consumed.set(self.consumed.get() + bytes as u64);
    }
}

/// A reader with a buffer that short seeks stay inside of.
pub(super) struct Source<R> {
    reader: R,
    tally: Rc<Tally>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where the reader stands: `buffer[end]` in the archive.
    position: u64,
}

impl<R: Read> Source<R> {
    /// `reader` must stand at the archive's first byte.
    pub(super) fn new(reader: R) -> Self {
        Self { reader, tally: Rc::default(), buffer: vec![0; BUFFER], start: 0, end: 0, position: 0 }
    }

    pub(super) fn tally(&self) -> Rc<Tally> {
        Rc::clone(&self.tally)
    }

    /// The first bytes, as many as come up to `most`, without using them up. Only at the beginning.
    pub(super) fn head(&mut self, most: usize) -> io::Result<&[u8]> {
        while self.end < most {
            let from = self.end;
            match read_from(&mut self.reader, &self.tally, &mut self.buffer[from..])? {
                0 => break,
                read => (self.end, self.position) = (from + read, self.position + read as u64),
            }
        }
        Ok(&self.buffer[..self.end.min(most)])
    }
}

/// Reads once, past interruptions; keeps a failure and gives a stand-in for it.
fn read_from<R: Read>(reader: &mut R, tally: &Tally, into: &mut [u8]) -> io::Result<usize> {
    let most = match tally.budget.get() {
        Some(0) => {
            tally.over_budget.set(true);
            return Err(io::Error::other("the archive's directory is too large"));
        }
        Some(left) => into.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
        None => into.len(),
    };
    loop {
        match reader.read(&mut into[..most]) {
            Ok(read) => {
                tally.budget.set(tally.budget.get().map(|left| left.saturating_sub(read as u64)));
                return Ok(read);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(keep(tally, error)),
        }
    }
}

fn keep(tally: &Tally, error: io::Error) -> io::Error {
    tally.failure.borrow_mut().get_or_insert(error);
    io::Error::other("the archive could not be read")
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // A large read needs no second copy.
        if self.start == self.end && into.len() >= BUFFER {
            let read = read_from(&mut self.reader, &self.tally, into)?;
            (self.start, self.end) = (0, 0);
            self.position += read as u64;
            self.tally.spend(read);
            return Ok(read);
        }
        let available = self.fill_buf()?;
        let count = available.len().min(into.len());
        into[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.end = read_from(&mut self.reader, &self.tally, &mut self.buffer)?;
            self.position += self.end as u64;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.tally.spend(count);
    }
}

impl<R: Read + Seek> Seek for Source<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let here = self.position - (self.end - self.start) as u64;
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => Some(here.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?),
            SeekFrom::End(_) => None,
        };
        let first = self.position - self.end as u64;
        if let Some(at) = target.filter(|at| (first..=self.position).contains(at)) {
            // Inside the buffer: a remote reader would begin a new request for going back by thirty bytes.
            self.start = usize::try_from(at - first).unwrap_or(self.end);
            return Ok(at);
        }
        let to = target.map_or(to, SeekFrom::Start);
        (self.start, self.end) = (0, 0);
        self.position = self.reader.seek(to).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidInput { error } else { keep(&self.tally, error) }
        })?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how often it is asked.
    struct Counting(io::Cursor<Vec<u8>>, Rc<Cell<u32>>);

    impl Read for Counting {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(into)
        }
    }

    impl Seek for Counting {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.1.set(self.1.get() + 1);
            self.0.seek(to)
        }
    }

    #[test]
    fn seeks_inside_the_buffer_ask_nobody_and_reads_are_the_readers() {
        let bytes: Vec<u8> = (0..2 * BUFFER).map(|at| (at % 251) as u8).collect();
        let seeks = Rc::new(Cell::new(0));
        let mut source = Source::new(Counting(io::Cursor::new(bytes.clone()), Rc::clone(&seeks)));
        assert_eq!(source.head(600).unwrap(), &bytes[..600]);
        for (at, asked) in [(0, 0), (100, 0), (50, 0), (BUFFER, 0), (BUFFER + 7, 0), (3, 1), (BUFFER - 9, 1)] {
            assert_eq!(source.seek(SeekFrom::Start(at as u64)).unwrap(), at as u64);
            let mut read = [0; 4];
            source.read_exact(&mut read).unwrap();
            assert_eq!(read, bytes[at..at + 4], "{at}");
            assert_eq!(source.seek(SeekFrom::Current(-4)).unwrap(), at as u64);
            assert_eq!(seeks.get(), asked, "{at}");
        }
        assert_eq!(source.seek(SeekFrom::End(-1)).unwrap() as usize, bytes.len() - 1);
        assert!(source.seek(SeekFrom::Current(-(i64::MAX))).is_err());
    }

    #[test]
    fn a_readers_failure_is_kept_whatever_a_decoder_makes_of_it() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the line went dead"))
            }
        }
        let mut source = Source::new(Broken);
        let tally = source.tally();
        assert!(source.read(&mut [0; 8]).is_err());
        let error = tally.fault(io::Error::other("corrupt deflate stream"));
        assert_eq!(error.kind(), ErrorKind::RepositoryFailed);
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::UnexpectedEof));
    }
}
