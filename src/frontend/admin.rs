//! What operators and routers ask: which model is where, why, and to keep or bring one. JSON below `/v1`, beside KServe's
//! `/v2` on the same port.

mod digest;
pub mod documents;
mod query;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, get};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Uri};
use serde::Serialize;

use self::documents::{Explained, Page, Row};
use super::percent;
use super::status::{self, Failure, error_response};
use crate::error::{Error, Result};
use crate::server::InferenceServer;

/// Where single models are.
const MODELS: &str = "/v1/models/";

/// A page holds a few hundred bytes a model.
const ROW_BYTES: usize = 768;

/// The routes, to be merged into those of the inference port.
pub fn router(server: InferenceServer) -> Router {
    Router::new()
        .route("/v1/residency", get(residency))
        .route("/v1/digest", get(digest))
        .route("/v1/models/{*path}", routing::any(model))
        .with_state(server)
}

async fn residency(State(server): State<InferenceServer>, uri: Uri) -> Response {
    let answer = query::parse(uri.query().unwrap_or_default()).and_then(|query| {
        let page = server.residency(&query);
        document(&Page::of(&page), page.models.len())
    });
    answer.unwrap_or_else(|error| Failure(error).into_response())
}

async fn digest(State(server): State<InferenceServer>, uri: Uri) -> Response {
    let answer = digest::since(uri.query().unwrap_or_default()).and_then(|cursor| {
        let digest = server.digest(cursor.as_deref());
        document(&digest::Document::of(&digest), digest.models.models.len())
    });
    answer.unwrap_or_else(|error| Failure(error).into_response())
}

/// What is asked of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Residency,
    Explain,
    Pin,
    Unpin,
    Prefetch,
}

impl Action {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "residency" => Self::Residency,
            "explain" => Self::Explain,
            "pin" => Self::Pin,
            "unpin" => Self::Unpin,
            "prefetch" => Self::Prefetch,
            _ => return None,
        })
    }

    const fn method(self) -> Method {
        match self {
            Self::Residency | Self::Explain => Method::GET,
            Self::Pin | Self::Unpin | Self::Prefetch => Method::POST,
        }
    }
}

/// Reads the path behind `/v1/models/`: `NAME/ACTION`. A name may have slashes in it, as they are or as `%2F`.
fn route(path: &str) -> Option<(String, Action)> {
    let (name, action) = path.rsplit_once('/')?;
    let name = percent::decode(name)?.into_owned();
    (!name.is_empty()).then_some((name, Action::named(action)?))
}

async fn model(State(server): State<InferenceServer>, request: Request) -> Response {
    let path = request.uri().path().strip_prefix(MODELS).unwrap_or_default();
    let Some((name, action)) = route(path) else {
        return error_response(&Error::not_found("Not Found")).map(Body::new);
    };
    if *request.method() != action.method() {
        return status::method_not_allowed().map(Body::new);
    }
    answer(&server, &name, action).await.unwrap_or_else(|error| Failure(error).into_response())
}

async fn answer(server: &InferenceServer, name: &str, action: Action) -> Result<Response> {
    match action {
        Action::Explain => return document(&Explained::of(&server.explain(name).await?), 1),
        Action::Residency => {}
        Action::Pin => server.pin_model(name).await?,
        Action::Unpin => server.unpin_model(name)?,
        Action::Prefetch => server.prefetch_model(name).await?,
    }
    let row = server
        .model_residency(name)
        .ok_or_else(|| Error::not_found(format!("nothing of model '{name}' is on this machine")))?;
    document(&Row::of(&row), 1)
}

fn document(content: &impl Serialize, rows: usize) -> Result<Response> {
    let mut json = Vec::with_capacity(512 + rows * ROW_BYTES);
    serde_json::to_writer(&mut json, content)
        .map_err(|error| Error::internal("cannot write the document").with_source(error))?;
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_part_of_a_path_is_what_is_asked_and_the_rest_the_name() {
        assert_eq!(route("m/explain"), Some(("m".into(), Action::Explain)));
        assert_eq!(route("team/res%20net/pin"), Some(("team/res net".into(), Action::Pin)));
        assert_eq!(route("team%2Fa.tar.gz/unpin"), Some(("team/a.tar.gz".into(), Action::Unpin)));
        assert_eq!(route("pin/prefetch"), Some(("pin".into(), Action::Prefetch)));
        for path in ["", "m", "pin", "/pin", "m/", "m/load", "m/PIN", "%ff/pin"] {
            assert_eq!(route(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_found_under_its_escaped_path(name in ".{1,40}") {
            let path = format!("{}/explain", percent::encode(&name));
            prop_assert_eq!(route(&path), Some((name, Action::Explain)));
        }

        #[test]
        fn no_path_makes_reading_panic(path in any::<String>()) {
            let _ = route(&path);
        }
    }
}
