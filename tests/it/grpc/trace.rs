//! Traces of requests over gRPC, and the settings of traces and logs.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::trace::v1::Span;
use roundhouse::frontend::kserve_grpc::proto::inference as pb;
use serde_json::Value;
use tonic::{Code, Status};

use super::client::{Grpc, number, numbers, tag};
use super::streams::Talk;
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::TestServer;
use crate::trace::{Collector, PARENT, named, tracing};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

fn events(span: &Span) -> Vec<&str> {
    span.events.iter().map(|event| event.name.as_str()).collect()
}

#[tokio::test]
async fn a_call_is_traced_below_its_callers_span() {
    let collector = Collector::answering(&[]).await;
    let server = TestServer::start_with(Repository::gated(&["a"]), tracing(collector.options())).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    let mut asked = tonic::Request::new(number("a", 7));
    asked.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    asked.metadata_mut().insert("tracestate", "k=v".parse().unwrap());
    let answer: pb::ModelInferResponse = grpc.call(INFER, asked).await.unwrap().into_inner();
    assert_eq!(tag(&answer), 7);
    let spans = collector.until(4).await;
    let [root, model] = ["InferRequest", "a"].map(|name| named(&spans, name));
    assert_eq!(root.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    let trace_id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    assert!(spans.iter().all(|span| span.trace_id == trace_id && span.trace_state == "k=v"));
    assert_eq!(
        events(root),
        ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "INFER_RESPONSE_COMPLETE", "GRPC_SEND_START", "GRPC_SEND_END"]
    );
    assert_eq!(model.parent_span_id, root.span_id);
    assert!(root.events.windows(2).all(|pair| pair[0].time_unix_nano <= pair[1].time_unix_nano));
    let mut unrecorded = tonic::Request::new(number("a", 8));
    unrecorded.metadata_mut().insert("traceparent", PARENT.replace("-01", "-00").parse().unwrap());
    grpc.call::<_, pb::ModelInferResponse>(INFER, unrecorded).await.unwrap();
    let wrong = pb::ModelInferRequest { model_name: "a".to_owned(), id: "wrong".to_owned(), ..Default::default() };
    grpc.infer(wrong).await.unwrap_err();
    let spans = collector.until(6).await;
    assert_eq!(spans.len(), 6, "the failed call has two spans, the unrecorded one none: {spans:?}");
    let failed = spans.iter().rev().find(|span| span.name == "a").unwrap();
    assert!(failed.status.clone().unwrap().message.contains("expected 1 inputs"), "{failed:?}");
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn each_request_of_a_stream_is_a_trace_of_its_own_below_the_streams_caller() {
    let collector = Collector::answering(&[]).await;
    let repository = Repository::gated(&["a"]).with("many", "gated", "model_transaction_policy { decoupled: true }");
    let server = TestServer::start_with(repository, tracing(collector.options())).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    grpc.infer(number("a", 0)).await.unwrap();
    collector.until(4).await;
    let mut talk = Talk::begin(&grpc, &[("traceparent", PARENT)]).await;
    for each in 1..=2 {
        talk.ask(number("a", each));
    }
    assert_eq!((talk.tag().await, talk.tag().await), (1, 2));
    let spans = collector.until(4 + 2 * 3).await;
    let roots: Vec<_> =
        spans.iter().filter(|span| span.name == "InferRequest" && !span.parent_span_id.is_empty()).collect();
    assert_eq!(roots.len(), 2);
    for root in roots {
        assert_eq!(root.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
        assert_eq!(
            events(root),
            ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "INFER_RESPONSE_COMPLETE", "GRPC_SEND_START", "GRPC_SEND_END"]
        );
    }
    let mut many = Talk::begin(&grpc, &[]).await;
    many.ask(numbers("many", &[7, 8]));
    for _ in 0..2 {
        assert_eq!(many.next().await.unwrap().unwrap().error_message, "");
    }
    let of_many = |span: &Span| span.name == "InferRequest" && span.parent_span_id.is_empty();
    let spans = collector.until(10 + 3).await;
    let root = spans.iter().rfind(|span| of_many(span)).unwrap();
    let each = ["INFER_RESPONSE_COMPLETE", "GRPC_SEND_START", "GRPC_SEND_END"];
    assert_eq!(events(root), [&["GRPC_WAITREAD_START", "GRPC_WAITREAD_END"][..], &each, &each].concat());
    drop((many, talk, grpc));
    server.finish().await;
}

#[tokio::test]
async fn tritons_file_has_the_activities_of_grpc() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.json");
    let options = ["level=TIMESTAMPS", "rate=1", &format!("triton,file={}", file.display())].map(str::to_owned);
    let mut server = TestServer::start_with(Repository::gated(&["a"]), tracing(options.into())).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    assert_eq!(tag(&grpc.infer(number("a", 3)).await.unwrap()), 3);
    drop(grpc);
    server.stop().await.unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let names: Vec<&str> = rows
        .iter()
        .filter_map(|row| row["timestamps"][0]["name"].as_str())
        .filter(|name| name.starts_with("GRPC_"))
        .collect();
    assert_eq!(names, ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"]);
    assert!(rows.iter().any(|row| row["model_name"] == "a" && row["request_id"] == "3"), "{rows:?}");
}

type Settings = BTreeMap<String, Vec<String>>;

async fn trace_settings(grpc: &Grpc, model: &str, settings: &[(&str, &[&str])]) -> Result<Settings, Status> {
    let value = |values: &[&str]| pb::trace_setting_request::SettingValue {
        value: values.iter().map(|value| (*value).to_owned()).collect(),
    };
    let settings = settings.iter().map(|(name, values)| ((*name).to_owned(), value(values))).collect();
    let asked = pb::TraceSettingRequest { settings, model_name: model.to_owned() };
    let answer: pb::TraceSettingResponse = grpc.ask("TraceSetting", asked).await?;
    Ok(answer.settings.into_iter().map(|(name, setting)| (name, setting.value)).collect())
}

#[tokio::test]
async fn trace_settings_are_those_of_http() {
    let options = vec!["triton,file=unused.json".to_owned()];
    let server = TestServer::start_with(Repository::gated(&["a"]), tracing(options)).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    let before = trace_settings(&grpc, "", &[]).await.unwrap();
    let row = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
    let wanted: Settings = [
        row("trace_level", "OFF"),
        row("trace_rate", "1000"),
        row("trace_count", "-1"),
        row("log_frequency", "0"),
        row("trace_file", "unused.json"),
        row("trace_mode", "triton"),
    ]
    .into();
    assert_eq!(before, wanted);
    let both: &[&str] = &["TIMESTAMPS", "TENSORS"];
    let changed = trace_settings(&grpc, "a", &[("trace_level", both), ("trace_rate", &["7"])]).await.unwrap();
    assert_eq!((changed["trace_level"].join(" "), changed["trace_rate"][0].as_str()), (both.join(" "), "7"));
    let http = server.ask(&crate::support::client::get("/v2/models/a/trace/setting")).await.expect(200).json();
    assert_eq!(http["trace_rate"], "7");
    assert_eq!(trace_settings(&grpc, "", &[]).await.unwrap(), before, "the server's own stay");
    let cleared = trace_settings(&grpc, "a", &[("trace_level", &[]), ("trace_rate", &[])]).await.unwrap();
    assert_eq!(cleared, before);
    for (model, setting, code, text) in [
        ("", ("trace_file", &["x"][..]), Code::Unimplemented, "trace file location can not be updated"),
        ("", ("trace_rate", &["1", "2"]), Code::InvalidArgument, "expect only 1 value for 'trace_rate'"),
        ("", ("trace_rate", &["x"]), Code::InvalidArgument, "Unable to parse 'trace_rate', got: x"),
        ("", ("trace_rat", &["1"]), Code::InvalidArgument, "'trace_rat'"),
        ("nope", ("trace_rate", &["1"]), Code::InvalidArgument, "Request for unknown model : nope"),
    ] {
        let refused = trace_settings(&grpc, model, &[setting]).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(text), "{refused}");
    }
    assert_eq!(trace_settings(&grpc, "nope", &[]).await.unwrap_err().code(), Code::InvalidArgument);
    drop(grpc);
    server.finish().await;
}

