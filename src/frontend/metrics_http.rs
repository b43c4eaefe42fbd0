//! The metrics port: `GET /metrics`, and health, which can be asked here to the end of a drain, when the inference port
//! takes no connections any more.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;

use super::access::{Access, Class};
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
    } else {
        Err(Error::not_ready("the models asked for at start are still being loaded"))
    }
}

async fn metrics(State(server): State<InferenceServer>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], server.metrics_page()).into_response()
}
