//! SageMaker: the contract of its containers, and the runtime API of its endpoints, on one port.
//!
//! Inside SageMaker the platform stands before this port, says what to load and unload, and sends invocations. Outside this
//! port is the endpoint itself: models come from the repository when an invocation names them.

mod container;
mod content_type;
pub mod event_stream;
pub mod failure;
mod invoke;
pub mod keys;
mod route;
mod runtime;
mod sigv4;
pub mod target;

use std::convert::Infallible;
use std::sync::Arc;

use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, StatusCode};
use hyper::body::Incoming;

use self::container::{CONTROL_BYTES, Turns};
use self::invoke::Unreadable;
use self::keys::Keys;
use self::route::{ENDPOINTS, Route};
use self::runtime::Kept;
use self::target::{CUSTOM_ATTRIBUTES, custom_attributes, target_model};
use super::access::{Access, Class, Denied, EVERY_MODEL};
use super::body::{self, Body, BodyLimits};
use super::compression::Encoding;
use super::status::{method_not_allowed, sagemaker_error_response};
use super::tensor_json::Limits;
use crate::config::RequestLimits;
use crate::config::sagemaker::SageMakerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::registered::Registered;
use crate::server::InferenceServer;

/// The front end of SageMaker's port. Cheap to clone.
#[derive(Clone)]
pub struct SageMaker(Arc<Inner>);

struct Inner {
    server: InferenceServer,
    registered: Registered,
    config: SageMakerConfig,
    /// Who may use the runtime API; everybody if `None`.
    keys: Option<Keys>,
    /// Who may ask what, where no keys and no platform say it.
    access: Access,
    limits: RequestLimits,
    tensor_limits: Limits,
    turns: Turns,
    kept: Kept,
}

/// Whether a path is the runtime API's.
#[must_use]
pub fn is_endpoint(path: &str) -> bool {
    path.starts_with(ENDPOINTS)
}

impl SageMaker {
    /// The front end over a server whose models are those of `registered`.
    #[must_use]
    pub fn new(
        server: InferenceServer,
        registered: Registered,
        config: SageMakerConfig,
        keys: Option<Keys>,
        access: Access,
        limits: RequestLimits,
    ) -> Self {
        let tensor_limits = Limits { json_bytes: limits.json_bytes, ..Limits::default() };
        let (turns, kept) = (Turns::default(), Kept::default());
        Self(Arc::new(Inner { server, registered, config, keys, access, limits, tensor_limits, turns, kept }))
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never.
    pub async fn handle(self, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let route = Route::parse(&head.method, &path);
        if let Err(denied) = self.0.let_in(&route, &head.headers) {
            return Ok(denied.response());
        }
        if is_endpoint(&path) {
            return Ok(self.0.endpoint(route, head, body).await);
        }
        let answered = match route {
            Route::Ping => Ok(self.0.ping()),
            Route::Invoke(name) => return Ok(self.0.invocation(Some(&name), &head.headers, body).await),
            Route::Invocations => return Ok(self.0.invocation(None, &head.headers, body).await),
            other => self.0.control(other, head.uri.query().unwrap_or_default(), &head.headers, body).await,
        };
        Ok(answered.unwrap_or_else(|error| sagemaker_error_response(&error)))
    }
}

impl Inner {
    /// The tokens of the other ports are asked for here as well, but not of SageMaker's platform, which has none, and not
    /// where the runtime API has keys of its own.
    fn let_in(&self, route: &Route<'_>, headers: &HeaderMap) -> Result<(), Denied> {
        let is_others = match route {
            Route::Endpoint { .. } => self.keys.is_some(),
            _ => self.config.mode.is_container(),
        };
        if is_others {
            return Ok(());
        }
        // As the invocation itself will read it.
        let named = target_model(headers).ok().flatten().or_else(|| self.config.model.clone());
        let asked = Some(named.as_deref().unwrap_or(EVERY_MODEL));
        match route {
            Route::Ping => self.access.check(headers, Class::Health, None),
            Route::Endpoint { .. } | Route::Invocations => self.access.check(headers, Class::Inference, asked),
            Route::Invoke(name) => self.access.check(headers, Class::Inference, Some(name)),
            Route::Describe(name) | Route::Unload(name) => {
                self.access.check(headers, Class::ModelRepository, Some(name))
            }
            // The name of what is to be loaded is in the body.
            Route::List | Route::Load => self.access.check(headers, Class::ModelRepository, Some(EVERY_MODEL)),
            Route::WrongMethod | Route::Nothing => self.access.check(headers, Class::Metadata, None),
        }
    }

    /// What the platform asks besides invocations.
    async fn control(
        self: &Arc<Self>,
        route: Route<'_>,
        query: &str,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<http::Response<Body>> {
        // Read whether it is wanted or not: left unread it would cost the connection.
        let limits = BodyLimits {
            bytes: CONTROL_BYTES,
            chunks: self.limits.body_chunks,
            deadline: body::deadline(std::time::Instant::now(), None, headers, self.limits.timeout),
            flag: "the limit of control requests,",
        };
        let body = body::read(body, headers, None, &limits).await?;
        match route {
            Route::List => self.list(query),
            Route::Describe(name) => self.describe(&name),
            Route::Load => self.load(body).await,
            Route::Unload(name) => self.unload(&name).await,
            Route::WrongMethod => Ok(method_not_allowed()),
            _ => Err(Error::not_found("Not Found")),
        }
    }

    /// An invocation that the platform hands on, errors included; of the model that is asked for, or the only one there is.
    async fn invocation(&self, name: Option<&str>, headers: &HeaderMap, body: Incoming) -> http::Response<Body> {
        match self.try_invocation(name, headers, body).await {
            Ok(response) => response,
            Err(Unreadable::Failed(error)) => {
                if matches!(error.kind(), ErrorKind::BackendFailed | ErrorKind::Internal) {
                    tracing::warn!(model = name, error = %error.report(), "invocation failed");
                }
                sagemaker_error_response(&error)
            }
            Err(Unreadable::Coding(error)) => {
                let mut response = sagemaker_error_response(&error);
                *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                response.headers_mut().insert(ACCEPT_ENCODING, Encoding::offered());
                response
            }
        }
    }

    async fn try_invocation(
        &self,
        name: Option<&str>,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<http::Response<Body>, Unreadable> {
        let received = self.receive(headers, body, (self.limits.body_bytes, "--max-body-bytes")).await?;
        let payload = self.understand(headers, received).await?;
        let attributes = custom_attributes(headers).map_err(|error| Error::invalid(error.message))?;
        let name = match name {
            Some(name) => name.to_owned(),
            // A proxy may route by the header.
            None => target_model(headers)
                .map_err(|error| Error::invalid(error.message))?
                .or_else(|| self.config.model.clone())
                .ok_or_else(|| Error::invalid("which model? name the one of /invocations with --sagemaker-model"))?,
        };
        let arrived = payload.arrived;
        let deadline = body::deadline(arrived, None, headers, self.limits.timeout);
        let handle = self.server.model(&name, None, deadline).await?;
        let mut response = self.invoke(handle, payload, headers, arrived, false).await?;
        if let Some(attributes) = attributes {
            response.headers_mut().insert(CUSTOM_ATTRIBUTES, attributes);
        }
        Ok(response)
    }
}