#[tokio::test]
async fn log_settings_are_read_and_wrong_ones_refused() {
    use pb::log_settings_request::setting_value::ParameterChoice::{BoolParam, StringParam, Uint32Param};
    use pb::log_settings_response::setting_value::ParameterChoice as Told;
    let server = TestServer::start(Repository::gated(&["a"]).with("b", "gated", ONE_INSTANCE)).await;
    let grpc = Grpc::connect(server.addresses.grpc).await;
    let ask = async |settings: &[(&str, Option<pb::log_settings_request::setting_value::ParameterChoice>)]| {
        let setting = |(name, value): &(&str, Option<_>)| {
            ((*name).to_owned(), pb::log_settings_request::SettingValue { parameter_choice: Clone::clone(value) })
        };
        let asked = pb::LogSettingsRequest { settings: settings.iter().map(setting).collect() };
        grpc.ask::<_, pb::LogSettingsResponse>("LogSettings", asked).await
    };
    let told = ask(&[]).await.unwrap().settings;
    let names: Vec<_> = told.keys().map(String::as_str).collect();
    assert_eq!(names, ["log_error", "log_file", "log_format", "log_info", "log_verbose_level", "log_warning"]);
    assert!(matches!(told["log_verbose_level"].parameter_choice, Some(Told::Uint32Param(_))));
    assert!(matches!(told["log_info"].parameter_choice, Some(Told::BoolParam(_))));
    assert_eq!(ask(&[("log_info", None)]).await.unwrap().settings, told, "a setting without a value stays");
    for (name, value, code, text) in [
        ("log_file", StringParam("x".to_owned()), Code::Unimplemented, "log file location can not be updated"),
        ("log_info", Uint32Param(1), Code::InvalidArgument, "log setting 'log_info', expected bool_param"),
        ("log_verbose_level", BoolParam(true), Code::InvalidArgument, "expected uint32_param"),
        ("log_format", Uint32Param(1), Code::InvalidArgument, "expected string_param"),
        ("log_format", StringParam("xml".to_owned()), Code::InvalidArgument, "--log_format, got: xml"),
        ("log_colour", BoolParam(true), Code::InvalidArgument, "unknown log setting 'log_colour'"),
    ] {
        let refused = ask(&[(name, Some(value))]).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(text), "{refused}");
    }
    drop(grpc);
    server.finish().await;
}
