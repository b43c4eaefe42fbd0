//! `ModelStreamInfer`: order, errors, bounds, cuts, and the drain.

use std::pin::Pin;

use futures_util::StreamExt;
use roundhouse::backend::gated::Step;
use roundhouse::frontend::kserve_grpc::proto::inference as pb;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tonic::{Code, Status, Streaming};

use super::client::{Grpc, number, numbers, tag};
use crate::support::repository::Repository;
use crate::support::server::TestServer;
use crate::support::{eventually, within};

/// A stream whose requests a test gives one by one.
pub(super) struct Talk {
    pub(super) requests: Option<UnboundedSender<pb::ModelInferRequest>>,
    answers: Streaming<pb::ModelStreamInferResponse>,
}

impl Talk {
    pub(super) async fn begin(grpc: &Grpc, metadata: &[(&'static str, &str)]) -> Self {
        let (sender, mut receiver) = unbounded_channel();
        let requests = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut asked = tonic::Request::new(requests);
        for (name, value) in metadata {
            asked.metadata_mut().insert(*name, value.parse().unwrap());
        }
        Self { requests: Some(sender), answers: grpc.stream(asked).await.unwrap() }
    }

    pub(super) fn ask(&self, request: pb::ModelInferRequest) {
        self.requests.as_ref().unwrap().send(request).unwrap();
    }

    pub(super) async fn next(&mut self) -> Option<Result<pb::ModelStreamInferResponse, Status>> {
        within("an answer", Pin::new(&mut self.answers).next()).await
    }

    pub(super) async fn tag(&mut self) -> i32 {
        let answer = self.next().await.unwrap().unwrap();
        assert_eq!(answer.error_message, "");
        let answer = answer.infer_response.unwrap();
        let last = pb::infer_parameter::ParameterChoice::BoolParam(true);
        assert_eq!(answer.parameters["triton_final_response"].parameter_choice, Some(last));
        tag(&answer)
    }
}

async fn start() -> (TestServer, Grpc) {
    let server = TestServer::start(Repository::gated(&["a", "b"])).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    (server, grpc)
}

#[tokio::test]
async fn requests_run_side_by_side_and_are_answered_in_order() {
    let (server, grpc) = start().await;
    let mut talk = Talk::begin(&grpc, &[]).await;
    talk.ask(number("a", 0));
    assert_eq!(talk.tag().await, 0);
    server.gated.close("a", Step::Execute);
    talk.ask(number("a", 1));
    talk.ask(number("b", 2));
    talk.ask(number("a", 3));
    server.until("a", |counts| counts.executions_begun == 3).await;
    server.until("b", |counts| counts.executions_ended == 1).await;
    server.gated.open("a", Step::Execute);
    for expected in 1..4 {
        assert_eq!(talk.tag().await, expected);
    }
    talk.requests = None;
    assert!(talk.next().await.is_none());
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn an_error_is_an_item_and_the_stream_goes_on() {
    let (server, grpc) = start().await;
    let mut talk = Talk::begin(&grpc, &[]).await;
    talk.ask(number("a", 1));
    talk.ask(number("nowhere", 2));
    talk.ask(pb::ModelInferRequest { model_name: "a".to_owned(), id: "3".to_owned(), ..Default::default() });
    talk.ask(number("a", 4));
    assert_eq!(talk.tag().await, 1);
    for (id, text) in [("2", "Request for unknown model: 'nowhere'"), ("3", "[request id: 3] expected 1 inputs")] {
        let item = talk.next().await.unwrap().unwrap();
        assert!(item.error_message.contains(text), "{}", item.error_message);
        assert_eq!(item.infer_response.unwrap().id, id);
    }
    assert_eq!(talk.tag().await, 4);
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn an_error_ends_the_stream_of_who_wants_it_so() {
    let (server, grpc) = start().await;
    let mut talk = Talk::begin(&grpc, &[("triton_grpc_error", "true")]).await;
    talk.ask(number("a", 1));
    talk.ask(number("nowhere", 2));
    talk.ask(number("a", 3));
    assert_eq!(talk.tag().await, 1);
    assert_eq!(talk.next().await.unwrap().unwrap_err().code(), Code::NotFound);
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn a_stream_is_cut_in_the_middle_again_and_again_and_leaves_nothing() {
    let (server, grpc) = start().await;
    grpc.infer(number("a", 0)).await.unwrap();
    server.gated.close("a", Step::Execute);
    for round in 0..100 {
        let cut = Grpc::connect(server.addresses.grpc).await;
        let talk = Talk::begin(&cut, &[]).await;
        for each in 0..10 {
            talk.ask(number("a", each));
        }
        if round % 2 == 0 {
            eventually("requests wait", || server.pending("a") > 0).await;
        }
        drop((talk, cut));
    }
    server.gated.open("a", Step::Execute);
    assert_eq!(tag(&grpc.infer(number("a", 2)).await.unwrap()), 2);
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn while_nobody_reads_no_more_is_run_than_the_bound() {
    let (server, grpc) = start().await;
    let mut talk = Talk::begin(&grpc, &[]).await;
    // 64 KiB each: windows and buffers hold a few.
    let large = vec![7; 16 << 10];
    let all = 600;
    for _ in 0..all {
        talk.ask(numbers("a", &large));
    }
    for read in 0..all {
        let begun = server.gated.counts("a").executions_begun;
        assert!(begun <= read + 200, "{begun} begun, {read} read");
        assert_eq!(talk.tag().await, 7);
    }
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn a_message_that_cannot_be_taken_ends_the_stream() {
    let server = TestServer::start_with(Repository::gated(&["a"]), |config| config.grpc.max_message_bytes = 1000).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    let mut talk = Talk::begin(&grpc, &[]).await;
    talk.ask(number("a", 1));
    assert_eq!(talk.tag().await, 1);
    talk.ask(numbers("a", &[0; 1000]));
    assert_eq!(talk.next().await.unwrap().unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(tag(&grpc.infer(number("a", 2)).await.unwrap()), 2, "the connection goes on");
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn the_deadline_of_the_call_ends_it() {
    let (server, grpc) = start().await;
    let mut talk = Talk::begin(&grpc, &[("grpc-timeout", "50m")]).await;
    let ended = talk.next().await.unwrap().unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::DeadlineExceeded, "the call's deadline has passed"));
    drop((talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn a_drain_answers_what_is_under_way_and_ends_idle_streams() {
    let (mut server, grpc) = start().await;
    let mut idle = Talk::begin(&grpc, &[]).await;
    let mut busy = Talk::begin(&grpc, &[]).await;
    server.gated.close("a", Step::Execute);
    busy.ask(number("a", 1));
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.shutdown.cancel();
    assert_eq!(idle.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    server.gated.open("a", Step::Execute);
    assert_eq!(busy.tag().await, 1);
    assert_eq!(busy.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    server.stop().await.unwrap();
}
