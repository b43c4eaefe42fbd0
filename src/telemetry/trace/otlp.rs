//! Traces as OpenTelemetry's spans (opentelemetry-proto 1, `ExportTraceServiceRequest`), by Triton's names: `InferRequest`
//! for the whole request, one span a model, and `compute` and `load` below that.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event as SpanEvent, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

use super::Clock;
use super::activity::Activity;
use super::record::{Event, Node, Record};

/// `sampled`, and that the field of the parent's place is filled in.
const FLAGS: u32 = 0x101;

/// The parent is in another process.
const PARENT_IS_REMOTE: u32 = 0x200;

/// The messages that tell a collector of these traces, encoded, of at most about `most` spans each.
pub(super) fn messages(records: &[Record], resource: &[(String, String)], most: usize, clock: &Clock) -> Vec<Vec<u8>> {
    let spans: Vec<Span> = records.iter().flat_map(|record| spans(record, clock)).collect();
    let mut attributes: Vec<KeyValue> = Vec::new();
    if resource.iter().all(|(key, _)| key != "service.name") {
        attributes.push(text("service.name", "roundhouse"));
    }
    if resource.iter().all(|(key, _)| key != "service.version") {
        attributes.push(text("service.version", env!("CARGO_PKG_VERSION")));
    }
    attributes.extend(resource.iter().map(|(key, value)| text(key, value)));
    let resource = Resource { attributes, ..Resource::default() };
    let scope = InstrumentationScope {
        name: "roundhouse".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let message = |spans: &[Span]| {
        let scope_spans =
            vec![ScopeSpans { scope: Some(scope.clone()), spans: spans.to_vec(), ..ScopeSpans::default() }];
        let spans = ResourceSpans { resource: Some(resource.clone()), scope_spans, ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec()
    };
    spans.chunks(most.max(1)).map(message).collect()
}

/// The spans of one trace, parents first.
fn spans(record: &Record, clock: &Clock) -> Vec<Span> {
    let trace_id = record.trace_id.to_be_bytes().to_vec();
    let state = record.caller.as_ref().map_or_else(String::new, |caller| caller.state.clone());
    let span = |id: u64, parent: Option<u64>, name: &str, kind: SpanKind| Span {
        trace_id: trace_id.clone(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: parent.map_or_else(Vec::new, |parent| parent.to_be_bytes().to_vec()),
        trace_state: state.clone(),
        flags: FLAGS,
        name: name.to_owned(),
        kind: kind.into(),
        ..Span::default()
    };
    let events = |events: &[Event], wanted: &dyn Fn(Activity) -> bool| -> Vec<SpanEvent> {
        let wanted = events.iter().filter(|(activity, _)| record.levels.timestamps && wanted(*activity));
        let event = |(activity, at): &Event| SpanEvent {
            time_unix_nano: clock.nanoseconds(*at),
            name: activity.name().to_owned(),
            ..SpanEvent::default()
        };
        wanted.map(event).collect()
    };
    let first_error = record.nodes.iter().find_map(|node| node.error.as_deref());
    let caller = record.caller.as_ref();
    let mut root = Span {
        start_time_unix_nano: clock.nanoseconds(record.arrived),
        end_time_unix_nano: clock.nanoseconds(record.ended),
        events: events(&record.events, &|_| true),
        status: status(first_error),
        ..span(record.span, caller.map(|caller| caller.span_id), "InferRequest", SpanKind::Server)
    };
    if caller.is_some() {
        root.flags |= PARENT_IS_REMOTE;
    }
    let mut spans = vec![root];
    for node in &record.nodes {
        let Some((model, version)) = &node.model else { continue };
        let (begin, end) = bounds(&node.events, &|_| true).unwrap_or((record.arrived, record.ended));
        spans.push(Span {
            start_time_unix_nano: clock.nanoseconds(begin),
            end_time_unix_nano: clock.nanoseconds(end),
            attributes: attributes(node, *version, model),
            events: events(&node.events, &|activity| !activity.is_of_compute()),
            status: status(node.error.as_deref()),
            ..span(node.span, Some(node.parent_span), model, SpanKind::Internal)
        });
        if let Some((begin, end)) = bounds(&node.events, &Activity::is_of_compute) {
            spans.push(Span {
                start_time_unix_nano: clock.nanoseconds(begin),
                end_time_unix_nano: clock.nanoseconds(end),
                events: events(&node.events, &Activity::is_of_compute),
                ..span(super::record::span_id(), Some(node.span), "compute", SpanKind::Internal)
            });
        }
        if let Some(load) = &node.load {
            // Beside the model's span and not in it: that begins when the model is there.
            spans.push(Span {
                start_time_unix_nano: clock.nanoseconds(load.begin),
                end_time_unix_nano: clock.nanoseconds(load.end),
                attributes: vec![text("triton.model_name", model), text("roundhouse.model_state", load.from)],
                ..span(super::record::span_id(), Some(node.parent_span), "load", SpanKind::Internal)
            });
        }
    }
    spans
}

/// The first and the last of the moments that are wanted.
fn bounds(events: &[Event], wanted: &dyn Fn(Activity) -> bool) -> Option<(std::time::Instant, std::time::Instant)> {
    let times = || events.iter().filter(|(activity, _)| wanted(*activity)).map(|(_, at)| *at);
    times().min().zip(times().max())
}

fn attributes(node: &Node, version: u64, model: &str) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("triton.model_name", model),
        number("triton.model_version", version),
        number("triton.trace_id", node.id),
        number("triton.trace_parent_id", node.parent),
    ];
    if !node.request_id.is_empty() {
        attributes.push(text("triton.request_id", &node.request_id));
    }
    attributes
}

fn status(error: Option<&str>) -> Option<Status> {
    error.map(|error| Status { message: error.to_owned(), code: StatusCode::Error.into() })
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
