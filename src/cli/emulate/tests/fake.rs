//! A container in this process that keeps the contract, remembers what it was asked, and answers by script.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::frontend::sagemaker::target::{CUSTOM_ATTRIBUTES, TARGET_MODEL};

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Load,
    Unload,
    Invoke,
}

/// How the next request of its kind is answered.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// With this status and text, and nothing done.
    Status(u16, &'static str),
    /// As ever, once [`Fake::release`] lets it.
    Gated,
    /// The connection ends.
    Cut,
}

/// A line of the log.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) operation: Operation,
    /// From the header.
    pub(super) target: String,
    /// From the path, or the body of a load.
    pub(super) hash: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What a load was told, and whether something lay there.
    pub(super) url: Option<(String, bool)>,
}

struct State {
    log: watch::Sender<Vec<Asked>>,
    loaded: Mutex<BTreeMap<String, String>>,
    capacity: AtomicUsize,
    script: Mutex<HashMap<(Operation, String), VecDeque<Script>>>,
    gate: Semaphore,
    ping: AtomicUsize,
    connections: AtomicUsize,
}

/// See the module. Gone with its drop.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    accepting: Option<JoinHandle<Option<()>>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fake {
    pub(super) async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(super) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            log: watch::Sender::default(),
            loaded: Mutex::default(),
            capacity: AtomicUsize::new(usize::MAX),
            script: Mutex::default(),
            gate: Semaphore::new(0),
            ping: AtomicUsize::new(200),
            connections: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        let (serving, token) = (Arc::clone(&state), stop.clone());
        let accepting = tokio::spawn(token.clone().run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                serving.connections.fetch_add(1, Ordering::Relaxed);
                let state = Arc::clone(&serving);
                let service = service_fn(move |request| Arc::clone(&state).answer(request));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(token.clone().run_until_cancelled_owned(async move { drop(connection.await) }));
            }
        }));
        Self { address, state, stop, accepting: Some(accepting) }
    }

    /// Ends it: its port is closed when this returns.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(accepting) = self.accepting.take() {
            accepting.await.unwrap();
        }
    }

    /// Answers 507 to a load that finds so many models loaded.
    pub(super) fn holds(&self, models: usize) {
        self.state.capacity.store(models, Ordering::Relaxed);
    }

    /// The status of `GET /ping`.
    pub(super) fn pings(&self, status: usize) {
        self.state.ping.store(status, Ordering::Relaxed);
    }

    /// Answers the next requests so.
    pub(super) fn script(&self, operation: Operation, target: &str, script: impl IntoIterator<Item = Script>) {
        self.state.script.lock().entry((operation, target.to_owned())).or_default().extend(script);
    }

    /// Lets so many gated requests go on.
    pub(super) fn release(&self, requests: usize) {
        self.state.gate.add_permits(requests);
    }

    /// As a new process, which has no model.
    pub(super) fn forget(&self) {
        self.state.loaded.lock().clear();
    }

    /// The targets that are loaded.
    pub(super) fn loaded(&self) -> Vec<String> {
        let mut targets: Vec<_> = self.state.loaded.lock().values().cloned().collect();
        targets.sort();
        targets
    }

    /// What was asked so far of a kind.
    pub(super) fn asked(&self, operation: Operation) -> Vec<Asked> {
        self.state.log.borrow().iter().filter(|asked| asked.operation == operation).cloned().collect()
    }

    /// The targets of that.
    pub(super) fn targets(&self, operation: Operation) -> Vec<String> {
        self.asked(operation).into_iter().map(|asked| asked.target).collect()
    }

    /// Waits until so many requests of a kind have come.
    pub(super) async fn until(&self, operation: Operation, count: usize) {
        let mut log = self.state.log.subscribe();
        let enough = |log: &Vec<Asked>| log.iter().filter(|asked| asked.operation == operation).count() >= count;
        tokio::time::timeout(super::LONG, log.wait_for(enough)).await.unwrap().unwrap();
    }

    /// Connections so far.
    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }
}

fn answer(status: u16, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let parts: Vec<_> = head.uri.path().trim_matches('/').split('/').map(str::to_owned).collect();
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (operation, hash) = match (&head.method, &parts[..]) {
            (&Method::GET, ["ping"]) => {
                return Ok(answer(u16::try_from(self.ping.load(Ordering::Relaxed)).unwrap(), ""));
            }
            (&Method::GET, ["models"]) => return Ok(answer(200, &json!({"models": []}).to_string())),
            (&Method::POST, ["models"]) => (Operation::Load, json["model_name"].as_str().unwrap()),
            (&Method::DELETE, ["models", hash]) => (Operation::Unload, *hash),
            (&Method::POST, ["models", hash, "invoke"]) => (Operation::Invoke, *hash),
            other => panic!("{other:?} is no request of the contract"),
        };
        let target = String::from_utf8(head.headers[TARGET_MODEL].as_bytes().to_vec()).unwrap();
        let url = json["url"].as_str().map(|url| (url.to_owned(), std::path::Path::new(url).is_dir()));
        let asked = Asked {
            operation,
            target: target.clone(),
            hash: hash.to_owned(),
            headers: head.headers.clone(),
            body: body.clone(),
            url,
        };
        self.log.send_modify(|log| log.push(asked));
        let script = self.script.lock().get_mut(&(operation, target.clone())).and_then(VecDeque::pop_front);
        match script {
            Some(Script::Status(status, text)) => return Ok(answer(status, text)),
            Some(Script::Cut) => panic!("the container crashes, as the script has it"),
            Some(Script::Gated) => self.gate.acquire().await.unwrap().forget(),
            None => {}
        }
        let mut loaded = self.loaded.lock();
        Ok(match operation {
            Operation::Load if loaded.contains_key(hash) => answer(409, "loaded already"),
            Operation::Load if loaded.len() >= self.capacity.load(Ordering::Relaxed) => answer(507, "no memory"),
            Operation::Load => {
                loaded.insert(hash.to_owned(), target);
                answer(200, "")
            }
            Operation::Unload => answer(if loaded.remove(hash).is_some() { 200 } else { 404 }, ""),
            Operation::Invoke if !loaded.contains_key(hash) => answer(404, "not loaded"),
            Operation::Invoke => {
                let mut response = Response::new(Full::new(body));
                let headers = response.headers_mut();
                headers.insert("x-of-the-container", HeaderValue::from_static("not for callers"));
                for (from, to) in [(ACCEPT, CONTENT_TYPE), (CUSTOM_ATTRIBUTES, CUSTOM_ATTRIBUTES)] {
                    if let Some(value) = head.headers.get(from) {
                        headers.insert(to, value.clone());
                    }
                }
                response
            }
        })
    }
}
