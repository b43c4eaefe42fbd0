//! What clients do that no client should: connections cut by the thousand, messages announced and never sent, answers that
//! nobody reads, certificates of strangers. The server goes on, and nothing is left of it: `finish` looks.

use std::convert::Infallible;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::client::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use roundhouse::backend::gated::Step;
use roundhouse::config::security::{TlsFiles, TlsPort};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::body::Body;

use super::client::{Grpc, framed, number, numbers, tag};
use super::streams::Talk;
use crate::support::certificates::{Authority, Identity};
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::{TestServer, all};
use crate::support::{eventually, within};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

#[tokio::test]
async fn a_thousand_connections_cut_with_requests_in_flight_again_and_again_leave_nothing() {
    let server = TestServer::start(Repository::gated(&["b"]).with("a", "gated", ONE_INSTANCE)).await;
    let steady = Grpc::connect(server.addresses.grpc).await;
    steady.infer(number("a", 0)).await.unwrap();
    for round in 0..10 {
        server.gated.close("a", Step::Execute);
        let begun = server.gated.counts("a").executions_begun;
        let connections = all((0..100).map(|_| Grpc::connect(server.addresses.grpc))).await;
        let mut talks = Vec::new();
        for connection in &connections {
            let talk = Talk::begin(connection, &[]).await;
            talk.ask(number("a", round));
            talk.ask(number("a", round));
            talks.push(talk);
        }
        let calls = all(connections.iter().map(|connection| connection.infer(number("a", round))));
        let in_flight = async {
            server.until("a", |counts| counts.executions_begun > begun).await;
            eventually("requests of every connection", || server.pending("a") >= 299).await;
        };
        tokio::select! {
            biased;
            answers = calls => panic!("answered through a closed gate: {}", answers.len()),
            () = in_flight => {}
        }
        drop((talks, connections));
        assert_eq!(tag(&steady.infer(number("b", round)).await.unwrap()), round, "others are answered meanwhile");
        server.gated.open("a", Step::Execute);
        assert_eq!(tag(&steady.infer(number("a", round)).await.unwrap()), round);
        eventually("nothing waits any more", || server.pending("a") == 0).await;
        let pins = || server.inner.resident_versions().iter().map(|loaded| loaded.pins()).sum::<usize>();
        eventually("nobody holds the model", || pins() == 0).await;
    }
    let ran = server.gated.counts("a").executions_begun;
    assert!(ran < 1000, "requests of connections that were cut were run: {ran}");
    drop(steady);
    server.finish().await;
}

/// A body of these bytes that does not end.
fn unfinished(bytes: Vec<u8>) -> Body {
    let first = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(bytes)))]);
    Body::new(StreamBody::new(futures_util::StreamExt::chain(first, futures_util::stream::pending())))
}

