//! Calls of one message: inference, health, errors, limits, connections that are cut, and the drain.

use futures_util::StreamExt;
use prost::Message;
use roundhouse::backend::gated::Step;
use roundhouse::frontend::kserve_grpc::proto::health::health_check_response::ServingStatus;
use roundhouse::frontend::kserve_grpc::proto::health::{HealthCheckRequest, HealthCheckResponse};
use roundhouse::frontend::kserve_grpc::proto::inference as pb;
use tonic::Code;

use super::client::{Grpc, framed, number, numbers, tag};
use crate::support::client::infer;
use crate::support::repository::Repository;
use crate::support::server::{TestServer, all};
use crate::support::{eventually, within};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

async fn start() -> (TestServer, Grpc) {
    let server = TestServer::start(Repository::gated(&["a", "b"])).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    (server, grpc)
}

#[tokio::test]
async fn inferences_are_answered_on_both_ports_and_say_where_their_model_was() {
    let (server, grpc) = start().await;
    let cold: tonic::Response<pb::ModelInferResponse> =
        grpc.call(INFER, tonic::Request::new(number("a", 5))).await.unwrap();
    assert!(cold.metadata().get("x-model-state").is_some() && cold.metadata().get("x-load-ms").is_some());
    let answer = cold.into_inner();
    assert_eq!((tag(&answer), answer.id.as_str(), answer.model_version.as_str()), (5, "5", "1"));
    let both = Grpc::connect(server.addresses.http).await;
    assert_eq!(tag(&both.infer(number("a", 6)).await.unwrap()), 6);
    assert_eq!(server.ask(&infer("a", 7)).await.tag(), 7);
    let large: Vec<i32> = (0..1 << 20).collect();
    let answer = grpc.infer(numbers("a", &large)).await.unwrap();
    assert_eq!(answer.raw_output_contents, numbers("a", &large).raw_input_contents);
    drop((grpc, both));
    server.finish().await;
}

