//! KServe v2 over gRPC, as Triton speaks it (`inference.GRPCInferenceService`), with gRPC's own health and reflection.
//!
//! Calls are answered over hyper's HTTP/2 without a gRPC server in between: messages are slices of what came, tensors
//! slices of messages, and answers go out in pieces. The way of a `ModelInfer` is short; everything else goes through the
//! messages that `build.rs` makes of `proto/`.

pub(super) mod buffers;
mod config;
mod contents;
mod documents;
mod health;
mod infer;
pub(super) mod messages;
mod parameters;
pub mod proto;
mod reflection;
pub mod reply;
mod repository;
pub mod request;
pub mod response;
mod rights;
mod settings;
mod shared_memory;
mod stream;
mod wire;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use self::buffers::Buffers;
use self::messages::Messages;
use self::reflection::Reflection;
use self::reply::GrpcBody;
use self::response::Pieces;
use self::rights::{CallError, Subject};
use super::access::Access;
use super::listener::Http2Options;
use super::tensor_json::Limits;
use crate::config::RequestLimits;
use crate::config::grpc::GrpcConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Deadline;
use crate::server::InferenceServer;

/// What every call needs. Cheap to clone.
#[derive(Clone)]
pub struct GrpcService(Arc<Inner>);

struct Inner {
    server: InferenceServer,
    access: Access,
    limits: RequestLimits,
    tensor_limits: Limits,
    config: GrpcConfig,
    reflection: Reflection,
    /// Where messages are gathered.
    buffers: Buffers,
    /// When the server is on its way out: streams take no more requests then.
    stopping: CancellationToken,
}

const INFERENCE: &str = "/inference.GRPCInferenceService/";
const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.";

/// The largest frame, in bytes: large tensors come in few of them, and one of 1 MiB with what stands before it in one.
const FRAME: u32 = 2 << 20;

/// Bytes of one call that may come before they are read: a message that is a little longer than the window would wait for
/// the way there and back with its last bytes.
const CALL_WINDOW: u32 = 4 << 20;

/// The same of all calls of a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The largest message of a call that is no inference.
const CONTROL_BYTES: usize = 4 << 20;

/// Whether a request is a call of gRPC, on a port that takes others too.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

impl GrpcService {
    /// The front end over a server, for those that `access` lets in; `stopping` is cancelled where it is to end.
    ///
    /// # Errors
    /// `Internal` if the descriptors of its messages cannot be read.
    pub fn new(
        server: InferenceServer,
        access: Access,
        limits: RequestLimits,
        config: GrpcConfig,
        stopping: CancellationToken,
    ) -> Result<Self> {
        let tensor_limits = Limits { json_bytes: limits.json_bytes, ..Limits::default() };
        let reflection = Reflection::new()?;
        Ok(Self(Arc::new(Inner {
            server,
            access,
            limits,
            tensor_limits,
            config,
            reflection,
            buffers: Buffers::default(),
            stopping,
        })))
    }

    /// How the port of gRPC alone speaks HTTP/2: connections are kept, since clients keep theirs for good.
    #[must_use]
    pub fn http2_options(&self) -> Http2Options {
        let config = &self.0.config;
        Http2Options {
            max_concurrent_streams: config.max_concurrent_streams,
            keepalive_interval: config.keepalive_time,
            keepalive_timeout: config.keepalive_timeout,
            stream_window: CALL_WINDOW,
            connection_window: CONNECTION_WINDOW,
            frame: FRAME,
            idle: None,
            ..Http2Options::default()
        }
    }

    /// Answers one call.
    ///
    /// # Errors
    /// Never.
    pub async fn handle(self, request: Request<Incoming>) -> Result<Response<GrpcBody>, Infallible> {
        let arrived = Instant::now();
        if request.method() != Method::POST || !is_grpc(request.headers()) {
            return Ok(no_grpc());
        }
        let path = request.uri().path();
        if let Err(denied) = self.check_call(request.headers(), path) {
            return Ok(CallError::from(denied).answer(path, request.headers()));
        }
        if let Some(call) = path.strip_prefix(INFERENCE) {
            return Ok(match call {
                "ModelInfer" => self.infer(request, arrived).await,
                "ModelStreamInfer" => self.stream(request, arrived),
                _ => self.call(request, arrived).await,
            });
        }
        if let Some(call) = path.strip_prefix(HEALTH) {
            return Ok(match call {
                "Check" => Box::pin(self.unary(request, arrived, health::check)).await,
                "Watch" => Box::pin(self.watch(request, arrived)).await,
                _ => unknown_call(path),
            });
        }
        if path.starts_with(REFLECTION) {
            return Ok(reply::other(self.0.reflection.answer(request).await));
        }
        Ok(unknown_call(path))
    }

