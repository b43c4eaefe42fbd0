//! `roundhouse emulate`: SageMaker's side of a multi-model endpoint on this machine, against any container that keeps the
//! contract. It fetches and unpacks models, has the container load them when they are called, hands invocations through,
//! and unloads the least recently used where the container has no room.

mod book;
mod container;
mod files;
mod front;
mod platform;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::book::Caps;
use self::container::Container;
use self::files::Store;
use self::front::Front;
use self::platform::{Platform, Settings};
use crate::app;
use crate::config::LogFormat;
use crate::config::amount::Amount;
use crate::error::{Error, Result};
use crate::frontend::listener::{self, Serving};
use crate::frontend::percent;
use crate::repository::ModelRepository;
use crate::repository::local::Local;
use crate::repository::s3::uri::is_s3;
use crate::repository::s3::{S3, S3Options};
use crate::telemetry;

/// What `roundhouse emulate` was asked.
#[derive(Debug, clap::Args)]
pub struct EmulateArgs {
    /// The container's URL, on this machine
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub container: String,
    /// Where the models are: a folder, or s3://BUCKET/PREFIX; a TargetModel is a key below it
    #[arg(long, value_name = "URI")]
    pub models: String,
    /// Where models are unpacked to, each to DIR/HASH/model
    #[arg(long, value_name = "DIR", default_value = "/opt/ml/models")]
    pub work_dir: PathBuf,
    /// What the container calls that folder, where it is mounted under another name [default: the same]
    #[arg(long, value_name = "DIR")]
    pub container_work_dir: Option<PathBuf>,
    /// The port of the runtime API on 127.0.0.1; 0 takes any free one
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub port: u16,
    /// A file that is written once it listens: {"runtime": "IP:PORT"}
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// The only endpoint name that is answered to [default: any]
    #[arg(long, value_name = "NAME")]
    pub endpoint_name: Option<String>,
    /// Whether models stay in the container between invocations (ModelCacheSetting)
    #[arg(long, value_enum, default_value_t = CacheSetting::Enabled, help_heading = "Room")]
    pub cache_setting: CacheSetting,
    /// The most models in the container at a time [default: as many as it takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Room")]
    pub max_models: Option<u32>,
    /// The most that unpacked models take: bytes or a size such as 30GiB [default: what the disk has]
    #[arg(long, value_name = "SIZE", value_parser = bytes_of, help_heading = "Room")]
    pub disk_capacity: Option<u64>,
    /// How long an invocation waits for its model's load before it is answered 429
    #[arg(long, value_name = "MS", default_value_t = 60_000, help_heading = "Limits")]
    pub load_wait_ms: u64,
    /// How long fetching, unpacking and loading a model may take
    #[arg(long, value_name = "MS", default_value_t = 360_000, help_heading = "Limits")]
    pub load_limit_ms: u64,
    /// How long unloading a model may take
    #[arg(long, value_name = "MS", default_value_t = 360_000, help_heading = "Limits")]
    pub unload_limit_ms: u64,
    /// How long the container may take until its GET /ping is 200
    #[arg(long, value_name = "S", default_value_t = 240, help_heading = "Limits")]
    pub start_limit_s: u64,
    /// Take .tar.gz archives alone, as SageMaker does
    #[arg(long, help_heading = "Fetching")]
    pub tar_gz_only: bool,
    /// Read S3 without credentials: public buckets
    #[arg(long, help_heading = "Fetching")]
    pub s3_anonymous: bool,
    /// The bucket's region [default: as AWS_REGION or the profile says]
    #[arg(long, value_name = "REGION", help_heading = "Fetching")]
    pub s3_region: Option<String>,
    /// The store's URL, where it is not AWS [default: as in --models, or AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL", help_heading = "Fetching")]
    pub s3_endpoint: Option<String>,
    /// Whether the bucket is written in the path and not in the host's name [default: true with an endpoint]
    #[arg(long, value_name = "BOOL", help_heading = "Fetching")]
    pub s3_path_style: Option<bool>,
    /// What is logged: error, warn, info, debug, trace, or a tracing filter
    #[arg(long, value_name = "FILTER", default_value = "info", help_heading = "Logging")]
    pub log: String,
    /// Text or JSON log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Auto, help_heading = "Logging")]
    pub log_format: LogFormat,
}

