//! Files of keys, bearer tokens, and what a key is for.

use std::os::unix::fs::PermissionsExt;

use http::HeaderValue;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const FILE: &str = r#"# Who may ask.
[[key]]
id = "AKIAEXAMPLE"
secret = "wJalrXUtnFEMI"
models = ["company_a/*", "shared"]

[[token]]
name = "ci"
token = "0123456789abcdef"
models = ["team/?"]

[[token]]
name = "everything"
token = "an-other-token-of-more"
"#;

const SECRETS: [&str; 3] = ["wJalrXUtnFEMI", "0123456789abcdef", "an-other-token-of-more"];

fn ask<'a>(keys: &'a Keys, authorization: &str) -> Result<Grant<'a>, ServiceError> {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_bytes(authorization.as_bytes()).unwrap());
    keys.check(&Method::POST, &Uri::from_static("/endpoints/e/invocations"), &headers, b"", SystemTime::UNIX_EPOCH)
}

#[test]
fn a_token_is_known_by_its_name() {
    let keys = Keys::parse(FILE).unwrap();
    assert_eq!(ask(&keys, "Bearer 0123456789abcdef").unwrap().name(), "ci");
    assert_eq!(ask(&keys, "bearer  an-other-token-of-more").unwrap().name(), "everything");
    for token in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "ci", "wJalrXUtnFEMI"] {
        assert_eq!(ask(&keys, &format!("Bearer {token}")).unwrap_err().code, Code::UnrecognizedClient, "{token}");
    }
}

#[test]
fn a_request_without_a_key_is_told_what_to_send() {
    let keys = Keys::parse(FILE).unwrap();
    let uri = Uri::from_static("/");
    let none = keys.check(&Method::GET, &uri, &HeaderMap::new(), b"", SystemTime::UNIX_EPOCH).unwrap_err();
    assert_eq!(none.code, Code::MissingAuthenticationToken);
    for wrong in ["Basic YTpi", "AWS4-ECDSA-P256-SHA256 Credential=x", "Bearer", "", "größe"] {
        let code = ask(&keys, wrong).unwrap_err().code;
        assert!(matches!(code, Code::IncompleteSignature | Code::UnrecognizedClient), "{wrong}: {code:?}");
    }
}

#[test]
fn a_key_is_for_the_models_of_its_patterns() {
    let keys = Keys::parse(FILE).unwrap();
    let ci = ask(&keys, "Bearer 0123456789abcdef").unwrap();
    assert_eq!(ci.allows(Some("team/a")), Ok(()));
    let error = ci.allows(Some("company_a/x")).unwrap_err();
    assert_eq!(error.code, Code::AccessDenied);
    assert_eq!(error.message, "key 'ci' is not for model 'company_a/x'");
    assert_eq!(ci.allows(None).unwrap_err().code, Code::AccessDenied);
    let everything = ask(&keys, "Bearer an-other-token-of-more").unwrap();
    assert_eq!(everything.allows(Some("company_a/x")), Ok(()));
    assert_eq!(everything.allows(None), Ok(()));
    let signer = Grant(&keys.keys["AKIAEXAMPLE"].holder);
    assert_eq!(signer.allows(Some("company_a/x/y.tar.gz")), Ok(()));
    assert!(signer.allows(Some("company_b/company_a/x")).is_err());
}

