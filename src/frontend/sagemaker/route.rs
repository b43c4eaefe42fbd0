//! The paths of SageMaker's port.

use std::borrow::Cow;

use http::Method;

use super::super::percent::decode;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `GET /ping`
    Ping,
    /// `GET /models`
    List,
    /// `POST /models`
    Load,
    /// `GET /models/NAME`
    Describe(Cow<'a, str>),
    /// `DELETE /models/NAME`
    Unload(Cow<'a, str>),
    /// `POST /models/NAME/invoke`
    Invoke(Cow<'a, str>),
    /// `POST /invocations`
    Invocations,
    /// `POST /endpoints/NAME/invocations`, or with `stream` `.../invocations-response-stream`
    Endpoint { name: Cow<'a, str>, stream: bool },
    /// A path that is here, by another method.
    WrongMethod,
    /// Nothing is here.
    Nothing,
}

/// Where the runtime API is.
pub(super) const ENDPOINTS: &str = "/endpoints/";

impl<'a> Route<'a> {
    /// Reads method and path. What stands for a name is percent-decoded and opaque; slashes in it are allowed.
    pub(super) fn parse(method: &Method, path: &'a str) -> Self {
        let only = |expected: Method, route: Self| if *method == expected { route } else { Self::WrongMethod };
        match path {
            "/ping" => return only(Method::GET, Self::Ping),
            "/invocations" => return only(Method::POST, Self::Invocations),
            "/models" | "/models/" => {
                return match *method {
                    Method::GET => Self::List,
                    Method::POST => Self::Load,
                    _ => Self::WrongMethod,
                };
            }
            _ => {}
        }
        if let Some(rest) = path.strip_prefix(ENDPOINTS) {
            let (name, stream) = match rest.rsplit_once('/') {
                Some((name, "invocations")) => (name, false),
                Some((name, "invocations-response-stream")) => (name, true),
                _ => return Self::Nothing,
            };
            return match decode(name) {
                Some(name) if !name.is_empty() && !name.contains('/') => {
                    only(Method::POST, Self::Endpoint { name, stream })
                }
                _ => Self::Nothing,
            };
        }
        let Some(rest) = path.strip_prefix("/models/") else { return Self::Nothing };
        if let Some(name) = rest.strip_suffix("/invoke") {
            return match decode(name) {
                Some(name) if !name.is_empty() => only(Method::POST, Self::Invoke(name)),
                _ => Self::Nothing,
            };
        }
        match decode(rest) {
            Some(name) if !name.is_empty() => match *method {
                Method::GET => Self::Describe(name),
                Method::DELETE => Self::Unload(name),
                _ => Self::WrongMethod,
            },
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_path_of_the_contract_has_its_method() {
        let get = |path| Route::parse(&Method::GET, path);
        let post = |path| Route::parse(&Method::POST, path);
        assert_eq!((get("/ping"), post("/ping")), (Route::Ping, Route::WrongMethod));
        assert_eq!((get("/models"), post("/models")), (Route::List, Route::Load));
        assert_eq!(get("/models/a-b.c"), Route::Describe("a-b.c".into()));
        assert_eq!(Route::parse(&Method::DELETE, "/models/a%2Fb"), Route::Unload("a/b".into()));
        assert_eq!(
            (post("/models/m/invoke"), get("/models/m/invoke")),
            (Route::Invoke("m".into()), Route::WrongMethod)
        );
        assert_eq!((post("/invocations"), get("/invocations")), (Route::Invocations, Route::WrongMethod));
        assert_eq!(post("/endpoints/e/invocations"), Route::Endpoint { name: "e".into(), stream: false });
        assert_eq!(
            post("/endpoints/e/invocations-response-stream"),
            Route::Endpoint { name: "e".into(), stream: true }
        );
    }

    #[test]
    fn other_paths_are_nothing() {
        for path in ["", "/", "/modelsx", "/endpoints/", "/endpoints/e", "/endpoints//invocations", "/models//invoke"] {
            assert_eq!(Route::parse(&Method::POST, path), Route::Nothing, "{path}");
        }
        assert_eq!(Route::parse(&Method::POST, "/endpoints/a/b/invocations"), Route::Nothing);
        assert_eq!(Route::parse(&Method::GET, "/models/%ff"), Route::Nothing);
    }

    proptest! {
        #[test]
        fn no_path_makes_reading_panic(path in any::<String>()) {
            let _ = Route::parse(&Method::POST, &path);
            let _ = Route::parse(&Method::POST, &format!("/models/{path}/invoke"));
            let _ = Route::parse(&Method::POST, &format!("/endpoints/{path}/invocations"));
        }
    }
}
