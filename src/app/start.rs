//! What is done between listening and being ready.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::config::warm::WarmConfig;
use crate::config::{ModelControl, ServerConfig};
use crate::error::Result;
use crate::frontend::picker::neighbours::Neighbours;
use crate::frontend::picker::token::bearer;
use crate::server::InferenceServer;

/// Who is asked what to bring, if anybody is.
///
/// # Errors
/// `InvalidArgument` for a token that cannot be read.
pub(super) fn neighbours(config: &WarmConfig) -> Result<Option<Neighbours>> {
    let token = config.token_file.as_deref().map(|path| bearer(path, "--warm-token-file")).transpose()?;
    let neighbours = Neighbours { names: config.from.clone(), models: config.models, token, port: None };
    Ok((!neighbours.names.is_empty()).then_some(neighbours))
}

/// Loads what is asked for at start. A model that fails does not keep the server from starting.
pub(super) async fn start_models(server: InferenceServer, config: ServerConfig, neighbours: Option<Neighbours>) {
    let mut names = config.load_model.clone();
    if config.model_control == ModelControl::All || names.iter().any(|name| name == "*") {
        names.retain(|name| name != "*");
        match server.repository_index().await {
            Ok(index) => names.extend(index.into_iter().map(|entry| entry.name)),
            Err(error) => tracing::error!(error = %error.report(), "cannot list the model repository"),
        }
    }
    names.sort_unstable();
    names.dedup();
    let loads = names.into_iter().map(|name| {
        let server = server.clone();
        // The load says itself how it ended.
        async move { drop(server.load_model(&name, None).await) }
    });
    let server = &server;
    let pins = config.pin_model.iter().map(|name| async move {
        if let Err(error) = server.pin_model(name).await {
            tracing::error!(model = %name, error = %error.report(), "--pin-model cannot be loaded");
        }
    });
    futures_util::future::join(futures_util::future::join_all(loads), futures_util::future::join_all(pins)).await;
    let bringing = match neighbours {
        Some(neighbours) => bring(server, neighbours, &config).await,
        None => None,
    };
    server.set_started();
    tracing::info!("ready");
    for name in &config.prefetch_model {
        if let Err(error) = server.prefetch_model(name).await {
            tracing::warn!(model = %name, error = %error.report(), "--prefetch-model cannot be fetched");
        }
    }
    if let Some(bringing) = bringing {
        // It ends by itself; that it panicked is in the log.
        drop(bringing.await);
    }
}

/// Brings what neighbours say, until all of it is there or the limit has passed. What is under way then goes on in the task
/// that is given back; nothing more is begun.
async fn bring(
    server: &InferenceServer,
    neighbours: Neighbours,
    config: &ServerConfig,
) -> Option<AbortOnDropHandle<()>> {
    let (begun, limit) = (Instant::now(), config.warm.limit);
    let until = begun + limit;
    let Ok(models) = timeout_at(until, neighbours.hottest()).await else {
        tracing::warn!(
            limit_s = limit.as_secs(),
            "no neighbour said in time what to bring: models come with their requests"
        );
        return None;
    };
    let (server, at_a_time, named) = (server.clone(), config.fetch.concurrency, models.len());
    let mut bringing = AbortOnDropHandle::new(tokio::spawn(async move {
        let (brought, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (server, counts) = (&server, (&brought, &failed));
        futures_util::stream::iter(models)
            .for_each_concurrent(at_a_time, |name| async move {
                if Instant::now() >= until {
                    return;
                }
                let count = match server.prefetch_model(&name).await {
                    Ok(()) => counts.0,
                    Err(error) => {
                        tracing::debug!(model = &*name, error = %error.report(), "a neighbour has it, and it cannot be brought");
                        counts.1
                    }
                };
                count.fetch_add(1, Ordering::Relaxed);
            })
            .await;
        let (brought, failed) = (brought.into_inner(), failed.into_inner());
        tracing::info!(named, brought, seconds = begun.elapsed().as_secs_f64(), "brought what neighbours have");
        if failed > 0 {
            tracing::warn!(failed, "models that neighbours have could not be brought");
        }
    }));
    if timeout_at(until, &mut bringing).await.is_ok() {
        return None;
    }
    tracing::warn!(
        limit_s = limit.as_secs(),
        "not all that neighbours have is here in time: the rest comes with its requests"
    );
    Some(bringing)
}
