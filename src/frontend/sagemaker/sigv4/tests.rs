//! What real signers sign is accepted, and nothing that was changed on its way.

mod signed;

use http::HeaderValue;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use self::signed::{AT, CURL, CURL_AT, ID, SECRET, SIGNED, Signed};
use super::super::keys::Keys;
use super::canonical::{MAX_CANONICAL, push_trimmed};
use super::*;

fn keys() -> Keys {
    Keys::parse(&format!("[[key]]\nid = '{ID}'\nsecret = '{SECRET}'\n")).unwrap()
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A request that can be changed.
#[derive(Clone, Debug)]
struct Sent {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Sent {
    fn check_at(&self, seconds: u64) -> Result<(), ServiceError> {
        keys().check(&self.method, &self.uri, &self.headers, &self.body, time(seconds)).map(|grant| {
            assert_eq!(grant.name(), ID);
        })
    }

    fn check(&self) -> Result<(), ServiceError> {
        self.check_at(AT)
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    fn with_target(mut self, target: &str) -> Self {
        self.uri = target.parse().unwrap();
        self
    }

    fn authorization(&self) -> String {
        self.headers[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    /// The same with something else in the header Authorization, which has to be there.
    fn replacing(self, what: &str, by: &str) -> Self {
        let before = self.authorization();
        let after = before.replacen(what, by, 1);
        assert_ne!(before, after);
        self.with("authorization", &after)
    }
}

fn sent(signed: &Signed) -> Sent {
    let mut headers = HeaderMap::new();
    for (name, value) in signed.headers {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let method = signed.method.parse().unwrap();
    Sent { method, uri: signed.target.parse().unwrap(), headers, body: signed.body.to_vec() }
}

fn example(what: &str) -> Sent {
    sent(SIGNED.iter().find(|signed| signed.what == what).unwrap())
}

fn code(result: Result<(), ServiceError>) -> Code {
    result.unwrap_err().code
}

#[test]
fn what_amazons_clients_sign_is_accepted() {
    for signed in SIGNED {
        assert_eq!(sent(signed).check(), Ok(()), "{}", signed.what);
    }
}

#[test]
fn what_curl_signs_is_accepted() {
    assert_eq!(sent(&CURL).check_at(CURL_AT), Ok(()));
}

#[test]
fn a_signature_is_good_for_five_minutes_on_both_sides() {
    let request = example("an invocation");
    for seconds in [AT - 300, AT + 300] {
        assert_eq!(request.check_at(seconds), Ok(()));
    }
    for seconds in [0, AT - 301, AT + 301, AT + 86_400] {
        let error = request.check_at(seconds).unwrap_err();
        assert_eq!(error.code, Code::InvalidSignature);
        assert!(error.message.contains("20261124T121028Z, more than 5 minutes from "), "{}", error.message);
    }
}

#[test]
fn a_header_that_is_malformed_is_told_apart_from_one_that_lies() {
    let request = example("an invocation");
    for (what, by) in [
        ("Credential=", "Credential"),
        ("Credential=", "Other="),
        ("Signature=", "Credential="),
        ("/aws4_request", ""),
        ("/aws4_request", "/aws4_request/more"),
        ("eu-central-1", "EU"),
        ("eu-central-1", ""),
        ("host;", ""),
        ("host;", "Host;"),
        ("host;", "host;host;"),
        ("content-type;host", "host;content-type"),
        ("content-type;", "authorization;content-type;"),
        ("content-type;", "content-type;date;"),
        ("content-type;", ";"),
        ("content-type;", ""),
        ("x-amzn-sagemaker-custom-attributes;", ""),
        (";x-amzn-sagemaker-target-model", ""),
        ("Signature=ef", "Signature=EF"),
        ("Signature=ef", "Signature=e"),
        ("Signature=ef", "Signature=e\u{20}"),
        (", Signature=", ", Nothing="),
    ] {
        let error = request.clone().replacing(what, by).check().unwrap_err();
        assert_eq!(error.code, Code::IncompleteSignature, "{what} -> {by}: {}", error.message);
    }
    for (what, by) in [
        ("eu-central-1", "eu-central-2"),
        ("/sagemaker/", "/s3/"),
        ("/20261124/", "/20261123/"),
        ("Signature=ef", "Signature=fe"),
    ] {
        assert_eq!(code(request.clone().replacing(what, by).check()), Code::InvalidSignature, "{what} -> {by}");
    }
    assert_eq!(code(request.replacing("AKIAEXAMPLE", "AKIAOTHER").check()), Code::UnrecognizedClient);
}

#[test]
fn a_credential_of_another_day_is_refused_even_if_it_signed_this_request() {
    let (today, yesterday) = (
        "4a3abb4dc08a705fd59b66af18bc368691b2645e347a5302a50a72d80cd1a308",
        "81da2b34a2e282b3b022b0e99df08345257c2bfd33f180f380a0c42c153e02bb",
    );
    let request = example("temporary keys").replacing("/20261124/", "/20261123/").replacing(today, yesterday);
    let error = request.check().unwrap_err();
    assert_eq!(error.code, Code::InvalidSignature);
    assert!(error.message.contains("the date in Credential"), "{}", error.message);
}

#[test]
fn parts_may_come_without_blanks_and_in_any_order() {
    let request = example("an invocation");
    let text = request.authorization();
    let parts: Vec<&str> = text.strip_prefix("AWS4-HMAC-SHA256 ").unwrap().rsplit(", ").collect();
    assert_eq!(request.with("authorization", &format!("AWS4-HMAC-SHA256 {}", parts.join(","))).check(), Ok(()));
}

#[test]
fn what_steers_an_invocation_has_to_be_signed() {
    let bare = example("temporary keys");
    let error = bare.clone().with("x-amzn-sagemaker-target-model", "team/b").check().unwrap_err();
    assert_eq!(error.code, Code::IncompleteSignature);
    assert!(error.message.contains("x-amzn-sagemaker-target-model"), "{}", error.message);
    assert_eq!(code(bare.clone().with("x-amz-content-sha256", "UNSIGNED-PAYLOAD").check()), Code::IncompleteSignature);
    // What load balancers and clients add after signing does no harm.
    assert_eq!(bare.with("x-amzn-trace-id", "Root=1").with("amz-sdk-request", "attempt=1").check(), Ok(()));
}

#[test]
fn a_header_of_aws_is_there_once() {
    for name in ["x-amzn-sagemaker-target-model", "x-amz-date", "authorization"] {
        let mut request = example("an invocation");
        let value = request.headers[name].clone();
        request.headers.append(name, value);
        assert_eq!(code(request.check()), Code::IncompleteSignature, "{name}");
    }
}

#[test]
fn a_path_has_one_form() {
    for target in [
        "/endpoints//ep-1/invocations",
        "//endpoints/ep-1/invocations",
        "/x/../endpoints/ep-1/invocations",
        "/endpoints/./ep-1/invocations",
        "/endpoints/ep-1/invocations/.",
        "*",
    ] {
        assert_eq!(code(example("an invocation").with_target(target).check()), Code::Validation, "{target}");
    }
    let escaped = "/endpoints/%65p-1/invocations";
    assert_eq!(code(example("an invocation").with_target(escaped).check()), Code::InvalidSignature);
}

#[test]
fn a_query_may_be_escaped_and_sorted_otherwise_and_no_more() {
    let same = "/models?A&a-b=1&a=+x&c=&a=%31&d=%e2%82%ac/&=&b=2";
    assert_eq!(example("a query").with_target(same).check(), Ok(()));
    for other in [
        "/models",
        "/models?b=2&a=1&a=%20x&c&d=%E2%82%AC%2F&a-b=1&=",
        "/models?b=1&a=2&a=%20x&c&d=%E2%82%AC%2F&a-b=1&=&A=",
    ] {
        assert_eq!(code(example("a query").with_target(other).check()), Code::InvalidSignature, "{other}");
    }
}

#[test]
fn a_hash_of_another_body_is_refused() {
    let request = example("a body with its hash");
    let chunks = request.clone().with("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    assert_eq!(code(chunks.check()), Code::InvalidSignature);
    assert_eq!(code(request.clone().with("x-amz-content-sha256", "UNSIGNED-PAYLOAD").check()), Code::InvalidSignature);
    let error = Sent { body: b"{} ".to_vec(), ..request }.check().unwrap_err();
    assert!(error.message.contains("x-amz-content-sha256 is not the hash of the body"), "{}", error.message);
    // That client left the body out.
    let unsigned = Sent { body: b"other".to_vec(), ..example("a body that is not signed") };
    assert_eq!(unsigned.check(), Ok(()));
}

#[test]
fn a_time_is_read_from_either_header() {
    for (name, value) in [
        ("x-amz-date", "20261124T121028"),
        ("x-amz-date", "2026112T1210288Z"),
        ("x-amz-date", "20261324T121028Z"),
        ("x-amz-date", "20261124T12102\u{e9}Z"),
        ("x-amz-date", ""),
    ] {
        assert_eq!(code(example("an invocation").with(name, value).check()), Code::IncompleteSignature, "{value}");
    }
    let dated = example("Date in place of X-Amz-Date");
    for value in ["Tue, 24 Nov 2026", "Thu, 01 Jan 1969 00:00:00 GMT", "24.11.2026", ""] {
        assert_eq!(code(dated.clone().with("date", value).check()), Code::IncompleteSignature, "{value}");
    }
    for (value, stamp) in
        [("Tue, 24 Nov 2026 12:10:28 GMT", "20261124T121028Z"), ("20261124T121028Z", "20261124T121028Z")]
    {
        let headers = dated.clone().with("date", value).headers;
        assert_eq!(moment(&headers).unwrap(), (stamp.to_owned(), time(AT)));
    }
    let mut none = dated;
    none.headers.remove(DATE);
    assert_eq!(code(none.check()), Code::IncompleteSignature);
}

#[test]
fn heads_have_limits() {
    let names: Vec<String> = (0..65).map(|index| format!("h{index:02}")).collect();
    let many = example("an invocation").replacing("content-type;", &format!("content-type;{};", names.join(";")));
    assert!(many.check().unwrap_err().message.contains("more than 64"));
    let long = example("an invocation").with("content-type", &"x".repeat(MAX_CANONICAL));
    assert_eq!(code(long.check()), Code::Validation);
    let endless = example("an invocation").replacing(ID, &"A".repeat(MAX_AUTHORIZATION));
    assert_eq!(code(endless.check()), Code::IncompleteSignature);
}

#[test]
fn no_error_tells_the_secret_or_the_signature_that_would_be_right() {
    let right = example("an invocation");
    let signature = right.authorization().split_once("Signature=").unwrap().1.to_owned();
    for wrong in [right.clone().replacing("Signature=ef", "Signature=00"), right.clone().with("content-type", "a/b")] {
        let error = format!("{:?}", wrong.check().unwrap_err());
        assert!(!error.contains(SECRET) && !error.contains(&signature[2..]), "{error}");
    }
}

/// Requests of [`SIGNED`] whose body is signed.
fn any_signed() -> impl Strategy<Value = (Sent, Vec<HeaderName>)> {
    let signed = SIGNED.iter().filter(|signed| signed.what != "a body that is not signed");
    select(signed.map(sent).collect::<Vec<_>>()).prop_map(|sent| {
        let text = sent.authorization();
        let names = text.split_once("SignedHeaders=").unwrap().1.split_once(", ").unwrap().0;
        let names = names.split(';').map(|name| name.parse().unwrap()).collect();
        (sent, names)
    })
}

/// The same bytes with another one somewhere, or one more.
fn changed(bytes: &[u8], at: Index, by: u8, insert: bool) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if insert || bytes.is_empty() {
        bytes.insert(at.index(bytes.len() + 1), by);
    } else {
        let at = at.index(bytes.len());
        bytes[at] = if bytes[at] == by { by ^ 1 } else { by };
    }
    bytes
}

proptest! {
    #[test]
    fn another_method_is_refused((sent, _) in any_signed(), method in "[A-Z]{1,8}") {
        let method: Method = method.parse().unwrap();
        prop_assume!(method != sent.method);
        let other = Sent { method, ..sent };
        prop_assert!(other.check().is_err());
    }

    #[test]
    fn another_path_is_refused((sent, _) in any_signed(), at in any::<Index>(), by in "[a-z/.%~0-9]", insert in any::<bool>()) {
        let path = changed(sent.uri.path().as_bytes(), at, by.as_bytes()[0], insert);
        let target = [&path[..], b"?", sent.uri.query().unwrap_or_default().as_bytes()].concat();
        let Ok(uri) = Uri::try_from(target) else { return Ok(()) };
        let other = Sent { uri, ..sent };
        prop_assert!(other.check().is_err());
    }

    #[test]
    fn another_body_is_refused((sent, _) in any_signed(), at in any::<Index>(), by in any::<u8>(), insert in any::<bool>()) {
        let body = changed(&sent.body, at, by, insert);
        let other = Sent { body, ..sent };
        prop_assert!(other.check().is_err());
    }

    #[test]
    fn another_signed_header_is_refused(
        (mut sent, names) in any_signed(), which in any::<Index>(), at in any::<Index>(), by in 0x22..0x7f_u8, insert in any::<bool>(),
    ) {
        let name = which.get(&names);
        let value = changed(sent.headers[name].as_bytes(), at, by, insert);
        let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
        // Blanks around a value and runs of them are not signed.
        let trimmed = |value: &HeaderValue| {
            let mut text = Vec::new();
            push_trimmed(value.as_bytes(), &mut text);
            text
        };
        prop_assume!(trimmed(&value) != trimmed(&sent.headers[name]));
        sent.headers.insert(name, value);
        prop_assert!(sent.check().is_err());
    }

    #[test]
    fn a_header_that_is_gone_is_missed((mut sent, names) in any_signed(), which in any::<Index>()) {
        sent.headers.remove(which.get(&names));
        prop_assert!(sent.check().is_err());
    }

    #[test]
    fn another_time_is_refused((sent, _) in any_signed(), off in 301..u64::from(u32::MAX), later in any::<bool>()) {
        let seconds = if later { AT + off } else { AT.saturating_sub(off) };
        prop_assert!(sent.check_at(seconds).is_err());
    }

    #[test]
    fn no_request_makes_checking_panic(
        authorization in prop_oneof![
            "\\PC{0,40}",
            "(AWS4-HMAC-SHA256|Bearer) ?[A-Za-z0-9/=,;. -]{0,60}",
            "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/[0-9]{7,9}/[a-z-]{0,9}/sagemaker/aws4_request,SignedHeaders=(date;|)host(;x-amz-date|;[a-z;-]{0,9}|),Signature=[0-9a-f]{63,65}",
        ],
        date in prop_oneof!["[0-9TZ]{16}", "(Mon|Tue), [0-9]{2} Nov [0-9]{4} [0-9:]{8} (GMT|-0000)", "\\PC{0,30}"],
        which in select(vec!["x-amz-date", "date"]),
        target in "/[!-~]{0,30}",
        body in prop::collection::vec(any::<u8>(), 0..20),
        seconds in any::<u32>(),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in [("authorization", &authorization), (which, &date), ("host", &"h".to_owned())] {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.insert(name, value);
            }
        }
        let Ok(uri) = Uri::try_from(target) else { return Ok(()) };
        let result = keys().check(&Method::POST, &uri, &headers, &body, time(seconds.into())).map(|grant| grant.name().to_owned());
        prop_assert!(result.is_err());
    }
}
