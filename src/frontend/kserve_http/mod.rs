//! KServe v2 over HTTP, as Triton speaks it (docs/protocol of triton-inference-server/server), with the extensions
//! binary tensor data, classification, model repository, model configuration, statistics, parameters,
//! generate, trace and logging.
//!
//! The way of an inference request is short: its path is read by hand and its handler called directly. Everything else
//! goes through an axum router.

pub(in crate::frontend) mod documents;
mod generate;
mod infer;
mod repository;
mod rights;
mod route;
mod settings;
mod shared_memory;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::Either;
use hyper::body::Incoming;
use serde_json::{Map, Value};

use self::route::{Action, ModelRoute};
use super::access::{Access, Class};
use super::admin;
use super::body::{self, Body, BodyLimits};
use super::compression::{self, Encoding};
use super::status::{self, Failure, error_response};
use super::tensor_json::Limits;
use crate::config::RequestLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Deadline;
use crate::server::InferenceServer;

/// What every handler needs.
#[derive(Clone)]
pub struct Kserve(Arc<Inner>);

struct Inner {
    server: InferenceServer,
    limits: RequestLimits,
    tensor_limits: Limits,
    access: Access,
    router: Router,
}

/// The largest body of a control request, before and after decompression: a configuration for a load is the largest there
/// is, and JSON takes forty times its length as a tree.
const CONTROL_BYTES: usize = 4 << 20;

/// Where models are.
const MODELS: &str = "/v2/models/";

/// When a request's head was there: its time is counted from then, its body's included.
#[derive(Clone, Copy)]
struct Arrived(Instant);

/// A response from the short way or from the router.
pub type KserveResponse = http::Response<Either<Body, axum::body::Body>>;

impl Kserve {
    /// The front end over a server, for those that `access` lets in.
    #[must_use]
    pub fn new(server: InferenceServer, limits: RequestLimits, access: Access) -> Self {
        let tensor_limits = Limits { json_bytes: limits.json_bytes, ..Limits::default() };
        let inner = |router| {
            let (server, tensor_limits, access) = (server.clone(), tensor_limits.clone(), access.clone());
            Self(Arc::new(Inner { server, limits, tensor_limits, access, router }))
        };
        inner(router(inner(Router::new())))
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never.
    pub async fn handle(self, request: http::Request<Incoming>) -> Result<KserveResponse, Infallible> {
        if request.method() == Method::POST
            && let Some(path) = request.uri().path().strip_prefix(MODELS)
            && path.ends_with("/infer")
            && let Some(route) = ModelRoute::parse(path)
            && route.action == Action::Infer
        {
            if let Err(denied) = self.0.access.check(request.headers(), Class::Inference, Some(&route.name)) {
                return Ok(denied.response().map(Either::Left));
            }
            let (name, version) = (route.name.into_owned(), route.version);
            return Ok(self.infer(&name, version, request).await.map(Either::Left));
        }
        let (class, model) = rights::needed(request.uri().path());
        if let Err(denied) = self.0.access.check(request.headers(), class, model.as_deref()) {
            return Ok(denied.response().map(Either::Left));
        }
        let offered = Encoding::of_request(request.headers()).is_err();
        let mut response = match self.read_whole(request, Instant::now()).await {
            Ok(request) => call(self.0.router.clone(), request).await,
            Err(error) => {
                let mut response = Failure(error).into_response();
                if offered {
                    response.headers_mut().insert(ACCEPT_ENCODING, Encoding::offered());
                }
                response
            }
        };
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response = method_not_allowed();
        }
        Ok(response.map(Either::Right))
    }

    /// The request with its body in memory, whether its handler wants it or not: a body left unread would cost the
    /// connection.
    async fn read_whole(&self, request: http::Request<Incoming>, arrived: Instant) -> Result<Request> {
        let (mut head, body) = request.into_parts();
        let json_bytes = self.0.limits.json_bytes;
        let generates = head.uri.path().strip_prefix(MODELS).and_then(ModelRoute::parse).is_some_and(|route| {
            head.method == Method::POST && matches!(route.action, Action::Generate | Action::GenerateStream)
        });
        let (limit, flag) = if generates {
            (json_bytes, "--max-json-bytes")
        } else {
            (json_bytes.min(CONTROL_BYTES), "the limit of control requests,")
        };
        let limits = BodyLimits {
            bytes: limit,
            chunks: self.0.limits.body_chunks,
            deadline: self.deadline(arrived, None, &head.headers),
            flag,
        };
        let body = body::read(body, &head.headers, None, &limits).await?;
        let body = match body.is_empty() {
            true => body,
            false => compression::expand(Encoding::of_request(&head.headers)?, body, limit, flag).await?,
        };
        head.extensions.insert(Arrived(arrived));
        Ok(Request::from_parts(head, body.into()))
    }

    fn server(&self) -> &InferenceServer {
        &self.0.server
    }

