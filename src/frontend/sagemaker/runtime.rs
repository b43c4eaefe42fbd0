//! The runtime API of endpoints: `InvokeEndpoint` and `InvokeEndpointWithResponseStream` (botocore, `sagemaker-runtime`
//! 2017-05-13).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::body::{self, Body};
use super::failure::{Code, ServiceError};
use super::invoke::Unreadable;
use super::route::Route;
use super::target::{ALL_TRAFFIC, CUSTOM_ATTRIBUTES, INVOKED_VARIANT, REQUEST_ID, TARGET_VARIANT};
use super::target::{custom_attributes, target_model};
use super::{Inner, event_stream};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Deadline;
use crate::lifecycle::handle::ModelHandle;

/// The content type of what streams.
const STREAMED_TYPE: HeaderName = HeaderName::from_static("x-amzn-sagemaker-content-type");

/// Seconds after which to ask for a model whose load does not say how long it takes.
const RETRY_SECONDS: u64 = 10;

/// Bodies from this size on are hashed where they hold up no connection, in bytes.
const LARGE_BODY: usize = 64 << 10;

/// Models whose loads go on without a request.
#[derive(Default)]
pub(super) struct Kept(Mutex<HashSet<String>>);

/// Keeps a name among those whose loads go on.
struct KeptGuard {
    inner: Arc<Inner>,
    name: String,
}

impl KeptGuard {
    fn new(inner: &Arc<Inner>, name: &str) -> Option<Self> {
        let is_new = inner.kept.0.lock().insert(name.to_owned());
        is_new.then(|| Self { inner: Arc::clone(inner), name: name.to_owned() })
    }
}

impl Drop for KeptGuard {
    fn drop(&mut self) {
        self.inner.kept.0.lock().remove(&self.name);
    }
}

