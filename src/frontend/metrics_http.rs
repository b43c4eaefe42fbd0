//! The metrics port: `GET /metrics`.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;

use super::status::Failure;
use crate::error::Error;
use crate::server::InferenceServer;

/// The routes of the metrics port.
pub fn router(server: InferenceServer) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(|| async { Failure(Error::not_found("Not Found: the metrics are at /metrics")).into_response() })
        .with_state(server)
}

async fn metrics(State(server): State<InferenceServer>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], server.metrics_page()).into_response()
}
