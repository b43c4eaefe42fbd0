//! The picker's port: Envoy's external processing over gRPC, and over HTTP `GET /pick`, what is known of the fleet
//! (`/v1/fleet`), what an instance that starts is to bring (`/v1/digest`), metrics and health. It asks the instances for their digests and forwards nothing itself.

mod client;
pub mod digest;
mod documents;
mod ext_proc;
pub mod neighbours;
mod target;
pub mod token;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Request, Response};
use http_body_util::Either;
use hyper::body::Incoming;
use parking_lot::Mutex;
use prost::Message as _;

pub use self::watch::WatchOptions;
use super::body::Body;
use super::kserve_grpc::buffers::Buffers;
use super::kserve_grpc::messages::Messages;
use super::kserve_grpc::proto::health::health_check_response::ServingStatus;
use super::kserve_grpc::proto::health::{HealthCheckRequest, HealthCheckResponse};
use super::kserve_grpc::reply::{self, GrpcBody};
use super::kserve_grpc::{framed, is_grpc, unknown_call};
use super::status::{error_response, method_not_allowed};
use crate::error::{Error, Result};
use crate::inference::Deadline;
use crate::picker::choice::Reason;
use crate::picker::fleet::{Fleet, FleetOptions};
use crate::picker::hash::xxh64;

/// A name's place on the ring.
fn hash(name: &str) -> u64 {
    xxh64(name.as_bytes())
}

/// What the port and the watching of instances have in common.
struct Shared {
    fleet: Mutex<Fleet<Arc<str>>>,
    counts: Counts,
    /// Whether the instances' names have been looked up once.
    resolved: AtomicBool,
}

/// What happened since the start.
#[derive(Default)]
struct Counts {
    /// By reason.
    picks: [AtomicU64; Reason::ALL.len()],
    /// Requests that were let pass without a pick.
    passes: AtomicU64,
    digests: AtomicU64,
    silences: AtomicU64,
}

impl Counts {
    fn picked(&self, reason: Reason) {
        let counts = Reason::ALL.iter().zip(&self.picks);
        counts.filter(|(own, _)| **own == reason).for_each(|(_, count)| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    }

    fn passed(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }
}

/// The picker. Cheap to clone.
#[derive(Clone)]
pub struct Picker {
    shared: Arc<Shared>,
    buffers: Buffers,
}

/// An answer over gRPC or HTTP.
pub type PickerResponse = Response<Either<GrpcBody, Body>>;

impl Picker {
    /// A picker that knows nobody yet.
    #[must_use]
    pub fn new(options: FleetOptions) -> Self {
        let shared = Shared {
            fleet: Mutex::new(Fleet::new(options)),
            counts: Counts::default(),
            resolved: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), buffers: Buffers::default() }
    }

    /// Keeps up with the instances until the future is dropped.
    pub async fn watch(&self, options: WatchOptions) {
        watch::watch(Arc::clone(&self.shared), options).await;
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never.
    pub async fn handle(self, request: Request<Incoming>) -> Result<PickerResponse, Infallible> {
        if is_grpc(request.headers()) {
            return Ok(self.call(request).await.map(Either::Left));
        }
        Ok(self.answer(&request).map(Either::Right))
    }

    async fn call(self, request: Request<Incoming>) -> Response<GrpcBody> {
        let path = request.uri().path();
        if path.strip_prefix('/').and_then(|path| path.strip_suffix("/Process")) == Some(ext_proc::SERVICE) {
            return ext_proc::process(self.shared, &self.buffers, request);
        }
        if path == "/grpc.health.v1.Health/Check" {
            return match self.check(request).await {
                Ok(answer) => reply::message(framed(&answer)),
                Err(error) => reply::error(&error),
            };
        }
        unknown_call(path)
    }

    /// gRPC's health protocol, with the names of the endpoint-picker protocol.
    async fn check(&self, request: Request<Incoming>) -> Result<HealthCheckResponse> {
        let (head, body) = request.into_parts();
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(5));
        let message = Messages::new(&head.headers, body, 1024, &self.buffers)?.only(deadline).await?;
        let asked = HealthCheckRequest::decode(message)
            .map_err(|error| Error::invalid("the message is no valid protobuf").with_source(error))?;
        let serving = match asked.service.as_str() {
            "liveness" => true,
            "" | "readiness" | ext_proc::SERVICE => self.is_ready(),
            other => {
                let other: String = other.chars().take(128).collect();
                return Err(Error::not_found(format!("there is no service '{other}'")));
            }
        };
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(HealthCheckResponse { status: status.into() })
    }

    /// Whether it is of use: the instances' names have been looked up. What they say may come later; the ring is known.
    fn is_ready(&self) -> bool {
        self.shared.resolved.load(Ordering::Acquire)
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::POST | Method::HEAD) {
            return method_not_allowed();
        }
        let answered = match request.uri().path() {
            "/pick" => documents::pick(&self.shared, request.headers(), request.uri().query().unwrap_or_default()),
            "/v1/fleet" => documents::fleet(&self.shared),
            "/v1/digest" => documents::share(&self.shared, request.uri().query().unwrap_or_default()),
            "/metrics" => Ok(documents::metrics(&self.shared)),
            "/v2/health/live" => Ok(documents::empty()),
            "/v2/health/ready" if self.is_ready() => Ok(documents::empty()),
            "/v2/health/ready" => Err(Error::not_ready("the instances have not been looked up yet")),
            _ => Err(Error::not_found(
                "Not Found: there are /pick, /v1/fleet, /v1/digest, /metrics and /v2/health/ready",
            )),
        };
        answered.unwrap_or_else(|error| error_response(&error))
    }
}

#[cfg(test)]
mod tests;
