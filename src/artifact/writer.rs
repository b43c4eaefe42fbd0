//! A thread that writes what another one unpacks: a decoder that waits for the copy into the page cache takes half as long
//! again.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::folder::{disk_error, start_write_back};
use super::source::BUFFER;
use crate::error::{Error, Result};

/// Buffers that go to and fro between the two, each of [`BUFFER`] bytes.
const BUFFERS: usize = 4;

/// Bytes to be appended to a file, and the range that is to start on its way to the disk after that.
struct Job {
    file: Arc<File>,
    bytes: Vec<u8>,
    write_back: Option<(u64, u64)>,
}

/// See the module. It is there from the first write on.
#[derive(Default)]
pub(super) struct Writer {
    thread: Option<Running>,
}

struct Running {
    full: SyncSender<Job>,
    empty: Receiver<Vec<u8>>,
    handle: JoinHandle<Result<()>>,
}

impl Writer {
    /// Appends to `file` later, in order. An error may be that of an earlier write.
    pub(super) fn write(&mut self, file: &Arc<File>, bytes: &[u8], write_back: Option<(u64, u64)>) -> Result<()> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Running::start()?,
        };
        let thread = self.thread.insert(thread);
        let sent = thread.empty.recv().is_ok_and(|mut buffer| {
            buffer.clear();
            buffer.extend_from_slice(bytes);
            thread.full.send(Job { file: Arc::clone(file), bytes: buffer, write_back }).is_ok()
        });
        if sent { Ok(()) } else { self.finish() }
    }

    /// Waits until all is written.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(Running { full, empty, handle }) = self.thread.take() else { return Ok(()) };
        drop((full, empty));
        handle.join().unwrap_or_else(|_panic| Err(Error::internal("writing unpacked files ended early")))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Nothing is written any more once the unpacking has returned.
        let _failed_for_another_reason = self.finish();
    }
}

impl Running {
    fn start() -> Result<Self> {
        let (full, jobs) = sync_channel::<Job>(BUFFERS);
        let (back, empty) = sync_channel(BUFFERS);
        for _ in 0..BUFFERS {
            let _has_room = back.send(Vec::with_capacity(BUFFER));
        }
        let work = move || {
            for Job { file, bytes, write_back } in jobs {
                (&*file).write_all(&bytes).map_err(|error| disk_error("write an unpacked file", error))?;
                if let Some((from, length)) = write_back {
                    start_write_back(&file, from, length);
                }
                // The other side may have ended.
                let _gone = back.send(bytes);
            }
            Ok(())
        };
        let spawned = std::thread::Builder::new().name("unpack-write".to_owned()).spawn(work);
        let handle =
            spawned.map_err(|error| Error::internal("cannot start a thread that writes").with_source(error))?;
        Ok(Self { full, empty, handle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn what_is_written_through_the_thread_is_in_order_and_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| Arc::new(File::create(folder.path().join(name)).unwrap()));
        let mut writer = Writer::default();
        for piece in 0..100_u8 {
            writer.write(&files[usize::from(piece % 2)], &[piece; 1000], None).unwrap();
        }
        writer.finish().unwrap();
        let read = std::fs::read(folder.path().join("b")).unwrap();
        assert_eq!(
            read,
            (0..100_u8).filter(|piece| piece % 2 == 1).flat_map(|piece| [piece; 1000]).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_full_disk_ends_the_writing_with_its_error() {
        let file = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let mut writer = Writer::default();
        let error = (0..100).find_map(|_| writer.write(&file, b"x", None).err());
        assert_eq!(error.or_else(|| writer.finish().err()).unwrap().kind(), ErrorKind::OutOfDisk);
    }
}