/// Whether models stay: the `ModelCacheSetting` of a multi-model endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheSetting {
    /// Until their room is needed.
    Enabled,
    /// Each is unloaded and deleted after its invocation.
    Disabled,
}

/// How long a container may take to answer an invocation: SageMaker's limit.
const INVOCATION: Duration = Duration::from_secs(60);

/// Between two looks at a container that is starting.
const PING_AGAIN: Duration = Duration::from_millis(200);

/// How long requests in flight may take to finish at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Connections at a time; more wait.
const CONNECTIONS: usize = 4096;

/// Connections that the system keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Loads at a time, at least.
const LOADS: usize = 4;

/// Plays the platform until SIGTERM or Ctrl-C.
///
/// # Errors
/// `InvalidArgument` for what cannot be played with, `NotReady` for a container that does not start.
pub fn run(args: &EmulateArgs) -> Result<()> {
    telemetry::logging::init(&args.log, args.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal("cannot start the asynchronous runtime").with_source(error))?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        app::cancel_on_signals(stop.clone())?;
        emulate(args, stop, |address| greet(args, address)).await
    });
    runtime.shutdown_timeout(app::LAST_WAIT);
    result
}

/// Plays the platform until `stop`; `ready` is told where it listens.
async fn emulate(args: &EmulateArgs, stop: CancellationToken, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let runtime = Handle::current();
    let container = Container::parse(&args.container)?;
    let repository = open_models(args, &runtime)?;
    let inside = args.container_work_dir.as_deref();
    let (store, left) = Store::open(repository, &args.work_dir, inside, args.tar_gz_only, runtime.clone())?;
    let socket = bind(args.port)?;
    let loads = std::thread::available_parallelism().map_or(LOADS, |cores| cores.get().max(LOADS));
    let settings = Settings {
        load_wait: Duration::from_millis(args.load_wait_ms),
        load_limit: Duration::from_millis(args.load_limit_ms),
        unload_limit: Duration::from_millis(args.unload_limit_ms),
        invocation: INVOCATION,
        keeps: args.cache_setting == CacheSetting::Enabled,
        loads,
        caps: Caps { models: args.max_models.map(|most| most as usize), disk: args.disk_capacity },
    };
    let platform = Platform::new(container, store, settings, runtime);
    let started = wait_for_container(platform.container(), Duration::from_secs(args.start_limit_s));
    match stop.run_until_cancelled(started).await {
        Some(started) => started?,
        None => return Ok(()),
    }
    let limit = Duration::from_millis(args.unload_limit_ms);
    if stop.run_until_cancelled(unload_left(&platform, left, limit)).await.is_none() {
        return Ok(());
    }
    let failed = |error| Error::internal("cannot listen").with_source(error);
    let listener = socket.listen(BACKLOG).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if let Some(path) = &args.port_file {
        write_port_file(path, address)?;
    }
    ready(address);
    serve(args, platform, listener, stop).await;
    Ok(())
}

/// Serves until `stop`, and leaves nothing in the container and on the disk.
async fn serve(args: &EmulateArgs, platform: Platform, listener: TcpListener, stop: CancellationToken) {
    let front = Front::new(platform.clone(), args.endpoint_name.as_deref());
    let connections = TaskTracker::new();
    let serving = Serving::new(stop, connections.clone(), CONNECTIONS);
    listener::serve(listener, move |request| front.clone().handle(request), serving).await;
    tracing::info!("stopping: requests in flight finish, then every model is unloaded and deleted");
    connections.close();
    let drained = tokio::time::timeout(DRAIN, connections.wait());
    if drained.await.is_err() {
        tracing::warn!("requests in flight do not finish: leaving them");
    }
    platform.shut_down().await;
    tracing::info!("stopped");
}

