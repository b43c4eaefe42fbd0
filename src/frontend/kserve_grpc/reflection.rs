//! Reflection, by which tools such as grpcurl learn the calls: versions v1 and v1alpha, served by tonic's body of it.

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic_reflection::server::Builder;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::proto::DESCRIPTORS;
use crate::error::{Error, Result};

type Service = BoxCloneSyncService<Request<Body>, Response<Body>, std::convert::Infallible>;

/// Both versions.
pub(super) struct Reflection {
    v1: Service,
    v1alpha: Service,
}

impl Reflection {
    pub(super) fn new() -> Result<Self> {
        let failed = |error| Error::internal("the descriptors of proto/ cannot be read").with_source(error);
        let builder = || Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
        Ok(Self {
            v1: Service::new(builder().build_v1().map_err(failed)?),
            v1alpha: Service::new(builder().build_v1alpha().map_err(failed)?),
        })
    }

    /// Answers a call of either.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_v1 = request.uri().path().starts_with("/grpc.reflection.v1.");
        let service = if is_v1 { &self.v1 } else { &self.v1alpha };
        let answered = service.clone().oneshot(request.map(Body::new)).await;
        answered.unwrap_or_else(|never| match never {})
    }
}
