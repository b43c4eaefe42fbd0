//! The protocol, message by message; what a real Envoy makes of it is in `tests/python/test_picker.py`.

use proptest::prelude::*;

use super::*;
use crate::picker::choice::Reason;
use crate::picker::digest::{Digest, Held, Row};
use crate::picker::fleet::{Fleet, FleetOptions};

const NAMES: [&str; 3] = ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"];

/// A picker that has heard of three idle instances; the second has `m`.
fn shared() -> Arc<Shared> {
    let mut fleet = Fleet::new(FleetOptions::default());
    let now = Instant::now();
    for id in fleet.set_members(&NAMES.map(str::to_owned)) {
        let mut digest = Digest::idle(4, 1);
        if id == 1 {
            let row = Row { model: "m".into(), held: Held::Ready, in_use: 0, parallel: 1, load_seconds: 1.0, uses: 1 };
            digest.rows = vec![row];
        }
        fleet.hear(id, &digest, now, now);
    }
    Arc::new(Shared {
        fleet: parking_lot::Mutex::new(fleet),
        counts: super::super::Counts::default(),
        resolved: true.into(),
    })
}

fn headers(pairs: &[(&str, &str)]) -> proto::HttpHeaders {
    let header = |(key, value): &(&str, &str)| proto::HeaderValue {
        key: (*key).to_owned(),
        value: String::new(),
        raw_value: (*value).to_owned().into(),
    };
    let headers = proto::HeaderMap { headers: pairs.iter().map(header).collect() };
    proto::HttpHeaders { headers: Some(headers), end_of_stream: false }
}

fn request(path: &str) -> proto::ProcessingRequest {
    let head = headers(&[(":path", path), (":method", "POST")]);
    proto::ProcessingRequest { request: Some(Asked::RequestHeaders(head)), ..Default::default() }
}

fn text_value(text: &str) -> proto::Value {
    proto::Value { kind: Some(proto::value::Kind::StringValue(text.to_owned())) }
}

fn answered(state: &str, by: &str) -> proto::ProcessingRequest {
    let attributes = proto::Struct { fields: [("upstream.address".to_owned(), text_value(by))].into() };
    proto::ProcessingRequest {
        request: Some(Asked::ResponseHeaders(headers(&[(":status", "200"), ("x-model-state", state)]))),
        attributes: [("envoy.filters.http.ext_proc".to_owned(), attributes)].into(),
        ..Default::default()
    }
}

fn ask(conversation: &mut Conversation, request: &proto::ProcessingRequest) -> proto::ProcessingResponse {
    conversation.answer(request.encode_to_vec().into()).unwrap().unwrap()
}

/// The endpoints by the metadata, which are those by the header.
fn endpoints(response: &proto::ProcessingResponse) -> Option<Vec<String>> {
    let Some(Told::RequestHeaders(headers)) = &response.response else { return None };
    let header = &headers.response.as_ref()?.header_mutation.as_ref()?.set_headers[0];
    assert_eq!(header.append_action, 2, "a client's own header does not count");
    let header = header.header.as_ref().unwrap();
    let outer = response.dynamic_metadata.as_ref()?.fields.get("envoy.lb")?;
    let Some(proto::value::Kind::StructValue(inner)) = &outer.kind else { return None };
    let list = text(inner.fields.get("x-gateway-destination-endpoint")?)?;
    assert_eq!((header.key.as_str(), &*header.raw_value), ("x-gateway-destination-endpoint", list.as_bytes()));
    Some(list.split(',').map(str::to_owned).collect())
}

fn in_flight(shared: &Shared) -> Vec<u32> {
    shared.fleet.lock().overview(Instant::now()).into_iter().map(|row| row.in_flight).collect()
}

#[test]
fn the_instance_that_has_the_model_is_told_first_and_the_others_after_it() {
    let shared = shared();
    let mut conversation = Conversation::new(Arc::clone(&shared));
    let told = endpoints(&ask(&mut conversation, &request("/v2/models/m/infer"))).unwrap();
    assert_eq!((told.len(), told[0].as_str()), (3, NAMES[1]));
    assert_eq!(in_flight(&shared), [0, 1, 0]);
    let answer = ask(&mut conversation, &answered("device", NAMES[1]));
    assert_eq!(answer, plain(Told::ResponseHeaders(proto::HeadersResponse::default())));
    assert_eq!(in_flight(&shared), [0, 0, 0]);
}

#[test]
fn a_request_that_is_given_up_is_in_flight_no_more() {
    let shared = shared();
    let mut conversation = Conversation::new(Arc::clone(&shared));
    ask(&mut conversation, &request("/v2/models/m/infer"));
    drop(conversation);
    assert_eq!(in_flight(&shared), [0, 0, 0]);
}

