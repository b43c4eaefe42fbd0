//! A client of gRPC over one connection: tonic's calls, and bytes as they are.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use roundhouse::frontend::kserve_grpc::proto::inference as pb;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::support::within;

const INFERENCE: &str = "/inference.GRPCInferenceService";

/// One connection; calls share it. Dropping it cuts it.
pub(crate) struct Grpc {
    channel: Channel,
    address: SocketAddr,
    connection: JoinHandle<hyper::Result<()>>,
}

#[derive(Clone)]
struct Channel(SendRequest<Body>);

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Grpc {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), address).await.unwrap()
    }

    /// Over a connection that is there already.
    pub(crate) async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        address: SocketAddr,
    ) -> hyper::Result<Self> {
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        Ok(Self { channel: Channel(sender), address, connection: tokio::spawn(connection) })
    }

    fn grpc(&self) -> tonic::client::Grpc<Channel> {
        let origin = format!("http://{}", self.address).parse().unwrap();
        tonic::client::Grpc::with_origin(self.channel.clone(), origin).max_decoding_message_size(usize::MAX)
    }

    /// A call of one message, with metadata.
    pub(crate) async fn call<Q, A>(&self, path: &str, asked: tonic::Request<Q>) -> Result<tonic::Response<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.unwrap();
        let path = path.parse().unwrap();
        within("an answer", grpc.unary(asked, path, ProstCodec::<Q, A>::default())).await
    }

    /// A call of the inference service.
    pub(crate) async fn ask<Q, A>(&self, name: &str, asked: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let answer = self.call(&format!("{INFERENCE}/{name}"), tonic::Request::new(asked)).await;
        answer.map(tonic::Response::into_inner)
    }

    /// One inference.
    pub(crate) async fn infer(&self, asked: pb::ModelInferRequest) -> Result<pb::ModelInferResponse, Status> {
        self.ask("ModelInfer", asked).await
    }

    /// A stream of messages in both directions, with metadata.
    pub(crate) async fn stream(
        &self,
        asked: tonic::Request<impl Stream<Item = pb::ModelInferRequest> + Send + 'static>,
    ) -> Result<Streaming<pb::ModelStreamInferResponse>, Status> {
        let mut grpc = self.grpc();
        grpc.ready().await.unwrap();
        let path = format!("{INFERENCE}/ModelStreamInfer").parse().unwrap();
        let answers = within("the head of a stream", grpc.streaming(asked, path, ProstCodec::default())).await;
        answers.map(tonic::Response::into_inner)
    }

    /// Health by name, as changes.
    pub(crate) async fn watch<Q, A>(&self, path: &str, asked: Q) -> Result<Streaming<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.unwrap();
        let codec = ProstCodec::<Q, A>::default();
        let answers = grpc.server_streaming(tonic::Request::new(asked), path.parse().unwrap(), codec).await;
        answers.map(tonic::Response::into_inner)
    }

    /// Bytes as they are: the status of HTTP and that of gRPC, wherever it stands.
    pub(crate) async fn raw(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> (u16, Option<Status>) {
        self.send(path, content_type, Body::new(Full::new(body.into()))).await
    }

    /// The same with any body.
    pub(crate) async fn raw_body(&self, path: &str, body: Body) -> (u16, Option<Status>) {
        self.send(path, "application/grpc", body).await
    }

    /// The status of a call's answer, if there is one: the connection may be refused.
    pub(crate) async fn try_raw(&self, path: &str, body: impl Into<Bytes>) -> Option<i32> {
        let request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .body(Body::new(Full::new(body.into())))
            .unwrap();
        let mut channel = self.channel.0.clone();
        channel.ready().await.ok()?;
        let (head, body) = channel.send_request(request).await.ok()?.into_parts();
        let whole = body.collect().await.ok()?;
        let status =
            Status::from_header_map(&head.headers).or_else(|| whole.trailers().and_then(Status::from_header_map));
        status.map(|status| status.code() as i32)
    }

    async fn send(&self, path: &str, content_type: &str, body: Body) -> (u16, Option<Status>) {
        let request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", content_type)
            .body(body)
            .unwrap();
        let mut channel = self.channel.0.clone();
        channel.ready().await.unwrap();
        let response = within("an answer", channel.send_request(request)).await.unwrap();
        let (head, body) = response.into_parts();
        let whole = within("its body", body.collect()).await.unwrap();
        let status =
            Status::from_header_map(&head.headers).or_else(|| whole.trailers().and_then(Status::from_header_map));
        (head.status.as_u16(), status)
    }
}

/// A message with gRPC's prefix.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// One number to a model as the repository helper writes them.
pub(crate) fn number(model: &str, tag: i32) -> pb::ModelInferRequest {
    numbers(model, &[tag])
}

/// Numbers to such a model.
pub(crate) fn numbers(model: &str, tags: &[i32]) -> pb::ModelInferRequest {
    let bytes: Vec<u8> = tags.iter().flat_map(|tag| tag.to_le_bytes()).collect();
    pb::ModelInferRequest {
        model_name: model.to_owned(),
        id: tags[0].to_string(),
        inputs: vec![pb::model_infer_request::InferInputTensor {
            name: "x".to_owned(),
            datatype: "INT32".to_owned(),
            shape: vec![tags.len().try_into().unwrap()],
            ..Default::default()
        }],
        raw_input_contents: vec![bytes.into()],
        ..Default::default()
    }
}

/// The number that came back.
pub(crate) fn tag(answer: &pb::ModelInferResponse) -> i32 {
    i32::from_le_bytes(*answer.raw_output_contents[0].first_chunk().unwrap())
}