#[tokio::test]
async fn a_message_of_two_gigabytes_is_refused_by_what_announces_it() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    for call in ["ModelInfer", "ModelStreamInfer", "ModelConfig"] {
        let path = format!("/inference.GRPCInferenceService/{call}");
        let announced = unfinished(vec![0, 0x7f, 0xff, 0xff, 0xff]);
        let (http, status) = within("a refusal", grpc.raw_body(&path, announced)).await;
        let status = status.unwrap();
        assert_eq!((http, status.code()), (200, Code::ResourceExhausted), "{call}: {status}");
        assert!(status.message().contains("2147483647 bytes is larger than"), "{status}");
    }
    assert_eq!(tag(&grpc.infer(number("a", 1)).await.unwrap()), 1, "the connection goes on");
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn messages_that_do_not_come_to_their_end_are_forgotten_with_their_connection() {
    let server = TestServer::start_with(Repository::gated(&["a"]), |config| {
        config.grpc.max_message_bytes = usize::try_from(u32::MAX).unwrap();
    })
    .await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    for _ in 0..20 {
        let cut = Grpc::connect(server.addresses.grpc).await;
        let halves = all((0..20).map(|_| cut.raw_body(INFER, unfinished(vec![0, 0x7f, 0xff, 0xff, 0xff, 1]))));
        tokio::select! {
            biased;
            answers = halves => panic!("half a message was answered: {answers:?}"),
            answer = grpc.infer(number("a", 3)) => assert_eq!(tag(&answer.unwrap()), 3),
        }
        drop(cut);
    }
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_reads_no_answer_holds_up_nobody_else() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let steady = Grpc::connect(server.addresses.grpc).await;
    // Streams that no answer fits: each waits in the server until its client reads.
    let stream = TcpStream::connect(server.addresses.grpc).await.unwrap();
    let mut builder = Builder::new(TokioExecutor::new());
    let (mut slow, connection) = builder
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(16 << 20)
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let message = framed(&numbers("a", &vec![5; 64 << 10]).encode_to_vec());
    let mut unread = Vec::new();
    for _ in 0..50 {
        let request = http::Request::post(format!("http://{}{INFER}", server.addresses.grpc))
            .header("content-type", "application/grpc")
            .body(Body::new(http_body_util::Full::new(Bytes::from(message.clone()))))
            .unwrap();
        slow.ready().await.unwrap();
        unread.push(within("the head of an answer", slow.send_request(request)).await.unwrap());
    }
    // Answered as far as the model is concerned: nothing of it is held.
    eventually("nobody holds the model", || server.inner.resident_versions().iter().all(|loaded| loaded.pins() == 0))
        .await;
    for each in 0..20 {
        assert_eq!(tag(&steady.infer(number("a", each)).await.unwrap()), each);
    }
    // Who reads after all gets what was asked for.
    let whole =
        within("the rest of an answer", http_body_util::BodyExt::collect(unread.remove(0).into_body())).await.unwrap();
    assert!(whole.to_bytes().len() > 256 << 10);
    connection.abort();
    drop((unread, slow, steady));
    server.finish().await;
}

#[tokio::test]
async fn only_clients_of_the_authority_call_where_certificates_are_asked_for() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = servers.sign().write(folder.path());
    let client_ca = folder.path().join("ca.crt");
    std::fs::write(&client_ca, clients.pem()).unwrap();
    let server = TestServer::start_with(Repository::gated(&["a"]), |config| {
        config.security.tls = Some(TlsFiles { certificate, key, client_ca: Some(client_ca) });
        config.security.tls_ports = vec![TlsPort::Grpc];
    })
    .await;
    let address = server.addresses.grpc;
    // With TLS 1.3 a client learns only after its handshake that its certificate is refused.
    let ask = async |own: Option<&Identity>| -> Option<i32> {
        let stream = servers.connect(address, own, &["h2"]).await.ok()?;
        let grpc = Grpc::over(stream, address).await.ok()?;
        within("an answer or none", grpc.try_raw(INFER, framed(&number("a", 4).encode_to_vec()))).await
    };
    assert_eq!(ask(Some(&clients.sign())).await, Some(0));
    for (what, own) in [
        ("no certificate", None),
        ("another authority's", Some(strangers.sign())),
        ("an expired one", Some(clients.sign_until(2001))),
        ("the server's own authority's", Some(servers.sign())),
    ] {
        assert_eq!(ask(own.as_ref()).await, None, "{what}");
    }
    assert!(strangers.connect(address, Some(&clients.sign()), &["h2"]).await.is_err(), "the client trusts another");
    // Clear text is not answered as gRPC.
    let plain = TcpStream::connect(address).await.unwrap();
    if let Ok(grpc) = Grpc::over(plain, address).await {
        assert_eq!(within("an end", grpc.try_raw(INFER, framed(b""))).await, None);
    }
    assert_eq!(ask(Some(&clients.sign())).await, Some(0), "the others changed nothing");
    server.finish().await;
}