#[tokio::test]
async fn many_calls_share_a_connection_and_each_gets_its_own_answer() {
    let (server, grpc) = start().await;
    let answers = all((0..500).map(|each| grpc.infer(number(if each % 2 == 0 { "a" } else { "b" }, each)))).await;
    assert!(answers.iter().zip(0..).all(|(answer, each)| tag(answer.as_ref().unwrap()) == each));
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn errors_have_the_codes_and_texts_of_the_table() {
    let (server, grpc) = start().await;
    let unknown = grpc.infer(number("nowhere", 1)).await.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.message()),
        (Code::NotFound, "Request for unknown model: 'nowhere' is not found")
    );
    assert_eq!(unknown.metadata().get("error-code").unwrap(), "not_found");
    let wrong = pb::ModelInferRequest { model_name: "a".to_owned(), ..Default::default() };
    assert_eq!(grpc.infer(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(grpc.raw(INFER, "text/plain", "").await.0, 415);
    for (path, body, code) in [
        (INFER, framed(&[0xff; 9]), Code::InvalidArgument),
        (INFER, vec![], Code::InvalidArgument),
        (INFER, vec![0, 0], Code::InvalidArgument),
        (INFER, vec![7, 0, 0, 0, 0], Code::InvalidArgument),
        (INFER, vec![1, 0, 0, 0, 0], Code::InvalidArgument),
        (INFER, [framed(b""), framed(b"")].concat(), Code::InvalidArgument),
        (INFER, vec![0, 0x7f, 0xff, 0xff, 0xff], Code::ResourceExhausted),
        ("/inference.GRPCInferenceService/ModelConfig", framed(&[0xff; 9]), Code::InvalidArgument),
        ("/inference.GRPCInferenceService/NoSuchCall", framed(b""), Code::Unimplemented),
        ("/grpc.health.v1.Health/NoSuchCall", framed(b""), Code::Unimplemented),
        ("/other.Service/Call", framed(b""), Code::Unimplemented),
    ] {
        let (http, status) = grpc.raw(path, "application/grpc", body.clone()).await;
        assert_eq!((http, status.map(|status| status.code())), (200, Some(code)), "{path} {body:?}");
    }
    assert_eq!(tag(&grpc.infer(number("a", 2)).await.unwrap()), 2, "the connection goes on");
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_connection_goes_on() {
    let server = TestServer::start_with(Repository::gated(&["a"]), |config| config.grpc.max_message_bytes = 1000).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    for _ in 0..3 {
        let refused = grpc.infer(numbers("a", &[1; 1000])).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("--grpc-max-message-bytes 1000"), "{}", refused.message());
        assert_eq!(tag(&grpc.infer(number("a", 2)).await.unwrap()), 2);
    }
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let one = "instance_group [ { count: 1 kind: KIND_CPU } ]";
    let repository = Repository::empty().with("a", "gated", one);
    let server = TestServer::start_with(repository, |config| config.queue_capacity = 1).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    grpc.infer(number("a", 0)).await.unwrap();
    server.gated.close("a", Step::Execute);
    let full = async {
        server.until("a", |counts| counts.executions_begun == 2).await;
        server.until_pending("a", 1).await;
        let refused = grpc.infer(number("a", 3)).await.unwrap_err();
        server.gated.open("a", Step::Execute);
        refused
    };
    let second = async {
        server.until("a", |counts| counts.executions_begun == 2).await;
        grpc.infer(number("a", 2)).await
    };
    let (first, second, refused) = tokio::join!(grpc.infer(number("a", 1)), second, full);
    assert_eq!((tag(&first.unwrap()), tag(&second.unwrap())), (1, 2));
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.metadata().get("error-code").unwrap(), "overloaded");
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn the_deadline_of_a_call_is_kept() {
    let (server, grpc) = start().await;
    grpc.infer(number("a", 1)).await.unwrap();
    server.gated.close("a", Step::Execute);
    // A timeout that tonic keeps itself would be told from the server's by its text.
    let mut asked = tonic::Request::new(number("a", 2));
    asked.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let late = grpc.call::<_, pb::ModelInferResponse>(INFER, asked).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(late.metadata().get("error-code").unwrap(), "deadline_exceeded");
    let mut own = number("a", 3);
    let micros = pb::infer_parameter::ParameterChoice::Int64Param(50_000);
    own.parameters.insert("timeout".to_owned(), pb::InferParameter { parameter_choice: Some(micros) });
    assert_eq!(grpc.infer(own).await.unwrap_err().code(), Code::DeadlineExceeded);
    let mut wrong = tonic::Request::new(number("a", 4));
    wrong.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let refused = grpc.call::<_, pb::ModelInferResponse>(INFER, wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    server.gated.open("a", Step::Execute);
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn what_is_in_flight_is_answered_while_the_server_drains() {
    let (mut server, grpc) = start().await;
    server.gated.close("a", Step::Execute);
    let (answer, ()) = tokio::join!(grpc.infer(number("a", 3)), async {
        server.until("a", |counts| counts.executions_begun == 1).await;
        server.shutdown.cancel();
        eventually("the server drains", || server.inner.is_draining()).await;
        server.gated.open("a", Step::Execute);
    });
    assert_eq!(tag(&answer.unwrap()), 3);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn health_speaks_of_the_server_and_of_each_model_and_a_watch_sees_it_change() {
    let (mut server, grpc) = start().await;
    let check = async |service: &str| {
        let asked = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
        grpc.call("/grpc.health.v1.Health/Check", asked).await.map(|answer| {
            let answer: HealthCheckResponse = answer.into_inner();
            answer.status()
        })
    };
    assert_eq!(check("").await.unwrap(), ServingStatus::Serving);
    assert_eq!(check("inference.GRPCInferenceService").await.unwrap(), ServingStatus::Serving);
    assert_eq!(check("a").await.unwrap_err().code(), Code::NotFound);
    grpc.infer(number("a", 1)).await.unwrap();
    assert_eq!(check("a").await.unwrap(), ServingStatus::Serving);
    let asked = HealthCheckRequest { service: String::new() };
    let mut watch = grpc.watch::<_, HealthCheckResponse>("/grpc.health.v1.Health/Watch", asked).await.unwrap();
    let mut next = async || within("a change", watch.next()).await;
    assert_eq!(next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.shutdown.cancel();
    assert_eq!(next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(next().await.is_none(), "the watch ends, so that the connection can");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn an_inference_in_many_small_frames_is_read_whole() {
    let (server, grpc) = start().await;
    let message = framed(&numbers("a", &[8; 100]).encode_to_vec());
    let pieces = message
        .chunks(3)
        .map(|piece| Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes::Bytes::copy_from_slice(piece))));
    let pieces: Vec<_> = pieces.collect();
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
    let (http, status) = grpc.raw_body(INFER, tonic::body::Body::new(body)).await;
    assert_eq!((http, status.map(|status| status.code())), (200, Some(Code::Ok)));
    drop(grpc);
    server.finish().await;
}
