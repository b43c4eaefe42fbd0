//! Tokens, rights and models, and files that are wrong.

use proptest::prelude::*;

use super::*;

/// As the file has it.
fn sha256(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file() -> String {
    format!(
        "[[token]]\nname = 'ci'\nsha256 = '{}'\nallow = ['inference', 'metadata', 'statistics']\nmodels = ['team/*', 'shared']\n\
         [[token]]\nname = 'ops'\nsha256 = '{}'\nallow = ['operators', 'metrics', 'model-repository']\n\
         [[token]]\nname = 'root'\nsha256 = '{}'\nallow = ['all']\n",
        sha256("s3cret-of-ci"),
        sha256("s3cret-of-ops").to_uppercase(),
        sha256("s3cret-of-all")
    )
}

fn with(authorization: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_bytes(authorization.as_bytes()).unwrap());
    headers
}

#[test]
fn every_token_has_its_rights_and_no_others() {
    let access = Access::parse(&file()).unwrap();
    let (ci, ops, root) = (with("Bearer s3cret-of-ci"), with("bearer  s3cret-of-ops "), with("BEARER s3cret-of-all"));
    for &class in Class::ALL {
        let allowed = |headers: &HeaderMap| access.check(headers, class, None).is_ok();
        let is_open = class == Class::Health;
        assert_eq!(allowed(&HeaderMap::new()), is_open, "{class:?}");
        assert!(allowed(&root), "{class:?}");
        let of_ci = matches!(class, Class::Inference | Class::Metadata | Class::Statistics);
        assert_eq!(allowed(&ci), is_open || of_ci, "{class:?}");
        let of_ops = matches!(class, Class::Operators | Class::Metrics | Class::ModelRepository);
        assert_eq!(allowed(&ops), is_open || of_ops, "{class:?}");
    }
}

#[test]
fn a_token_is_for_the_models_of_its_patterns() {
    let access = Access::parse(&file()).unwrap();
    let ci = with("Bearer s3cret-of-ci");
    let check = |model| access.check(&ci, Class::Inference, Some(model));
    assert_eq!((check("team/a"), check("shared")), (Ok(()), Ok(())));
    assert_eq!(check("other"), Err(Denied::Forbidden("token 'ci' is not for model 'other'".to_owned())));
    assert!(check(EVERY_MODEL).unwrap_err().is_forbidden());
    let missing = access.check(&ci, Class::Trace, None).unwrap_err();
    assert_eq!(missing.to_string(), "token 'ci' does not have the right 'trace'");
    assert_eq!(missing.response().status(), 403);
    assert_eq!(access.check(&with("Bearer s3cret-of-ops"), Class::ModelRepository, Some(EVERY_MODEL)), Ok(()));
}

#[test]
fn who_is_not_known_is_told_how_to_say_who_they_are() {
    let access = Access::parse(&file()).unwrap();
    let missing = access.check(&HeaderMap::new(), Class::Inference, Some("team/a")).unwrap_err();
    assert_eq!((missing.clone(), missing.response().status()), (Denied::Missing, StatusCode::UNAUTHORIZED));
    assert_eq!(missing.response().headers()[WWW_AUTHENTICATE], "Bearer realm=\"roundhouse\"");
    for wrong in ["Bearer", "Bearer ", "Bearer s3cret-of-c", "Bearer s3cret-of-ci2", "Basic s3cret-of-ci", "", "ä"] {
        let denied = access.check(&with(wrong), Class::Inference, None).unwrap_err();
        assert_eq!(denied, Denied::Unknown, "{wrong}");
        assert!(denied.response().headers()[WWW_AUTHENTICATE].to_str().unwrap().contains("invalid_token"));
    }
    let mut twice = with("Bearer s3cret-of-ci");
    twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer s3cret-of-ci"));
    assert_eq!(access.check(&twice, Class::Inference, None), Err(Denied::Unknown));
}

#[test]
fn what_needs_no_token_is_said_in_the_file() {
    let closed = Access::parse(&format!("anonymous = []\n{}", file())).unwrap();
    assert_eq!(closed.check(&HeaderMap::new(), Class::Health, None), Err(Denied::Missing));
    let wide = Access::parse(&format!("anonymous = ['health', 'metrics']\n{}", file())).unwrap();
    assert_eq!(wide.check(&HeaderMap::new(), Class::Metrics, None), Ok(()));
    assert_eq!(Access::open_to_all().check(&HeaderMap::new(), Class::Logging, None), Ok(()));
}

#[test]
fn a_file_that_is_wrong_is_refused_with_its_line() {
    let hash = sha256("x");
    let entry = |rest: &str| format!("[[token]]\nname = 'a'\nsha256 = '{hash}'\n{rest}");
    for (text, message) in [
        (String::new(), "there is no [[token]]: nobody could ask"),
        ("tokens = []".to_owned(), "line 1: only anonymous and [[token]] may stand here"),
        ("[token]\nname = 'a'".to_owned(), "line 1: write [[token]], in double brackets"),
        (
            "[[token]]\nname = 'a'\nsha256 = 'a-token'\nallow = ['all']".to_owned(),
            "line 3: sha256 is not 64 hexadecimal",
        ),
        ("[[token]]\nname = 'a'\ntoken = 'x'".to_owned(), "line 3: only name, sha256, allow, models may stand here"),
        (entry(""), "line 2: allow is missing: a list of inference, "),
        (entry("allow = 'all'"), "line 4: allow is no list"),
        (entry("allow = ['all',\n'admin']"), "line 5: no such right; there are inference, "),
        (entry("allow = ['all']\nmodels = []"), "line 5: models has to have 1 to 100 patterns"),
        (format!("{}\n{}", entry("allow = []"), entry("allow = []")), "line 6: another [[token]] has this name"),
    ] {
        let error = Access::parse(&text).unwrap_err();
        assert!(error.to_string().starts_with(message), "{text}: {error}");
    }
}

#[test]
fn a_file_is_read_again_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    std::fs::write(&path, file()).unwrap();
    let (access, mut watched) = Access::open(&path).unwrap();
    let may = |token: &str| access.check(&with(&format!("Bearer {token}")), Class::Inference, None).is_ok();
    let mut write = |text: &str| {
        std::fs::write(&path, text).unwrap();
        while !watched.look() {}
    };
    assert!(may("s3cret-of-ci") && !may("new"));
    write(&format!("[[token]]\nname='n'\nsha256='{}'\nallow=['inference']", sha256("new")));
    assert!(!may("s3cret-of-ci") && may("new"));
    write("[[token");
    assert!(may("new"));
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in prop_oneof!["\\PC{0,60}", "(\\[\\[token\\]\\]\n|(name|sha256|allow|models|anonymous) ?= ?(\"[a-f0-9é]{0,66}\"|[0-9]|\\[\\])\n){0,6}"]) {
        let _ = Access::parse(&text);
    }

    #[test]
    fn no_token_but_the_right_ones_is_known(token in "[!-~]{0,24}") {
        prop_assume!(!token.starts_with("s3cret-of-"));
        let (access, headers) = (Access::parse(&file()).unwrap(), with(&format!("Bearer {token}")));
        prop_assert!(access.check(&headers, Class::Inference, None).is_err());
    }
}
