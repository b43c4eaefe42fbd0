//! A small S3 in this process: objects in memory, a log of what was asked, and faults by script.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Bytes of a body that are sent at a time.
const CHUNK: usize = 64 << 10;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Operation {
    List,
    Head,
    Get,
    Put,
    Delete,
}

/// How an answer goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// An error with this status and code.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The body ends after so many bytes as if that were all; no length is announced.
    Short(usize),
    /// Each chunk of the body waits for a permit of [`S3Double::release`].
    Gated,
    /// The request waits for a permit before it is looked at.
    Hang,
    /// The answer bears another ETag.
    OtherTag,
    /// The first byte of the body is another one, the checksum that of the object.
    Corrupt,
    /// The whole object, whatever range was asked for.
    IgnoreRange,
    /// The right number of bytes from one byte further on.
    ShiftRange,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) operation: Operation,
    /// `bucket/key`, or the bucket alone of a listing.
    pub(crate) key: String,
    /// The first byte and the one after the last, of a GET with a range.
    pub(crate) range: Option<Range<usize>>,
    /// Whether it was signed.
    pub(crate) signed: bool,
}

#[derive(Clone)]
struct Stored {
    content: Bytes,
    tag: String,
}

#[derive(Default)]
struct State {
    objects: Mutex<BTreeMap<String, Stored>>,
    faults: Mutex<HashMap<(Operation, String), VecDeque<Fault>>>,
    log: Mutex<Vec<Asked>>,
    tags: AtomicU64,
    sent: Arc<AtomicU64>,
    gate: Arc<Gate>,
}

struct Gate {
    permits: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Gate {
    fn default() -> Self {
        Self { permits: Semaphore::new(0), waiting: AtomicUsize::new(0) }
    }
}

impl Gate {
    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Counted until the permit is there, or the connection ends.
        let _waits = Waits(&self.waiting);
        self.permits.acquire().await.unwrap().forget();
    }
}

struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The server; it ends with this value.
pub(crate) struct S3Double {
    address: SocketAddr,
    state: Arc<State>,
    is_up: watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for S3Double {
    fn drop(&mut self) {
        self.is_up.send_replace(false);
        self.accepting.abort();
    }
}

type Body = StreamBody<BoxStream<'static, std::io::Result<Frame<Bytes>>>>;

impl S3Double {
    /// An empty store, up.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let is_up = watch::Sender::new(true);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state), is_up.subscribe()));
        Self { address, state, is_up, accepting }
    }

    /// The URI of a repository at `bucket/prefix`.
    pub(crate) fn uri(&self, path: &str) -> String {
        format!("s3://http://{}/{path}", self.address)
    }

    /// Stores an object under `bucket/key`.
    pub(crate) fn put(&self, key: &str, content: impl Into<Bytes>) {
        self.state.put(key, content.into());
    }

    /// How long an object is.
    pub(crate) fn size(&self, key: &str) -> Option<usize> {
        self.state.objects.lock().get(key).map(|stored| stored.content.len())
    }

    /// Bytes of bodies that were sent, or were about to be.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Removes an object, or all below `bucket/folder`.
    pub(crate) fn remove(&self, key: &str) {
        let folder = format!("{key}/");
        self.state.objects.lock().retain(|stored, _| stored != key && !stored.starts_with(&folder));
    }

    /// What the next such request for `key` (the bucket, of a listing) that is not spoken for yet meets.
    pub(crate) fn fault(&self, operation: Operation, key: &str, fault: Fault) {
        self.faults(operation, key, 1, fault);
    }

    /// The same for the next `times` requests.
    pub(crate) fn faults(&self, operation: Operation, key: &str, times: usize, fault: Fault) {
        let mut faults = self.state.faults.lock();
        faults.entry((operation, key.to_owned())).or_default().extend(std::iter::repeat_n(fault, times));
    }

    /// Lets `permits` chunks or requests go on that wait.
    pub(crate) fn release(&self, permits: usize) {
        self.state.gate.permits.add_permits(permits);
    }

