//! The bytes of a connection of HTTP/2 in pieces that are worth a call of the system.
//!
//! h2 reads and writes frame by frame, and a frame has 16 KiB unless both sides say more: 1 MiB both ways is some 130 reads
//! and 66 writes. Where much comes it is read ahead, and where much goes it is gathered as long as frames follow each
//! other. Who sends and gets little goes past all of it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes that are read at a time where much comes.
const AHEAD: usize = 64 << 10;

/// A read that fills this much, and all there is room for, is one of many.
const MUCH: usize = 4 << 10;

/// A write from this size on is gathered; a smaller one is the end of an answer, or all of it.
const FRAME: usize = 8 << 10;

/// Bytes that are gathered before they are written. A write of this size is not copied.
const GATHERED: usize = 128 << 10;

/// A stream of bytes below HTTP/2.
pub(super) struct Bulk<S> {
    stream: S,
    /// What was read ahead.
    ahead: BytesMut,
    /// Whether the last read left something behind, by its looks.
    comes: bool,
    /// What is to be written; empty most of the time.
    out: BytesMut,
    /// Whether another frame is likely to follow the last one written.
    goes: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Bulk<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, ahead: BytesMut::new(), comes: false, out: BytesMut::new(), goes: false }
    }

    /// Writes what was gathered.
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, &self.out))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
        }
        // An idle connection holds nothing.
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Bulk<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            let room = buffer.remaining();
            if !this.comes || room >= AHEAD {
                ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
                this.comes = room >= MUCH && buffer.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            this.ahead.reserve(AHEAD);
            let read = poll_read_buf(Pin::new(&mut this.stream), context, &mut this.ahead);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                (this.ahead, this.comes) = (BytesMut::new(), false);
                return read.map_ok(|_end| ());
            }
        }
        let count = this.ahead.len().min(buffer.remaining());
        if let Some(bytes) = this.ahead.get(..count) {
            buffer.put_slice(bytes);
        }
        this.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bulk<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        if total >= GATHERED || this.out.len() + total > GATHERED {
            ready!(this.send(context))?;
        }
        this.goes = (FRAME..GATHERED).contains(&total);
        if this.out.is_empty() && !this.goes {
            return Pin::new(&mut this.stream).poll_write_vectored(context, pieces);
        }
        if this.out.is_empty() {
            this.out.reserve(GATHERED);
        }
        for piece in pieces {
            this.out.extend_from_slice(piece);
        }
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.goes {
            // h2 flushes after each frame. If none follows it flushes again, now or when it is woken.
            this.goes = false;
            context.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(this.send(context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.send(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A stream that counts how often it is asked for something.
    struct Counted<S> {
        inner: S,
        reads: usize,
        writes: usize,
    }

    impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            Pin::new(&mut self.inner).poll_read(context, buffer)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.writes += 1;
            Pin::new(&mut self.inner).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_shutdown(context)
        }
    }

    fn counted(room: usize) -> (Bulk<Counted<tokio::io::DuplexStream>>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(room);
        (Bulk::new(Counted { inner: ours, reads: 0, writes: 0 }), theirs)
    }

    #[tokio::test]
    async fn frames_that_follow_each_other_are_one_write_and_what_is_small_leaves_at_once() {
        let (mut bulk, mut theirs) = counted(1 << 20);
        for frame in 0..8 {
            bulk.write_all(&[frame; 16 << 10]).await.unwrap();
            bulk.flush().await.unwrap();
        }
        bulk.write_all(b"end").await.unwrap();
        bulk.flush().await.unwrap();
        // The end did not fit behind eight frames.
        assert_eq!(bulk.stream.writes, 2);
        assert_eq!(bulk.out.capacity(), 0, "nothing is held");
        let mut got = vec![0; (128 << 10) + 3];
        theirs.read_exact(&mut got).await.unwrap();
        assert!(got.ends_with(b"end") && got[..16 << 10].iter().all(|byte| *byte == 0));
        bulk.write_all(b"small").await.unwrap();
        assert_eq!(bulk.stream.writes, 3, "past the gathering");
    }

    #[tokio::test]
    async fn a_frame_that_none_follows_leaves_with_the_next_flush_for_which_the_task_is_woken() {
        let (mut bulk, _theirs) = counted(1 << 20);
        let task = Task::new();
        bulk.write_all(&[7; 16 << 10]).await.unwrap();
        assert!(matches!(Pin::new(&mut bulk).poll_flush(&mut task.context()), Poll::Ready(Ok(()))));
        assert_eq!((bulk.stream.writes, task.woken()), (0, true));
        assert!(matches!(Pin::new(&mut bulk).poll_flush(&mut task.context()), Poll::Ready(Ok(()))));
        assert_eq!(bulk.stream.writes, 1);
    }

    #[tokio::test]
    async fn what_comes_in_bulk_is_read_ahead_and_given_out_in_order() {
        let (mut bulk, mut theirs) = counted(1 << 20);
        let sent: Vec<u8> = (0..256_u32 << 10).map(|at| (at % 251) as u8).collect();
        theirs.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        let mut part = vec![0; 8 << 10];
        while got.len() < sent.len() {
            let count = bulk.read(&mut part).await.unwrap();
            got.extend_from_slice(&part[..count]);
        }
        assert_eq!(got, sent);
        assert!(bulk.stream.reads <= 6, "{} reads", bulk.stream.reads);
        drop(theirs);
        assert_eq!(bulk.read(&mut part).await.unwrap(), 0);
        assert_eq!(bulk.ahead.capacity(), 0, "nothing is held");
    }

    /// A waker that tells whether it was used.
    struct Task(std::sync::Arc<Woken>, std::task::Waker);

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    impl Task {
        fn new() -> Self {
            let woken = std::sync::Arc::new(Woken::default());
            let waker = std::sync::Arc::clone(&woken).into();
            Self(woken, waker)
        }

        fn context(&self) -> Context<'_> {
            Context::from_waker(&self.1)
        }

        fn woken(&self) -> bool {
            self.0.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_are_those_that_were_written_whatever_their_pieces(
            writes in prop::collection::vec((0_usize..200_000, any::<bool>()), 1..12),
            room in 1_usize..300_000,
            part in 1_usize..100_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (ours, theirs) = tokio::io::duplex(room);
                let (mut ours, mut theirs) = (Bulk::new(ours), Bulk::new(theirs));
                let mut sent = Vec::new();
                for (index, (size, _)) in writes.iter().enumerate() {
                    sent.resize(sent.len() + size, index as u8);
                }
                let writing = async {
                    let mut from = 0;
                    for (size, flushes) in &writes {
                        ours.write_all(&sent[from..from + size]).await.unwrap();
                        from += size;
                        if *flushes {
                            ours.flush().await.unwrap();
                        }
                    }
                    ours.shutdown().await.unwrap();
                };
                let reading = async {
                    let mut got = Vec::new();
                    let mut buffer = vec![0; part];
                    loop {
                        match theirs.read(&mut buffer).await.unwrap() {
                            0 => return got,
                            count => got.extend_from_slice(&buffer[..count]),
                        }
                    }
                };
                let ((), got) = tokio::join!(writing, reading);
                assert!(got == sent);
            });
        }
    }
}
