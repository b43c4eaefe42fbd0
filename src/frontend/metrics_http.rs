//! The metrics port: `GET /metrics`, and health, which can be asked here to the end of a drain, when the inference port
//! takes no connections any more.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;

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
