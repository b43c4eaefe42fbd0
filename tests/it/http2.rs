//! HTTP/2 in clear text on the ports that speak HTTP/1.1 as well.

use roundhouse::backend::gated::Step;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{get, infer, load, post};
use crate::support::http2::Http2;
use crate::support::repository::Repository;
use crate::support::server::{TestServer, all};
use crate::support::{eventually, within};

/// What a client of HTTP/2 sends first, and its empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn connect(server: &TestServer) -> Http2 {
    Http2::over(TcpStream::connect(server.addresses.http).await.unwrap()).await
}

#[tokio::test]
async fn the_same_is_answered_as_over_http_1() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let client = connect(&server).await;
    assert_eq!(client.ask(&infer("a", 7)).await.tag(), 7);
    let requests = [
        get("/v2"),
        get("/v2/health/ready"),
        get("/v2/models/a"),
        get("/v2/models/none"),
        post("/v2/models/a/infer", "{"),
        post("/v2/repository/index", ""),
        get("/v2/repository/index"),
        load("a"),
        get("/v1/models/none/explain"),
    ];
    for request in &requests {
        let (one, two) = (server.ask(request).await, client.ask(request).await);
        assert_eq!(one.status, two.status, "{request:?}");
        assert_eq!(one.header("content-type"), two.header("content-type"), "{request:?}");
        assert_eq!(one.text(), two.text(), "{request:?}");
    }
    server.finish().await;
}

#[tokio::test]
async fn requests_of_one_connection_run_side_by_side() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let client = connect(&server).await;
    server.gated.close("a", Step::Execute);
    let asking = tokio::spawn({
        let client = client.clone();
        async move {
            all((0..100).map(|tag| {
                let client = client.clone();
                async move { client.ask(&infer("a", tag)).await.tag() }
            }))
            .await
        }
    });
    server.until_pending("a", 98).await;
    client.ask(&get("/v2/health/live")).await.expect(200);
    server.gated.open("a", Step::Execute);
    assert_eq!(within("all answers", asking).await.unwrap(), (0..100).collect::<Vec<_>>());
    server.finish().await;
}

#[tokio::test]
async fn a_large_body_goes_both_ways() {
    let repository = Repository::empty();
    repository.put(
        "i/config.pbtxt",
        "backend: \"identity\" input [ { name: \"x\" data_type: TYPE_UINT8 dims: [ -1 ] } ] \
         output [ { name: \"x\" data_type: TYPE_UINT8 dims: [ -1 ] } ]",
    );
    repository.add_version("i", 1);
    let server = TestServer::start(repository).await;
    let client = connect(&server).await;
    let tensor: Vec<u8> = (0..8 << 20_u32).map(|index| (index % 251) as u8).collect();
    let head = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"UINT8","shape":[{0}],"parameters":{{"binary_data_size":{0}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        tensor.len()
    );
    let body = [head.as_bytes(), &tensor].concat();
    let request = post("/v2/models/i/infer", body).header("inference-header-content-length", head.len());
    let answer = client.ask(&request).await.expect(200);
    assert!(answer.body.ends_with(&tensor));
    server.finish().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_connection_goes_on() {
    let repository = Repository::gated(&["a"]);
    let server = TestServer::start_with(repository, |config| config.limits.body_bytes = 4096).await;
    let client = connect(&server).await;
    let large = post("/v2/models/a/infer", vec![b' '; 3 << 20]);
    // The answer comes while the body does; what is left of it is refused.
    if let Ok(answer) = client.try_ask(&large).await {
        assert_eq!(answer.expect(413).json()["code"], "too_large");
    }
    assert_eq!(client.ask(&infer("a", 2)).await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn a_request_that_is_reset_is_not_run() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let client = connect(&server).await;
    client.ask(&infer("a", 0)).await.expect(200);
    server.gated.close("a", Step::Execute);
    let mut running = Vec::new();
    for tag in 1..3 {
        running.push(server.send(&infer("a", tag)).await);
    }
    server.until("a", |counts| counts.executions_begun == 3).await;
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { client.try_ask(&infer("a", 3)).await.map(drop) }
    });
    server.until_pending("a", 1).await;
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    // Behind the reset on the same connection.
    client.ask(&get("/v2/health/live")).await.expect(200);
    server.gated.open("a", Step::Execute);
    for (tag, client) in (1..).zip(&mut running) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    assert_eq!(client.ask(&infer("a", 4)).await.tag(), 4);
    assert_eq!(server.gated.counts("a").executions_begun, 4, "0, 1, 2 and 4");
    server.finish().await;
}

#[tokio::test]
async fn requests_in_flight_are_answered_at_the_end_and_the_connection_is_closed() {
    let mut server = TestServer::start(Repository::gated(&["a"])).await;
    let client = connect(&server).await;
    server.gated.close("a", Step::Execute);
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.ask(&infer("a", 5)).await.tag() }
    });
    server.until("a", |counts| counts.executions_begun == 1).await;
    let idle = connect(&server).await;
    idle.ask(&get("/v2/health/live")).await.expect(200);
    server.shutdown.cancel();
    eventually("the idle connection is closed", || !idle.is_open()).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(within("the answer", asking).await.unwrap(), 5);
    eventually("the connection is closed", || !client.is_open()).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_preface_in_pieces_is_one_and_a_method_like_it_is_not() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in PREFACE.chunks(1) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut frame = [0; 9];
    within("SETTINGS", stream.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame[3], 4, "{frame:?}");
    for (beginning, expected) in [
        (&b"PRI / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"[..], &b"HTTP/1.1 4"[..]),
        // Not quite HTTP/2: closed.
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b""),
    ] {
        let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let mut answer = Vec::new();
        within("the end", stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.starts_with(expected), "{}", answer.escape_ascii());
    }
    server.finish().await;
}

