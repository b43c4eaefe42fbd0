//! What a new connection speaks: TLS or not, HTTP/1 or HTTP/2, found out within limits of time.

use std::io;
use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls::Tls;
use super::transport::{Stream, Transport};
use super::{HEAD_TIMEOUT, Wire};

/// What a client of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a handshake of TLS may take, and the preface of HTTP/2 once it has begun: a second or less even from afar.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is read ahead at most: the first request, often whole.
const AHEAD: usize = 2048;

/// The first byte of a handshake of TLS (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// To who speaks HTTP/1 in clear text where TLS is spoken.
const SPEAK_TLS: &str = "this port speaks TLS: use https://\n";

/// To who speaks HTTP/1 where only HTTP/2 is spoken.
const SPEAK_HTTP2: &str = "this port speaks HTTP/2 alone, for gRPC\n";

/// A connection that is ready for its first request.
pub(super) struct Opened {
    pub(super) transport: Transport,
    pub(super) version: Version,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// Finds out what is spoken. `None` where the client closed the connection, or was told what to speak.
///
/// # Errors
/// Of the socket, of the handshake, or `TimedOut`.
pub(super) async fn open(stream: TcpStream, wire: Wire, tls: Option<&Tls>) -> io::Result<Option<Opened>> {
    match tls {
        None => {
            timeout(HEAD_TIMEOUT, stream.readable()).await??;
            settle(Transport::new(Stream::Plain(stream)), wire, wire).await
        }
        Some(tls) => {
            let shaken = timeout(HANDSHAKE, shake_hands(stream, wire, tls)).await?;
            let Some((stream, version)) = shaken? else { return Ok(None) };
            let transport = Transport::new(Stream::Tls(stream));
            match version {
                Version::Http1 => Ok(Some(Opened { transport, version })),
                Version::Http2 => settle(transport, Wire::Http2, wire).await,
            }
        }
    }
}

type Shaken = (Box<tokio_rustls::server::TlsStream<TcpStream>>, Version);

async fn shake_hands(mut stream: TcpStream, wire: Wire, tls: &Tls) -> io::Result<Option<Shaken>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if first[0] != TLS_HANDSHAKE {
        refuse(&mut stream, first[0], SPEAK_TLS).await?;
        return Ok(None);
    }
    let stream = tls.acceptor(wire).accept(stream).await?;
    let chosen = stream.get_ref().1.alpn_protocol();
    let version = match (wire, chosen) {
        (Wire::Http2, _) | (Wire::Http1AndHttp2, Some(b"h2")) => Version::Http2,
        (Wire::Http1AndHttp2, _) => Version::Http1,
    };
    Ok(Some((Box::new(stream), version)))
}

/// Reads as far as it takes to tell HTTP/2 from HTTP/1; HTTP/2 to the end of its preface, so that whoever goes on has not
/// to wait for it. `offered` is what the client may choose from, `wire` what the port speaks.
async fn settle(mut transport: Transport, offered: Wire, wire: Wire) -> io::Result<Option<Opened>> {
    let version = {
        let (ahead, stream) = transport.ahead_mut();
        let Some(version) = timeout(HANDSHAKE, first_bytes(ahead, stream)).await?? else { return Ok(None) };
        version
    };
    if version == Version::Http1 && offered == Wire::Http2 {
        if wire == Wire::Http2 {
            let first = transport.ahead_mut().0.first().copied().unwrap_or_default();
            refuse(&mut transport, first, SPEAK_HTTP2).await?;
        }
        return Ok(None);
    }
    Ok(Some(Opened { transport, version }))
}

/// `None` at the end of what the client sends.
async fn first_bytes(ahead: &mut Vec<u8>, stream: &mut Stream) -> io::Result<Option<Version>> {
    ahead.reserve_exact(AHEAD);
    loop {
        // A vector would grow without end; what does not fit stays in the socket.
        let room = AHEAD - ahead.len();
        if stream.read_buf(&mut (&mut *ahead).limit(room)).await? == 0 {
            return Ok(None);
        }
        if ahead.len() >= PREFACE.len() && ahead.starts_with(PREFACE) {
            return Ok(Some(Version::Http2));
        }
        if !PREFACE.starts_with(&ahead[..ahead.len().min(PREFACE.len())]) {
            return Ok(Some(Version::Http1));
        }
    }
}

/// Tells who speaks HTTP/1 what to speak instead; others would not understand.
async fn refuse(stream: &mut (impl AsyncWriteExt + Unpin), first: u8, text: &str) -> io::Result<()> {
    if first.is_ascii_uppercase() {
        let length = text.len();
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
    }
    Ok(())
}
