//! Envoy's external processing, as the endpoint-picker protocol of the Gateway API's inference extension wants it (proposal
//! 004, v1.0): the picked endpoints go back as a header and as dynamic metadata. One stream a request: it lasts until the
//! answer has begun, or the client is gone, which is how requests in flight are counted.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;

use self::proto::processing_request::Request as Asked;
use self::proto::processing_response::Response as Told;
use super::super::kserve_grpc::messages::Messages;
use super::super::kserve_grpc::reply::{self, GrpcBody};
use super::super::kserve_grpc::{buffers::Buffers, framed};
use super::target::{TARGET, target};
use super::{Shared, hash};
use crate::error::{Error, Result};
use crate::picker::fleet::Ticket;
use crate::picker::ring::Id;

/// The messages of `proto/ext_proc.proto`.
mod proto {
    #![expect(unreachable_pub, clippy::enum_variant_names, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/envoy.service.ext_proc.v3.rs"));
}

/// The service's name.
pub(super) const SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// The largest message: the head of a request is 60 KiB by Envoy's default, a piece of a body up to 1 MiB.
const MESSAGE_BYTES: usize = 4 << 20;

/// The header and the metadata's key that say who is picked.
const DESTINATION: &str = "x-gateway-destination-endpoint";

/// The metadata's namespace.
const NAMESPACE: &str = "envoy.lb";

/// Where a proxy says among whom to pick.
const SUBSET: (&str, &str) = ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset");

/// Where it says who answered: the protocol's own key, and Envoy's attribute.
const SERVED: [&str; 2] = ["x-gateway-destination-endpoint-served", "upstream.address"];

/// Endpoints of a subset that are looked at.
const MOST_ENDPOINTS: usize = 10_000;

/// The stream of one request.
struct Process {
    messages: Messages,
    conversation: Conversation,
}

/// What is said about one request of the proxy's, from its head to that of its answer.
struct Conversation {
    shared: Arc<Shared>,
    ticket: Option<Ticket<Arc<str>>>,
    /// Whether pieces of the request's body, and of the answer's, are to be handed back.
    echoes: (bool, bool),
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.fleet.lock().finish(&ticket, Instant::now());
        }
    }
}

/// Answers a call of `Process`.
pub(super) fn process(shared: Arc<Shared>, buffers: &Buffers, request: Request<Incoming>) -> Response<GrpcBody> {
    let (head, body) = request.into_parts();
    let messages = match Messages::new(&head.headers, body, MESSAGE_BYTES, buffers) {
        Ok(messages) => messages,
        Err(error) => return reply::error(&error),
    };
    let process = Process { messages, conversation: Conversation::new(shared) };
    reply::changes(Box::pin(futures_util::stream::unfold(process, Process::next)))
}

impl Process {
    /// The answer to the next message. The stream ends with the proxy's side, and with a message that is none: the proxy goes
    /// on without us.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            let message = match self.messages.next().await {
                Ok(message) => message?,
                Err(error) => {
                    tracing::debug!(error = %error.report(), "a proxy's stream broke off");
                    return None;
                }
            };
            match self.conversation.answer(message) {
                Ok(Some(told)) => return framed(&told).into_iter().next().map(|piece| (piece, self)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = %error.report(), "a proxy's message cannot be read");
                    return None;
                }
            }
        }
    }
}

impl Conversation {
    const fn new(shared: Arc<Shared>) -> Self {
        Self { shared, ticket: None, echoes: (false, false) }
    }

    /// The answer to a message, where one is wanted.
    fn answer(&mut self, message: Bytes) -> Result<Option<proto::ProcessingResponse>> {
        let request = proto::ProcessingRequest::decode(message)
            .map_err(|error| Error::invalid("the message is no valid protobuf").with_source(error))?;
        if let Some(config) = &request.protocol_config {
            let is_echo = |mode| mode == proto::BodySendMode::FullDuplexStreamed as i32;
            self.echoes = (is_echo(config.request_body_mode), is_echo(config.response_body_mode));
        }
        let silent = request.observability_mode;
        let asked = request.request.ok_or_else(|| Error::invalid("the message asks nothing"))?;
        let told = match asked {
            Asked::RequestHeaders(headers) => {
                let subset = request.metadata_context.as_ref().and_then(subset);
                self.pick(&headers.headers.unwrap_or_default(), subset)
            }
            Asked::ResponseHeaders(headers) => {
                let metadata = request.metadata_context.iter().flat_map(|metadata| metadata.filter_metadata.values());
                let served = request.attributes.values().chain(metadata).find_map(served);
                self.answered(&headers.headers.unwrap_or_default(), served);
                plain(Told::ResponseHeaders(proto::HeadersResponse::default()))
            }
            Asked::RequestBody(body) => plain(Told::RequestBody(echo(body, self.echoes.0))),
            Asked::ResponseBody(body) => plain(Told::ResponseBody(echo(body, self.echoes.1))),
            Asked::RequestTrailers(_) => plain(Told::RequestTrailers(proto::TrailersResponse::default())),
            Asked::ResponseTrailers(_) => plain(Told::ResponseTrailers(proto::TrailersResponse::default())),
        };
        Ok((!silent).then_some(told))
    }

