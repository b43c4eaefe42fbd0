//! An HTTP/1.1 client that does what it is told, wrong things too.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::within;

/// A request on its way to the wire.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// `GET path`.
pub(crate) fn get(path: &str) -> Request {
    Request { method: "GET", path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
}

/// `DELETE path`.
pub(crate) fn delete(path: &str) -> Request {
    Request { method: "DELETE", ..get(path) }
}

/// `POST path` with a body.
pub(crate) fn post(path: &str, body: impl Into<Vec<u8>>) -> Request {
    Request { method: "POST", path: path.to_owned(), headers: Vec::new(), body: body.into() }
}

/// One number to a model as the repository helper writes them.
pub(crate) fn infer(model: &str, tag: i32) -> Request {
    post(&format!("/v2/models/{model}/infer"), infer_body(tag).to_string())
}

/// The JSON of [`infer`].
pub(crate) fn infer_body(tag: i32) -> Value {
    json!({"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [tag]}]})
}

/// `POST .../load`.
pub(crate) fn load(model: &str) -> Request {
    post(&format!("/v2/repository/models/{model}/load"), "")
}

/// `POST .../unload`.
pub(crate) fn unload(model: &str) -> Request {
    post(&format!("/v2/repository/models/{model}/unload"), "")
}

impl Request {
    /// The request with one header more.
    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// The same for a client that writes it in its own way.
    pub(crate) fn to_http(&self) -> http::Request<http_body_util::Full<bytes::Bytes>> {
        let mut request = http::Request::builder().method(self.method).uri(format!("http://test{}", self.path));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(self.body.clone().into()).unwrap()
    }

    /// The bytes up to the body; with `content-length` unless the headers say how long the body is.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: test\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let says = |name: &str| self.headers.iter().any(|(known, _)| known == name);
        if !says("content-length") && !says("transfer-encoding") && self.method != "GET" {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    /// The status.
    pub(crate) status: u16,
    /// The headers in the order they came, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// The text of an error body, which has the form that every error has.
    pub(crate) fn error(&self) -> String {
        let body = self.json();
        assert!(body["code"].is_string(), "{body}");
        body["error"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned()
    }

    /// The number that a model sent back.
    pub(crate) fn tag(&self) -> i32 {
        assert_eq!(self.status, 200, "{}", self.text());
        i32::try_from(self.json()["outputs"][0]["data"][0].as_i64().unwrap()).unwrap()
    }

    /// This response, if its status is the expected one.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?}", String::from_utf8_lossy(&self.body));
        self
    }
}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Sends a whole request.
    pub(crate) async fn send(&mut self, request: &Request) {
        let bytes = [request.head(), request.body.clone()].concat();
        self.write(&bytes).await;
    }

    /// Sends bytes as they are.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    /// The next response.
    pub(crate) async fn receive(&mut self) -> Response {
        self.try_receive().await.expect("the connection was closed")
    }

    /// The next response, or `None` where the server closes the connection instead.
    pub(crate) async fn try_receive(&mut self) -> Option<Response> {
        within("a response", self.read_response()).await
    }

    /// Sends a request and reads the answer.
    pub(crate) async fn ask(&mut self, request: &Request) -> Response {
        self.send(request).await;
        self.receive().await
    }

    /// The head of the next response, whose body comes chunk by chunk.
    pub(crate) async fn receive_head(&mut self) -> Response {
        within("a response's head", self.read_head()).await.expect("the connection was closed")
    }

    /// The next chunk of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        let chunk = self.raw_chunk().await;
        (!chunk.is_empty()).then(|| String::from_utf8(chunk).unwrap())
    }

    /// The next chunk of the body as it is; empty at its end.
    pub(crate) async fn raw_chunk(&mut self) -> Vec<u8> {
        within("a chunk", self.read_chunk()).await.expect("the connection was closed")
    }

    async fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(self.line().await?.trim(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk).await.ok()?;
        chunk.truncate(length);
        Some(chunk)
    }

    async fn read_head(&mut self) -> Option<Response> {
        let line = self.line().await?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(Response { status, headers, body: Vec::new() })
    }

    async fn read_response(&mut self) -> Option<Response> {
        let mut response = self.read_head().await?;
        if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut response.body).await.ok()?;
        } else if response.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.read_chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                response.body.extend_from_slice(&chunk);
            }
        }
        Some(response)
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }
}