/// A stream's HEADERS: `GET /v2/health/live`.
fn headers(stream: u32) -> Vec<u8> {
    let block = [&[0x82, 0x86, 0x04, 15][..], b"/v2/health/live", &[0x01, 4], b"test"].concat();
    frame(1, 0x05, stream, &block)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Writes until the server has had enough, and reads what it said last: the error code of its GOAWAY.
async fn until_goaway(server: &TestServer, mut next: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> u32 {
    let stream = TcpStream::connect(server.addresses.http).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let writer = tokio::spawn(async move {
        writing.write_all(PREFACE).await.unwrap();
        for index in 0.. {
            if writing.write_all(&next(index)).await.is_err() {
                break;
            }
        }
    });
    let code = within("GOAWAY", async {
        loop {
            let mut head = [0; 9];
            reading.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            reading.read_exact(&mut payload).await.unwrap();
            if head[3] == 7 {
                return u32::from_be_bytes(payload[4..8].try_into().unwrap());
            }
        }
    })
    .await;
    drop(reading);
    writer.abort();
    code
}

#[tokio::test]
async fn who_opens_and_resets_streams_all_the_time_is_sent_away() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let reset = |stream| [headers(stream), frame(3, 0, stream, &8_u32.to_be_bytes())].concat();
    // Many at a time, so that they come before anybody looks.
    let next = move |index: u32| (0..200).flat_map(|one| reset((index * 200 + one) * 2 + 1)).collect();
    let code = until_goaway(&server, next).await;
    assert!(matches!(code, 1 | 11), "ENHANCE_YOUR_CALM or PROTOCOL_ERROR, not {code}");
    assert_eq!(server.ask(&infer("a", 1)).await.tag(), 1);
    server.finish().await;
}

#[tokio::test]
async fn a_head_without_end_is_not_kept() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let block = [0x00, 1, b'x', 1, b'y'].repeat(3000);
    let code = until_goaway(&server, move |index| match index {
        0 => frame(1, 0, 1, &block),
        _ => frame(9, 0, 1, &block),
    })
    .await;
    assert!(matches!(code, 1 | 11), "ENHANCE_YOUR_CALM or PROTOCOL_ERROR, not {code}");
    server.finish().await;
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_and_the_connection_goes_on() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let client = connect(&server).await;
    let refused = client.try_ask(&get("/v2").header("x-large", "y".repeat(100_000))).await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status == 431));
    server.ask(&get("/v2/health/live")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn metrics_and_sagemakers_port_speak_it_too() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    for (address, path) in [(server.addresses.metrics, "/metrics"), (server.addresses.sagemaker, "/ping")] {
        let stream = TcpStream::connect(address).await.unwrap();
        Http2::over(stream).await.ask(&get(path)).await.expect(200);
    }
    server.finish().await;
}
