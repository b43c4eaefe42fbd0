//! Limits on what a client may send, and that its connection outlives them.

use std::io::Write;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use roundhouse::config::ServerConfig;

use crate::support::client::{Client, infer, infer_body, post};
use crate::support::repository::Repository;
use crate::support::server::TestServer;

const LIMIT: usize = 4096;

fn small(config: &mut ServerConfig) {
    config.limits.body_bytes = LIMIT;
    config.limits.json_bytes = LIMIT;
    config.limits.body_chunks = 16;
}

async fn start() -> (TestServer, Client) {
    let server = TestServer::start_with(Repository::gated(&["a"]), small).await;
    let client = server.client().await;
    (server, client)
}

/// A right request of `length` bytes, filled up with spaces.
fn padded(length: usize) -> Vec<u8> {
    let mut body = infer_body(1).to_string().into_bytes();
    body.resize(length, b' ');
    body
}

#[tokio::test]
async fn a_body_up_to_the_limit_is_taken_and_one_byte_more_costs_an_error_but_not_the_connection() {
    let (server, mut client) = start().await;
    for _ in 0..3 {
        assert_eq!(client.ask(&post("/v2/models/a/infer", padded(LIMIT))).await.tag(), 1);
        for length in [LIMIT + 1, 2 * LIMIT] {
            let refused = client.ask(&post("/v2/models/a/infer", padded(length))).await.expect(413);
            assert!(refused.error().contains("4096"), "{}", refused.error());
            assert_eq!(refused.json()["code"], "too_large");
            assert_eq!(client.ask(&infer("a", 2)).await.tag(), 2);
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn the_limit_holds_for_control_requests_too() {
    let (server, mut client) = start().await;
    let refused = client.ask(&post("/v2/repository/index", vec![b' '; LIMIT + 1])).await.expect(413);
    assert_eq!(refused.json()["code"], "too_large");
    client.ask(&post("/v2/repository/index", "")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_body_that_is_announced_far_too_large_is_refused_before_it_comes() {
    let (server, mut client) = start().await;
    let request = post("/v2/models/a/infer", "").header("content-length", 1_u64 << 40);
    client.write(&request.head()).await;
    client.receive().await.expect(413);
    assert!(client.try_receive().await.is_none(), "what would follow cannot be told from a request");
    assert_eq!(server.ask(&infer("a", 1)).await.tag(), 1);
    server.finish().await;
}

fn chunked(pieces: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for piece in pieces {
        body.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        body.extend_from_slice(piece);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

#[tokio::test]
async fn a_body_in_chunks_is_put_together_and_too_many_chunks_are_refused() {
    let (server, mut client) = start().await;
    let body = padded(200);
    for size in [200, 50, 13] {
        let pieces: Vec<&[u8]> = body.chunks(size).collect();
        let request = post("/v2/models/a/infer", chunked(&pieces)).header("transfer-encoding", "chunked");
        assert_eq!(client.ask(&request).await.tag(), 1, "{} chunks", pieces.len());
    }
    let pieces: Vec<&[u8]> = body.chunks(5).collect();
    let request = post("/v2/models/a/infer", chunked(&pieces)).header("transfer-encoding", "chunked");
    let refused = client.ask(&request).await.expect(413);
    assert!(refused.error().starts_with("the body came in more than 16 "), "{}", refused.error());
    assert_eq!(client.ask(&infer("a", 2)).await.tag(), 2, "the connection survives");
    server.finish().await;
}

#[tokio::test]
async fn chunks_that_come_to_too_much_are_refused() {
    let (server, mut client) = start().await;
    let piece = vec![b' '; LIMIT / 2];
    let request = post("/v2/models/a/infer", chunked(&[&piece, &piece, &piece])).header("transfer-encoding", "chunked");
    let refused = client.ask(&request).await.expect(413);
    assert!(refused.error().contains("4096"), "{}", refused.error());
    assert_eq!(client.ask(&infer("a", 2)).await.tag(), 2, "the connection survives");
    server.finish().await;
}

#[tokio::test]
async fn a_small_body_that_unpacks_to_a_large_one_is_refused() {
    let (server, mut client) = start().await;
    let large = padded(1 << 20);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&large).unwrap();
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::best());
    deflate.write_all(&large).unwrap();
    for (name, packed) in [("gzip", gzip.finish().unwrap()), ("deflate", deflate.finish().unwrap())] {
        assert!(packed.len() < LIMIT);
        let bomb = post("/v2/models/a/infer", packed).header("content-encoding", name);
        let refused = client.ask(&bomb).await.expect(413);
        assert_eq!(refused.json()["code"], "too_large");
        assert_eq!(client.ask(&infer("a", 2)).await.tag(), 2);
    }
    server.finish().await;
}

#[tokio::test]
async fn who_waits_for_a_go_ahead_gets_it_or_the_refusal() {
    let (server, mut client) = start().await;
    let right = post("/v2/models/a/infer", padded(100)).header("expect", "100-continue");
    client.write(&right.clone().header("content-length", 100).head()).await;
    assert_eq!(client.receive().await.status, 100);
    client.write(&padded(100)).await;
    assert_eq!(client.receive().await.tag(), 1);
    client.write(&right.header("content-length", LIMIT + 1).head()).await;
    client.receive().await.expect(413);
    assert_eq!(server.ask(&infer("a", 2)).await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn requests_sent_one_after_the_other_without_waiting_are_answered_in_order() {
    let (server, mut client) = start().await;
    let mut bytes = Vec::new();
    for tag in 0..50 {
        let body = infer_body(tag).to_string();
        bytes.extend(post("/v2/models/a/infer", body.clone()).head());
        bytes.extend(body.into_bytes());
    }
    client.write(&bytes).await;
    for tag in 0..50 {
        assert_eq!(client.receive().await.tag(), tag);
    }
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_a_body_leaves_nothing_behind() {
    let (server, _) = start().await;
    server.ask(&infer("a", 1)).await.expect(200);
    for _ in 0..20 {
        let mut client = server.client().await;
        client.write(&post("/v2/models/a/infer", padded(100)).head()).await;
        client.write(&padded(100)[..50]).await;
    }
    assert_eq!(server.ask(&infer("a", 2)).await.tag(), 2);
    assert_eq!(server.gated.counts("a").executions_begun, 2);
    server.finish().await;
}