#[test]
fn a_file_that_is_wrong_is_refused_with_its_line() {
    let token = "token = '0123456789abcdef'";
    for (text, message) in [
        ("", "there is no [[key]] and no [[token]]: nobody could ask"),
        ("\n[[key]]\nid = 5\nsecret = '12345678'", "line 3: id is no string: put it in quotes"),
        ("[[key]]\nid = ''\nsecret = '12345678'", "line 2: id is empty"),
        ("[[key]]\nid = 'a/b'\nsecret = '12345678'", "line 2: id has '/', ',' or '=' in it"),
        ("[[key]]\nid = 'ä'\nsecret = '12345678'", "line 2: id has characters other than visible ASCII"),
        ("\n[[key]]\nid = 'a'", "line 2: secret is missing"),
        ("[[key]]\nid = 'a'\nsecret = '1234567'", "line 3: secret has less than 8 characters"),
        ("[[key]]\nid = 'a'\nsecret = '12345678'\nmodel = 'x'", "line 4: only id, secret, models may stand here"),
        (
            "[[key]]\nid='a'\nsecret='12345678'\n[[key]]\nid='a'\nsecret='87654321'",
            "line 5: another [[key]] has this id",
        ),
        ("[[key]]\nid='a'\nsecret='12345678'\nmodels='*'", "line 4: models is no list"),
        ("[[key]]\nid='a'\nsecret='12345678'\nmodels=[]", "line 4: models has to have 1 to 100 patterns"),
        ("[[key]]\nid='a'\nsecret='12345678'\nmodels=['x',\n'']", "line 5: a pattern of models is empty"),
        ("[[key]]\nid='a'\nsecret='12345678'\nmodels=['/x']", "line 4: a pattern of models begins with a slash"),
        ("[[token]]\nname = 'a'\ntoken = '0123456789abcde'", "line 3: token has less than 16 characters"),
        ("[key]\nid = 'a'", "line 1: write [[key]] or [[token]], in double brackets"),
        ("keys = []", "line 1: only [[key]] and [[token]] may stand here"),
        ("\n\n[[key", "line 3: "),
        (
            &format!("[[token]]\nname='a'\n{token}\n[[token]]\nname='b'\n{token}"),
            "line 6: another [[token]] has this token",
        ),
        (
            &format!("[[token]]\nname='a'\n{token}\n[[token]]\nname='a'\ntoken='fedcba9876543210'"),
            "line 5: another [[token]] has this name",
        ),
        (&format!("[[token]]\nname='{}'\n{token}", "n".repeat(1025)), "line 2: name is longer than 1024 bytes"),
    ] {
        let error = Keys::parse(text).unwrap_err();
        assert!(error.to_string().starts_with(message), "{text}: {error}");
        assert_eq!(error.kind(), crate::error::ErrorKind::InvalidArgument);
    }
}

#[test]
fn a_file_has_limits() {
    let many: String = (0..1001).map(|index| format!("[[key]]\nid='{index}'\nsecret='12345678'\n")).collect();
    assert!(Keys::parse(&many).unwrap_err().to_string().contains("more than 1000"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    std::fs::write(&path, format!("{FILE}#{}", "x".repeat(1 << 20))).unwrap();
    assert!(Keys::open(&path).unwrap_err().report().contains("keys.toml is larger than 1048576 bytes"));
}

#[test]
fn an_opened_file_is_named_in_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    assert!(Keys::open(&path).unwrap_err().report().contains("cannot read --endpoint-keys"));
    std::fs::write(&path, FILE).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(ask(&Keys::open(&path).unwrap(), "Bearer 0123456789abcdef").unwrap().name(), "ci");
    std::fs::write(&path, "[[key]]\n").unwrap();
    let report = Keys::open(&path).unwrap_err().report();
    assert!(report.ends_with("keys.toml: line 1: id is missing"), "{report}");
    std::fs::write(&path, b"\xff").unwrap();
    assert!(Keys::open(&path).is_err());
}

#[test]
fn nothing_prints_a_secret() {
    let keys = Keys::parse(FILE).unwrap();
    let grant = ask(&keys, "Bearer 0123456789abcdef").unwrap();
    let text = format!("{keys:?} {keys:#?} {grant:?}");
    assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{text}");
    assert!(text.contains("tokens: 2"));
}

proptest! {
    #[test]
    fn a_file_that_is_damaged_never_shows_its_secrets(at in any::<Index>(), by in "[\"'=\\[\\]\n#\\\\a{},.]", delete in 0_usize..3) {
        let at = at.index(FILE.len() - delete);
        let text = format!("{}{by}{}", &FILE[..at], &FILE[at + delete..]);
        if let Err(error) = Keys::parse(&text) {
            let shown = format!("{} {error:?}", error.report());
            prop_assert!(SECRETS.iter().all(|secret| !shown.contains(&secret[4..])), "{shown}");
        }
    }

    #[test]
    fn no_text_makes_reading_panic(text in prop_oneof!["\\PC{0,60}", "(\\[\\[(key|token)\\]\\]\n|(id|secret|name|token|models) ?= ?(\"[a-z]{0,20}\"|[0-9]|\\[\\])\n){0,6}"]) {
        let _ = Keys::parse(&text);
    }

    #[test]
    fn no_token_but_the_right_one_is_known(token in "[!-~]{0,24}") {
        prop_assume!(!SECRETS.contains(&&*token));
        let (keys, header) = (Keys::parse(FILE).unwrap(), format!("Bearer {token}"));
        prop_assert!(ask(&keys, &header).is_err());
    }
}