impl Inner {
    /// Answers what is asked of an endpoint.
    pub(super) async fn endpoint(
        self: &Arc<Self>,
        route: Route<'_>,
        head: Parts,
        body: Incoming,
    ) -> http::Response<Body> {
        let answered = match route {
            Route::Endpoint { name, stream } => self.try_endpoint(&name, stream, &head, body).await,
            _ => {
                Err(ServiceError::new(Code::UnknownOperation, "there are invocations and invocations-response-stream"))
            }
        };
        let mut response = answered.unwrap_or_else(|error| {
            let path = head.uri.path();
            let is_ours = error.code == Code::Internal || error.original.as_ref().is_some_and(|it| it.status >= 500);
            match is_ours {
                true => tracing::warn!(path, code = error.code.name(), error = %error.message, "invocation failed"),
                false => tracing::debug!(path, code = error.code.name(), error = %error.message, "invocation refused"),
            }
            error.response()
        });
        let mut buffer = Uuid::encode_buffer();
        let id = Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
        if let Ok(id) = HeaderValue::from_str(id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    async fn try_endpoint(
        self: &Arc<Self>,
        endpoint: &str,
        stream: bool,
        head: &Parts,
        body: Incoming,
    ) -> Result<http::Response<Body>, ServiceError> {
        let headers = &head.headers;
        let most = self.config.endpoint.payload_bytes;
        let received = self.receive(headers, body, (most, "--endpoint-max-payload-bytes")).await;
        let received = received.map_err(|error| too_large_or(&error))?;
        let target = target_model(headers)?.or_else(|| self.config.model.clone());
        // Who may not ask is told nothing of what there is.
        self.authorize(head, &received.bytes, target.as_deref()).await?;
        if let Some(name) = &self.config.endpoint.name
            && name != endpoint
        {
            let shown: String = endpoint.chars().take(63).collect();
            return Err(ServiceError::validation(format!("Endpoint {shown} not found.")));
        }
        let attributes = custom_attributes(headers)?;
        let name = target.ok_or_else(|| {
            ServiceError::validation("TargetModel is missing: name the model in X-Amzn-SageMaker-Target-Model")
        })?;
        let payload = self.understand(headers, received).await.map_err(|unreadable| match unreadable {
            Unreadable::Coding(error) => ServiceError::model("primary", 415, error.report()),
            Unreadable::Failed(error) => too_large_or(&error),
        })?;
        let handle = self.handle_on(&name, headers).await?;
        // Waiting for the load had a limit of its own.
        let answered = self.invoke(handle, payload, headers, Instant::now(), stream).await;
        let answered = answered.map_err(|error| ServiceError::of(&error))?;
        let mut response = if stream { streamed(answered) } else { answered };
        let answer = response.headers_mut();
        answer.insert(INVOKED_VARIANT, headers.get(TARGET_VARIANT).cloned().unwrap_or(ALL_TRAFFIC));
        if let Some(attributes) = attributes {
            answer.insert(CUSTOM_ATTRIBUTES, attributes);
        }
        Ok(response)
    }

    /// Whether whoever sent this may ask the model.
    async fn authorize(self: &Arc<Self>, head: &Parts, body: &Bytes, model: Option<&str>) -> Result<(), ServiceError> {
        if self.keys.is_none() {
            return Ok(());
        }
        if body.len() < LARGE_BODY {
            return self.check(head, body, model);
        }
        // Hashing it holds up no connection.
        let (inner, head, body, model) = (Arc::clone(self), head.clone(), body.clone(), model.map(str::to_owned));
        let checked = tokio::task::spawn_blocking(move || inner.check(&head, &body, model.as_deref())).await;
        checked.unwrap_or_else(|_panic| Err(ServiceError::new(Code::Internal, "checking the signature failed")))
    }

    fn check(&self, head: &Parts, body: &[u8], model: Option<&str>) -> Result<(), ServiceError> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let grant = keys.check(&head.method, &head.uri, &head.headers, body, SystemTime::now())?;
        grant.allows(model)?;
        tracing::debug!(key = grant.name(), model, "invocation allowed");
        Ok(())
    }

    /// A handle on a model, which is loaded first if it must be. The load goes on when the wait is over.
    async fn handle_on(self: &Arc<Self>, name: &str, headers: &HeaderMap) -> Result<ModelHandle, ServiceError> {
        if let Ok(handle) = self.server.resident_model(name, None) {
            return Ok(handle);
        }
        let until = body::deadline(Instant::now(), Some(self.config.endpoint.load_wait), headers, None);
        let loaded = match self.keep_loading(name, until) {
            None => self.server.model(name, None, until).await,
            Some(loaded) => {
                let until = until.map_or_else(Instant::now, Deadline::instant);
                match tokio::time::timeout_at(until.into(), loaded).await {
                    Ok(Ok(loaded)) => loaded,
                    Ok(Err(_gone)) => Err(Error::internal("a load broke off")),
                    Err(_elapsed) => Err(Error::new(ErrorKind::DeadlineExceeded, "the load goes on")),
                }
            }
        };
        loaded.map_err(|error| match error.kind() {
            ErrorKind::DeadlineExceeded => {
                let text = format!("Model {name} is still being fetched or loaded. Try again later.");
                ServiceError::new(Code::ModelNotReady, text).retry_after(self.seconds_left(name))
            }
            _ => ServiceError::of(&error),
        })
    }

    /// Has a load go on for as long as SageMaker gives it, whether or not its callers wait: they come back. `None` if that
    /// is so already. The handle goes to the request that asked, or back at once where that has left: nobody else may hold
    /// one, since an unload would wait for it.
    fn keep_loading(
        self: &Arc<Self>,
        name: &str,
        wanted: Option<Deadline>,
    ) -> Option<oneshot::Receiver<Result<ModelHandle>>> {
        let kept = KeptGuard::new(self, name)?;
        let (request, loaded) = oneshot::channel();
        let until = Deadline::after(Instant::now(), self.config.endpoint.load_limit);
        drop(tokio::spawn(async move {
            let handle = kept.inner.server.model_for(&kept.name, wanted, until).await;
            drop(kept);
            // Who has left does not want it any more.
            drop(request.send(handle));
        }));
        Some(loaded)
    }

    /// How long a load will take yet, where a fetch says so; 1 to 60 seconds.
    fn seconds_left(&self, name: &str) -> u64 {
        let eta = self.server.model_residency(name).and_then(|row| row.fetch).and_then(|fetch| fetch.eta_seconds());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 60")]
        eta.map_or(RETRY_SECONDS, |seconds| seconds.ceil().clamp(1.0, 60.0) as u64)
    }
}

/// A body over a limit has an error of its own.
fn too_large_or(error: &Error) -> ServiceError {
    match error.kind() {
        ErrorKind::TooLarge => ServiceError::new(Code::TooLarge, error.report()),
        _ => ServiceError::of(error),
    }
}

/// The head of an answer whose body is an event stream.
fn streamed(mut response: http::Response<Body>) -> http::Response<Body> {
    let headers = response.headers_mut();
    if let Some(content_type) = headers.insert(CONTENT_TYPE, event_stream::CONTENT_TYPE) {
        headers.insert(STREAMED_TYPE, content_type);
    }
    response
}
