//! gRPC's health protocol: the server as a whole under the empty name and that of its service, and each model under its
//! own.

use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;

use super::messages::Messages;
use super::proto::health::health_check_response::ServingStatus;
use super::proto::health::{HealthCheckRequest, HealthCheckResponse};
use super::reply::{self, GrpcBody};
use super::rights::CallError;
use super::{GrpcService, framed};
use crate::error::{Error, Result};
use crate::inference::Deadline;

/// How often a watch looks for a change.
const INTERVAL: Duration = Duration::from_secs(1);

/// Names of a service are paths of models at most.
const NAME_BYTES: usize = 1024;

/// `Check`: a model that is not in memory is known to be not serving, where anything is known of it.
pub(super) async fn check(
    grpc: &GrpcService,
    asked: HealthCheckRequest,
    _: Option<Deadline>,
) -> Result<HealthCheckResponse> {
    match status(grpc, &asked.service) {
        ServingStatus::ServiceUnknown => {
            let name: String = asked.service.chars().take(NAME_BYTES).collect();
            Err(Error::not_found(format!("Request for unknown model: '{name}' is not found")))
        }
        known => Ok(HealthCheckResponse { status: known.into() }),
    }
}

/// What is to be said of a service. Loads nothing.
pub(super) fn status(grpc: &GrpcService, service: &str) -> ServingStatus {
    let server = grpc.server();
    let serving = match service {
        "" | "inference.GRPCInferenceService" => server.is_ready(),
        _ if server.is_draining() => false,
        model if server.is_model_ready(model, None) => true,
        model if server.model_residency(model).is_some() => false,
        _ => return ServingStatus::ServiceUnknown,
    };
    if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// What a watch last said and what is next.
struct Watch {
    grpc: GrpcService,
    service: String,
    said: Option<ServingStatus>,
}

impl Watch {
    /// The next change; `None` once the server is on its way out and that has been said.
    async fn next(mut self) -> Option<(bytes::Bytes, Self)> {
        loop {
            let now = status(&self.grpc, &self.service);
            if self.said != Some(now) {
                self.said = Some(now);
                let pieces = framed(&HealthCheckResponse { status: now.into() });
                return pieces.into_iter().next().map(|piece| (piece, self));
            }
            if self.grpc.0.stopping.is_cancelled() {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.grpc.0.stopping.cancelled() => {}
            }
        }
    }
}

impl GrpcService {
    /// `Watch`: the status, then each change of it.
    pub(super) async fn watch(&self, request: Request<Incoming>, arrived: Instant) -> Response<GrpcBody> {
        let (head, body) = request.into_parts();
        let asked = async {
            let deadline = self.deadline(arrived, None, &head.headers)?;
            let message = Messages::new(&head.headers, body, NAME_BYTES + 16, &self.0.buffers)?.only(deadline).await?;
            let asked = HealthCheckRequest::decode(message)
                .map_err(|error| Error::invalid("the message is no valid protobuf").with_source(error))?;
            self.check_subject(&head.headers, head.uri.path(), &asked)?;
            Ok::<_, CallError>(asked)
        };
        match asked.await {
            Ok(HealthCheckRequest { service }) => {
                let watch = Watch { grpc: self.clone(), service, said: None };
                reply::changes(Box::pin(futures_util::stream::unfold(watch, Watch::next)))
            }
            Err(error) => error.answer("Health/Watch", &head.headers),
        }
    }
}