    /// How many chunks and requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.gate.waiting.load(Ordering::SeqCst)
    }

    /// All that was asked so far.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.state.log.lock().clone()
    }

    /// How many requests of a kind there were.
    pub(crate) fn count(&self, operation: Operation) -> usize {
        self.state.log.lock().iter().filter(|asked| asked.operation == operation).count()
    }

    /// Ends all connections and takes no new one.
    pub(crate) fn down(&self) {
        self.is_up.send_replace(false);
    }

    pub(crate) fn up(&self) {
        self.is_up.send_replace(true);
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, is_up: watch::Receiver<bool>) {
    while let Ok((stream, _)) = listener.accept().await {
        if *is_up.borrow() {
            tokio::spawn(serve(stream, Arc::clone(&state), is_up.clone()));
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>, mut is_up: watch::Receiver<bool>) {
    stream.set_nodelay(true).unwrap();
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(state.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ended = connection => {}
        _down = is_up.wait_for(|is_up| !is_up) => {}
    }
}

impl State {
    fn put(&self, key: &str, content: Bytes) {
        let tag = format!("\"{:032x}\"", self.tags.fetch_add(1, Ordering::Relaxed) + 1);
        self.objects.lock().insert(key.to_owned(), Stored { content, tag });
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = decoded(request.uri().path().trim_start_matches('/'), false);
        let query: HashMap<String, String> = request.uri().query().map(pairs).unwrap_or_default();
        let is_list = query.contains_key("list-type");
        let key = if is_list { path.trim_end_matches('/').to_owned() } else { path };
        let operation = match *request.method() {
            Method::GET if is_list => Operation::List,
            Method::GET => Operation::Get,
            Method::HEAD => Operation::Head,
            Method::PUT => Operation::Put,
            Method::DELETE => Operation::Delete,
            _ => return error(405, "MethodNotAllowed"),
        };
        let range = request.headers().get(header::RANGE).map(|range| range_of(range.to_str().unwrap()));
        let signed = request.headers().contains_key(header::AUTHORIZATION);
        self.log.lock().push(Asked { operation, key: key.clone(), range: range.clone(), signed });
        let fault = self.faults.lock().get_mut(&(operation, key.clone())).and_then(VecDeque::pop_front);
        match fault {
            Some(Fault::Status(status, code)) => return error(status, code),
            Some(Fault::Hang) => self.gate.pass().await,
            _ => {}
        }
        match operation {
            Operation::List => self.list(&key, &query),
            Operation::Get | Operation::Head => self.get(&key, range, request.headers(), operation, fault),
            Operation::Put => {
                let content = request.into_body().collect().await.unwrap().to_bytes();
                self.put(&key, content);
                full(StatusCode::OK, Bytes::new())
            }
            Operation::Delete => {
                self.objects.lock().remove(&key);
                full(StatusCode::NO_CONTENT, Bytes::new())
            }
        }
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<usize>>,
        headers: &HeaderMap,
        operation: Operation,
        fault: Option<Fault>,
    ) -> Response<Body> {
        let Some(Stored { content, tag }) = self.objects.lock().get(key).cloned() else {
            return error(404, "NoSuchKey");
        };
        if headers.get(header::IF_MATCH).is_some_and(|wanted| wanted != tag.as_str()) {
            return error(412, "PreconditionFailed");
        }
        let size = content.len();
        let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
        let mut part = range.clone().unwrap_or(0..size);
        if part.start >= size && range.is_some() {
            return error(416, "InvalidRange");
        }
        if matches!(fault, Some(Fault::ShiftRange)) {
            part = part.start + 1..part.end + 1;
        }
        part.end = part.end.min(size);
        let tag = if matches!(fault, Some(Fault::OtherTag)) { "\"another\"".to_owned() } else { tag };
        let mut response = Response::builder().header(header::ETAG, tag);
        if range.is_some() {
            let header = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, header);
        } else {
            response = response.header("x-amz-checksum-crc32", crc32(&content));
        }
        let mut body = content.slice(part);
        if !matches!(fault, Some(Fault::Short(_))) {
            response = response.header(header::CONTENT_LENGTH, body.len());
        }
        if operation == Operation::Head {
            body = Bytes::new();
        }
        response.body(self.body(body, fault)).unwrap()
    }

    fn body(&self, mut content: Bytes, fault: Option<Fault>) -> Body {
        let mut cut = false;
        match fault {
            Some(Fault::Cut(after)) => {
                content.truncate(after);
                cut = true;
            }
            Some(Fault::Short(after)) => content.truncate(after),
            Some(Fault::Corrupt) => {
                let mut other = content.to_vec();
                other[0] ^= 1;
                content = other.into();
            }
            _ => {}
        }
        let gate = matches!(fault, Some(Fault::Gated)).then(|| Arc::clone(&self.gate));
        let chunks = (0..content.len()).step_by(CHUNK).map(move |at| content.slice(at..content.len().min(at + CHUNK)));
        let counter = Arc::clone(&self.sent);
        let sent = stream::iter(chunks).then(move |chunk| {
            let (gate, counter) = (gate.clone(), Arc::clone(&counter));
            async move {
                if let Some(gate) = gate {
                    gate.pass().await;
                }
                counter.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                Ok(Frame::data(chunk))
            }
        });
        let end = stream::iter(cut.then(|| Err(std::io::Error::other("cut by script"))));
        // What was sent before the cut must have left before the connection ends.
        let end = end.then(|end| async move {
            tokio::task::yield_now().await;
            end
        });
        StreamBody::new(sent.chain(end).boxed())
    }

    fn list(&self, bucket: &str, query: &HashMap<String, String>) -> Response<Body> {
        let get = |name: &str| query.get(name).cloned().unwrap_or_default();
        let (prefix, delimiter) = (get("prefix"), get("delimiter"));
        let after =
            if query.contains_key("continuation-token") { get("continuation-token") } else { get("start-after") };
        let most = query.get("max-keys").map_or(1000, |most| most.parse().unwrap()).min(1000);
        let objects = self.objects.lock();
        let bucket = format!("{bucket}/");
        if !objects.keys().any(|key| key.starts_with(&bucket)) && bucket.starts_with("no-such") {
            return error(404, "NoSuchBucket");
        }
        let mut items: Vec<(String, Option<&Stored>)> = Vec::new();
        let mut truncated = false;
        for (key, stored) in objects.iter() {
            let Some(key) = key.strip_prefix(&bucket) else { continue };
            let Some(rest) = key.strip_prefix(&prefix) else { continue };
            let folder = (!delimiter.is_empty()).then(|| rest.find(&delimiter)).flatten();
            let item = folder.map_or(key, |at| &key[..prefix.len() + at + delimiter.len()]);
            let seen = items.last().is_some_and(|(last, _)| last == item);
            if item <= after.as_str() || key <= after.as_str() || seen {
                continue;
            }
            if items.len() == most {
                truncated = true;
                break;
            }
            items.push((item.to_owned(), folder.is_none().then_some(stored)));
        }
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult>");
        write!(xml, "<IsTruncated>{truncated}</IsTruncated><EncodingType>url</EncodingType>").unwrap();
        if let (true, Some((last, _))) = (truncated, items.last()) {
            write!(xml, "<NextContinuationToken>{}</NextContinuationToken>", escaped(last)).unwrap();
        }
        for (key, stored) in &items {
            let encoded = encoded(key);
            match stored {
                Some(Stored { content, tag }) => write!(
                    xml,
                    "<Contents><Key>{encoded}</Key><ETag>{}</ETag><Size>{}</Size></Contents>",
                    escaped(tag),
                    content.len()
                ),
                None => write!(xml, "<CommonPrefixes><Prefix>{encoded}</Prefix></CommonPrefixes>"),
            }
            .unwrap();
        }
        xml.push_str("</ListBucketResult>");
        full(StatusCode::OK, xml.into())
    }
}

fn full(status: StatusCode, content: Bytes) -> Response<Body> {
    let length = content.len();
    let body = StreamBody::new(stream::iter([Ok(Frame::data(content))]).boxed());
    Response::builder().status(status).header(header::CONTENT_LENGTH, length).body(body).unwrap()
}

fn error(status: u16, code: &str) -> Response<Body> {
    let xml =
        format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>as the test wrote</Message></Error>");
    full(StatusCode::from_u16(status).unwrap(), xml.into())
}

/// `bytes=a-b` as a range that ends before its end.
fn range_of(header: &str) -> Range<usize> {
    let (first, last) = header.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    first.parse().unwrap()..last.parse::<usize>().unwrap() + 1
}

fn pairs(query: &str) -> HashMap<String, String> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decoded(k, true), decoded(v, true)))
        .collect()
}

fn decoded(text: &str, plus: bool) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(out).unwrap()
}

/// As S3 writes keys into listings.
fn encoded(key: &str) -> String {
    key.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b' ' => out.push('+'),
            byte if byte.is_ascii_alphanumeric() || b"/-_.*".contains(&byte) => out.push(char::from(byte)),
            byte => write!(out, "%{byte:02X}").unwrap(),
        }
        out
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// The checksum in base64, as the header has it.
fn crc32(content: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let bits = u64::from(crc.sum()) << 16;
    let digits = (0..6).map(|digit| char::from(ALPHABET[(bits >> (42 - 6 * digit)) as usize & 63]));
    digits.chain(['=', '=']).collect()
}
