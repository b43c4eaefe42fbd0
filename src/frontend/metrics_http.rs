//! The metrics port: `GET /metrics`, and health, which can be asked here to the end of a drain, when the inference port
//! takes no connections any more.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;

use super::access::{Access, Class};
use super::percent::decode;
use super::status::Failure;
use crate::error::{Error, Result};
use crate::server::InferenceServer;

/// The routes of the metrics port.
pub fn router(server: InferenceServer) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/v2/health/live", get(async || StatusCode::OK))
        .route("/v2/health/ready", get(ready))
        .fallback(|| async { Failure(Error::not_found("Not Found: the metrics are at /metrics")).into_response() })
        .with_state(server)
}

/// Answers one request with `routes`, if `access` lets it in.
///
/// # Errors
/// Never.
pub async fn handle(
    routes: Router,
    access: Access,
    request: http::Request<Incoming>,
) -> std::result::Result<Response, Infallible> {
    use tower::ServiceExt;
    let class = match request.uri().path().starts_with("/v2/health/") {
        true => Class::Health,
        false => Class::Metrics,
    };
    if let Err(denied) = access.check(request.headers(), class, None) {
        return Ok(denied.response().map(Body::new));
    }
    routes.oneshot(request.map(Body::new)).await
}

async fn ready(State(server): State<InferenceServer>) -> Response {
    readiness(&server).map_or_else(|error| Failure(error).into_response(), |()| StatusCode::OK.into_response())
}

/// Whether the server is ready, or why it is not.
///
/// # Errors
/// `NotReady` with the reason.
pub fn readiness(server: &InferenceServer) -> Result<()> {
    if server.is_ready() {
        Ok(())
    } else if server.is_draining() {
        Err(Error::not_ready("the server is shutting down"))
    } else if let Some((device, why)) = server.sick_devices().first() {
        Err(Error::not_ready(format!("no GPU is left: {device}: {why}")))
    } else {
        Err(Error::not_ready("the models asked for at start are still being loaded"))
    }
}

async fn metrics(State(server): State<InferenceServer>, RawQuery(query): RawQuery) -> Response {
    let page = match detail(query.as_deref().unwrap_or_default()) {
        Ok(None) => server.metrics_page(),
        Ok(Some(model)) => server.metrics_page_in_detail(model.as_deref()),
        Err(error) => return Failure(error).into_response(),
    };
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// Which models are to have series: the busiest (`None`), each (`models=all`), or one by its name (`model=NAME`).
fn detail(query: &str) -> Result<Option<Option<String>>> {
    match query.split_once('=') {
        None if query.is_empty() => Ok(None),
        Some(("models", "all")) => Ok(Some(None)),
        Some(("models", "busiest")) => Ok(None),
        Some(("model", name)) => match decode(&name.replace('+', " ")) {
            Some(name) => Ok(Some(Some(name.into_owned()))),
            None => Err(Error::invalid("the name of 'model' is not UTF-8")),
        },
        _ => Err(Error::invalid(format!("'{query}' is no choice of models: models=all, models=busiest or model=NAME"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_chooses_whose_series_are_on_the_page() {
        assert_eq!(detail("").unwrap(), None);
        assert_eq!(detail("models=busiest").unwrap(), None);
        assert_eq!(detail("models=all").unwrap(), Some(None));
        assert_eq!(detail("model=team%2Fc+d").unwrap(), Some(Some("team/c d".to_owned())));
        for query in ["models", "models=some", "x=1", "model=%ff"] {
            let text = detail(query).unwrap_err().report();
            assert!(text.contains("model"), "{query}: {text}");
        }
    }
}
