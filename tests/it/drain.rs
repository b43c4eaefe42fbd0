//! Shutting down: what is in flight ends well, what is idle is closed, and the grace has an end.

use std::net::SocketAddr;
use std::time::Duration;

use roundhouse::backend::gated::Step;
use tokio::net::TcpStream;

use crate::support::client::{Client, get, infer, load};
use crate::support::repository::Repository;
use crate::support::server::TestServer;
use crate::support::{eventually, within};

#[tokio::test]
async fn a_request_in_flight_is_answered_and_then_the_server_ends() {
    let mut server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Execute);
    // Two run, two wait; all are in flight.
    let mut clients = Vec::new();
    for tag in 0..4 {
        clients.push(server.send(&infer("a", tag)).await);
    }
    server.until("a", |counts| counts.executions_begun == 2).await;
    server.until_pending("a", 2).await;
    server.shutdown.cancel();
    eventually("the server drains", || server.inner.is_draining()).await;
    assert!(!server.inner.is_ready());
    server.gated.open("a", Step::Execute);
    for (tag, client) in (0..).zip(&mut clients) {
        assert_eq!(client.receive().await.tag(), tag);
        assert!(client.try_receive().await.is_none(), "the connection is closed after its last answer");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_request_that_waits_for_a_load_is_answered_while_draining() {
    let mut server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Load);
    let mut client = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.loads_begun == 1).await;
    server.shutdown.cancel();
    eventually("the server drains", || server.inner.is_draining()).await;
    server.gated.open("a", Step::Load);
    assert_eq!(client.receive().await.tag(), 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_connection_idle_in_keep_alive_is_closed_at_once() {
    let mut server = TestServer::start(Repository::gated(&["a"])).await;
    let mut asked = server.client().await;
    asked.ask(&infer("a", 1)).await.expect(200);
    let mut silent = server.client().await;
    // The server has accepted the second when it has answered a third.
    server.ask(&get("/v2/health/live")).await.expect(200);
    server.stop().await.unwrap();
    assert!(asked.try_receive().await.is_none());
    assert!(silent.try_receive().await.is_none());
}

/// Waits until nobody listens any more; what was accepted in the last moment is closed without an answer.
async fn until_closed(address: SocketAddr) {
    within("the port is closed", async {
        while let Ok(stream) = TcpStream::connect(address).await {
            drop(stream);
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn no_new_connection_is_taken_while_draining_but_the_metrics_are_served() {
    let mut server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Execute);
    let mut client = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.shutdown.cancel();
    until_closed(server.addresses.http).await;
    let mut watcher = Client::connect(server.addresses.metrics).await;
    let page = watcher.ask(&get("/metrics")).await.expect(200);
    watcher.ask(&get("/v2/health/live")).await.expect(200);
    assert_eq!(watcher.ask(&get("/v2/health/ready")).await.expect(503).error(), "the server is shutting down");
    drop(watcher);
    assert!(page.text().contains("nv_inference_pending_request_count{model=\"a\",version=\"1\"} 0\n"));
    server.gated.open("a", Step::Execute);
    assert_eq!(client.receive().await.tag(), 1);
    server.stop().await.unwrap();
    until_closed(server.addresses.metrics).await;
}

#[tokio::test]
async fn what_is_not_done_within_the_grace_is_left() {
    let repository = Repository::gated(&["a"]);
    let mut server = TestServer::start_with(repository, |config| config.drain_grace = Duration::from_millis(1)).await;
    server.gated.close("a", Step::Execute);
    let _client = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.stop().await.unwrap();
    // The process would end here, and cut the connection.
    assert_eq!(server.gated.counts("a").executions_ended, 0);
}

#[tokio::test]
async fn a_load_at_start_does_not_keep_the_server_from_ending() {
    let gated = roundhouse::backend::gated::Gated::default();
    gated.close("a", Step::Load);
    let change = |config: &mut roundhouse::config::ServerConfig| config.load_model = vec!["a".to_owned()];
    let mut server = TestServer::start_unready(Repository::gated(&["a"]), gated, change).await;
    server.until("a", |counts| counts.loads_begun == 1).await;
    server.ask(&get("/v2/health/ready")).await.expect(503);
    server.stop().await.unwrap();
    assert_eq!(server.gated.counts("a").loads_ended, 0);
}

#[tokio::test]
async fn a_stopped_server_has_given_back_its_models() {
    let mut server = TestServer::start(Repository::gated(&["a", "b"])).await;
    for name in ["a", "b"] {
        server.ask(&load(name)).await.expect(200);
    }
    server.stop().await.unwrap();
    let TestServer { gated, .. } = &server;
    let gated = gated.clone();
    drop(server);
    eventually("the models are out of memory", || gated.alive() == 0).await;
}