    fn pick(&mut self, headers: &proto::HeaderMap, subset: Option<Vec<String>>) -> proto::ProcessingResponse {
        let pass = || plain(Told::RequestHeaders(proto::HeadersResponse::default()));
        if self.ticket.is_some() {
            return pass();
        }
        let path = value(headers, ":path").unwrap_or_default();
        let Some(target) = target(value(headers, TARGET), path) else {
            self.shared.counts.passed();
            return match subset {
                // No model, and any of those will do.
                Some(subset) if !subset.is_empty() => picked(&subset[..1]),
                Some(_) => unavailable(),
                None => pass(),
            };
        };
        let model: Arc<str> = (*target.name).into();
        let (mut fleet, now) = (self.shared.fleet.lock(), Instant::now());
        let among: Option<Vec<Id>> = subset.map(|subset| subset.iter().filter_map(|name| fleet.find(name)).collect());
        let allowed = |id| among.as_ref().is_none_or(|among| among.contains(&id));
        let Some(found) = fleet.pick(&model, hash(target.hashed), now, allowed) else {
            drop(fleet);
            self.shared.counts.passed();
            // Nobody is known here. The protocol has an error for that; a proxy that knows its instances better than us goes
            // on without, unless it asked for a choice among some.
            return if among.is_some() { unavailable() } else { pass() };
        };
        let names: Vec<String> =
            found.choice.order.iter().filter_map(|id| fleet.name(*id)).map(str::to_owned).collect();
        drop(fleet);
        self.shared.counts.picked(found.choice.reason);
        self.ticket = Some(found.ticket);
        picked(&names)
    }

    /// The answer has begun.
    fn answered(&mut self, headers: &proto::HeaderMap, served: Option<String>) {
        let Some(ticket) = self.ticket.take() else { return };
        let (mut fleet, now) = (self.shared.fleet.lock(), Instant::now());
        let by = served.as_deref().and_then(|name| fleet.find(name));
        if let Some(state) = value(headers, "x-model-state") {
            fleet.answered(&ticket, by, state == "device", now);
        }
        fleet.finish(&ticket, now);
    }
}

/// A header's value, which Envoy sends as bytes, and others as text.
fn value<'a>(headers: &'a proto::HeaderMap, key: &str) -> Option<&'a str> {
    let header = headers.headers.iter().find(|header| header.key.eq_ignore_ascii_case(key))?;
    match header.raw_value.is_empty() {
        true => Some(header.value.as_str()),
        false => std::str::from_utf8(&header.raw_value).ok(),
    }
}

/// Among whom to pick, where the proxy says so.
fn subset(metadata: &proto::Metadata) -> Option<Vec<String>> {
    let hint = metadata.filter_metadata.get(SUBSET.0)?.fields.get(SUBSET.1)?;
    Some(match hint.kind.as_ref()? {
        proto::value::Kind::ListValue(list) => list.values.iter().take(MOST_ENDPOINTS).filter_map(text).collect(),
        proto::value::Kind::StringValue(text) => {
            text.split(',').take(MOST_ENDPOINTS).map(|name| name.trim().to_owned()).collect()
        }
        _ => Vec::new(),
    })
}

fn served(fields: &proto::Struct) -> Option<String> {
    SERVED.into_iter().find_map(|key| text(fields.fields.get(key)?))
}

fn text(value: &proto::Value) -> Option<String> {
    match value.kind.as_ref()? {
        proto::value::Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

const fn plain(told: Told) -> proto::ProcessingResponse {
    proto::ProcessingResponse { response: Some(told), dynamic_metadata: None }
}

fn echo(body: proto::HttpBody, echoes: bool) -> proto::BodyResponse {
    let proto::HttpBody { body, end_of_stream } = body;
    let piece = proto::StreamedBodyResponse { body, end_of_stream };
    let mutation = proto::BodyMutation { mutation: Some(proto::body_mutation::Mutation::StreamedResponse(piece)) };
    let response = proto::CommonResponse { header_mutation: None, body_mutation: Some(mutation) };
    proto::BodyResponse { response: echoes.then_some(response) }
}

/// These, in this order.
fn picked(names: &[String]) -> proto::ProcessingResponse {
    let list = names.join(",");
    let header = proto::HeaderValueOption {
        header: Some(proto::HeaderValue {
            key: DESTINATION.to_owned(),
            value: String::new(),
            raw_value: list.clone().into(),
        }),
        append_action: proto::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
    };
    let mutation = proto::HeaderMutation { set_headers: vec![header], remove_headers: Vec::new() };
    let response = proto::CommonResponse { header_mutation: Some(mutation), body_mutation: None };
    let of = |kind| proto::Value { kind: Some(kind) };
    let inner = proto::Struct { fields: [(DESTINATION.to_owned(), of(proto::value::Kind::StringValue(list)))].into() };
    let outer = [(NAMESPACE.to_owned(), of(proto::value::Kind::StructValue(inner)))];
    proto::ProcessingResponse {
        response: Some(Told::RequestHeaders(proto::HeadersResponse { response: Some(response) })),
        dynamic_metadata: Some(proto::Struct { fields: outer.into() }),
    }
}

/// None of those that may be picked is known.
fn unavailable() -> proto::ProcessingResponse {
    plain(Told::ImmediateResponse(proto::ImmediateResponse {
        status: Some(proto::HttpStatus { code: 503 }),
        headers: None,
        body: Bytes::from_static(b"none of the endpoints that may be picked is known to the picker\n"),
        details: "no_ready_endpoint".to_owned(),
    }))
}

#[cfg(test)]
mod tests;