/// Waits until the container is up.
async fn wait_for_container(container: &Container, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let seen = match container.ping().await {
            Ok(status) if status.as_u16() == 200 => break,
            Ok(status) => format!("its GET /ping is answered {status}"),
            Err(silence) => silence.error().message,
        };
        let name = container.name();
        if begun.elapsed() >= limit {
            return Err(Error::not_ready(format!(
                "the container at {name} is not up within {} s (--start-limit-s): {seen}",
                limit.as_secs()
            )));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(container = name, seen, "waiting for the container");
        }
        tokio::time::sleep(PING_AGAIN).await;
    }
    match container.models().await {
        Ok(status) if status.is_success() => {}
        other => tracing::warn!(
            answer = ?other,
            "GET /models does not work: a container of a multi-model endpoint has it; was this one started as such \
             (SAGEMAKER_MULTI_MODEL=true for Triton)?"
        ),
    }
    Ok(())
}

/// Has the container unload what an emulator that was killed had it load: nobody else would.
async fn unload_left(platform: &Platform, left: Vec<String>, limit: Duration) {
    let unloads = stream::iter(left).for_each_concurrent(LOADS, |hash| async move {
        // Of its model's name nothing is known.
        match platform.remove_from_container(&hash, &hash, limit).await {
            Ok(()) => tracing::info!(hash, "unloaded what an earlier run has left"),
            Err(error) => tracing::warn!(hash, error, "cannot unload what an earlier run has left"),
        }
    });
    unloads.await;
}

fn open_models(args: &EmulateArgs, runtime: &Handle) -> Result<Arc<dyn ModelRepository>> {
    if is_s3(&args.models) {
        let options = S3Options {
            anonymous: args.s3_anonymous,
            region: args.s3_region.clone(),
            endpoint: args.s3_endpoint.clone(),
            path_style: args.s3_path_style,
            // Who uploads a model calls it at once.
            negative_ttl: Duration::ZERO,
            ..S3Options::default()
        };
        let uri = args.models.parse().map_err(|error: Error| error.wrap("--models"))?;
        return Ok(Arc::new(S3::open(&uri, options, runtime.clone())?));
    }
    if let Some((scheme, _)) = args.models.split_once("://")
        && scheme != "file"
    {
        return Err(Error::unsupported(format!(
            "--models {}: models are read from a folder or from s3://BUCKET/PREFIX, not from {scheme}",
            args.models
        )));
    }
    let path = args.models.strip_prefix("file://").unwrap_or(&args.models);
    Ok(Arc::new(Local::open(Path::new(path)).map_err(|error| error.wrap("--models"))?))
}

/// Takes the port. Nobody can connect before the container is up.
fn bind(port: u16) -> Result<TcpSocket> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bound = TcpSocket::new_v4().and_then(|socket| {
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    });
    bound.map_err(|error| {
        Error::invalid(format!("cannot listen on {address}: choose another --port")).with_source(error)
    })
}

/// Writes the address where whoever started us looks for it: whole or not at all.
fn write_port_file(path: &Path, address: SocketAddr) -> Result<()> {
    let failed = |error| Error::internal(format!("cannot write --port-file {}", path.display())).with_source(error);
    let temporary = path.with_extension("partial");
    std::fs::write(&temporary, format!("{{\"runtime\": \"{address}\"}}\n")).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

/// Where it listens and lines to try.
fn greet(args: &EmulateArgs, address: SocketAddr) {
    let endpoint = args.endpoint_name.as_deref().unwrap_or("any");
    let path = percent::encode(endpoint);
    // Nobody may be reading.
    let _ = writeln!(
        std::io::stdout(),
        "runtime API     http://{address}\ncontainer       {}\nmodels          {}\n\ntry:\n  curl -s \
         http://{address}/endpoints/{path}/invocations -H 'X-Amzn-SageMaker-Target-Model: MODEL.tar.gz' -d @body.json\n  \
         boto3.client('sagemaker-runtime', endpoint_url='http://{address}', region_name='us-east-1')\\\n    \
         .invoke_endpoint(EndpointName='{}', TargetModel='MODEL.tar.gz', Body=body)",
        args.container,
        args.models,
        endpoint.escape_debug(),
    );
}

/// Bytes, or a size.
fn bytes_of(text: &str) -> Result<u64> {
    match text.parse::<Amount>()? {
        Amount::Bytes(bytes) if bytes > 0 => Ok(bytes),
        Amount::Bytes(_) | Amount::Fraction(_) => {
            Err(Error::invalid("give bytes above 1 or a size such as 30GiB, not a fraction"))
        }
    }
}
