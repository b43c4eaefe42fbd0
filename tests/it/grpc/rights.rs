//! Bearer tokens over gRPC: every call there is asks for one, before its message and again once its model is known.

use futures_util::StreamExt;
use http_body_util::StreamBody;
use prost::Message;
use roundhouse::frontend::access::Class;
use roundhouse::frontend::kserve_grpc::proto::health::{HealthCheckRequest, HealthCheckResponse};
use roundhouse::frontend::kserve_grpc::proto::{DESCRIPTORS, inference as pb};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use super::client::{Grpc, framed, number, tag};
use crate::support::client::post;
use crate::support::http2::Http2;
use crate::support::repository::Repository;
use crate::support::server::TestServer;
use crate::support::within;

/// `FileDescriptorSet`, as far as it is looked at.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    methods: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
}

/// The path of every call that the server tells of.
fn calls() -> Vec<String> {
    let files = Files::decode(DESCRIPTORS).unwrap().files;
    let mut calls: Vec<String> = files
        .iter()
        .flat_map(|file| file.services.iter().map(move |service| (file, service)))
        .flat_map(|(file, service)| service.methods.iter().map(move |method| (file, service, method)))
        .map(|(file, service, method)| format!("/{}.{}/{}", file.package, service.name, method.name))
        .collect();
    assert!(calls.len() >= 22, "{calls:?}");
    calls.extend(
        ["v1", "v1alpha"].map(|version| format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")),
    );
    calls
}

/// A server with the token "token" that is for what these lines say; without one, nobody may do anything.
async fn start(rights: &str) -> (TestServer, TempDir) {
    use sha2::{Digest, Sha256};
    let hex: String = Sha256::digest("token").iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    std::fs::write(&path, format!("anonymous = []\n[[token]]\nname = \"t\"\nsha256 = \"{hex}\"\n{rights}\n")).unwrap();
    let repository = Repository::gated(&["a", "b"]);
    let server = TestServer::start_with(repository, |config| config.security.access_tokens = Some(path)).await;
    (server, folder)
}

/// A call with the token.
fn by_token<T>(asked: T) -> tonic::Request<T> {
    let mut asked = tonic::Request::new(asked);
    asked.metadata_mut().insert("authorization", "Bearer token".parse().unwrap());
    asked
}

#[tokio::test]
async fn every_call_there_is_refuses_who_has_no_token_and_who_has_none_for_it() {
    // A token for what no call of gRPC is.
    let (server, _folder) = start("allow = [\"metrics\"]").await;
    for address in [server.addresses.grpc, server.addresses.http] {
        let client = Http2::over(TcpStream::connect(address).await.unwrap()).await;
        for call in calls().iter().map(String::as_str).chain(["/nothing", "/inference.GRPCInferenceService/Nothing"]) {
            let asked = post(call, framed(&[])).header("content-type", "application/grpc");
            for (asked, code) in [
                (asked.clone(), Code::Unauthenticated),
                (asked.clone().header("authorization", "Bearer other"), Code::Unauthenticated),
                (asked.header("authorization", "Bearer token"), Code::PermissionDenied),
            ] {
                let answer = client.ask(&asked).await.expect(200);
                assert_eq!(answer.header("grpc-status"), Some((code as i32).to_string().as_str()), "{asked:?}");
                assert!(answer.body.is_empty(), "{asked:?}");
            }
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn each_call_needs_the_right_of_its_kind() {
    for class in Class::ALL {
        let (server, _folder) = start(&format!("allow = [\"{}\"]", class.name())).await;
        let client = Http2::over(TcpStream::connect(server.addresses.grpc).await.unwrap()).await;
        for call in calls() {
            // Runs as long as whoever watches.
            if call.ends_with("/Watch") {
                continue;
            }
            let asked = post(&call, framed(&[])).header("content-type", "application/grpc");
            let answer = client.ask(&asked.header("authorization", "Bearer token")).await.expect(200);
            let name = call.rsplit('/').next().unwrap();
            let needed = match name {
                "ModelInfer" | "ModelStreamInfer" => Class::Inference,
                "ServerLive" | "ServerReady" | "Check" => Class::Health,
                "ModelStatistics" => Class::Statistics,
                "LogSettings" => Class::Logging,
                "TraceSetting" => Class::Trace,
                _ if name.starts_with("Repository") => Class::ModelRepository,
                _ if name.contains("SharedMemory") => Class::SharedMemory,
                _ => Class::Metadata,
            };
            let denied = answer.header("grpc-status") == Some("7");
            assert_eq!(denied, needed != *class, "{call} with {}", class.name());
        }
        server.finish().await;
    }
}

#[tokio::test]
async fn a_message_is_not_waited_for_where_its_call_is_refused() {
    let (server, _folder) = start("allow = [\"metadata\"]").await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    for call in calls().iter().filter(|call| !call.contains("reflection")) {
        let never = futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, Status>>();
        let (_, status) = grpc.raw_body(call, tonic::body::Body::new(StreamBody::new(never))).await;
        let status = status.unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{call}");
        assert_eq!(status.message(), "a token is needed: send the header Authorization: Bearer TOKEN");
    }
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn a_token_for_one_model_does_nothing_to_another() {
    let (server, _folder) = start("allow = [\"all\"]\nmodels = [\"a\"]").await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    macro_rules! refused {
        ($($call:literal: $message:expr => $answer:ty, $why:literal;)*) => {$(
            let path = concat!("/inference.GRPCInferenceService/", $call);
            let answer: Result<tonic::Response<$answer>, Status> = grpc.call(path, by_token($message)).await;
            let status = answer.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::PermissionDenied, $why), $call);
        )*};
    }
    let named = |name: &str| (name.to_owned(), String::new());
    let (b, version) = named("b");
    refused! {
        "ModelInfer": number("b", 1) => pb::ModelInferResponse, "token 't' is not for model 'b'";
        "ModelReady": pb::ModelReadyRequest { name: b.clone(), version: version.clone() } => pb::ModelReadyResponse,
            "token 't' is not for model 'b'";
        "ModelMetadata": pb::ModelMetadataRequest { name: b.clone(), version: version.clone() }
            => pb::ModelMetadataResponse, "token 't' is not for model 'b'";
        "ModelConfig": pb::ModelConfigRequest { name: b.clone(), version: version.clone() } => pb::ModelConfigResponse,
            "token 't' is not for model 'b'";
        "ModelStatistics": pb::ModelStatisticsRequest { name: b.clone(), version } => pb::ModelStatisticsResponse,
            "token 't' is not for model 'b'";
        "RepositoryModelLoad": pb::RepositoryModelLoadRequest { model_name: b.clone(), ..Default::default() }
            => pb::RepositoryModelLoadResponse, "token 't' is not for model 'b'";
        "RepositoryModelUnload": pb::RepositoryModelUnloadRequest { model_name: b.clone(), ..Default::default() }
            => pb::RepositoryModelUnloadResponse, "token 't' is not for model 'b'";
        "TraceSetting": pb::TraceSettingRequest { model_name: b, ..Default::default() } => pb::TraceSettingResponse,
            "token 't' is not for model 'b'";
        "RepositoryIndex": pb::RepositoryIndexRequest::default() => pb::RepositoryIndexResponse,
            "token 't' is not for all models, which this request is about";
        "ModelStatistics": pb::ModelStatisticsRequest::default() => pb::ModelStatisticsResponse,
            "token 't' is not for all models, which this request is about";
    }
    for call in ["Check", "Watch"] {
        let asked = by_token(HealthCheckRequest { service: "b".to_owned() });
        let answer: Result<tonic::Response<HealthCheckResponse>, Status> =
            grpc.call(&format!("/grpc.health.v1.Health/{call}"), asked).await;
        assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied, "{call}");
    }
    let asked = by_token(HealthCheckRequest::default());
    let _serving: tonic::Response<HealthCheckResponse> =
        grpc.call("/grpc.health.v1.Health/Check", asked).await.unwrap();
    let own = by_token(number("a", 5));
    let answer: tonic::Response<pb::ModelInferResponse> =
        grpc.call("/inference.GRPCInferenceService/ModelInfer", own).await.unwrap();
    assert_eq!(tag(answer.get_ref()), 5);
    assert_eq!(server.gated.counts("b").loads_begun, 0);
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn each_request_of_a_stream_is_asked_for_its_model() {
    let (server, _folder) = start("allow = [\"inference\"]\nmodels = [\"a\"]").await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    let asked = || futures_util::stream::iter([number("a", 1), number("b", 2), number("a", 3)]);
    let answers = grpc.stream(by_token(asked())).await.unwrap();
    let answers: Vec<_> = within("the answers", answers.map(Result::unwrap).collect()).await;
    let texts: Vec<_> = answers.iter().map(|answer| answer.error_message.as_str()).collect();
    assert_eq!(texts, ["", "token 't' is not for model 'b'", ""]);
    assert_eq!(answers[1].infer_response.as_ref().unwrap().id, "2");
    assert_eq!(tag(answers[2].infer_response.as_ref().unwrap()), 3);
    let mut ends = by_token(asked());
    ends.metadata_mut().insert("triton_grpc_error", "true".parse().unwrap());
    let answers: Vec<_> = within("the answers", grpc.stream(ends).await.unwrap().collect()).await;
    assert_eq!(answers.last().unwrap().as_ref().unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(server.gated.counts("b").loads_begun, 0);
    let nobody = grpc.stream(tonic::Request::new(asked())).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    drop(grpc);
    server.finish().await;
}
