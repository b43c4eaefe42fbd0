//! SageMaker: the contract of its containers, and its runtime API, on one port.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;

use super::body::Body;
use super::status::sagemaker_error_response;
use super::tensor_json::Limits;
use crate::config::RequestLimits;
use crate::config::sagemaker::SageMakerConfig;
use crate::error::Error;
use crate::repository::registered::Registered;
use crate::server::InferenceServer;

pub mod failure;
pub mod target;

/// The front end of SageMaker's port. Cheap to clone.
#[derive(Clone)]
pub struct SageMaker(Arc<Inner>);

struct Inner {
    server: InferenceServer,
    registered: Registered,
    config: SageMakerConfig,
    limits: RequestLimits,
    tensor_limits: Limits,
}

impl SageMaker {
    /// The front end over a server whose models are those of `registered`.
    #[must_use]
    pub fn new(server: InferenceServer, registered: Registered, config: SageMakerConfig, limits: RequestLimits) -> Self {
        let tensor_limits = Limits { json_bytes: limits.json_bytes, ..Limits::default() };
        Self(Arc::new(Inner { server, registered, config, limits, tensor_limits }))
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never.
    pub async fn handle(self, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        drop(request);
        Ok(sagemaker_error_response(&Error::not_found("Not Found")))
    }
}