    /// When the answer must be there: the earliest of the request's own timeout, its headers', and the server's.
    fn deadline(&self, arrived: Instant, own: Option<Duration>, headers: &HeaderMap) -> Option<Deadline> {
        body::deadline(arrived, own, headers, self.0.limits.timeout)
    }
}

async fn call(router: Router, request: Request) -> Response {
    use tower::ServiceExt;
    router.oneshot(request).await.unwrap_or_else(|never| match never {})
}

fn router(state: Kserve) -> Router {
    let operators = admin::router(state.server().clone());
    Router::new()
        .route("/v2", get(documents::server_metadata))
        .route("/v2/health/live", get(documents::live))
        .route("/v2/health/ready", get(documents::ready))
        .route("/v2/models", get(documents::models))
        .route("/v2/models/stats", get(documents::all_statistics))
        .route("/v2/models/{*path}", axum::routing::any(model_route))
        .route("/v2/trace/setting", get(settings::trace).post(settings::trace))
        .route("/v2/logging", get(settings::logging).post(settings::logging))
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/{repository}/index", post(repository::index))
        .route("/v2/repository/models/{*path}", axum::routing::any(repository::model_operation))
        .route("/v2/repository/{repository}/models/{*path}", axum::routing::any(repository::named_repository))
        .route("/v2/systemsharedmemory/{*path}", axum::routing::any(shared_memory::system))
        .route("/v2/cudasharedmemory/{*path}", axum::routing::any(shared_memory::cuda))
        .fallback(|| async { not_found() })
        .with_state(state)
        .merge(operators)
}

/// Everything below `/v2/models/` but the short way: names may have slashes in them, so the path is read by hand.
async fn model_route(State(kserve): State<Kserve>, request: Request) -> Response {
    let path = request.uri().path().strip_prefix(MODELS).unwrap_or_default().to_owned();
    let Some(route) = ModelRoute::parse(&path) else { return not_found() };
    let expected = match route.action {
        Action::TraceSetting if *request.method() == Method::GET => Method::GET,
        Action::TraceSetting => Method::POST,
        Action::Infer | Action::Generate | Action::GenerateStream => Method::POST,
        Action::Metadata | Action::Ready | Action::Config | Action::Statistics => Method::GET,
    };
    if *request.method() != expected {
        return method_not_allowed();
    }
    let name = route.name.into_owned();
    let version = route.version;
    let headers = request.headers().clone();
    let arrived = request.extensions().get::<Arrived>().map_or_else(Instant::now, |arrived| arrived.0);
    let deadline = kserve.deadline(arrived, None, &headers);
    let result = match route.action {
        Action::Metadata => documents::model_metadata(&kserve, &name, version, deadline).await,
        Action::Ready => documents::model_ready(&kserve, &name, version),
        Action::Config => documents::model_config(&kserve, &name, version, deadline).await,
        Action::Statistics => documents::model_statistics(&kserve, &name, version),
        Action::Generate => generate::generate(&kserve, &name, version, request, arrived, false).await,
        Action::GenerateStream => generate::generate(&kserve, &name, version, request, arrived, true).await,
        Action::TraceSetting => settings::model_trace(&kserve, Some(&name), request).await,
        Action::Infer => Err(Error::internal("inference went past its short way")),
    };
    result.unwrap_or_else(|error| {
        log_failure(&name, &headers, &error);
        Failure(error).into_response()
    })
}

/// What a proxy before us calls the request.
fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-request-id").and_then(|id| id.to_str().ok())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// One line for each failed request: loud if it is our fault.
fn log_failure(model: &str, headers: &HeaderMap, error: &Error) {
    let request_id = request_id(headers).unwrap_or("-");
    let code = error.kind().code();
    match error.kind() {
        ErrorKind::BackendFailed | ErrorKind::RepositoryFailed | ErrorKind::Internal => {
            tracing::warn!(model, request_id, code, error = %error.report(), "request failed");
        }
        _ => tracing::debug!(model, request_id, code, error = %error.report(), "request refused"),
    }
}

/// A JSON document that is made already.
fn json(text: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(axum::body::Body::from(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Triton's answer to success without a body.
fn empty() -> Response {
    let mut response = Response::new(axum::body::Body::empty());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn not_found() -> Response {
    error_response(&Error::not_found("Not Found")).map(axum::body::Body::new)
}

fn method_not_allowed() -> Response {
    status::method_not_allowed().map(axum::body::Body::new)
}

/// Reads the JSON object in the body of a control request; an absent one has no members.
async fn read_control(request: Request) -> Result<Map<String, Value>> {
    let bytes = axum::body::to_bytes(request.into_body(), CONTROL_BYTES)
        .await
        .map_err(|error| Error::internal("reading a body from memory failed").with_source(error))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid("failed to parse the request JSON buffer").with_source(error))?;
    match value {
        Value::Object(members) => Ok(members),
        Value::Null => Ok(Map::new()),
        _ => Err(Error::invalid("the body must be a JSON object")),
    }
}