#[test]
fn an_answer_from_elsewhere_says_where_the_model_is_by_now() {
    let shared = shared();
    let mut conversation = Conversation::new(Arc::clone(&shared));
    let first = endpoints(&ask(&mut conversation, &request("/v2/models/cold/infer"))).unwrap();
    let other = NAMES.into_iter().find(|name| *name != first[0]).unwrap();
    ask(&mut conversation, &answered("disk", other));
    // Both are taken to have it, or to be bringing it: who is warm goes first.
    let again = endpoints(&ask(&mut Conversation::new(shared), &request("/v2/models/cold/infer"))).unwrap();
    assert_eq!(again[0], other);
}

#[test]
fn only_those_of_a_subset_are_picked_and_none_of_them_is_503() {
    let shared = shared();
    let hint = |names: &[&str]| {
        let list = proto::ListValue { values: names.iter().map(|name| text_value(name)).collect() };
        let list = proto::Value { kind: Some(proto::value::Kind::ListValue(list)) };
        let inner = proto::Struct { fields: [(SUBSET.1.to_owned(), list)].into() };
        let metadata = proto::Metadata { filter_metadata: [(SUBSET.0.to_owned(), inner)].into() };
        proto::ProcessingRequest { metadata_context: Some(metadata), ..request("/v2/models/m/infer") }
    };
    let ask = |names: &[&str]| ask(&mut Conversation::new(Arc::clone(&shared)), &hint(names));
    assert_eq!(endpoints(&ask(&[NAMES[0]])).unwrap(), [NAMES[0]]);
    assert_eq!(endpoints(&ask(&[NAMES[2], NAMES[1], "10.9.9.9:1"])).unwrap()[0], NAMES[1]);
    for none in [&[][..], &["10.9.9.9:1"]] {
        assert_eq!(ask(none), unavailable());
    }
}

#[test]
fn what_names_no_model_and_where_nobody_is_known_goes_on_without_a_pick() {
    let pass = plain(Told::RequestHeaders(proto::HeadersResponse::default()));
    assert_eq!(ask(&mut Conversation::new(shared()), &request("/v2/health/ready")), pass);
    let nobody = Arc::new(Shared {
        fleet: parking_lot::Mutex::new(Fleet::new(FleetOptions::default())),
        counts: super::super::Counts::default(),
        resolved: false.into(),
    });
    assert_eq!(ask(&mut Conversation::new(nobody), &request("/v2/models/m/infer")), pass);
}

#[test]
fn pieces_of_bodies_are_handed_back_where_the_proxy_sends_them_for_good() {
    let shared = shared();
    let body = || proto::HttpBody { body: Bytes::from_static(b"abc"), end_of_stream: true };
    let piece = proto::ProcessingRequest { request: Some(Asked::RequestBody(body())), ..Default::default() };
    let mut conversation = Conversation::new(Arc::clone(&shared));
    assert_eq!(ask(&mut conversation, &piece), plain(Told::RequestBody(proto::BodyResponse::default())));
    let config = proto::ProtocolConfiguration { request_body_mode: 4, response_body_mode: 0 };
    let head = proto::ProcessingRequest { protocol_config: Some(config), ..request("/v2/models/m/infer") };
    ask(&mut conversation, &head);
    assert_eq!(ask(&mut conversation, &piece), plain(Told::RequestBody(echo(body(), true))));
    let answer = proto::ProcessingRequest { request: Some(Asked::ResponseBody(body())), ..Default::default() };
    assert_eq!(ask(&mut conversation, &answer), plain(Told::ResponseBody(proto::BodyResponse::default())));
}

#[test]
fn a_proxy_that_only_tells_gets_no_answer_and_what_is_no_message_ends_the_stream() {
    let shared = shared();
    let mut conversation = Conversation::new(Arc::clone(&shared));
    let telling = proto::ProcessingRequest { observability_mode: true, ..request("/v2/models/m/infer") };
    assert_eq!(conversation.answer(telling.encode_to_vec().into()).unwrap(), None);
    assert!(conversation.answer(Bytes::from_static(b"\xff\xff")).is_err());
    assert!(conversation.answer(Bytes::new()).is_err());
    assert_eq!(shared.counts.picks[0].load(std::sync::atomic::Ordering::Relaxed), 1, "{:?}", Reason::ALL[0]);
}

proptest! {
    #[test]
    fn no_bytes_make_answering_panic(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..4)) {
        let mut conversation = Conversation::new(shared());
        for message in messages {
            let _ = conversation.answer(message.into());
        }
    }
}
