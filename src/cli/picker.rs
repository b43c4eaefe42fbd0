//! `roundhouse picker`: tells a proxy which instance of a fleet has a model.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app;
use crate::config::LogFormat;
use crate::config::address::host_and_port;
use crate::config::security::TlsFiles;
use crate::error::{Error, Result};
use crate::frontend::listener::tls::Tls;
use crate::frontend::listener::{self, Http2Options, Serving};
use crate::frontend::picker::token::bearer;
use crate::frontend::picker::{Picker, WatchOptions};
use crate::frontend::watch::{Watched, watch};
use crate::picker::fleet::FleetOptions;
use crate::telemetry::logging;

/// Connections at a time.
const CONNECTIONS: usize = 4096;

/// Requests that a proxy may have open on one connection: each has a stream of its own while it is answered.
const STREAMS: u32 = 100_000;

/// How long streams may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Whom to pick from, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Envoy asks it for each request (docker/envoy-picker.yaml); others may ask over HTTP:\n  \
    curl -s 'localhost:9002/pick?model=digits'\nWhat it knows is at /v1/fleet, metrics at /metrics.\n\nExample:\n  \
    roundhouse picker --instance roundhouse-1:8000 --instance roundhouse-2:8000\n  \
    roundhouse picker --instance roundhouse-pods.models.svc:8000    # all addresses of a headless service")]
pub struct PickerArgs {
    /// An instance's inference port; a name stands for all the addresses it has
    #[arg(long, value_name = "HOST:PORT", required = true, value_delimiter = ',', value_parser = host_and_port)]
    instance: Vec<String>,
    /// The port it listens on, for gRPC and HTTP
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    port: u16,
    /// The address it listens on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// How often each instance is asked what it has, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    poll_ms: u64,
    /// How old what an instance said may be to go by, in milliseconds; the ring decides after that
    #[arg(long, value_name = "MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(50..=600_000))]
    stale_ms: u64,
    /// How often names are looked up again, in seconds
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    resolve_s: u64,
    /// Points of the ring; the same as Envoy's minimum_ring_size, or a picker that dies moves models
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=8_388_608))]
    ring_size: u32,
    /// Models that neighbours are asked to bring when an instance says that it is on its way out
    #[arg(long, value_name = "N", default_value_t = 64)]
    handover: usize,
    /// File with the token that instances want of whoever asks below /v1 (their --access-tokens, right `operators`)
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate chain (PEM) of the picker's port, for gateways that speak TLS to it; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a tracing filter
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// How log lines are written
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    log_format: LogFormat,
}

/// Picks until a signal.
///
/// # Errors
/// `InvalidArgument` for what cannot be: a port that is taken, a token that cannot be read.
pub fn run(args: &PickerArgs) -> Result<()> {
    logging::init(&args.log, args.log_format)?;
    let token = args.token_file.as_deref().map(|path| bearer(path, "--token-file")).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("picker")
        .enable_all()
        .build()
        .map_err(|error| Error::internal("cannot start the asynchronous runtime").with_source(error))?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        app::cancel_on_signals(stop.clone())?;
        let address = SocketAddr::new(args.address, args.port);
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::invalid(format!("cannot listen on {address}: choose another --port or --address")).with_source(error)
        })?;
        let address = listener.local_addr();
        let address = address.map_err(|error| Error::internal("a socket has no address").with_source(error))?;
        // Nobody may be reading.
        let _ = writeln!(
            std::io::stdout(),
            "picker  http://{address}\ntry:\n  curl -s 'http://{address}/pick?model=digits'"
        );
        let (tls, watched) = tls(args)?.unzip();
        let watching = tokio::spawn(watch(watched.into_iter().collect()));
        serve(args, token, tls, listener, stop).await;
        watching.abort();
        Ok(())
    });
    runtime.shutdown_timeout(app::LAST_WAIT);
    result
}

async fn serve(
    args: &PickerArgs,
    token: Option<HeaderValue>,
    tls: Option<Tls>,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let picker = Picker::new(FleetOptions {
        stale_after: Duration::from_millis(args.stale_ms),
        ring_size: args.ring_size as usize,
    });
    let options = WatchOptions {
        instances: args.instance.clone(),
        poll: Duration::from_millis(args.poll_ms),
        resolve: Duration::from_secs(args.resolve_s),
        token,
        handover: args.handover,
    };
    let connections = TaskTracker::new();
    let http2 = Http2Options { max_concurrent_streams: STREAMS, idle: None, ..Http2Options::default() };
    let serving = Serving { http2, tls, ..Serving::new(stop, connections.clone(), CONNECTIONS) };
    let front = picker.clone();
    tokio::select! {
        () = picker.watch(options) => {}
        () = listener::serve(listener, move |request| front.clone().handle(request), serving) => {}
    }
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::debug!("streams do not end: their requests go on without a picker");
    }
    tracing::info!("stopped");
}

/// The certificate of the port, where it has one.
fn tls(args: &PickerArgs) -> Result<Option<(Tls, Watched)>> {
    let (Some(certificate), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else { return Ok(None) };
    Tls::open(&TlsFiles { certificate, key, client_ca: None }).map(Some)
}
