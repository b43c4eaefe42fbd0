//! The runtime API of endpoints: `InvokeEndpoint` and `InvokeEndpointWithResponseStream` (botocore, `sagemaker-runtime`
//! 2017-05-13).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::body::Body;
use super::failure::{Code, ServiceError};
use super::invoke::Unreadable;
use super::target::{ALL_TRAFFIC, CUSTOM_ATTRIBUTES, INVOKED_VARIANT, REQUEST_ID, TARGET_VARIANT};
use super::target::{custom_attributes, target_model};
use super::{Inner, event_stream};
use crate::error::ErrorKind;
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

impl Inner {
    /// Answers an invocation of the endpoint called `endpoint`.
    pub(super) async fn endpoint(
        self: &Arc<Self>,
        endpoint: &str,
        stream: bool,
        head: Parts,
        body: Incoming,
    ) -> http::Response<Body> {
        let answered = self.try_endpoint(endpoint, stream, &head, body).await;
        let mut response = answered.unwrap_or_else(|error| {
            tracing::debug!(endpoint, code = error.code.name(), error = %error.message, "invocation refused");
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
        let received = received.map_err(|error| match error.kind() {
            ErrorKind::TooLarge => ServiceError::new(Code::TooLarge, error.report()),
            _ => ServiceError::of(&error),
        })?;
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
            Unreadable::Failed(error) => ServiceError::of(&error),
        })?;
        let handle = self.handle_on(&name).await?;
        let answered = self.invoke(handle, payload, headers).await.map_err(|error| ServiceError::of(&error))?;
        let mut response = if stream { streamed(answered).await? } else { answered };
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
    async fn handle_on(self: &Arc<Self>, name: &str) -> Result<ModelHandle, ServiceError> {
        if let Ok(handle) = self.server.resident_model(name, None) {
            return Ok(handle);
        }
        let _kept = self.keep_loading(name);
        let until = Deadline::after(Instant::now(), self.config.endpoint.load_wait);
        self.server.model(name, None, until).await.map_err(|error| match error.kind() {
            ErrorKind::DeadlineExceeded => {
                let text = format!("Model {name} is still being fetched or loaded. Try again later.");
                ServiceError::new(Code::ModelNotReady, text).retry_after(self.seconds_left(name))
            }
            _ => ServiceError::of(&error),
        })
    }

    /// Has a load go on for as long as SageMaker gives it, whether or not its callers wait: they come back. What is given
    /// back lives as long as the request that asked, so that a model that is not retained waits for it.
    fn keep_loading(self: &Arc<Self>, name: &str) -> Option<oneshot::Sender<()>> {
        if !self.kept.0.lock().insert(name.to_owned()) {
            return None;
        }
        let (request, ended) = oneshot::channel::<()>();
        let (inner, name) = (Arc::clone(self), name.to_owned());
        let until = Deadline::after(Instant::now(), self.config.endpoint.load_limit);
        drop(tokio::spawn(async move {
            let loaded = inner.server.model(&name, None, until).await;
            inner.kept.0.lock().remove(&name);
            if loaded.is_ok() {
                // Its sender is dropped, never used.
                let _dropped = ended.await;
            }
        }));
        Some(request)
    }

    /// How long a load will take yet, where a fetch says so; 1 to 60 seconds.
    fn seconds_left(&self, name: &str) -> u64 {
        let eta = self.server.model_residency(name).and_then(|row| row.fetch).and_then(|fetch| fetch.eta_seconds());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 60")]
        eta.map_or(RETRY_SECONDS, |seconds| seconds.ceil().clamp(1.0, 60.0) as u64)
    }
}

/// The answer in frames of an event stream.
async fn streamed(response: http::Response<Body>) -> Result<http::Response<Body>, ServiceError> {
    let (mut head, mut body) = response.into_parts();
    let content_type = head.headers.remove(CONTENT_TYPE);
    let mut frames: Vec<Bytes> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame;
        if let Ok(bytes) = frame.into_data() {
            frames.push(event_stream::payload_part(bytes));
        }
    }
    if let Some(content_type) = content_type {
        head.headers.insert(STREAMED_TYPE, content_type);
    }
    head.headers.insert(CONTENT_TYPE, event_stream::CONTENT_TYPE);
    Ok(http::Response::from_parts(head, Body::pieces(frames)))
}