    /// Answers a call that is no inference.
    async fn call(self, request: Request<Incoming>, arrived: Instant) -> Response<GrpcBody> {
        macro_rules! calls {
            ($($name:literal => $function:path,)*) => {
                match request.uri().path().strip_prefix(INFERENCE).unwrap_or_default() {
                    $($name => Box::pin(self.unary(request, arrived, $function)).await,)*
                    _ => unknown_call(request.uri().path()),
                }
            };
        }
        calls! {
            "ServerLive" => documents::server_live,
            "ServerReady" => documents::server_ready,
            "ModelReady" => documents::model_ready,
            "ServerMetadata" => documents::server_metadata,
            "ModelMetadata" => documents::model_metadata,
            "ModelConfig" => documents::model_config,
            "ModelStatistics" => documents::model_statistics,
            "RepositoryIndex" => repository::index,
            "RepositoryModelLoad" => repository::load,
            "RepositoryModelUnload" => repository::unload,
            "SystemSharedMemoryStatus" => shared_memory::system_status,
            "SystemSharedMemoryRegister" => shared_memory::register_system,
            "SystemSharedMemoryUnregister" => shared_memory::unregister_system,
            "CudaSharedMemoryStatus" => shared_memory::cuda_status,
            "CudaSharedMemoryRegister" => shared_memory::register_cuda,
            "CudaSharedMemoryUnregister" => shared_memory::unregister_cuda,
            "TraceSetting" => settings::trace,
            "LogSettings" => settings::logging,
        }
    }

    /// Answers a call of one message with one message.
    async fn unary<Q, A>(
        &self,
        request: Request<Incoming>,
        arrived: Instant,
        answer: impl AsyncFnOnce(&Self, Q, Option<Deadline>) -> Result<A>,
    ) -> Response<GrpcBody>
    where
        Q: Message + Default + Subject,
        A: Message,
    {
        let (head, body) = request.into_parts();
        let answered = async {
            let deadline = self.deadline(arrived, None, &head.headers)?;
            let limit = CONTROL_BYTES.min(self.0.config.max_message_bytes);
            let message = Messages::new(&head.headers, body, limit, &self.0.buffers)?.only(deadline).await?;
            let question = Q::decode(message)
                .map_err(|error| Error::invalid("the message is no valid protobuf").with_source(error))?;
            self.check_subject(&head.headers, head.uri.path(), &question)?;
            Ok::<_, CallError>(answer(self, question, deadline).await?)
        };
        match answered.await {
            Ok(answer) => reply::message(framed(&answer)),
            Err(error) => error.answer(head.uri.path(), &head.headers),
        }
    }

    fn server(&self) -> &InferenceServer {
        &self.0.server
    }

    /// When the answer must be there: the earliest of the request's own timeout, its headers', and the server's.
    fn deadline(&self, arrived: Instant, own: Option<Duration>, headers: &HeaderMap) -> Result<Option<Deadline>> {
        let shortest = [own, call_timeout(headers)?].into_iter().flatten().min();
        Ok(super::body::deadline(arrived, shortest, headers, self.0.limits.timeout))
    }
}

/// The timeout of the call as a whole: `grpc-timeout`, up to eight digits and a unit.
fn call_timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let wrong = || Error::invalid("grpc-timeout is no number of up to 8 digits with a unit of H, M, S, m, u or n");
    let text = value.to_str().map_err(|_| wrong())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(wrong()),
    }))
}

/// A message with its prefix.
pub(super) fn framed(message: &impl Message) -> Pieces {
    let mut out = Vec::with_capacity(5 + message.encoded_len());
    out.extend_from_slice(&response::prefix(message.encoded_len()));
    // A vector takes all that is written to it.
    let _room = message.encode(&mut out);
    Pieces::from_iter([out.into()])
}

#[cold]
pub(super) fn unknown_call(path: &str) -> Response<GrpcBody> {
    let path: String = path.chars().take(128).collect();
    reply::status(&Status::new(Code::Unimplemented, format!("there is no call {path}")))
}

/// The answer to what is no call of gRPC on its port.
#[cold]
pub(super) fn no_grpc() -> Response<GrpcBody> {
    let status = Status::new(Code::Unknown, "this port speaks gRPC: POST with content-type application/grpc");
    let mut response = reply::status(&status);
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response.headers_mut().insert("accept-post", HeaderValue::from_static("application/grpc"));
    response
}

/// What a proxy before us calls the request.
fn request_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-request-id").and_then(|id| id.to_str().ok())
}

/// One line for each failed call: loud if it is our fault.
fn log_failure(subject: &str, headers: &HeaderMap, error: &Error) {
    let request_id = request_id(headers).unwrap_or("-");
    let code = error.kind().code();
    match error.kind() {
        ErrorKind::BackendFailed | ErrorKind::RepositoryFailed | ErrorKind::Internal => {
            tracing::warn!(subject, request_id, code, error = %error.report(), "call failed");
        }
        _ => tracing::debug!(subject, request_id, code, error = %error.report(), "call refused"),
    }
}
