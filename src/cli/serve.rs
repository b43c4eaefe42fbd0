//! `roundhouse serve`.

use std::io::Write;
use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;

use crate::app::{self, Addresses, App, Listeners};
use crate::backend::plugin::libtorch::prepare_process;
use crate::config::ServeOptions;
use crate::device::priority::hasten_this_thread;
use crate::error::{Error, Result};
use crate::telemetry::logging;

/// Threads for what may block: loads, large JSON, compression.
const BLOCKING_THREADS: usize = 64;

/// Builds the server, serves, drains.
///
/// # Errors
/// `InvalidArgument` for a wrong configuration, or why the server could not start.
pub fn run(options: ServeOptions) -> Result<()> {
    let config = options.resolve()?;
    prepare_process();
    logging::init(&config.log, config.log_format)?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    config.notes.iter().for_each(|note| tracing::info!("{note}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.io_threads)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("io")
        .on_thread_start(hasten_this_thread)
        .enable_all()
        .build()
        .map_err(|error| Error::internal("cannot start the asynchronous runtime").with_source(error))?;
    let result = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        app::cancel_on_signals(shutdown.clone())?;
        let listeners = Listeners::bind(&config).await?;
        let addresses = listeners.addresses()?;
        let app = App::build(config)?;
        greet(addresses);
        app.run(listeners, shutdown).await
    });
    runtime.shutdown_timeout(app::LAST_WAIT);
    result
}

/// Where the server listens and a line to try.
fn greet(addresses: Addresses) {
    let Addresses { http, grpc, metrics, sagemaker } = addresses;
    let line = |what: &str, address: Option<SocketAddr>, path: &str| {
        address.map_or_else(String::new, |address| format!("{what}http://{address}{path}\n"))
    };
    let example = match (http, sagemaker) {
        (Some(http), _) => format!("curl -s http://{http}/v2/models"),
        (None, Some(sagemaker)) => format!("curl -s http://{sagemaker}/models"),
        (None, None) => return,
    };
    // Nobody may be reading.
    let _ = writeln!(
        std::io::stdout(),
        "{}{}{}{}\ntry:\n  {example}",
        line("KServe v2 HTTP  ", http, ""),
        grpc.map_or_else(String::new, |address| format!("KServe v2 gRPC  {address}\n")),
        line("SageMaker       ", sagemaker, ""),
        line("metrics         ", metrics, "/metrics"),
    );
}
