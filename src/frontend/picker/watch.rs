//! Keeping up with the instances: who there is, what each says, and what neighbours are to bring when one leaves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method};
use tokio_util::task::AbortOnDropHandle;

use super::client::{Instance, Silence};
use super::{Shared, digest, hash};
use crate::error::Error;
use crate::frontend::percent;
use crate::picker::ring::Id;

/// How the instances are watched.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// `HOST:PORT` of the instances; a name stands for all its addresses.
    pub instances: Vec<String>,
    /// How often each is asked for its digest.
    pub poll: Duration,
    /// How often names are looked up again.
    pub resolve: Duration,
    /// What to say to instances that want a token.
    pub token: Option<HeaderValue>,
    /// Models that neighbours are asked to bring when an instance leaves.
    pub handover: usize,
}

/// How long an instance may take for a digest.
const DIGEST: Duration = Duration::from_secs(1);

/// How long it may take to bring a model.
const PREFETCH: Duration = Duration::from_secs(120);

/// Models that are brought at a time for one that leaves.
const PREFETCHES: usize = 4;

/// Watches all instances until the future is dropped.
pub(super) async fn watch(shared: Arc<Shared>, options: WatchOptions) {
    let mut watching: HashMap<Id, AbortOnDropHandle<()>> = HashMap::new();
    let mut last: HashMap<String, Vec<String>> = HashMap::new();
    let mut tick = tokio::time::interval(options.resolve);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for instance in &options.instances {
            match tokio::net::lookup_host(instance).await {
                Ok(found) => {
                    let found = found.map(|address| address.to_string()).collect();
                    last.insert(instance.clone(), found);
                }
                // Who was there is there, until somebody says otherwise.
                Err(error) => tracing::warn!(instance, %error, "cannot look up --instance"),
            }
        }
        let mut names: Vec<String> = last.values().flatten().cloned().collect();
        names.sort_unstable();
        names.dedup();
        let ids = shared.fleet.lock().set_members(&names);
        watching.retain(|id, _| ids.contains(id));
        for (id, name) in ids.into_iter().zip(names) {
            watching.entry(id).or_insert_with(|| {
                tracing::info!(instance = name, "watching");
                AbortOnDropHandle::new(tokio::spawn(follow(Arc::clone(&shared), id, name, options.clone())))
            });
        }
        shared.resolved.store(true, std::sync::atomic::Ordering::Release);
    }
}

/// Asks one instance again and again.
async fn follow(shared: Arc<Shared>, id: Id, name: String, options: WatchOptions) {
    let mut instance = Instance::at(name.clone(), options.token.clone());
    let mut cursor = String::new();
    let mut was_well = true;
    let mut handed_over = None;
    let mut tick = tokio::time::interval(options.poll);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let path = match cursor.as_str() {
            "" => "/v1/digest".to_owned(),
            cursor => format!("/v1/digest?since={cursor}"),
        };
        let asked = Instant::now();
        let heard = match instance.ask(Method::GET, &path, DIGEST).await {
            Ok(bytes) => digest::parse(&bytes),
            Err(silence) => {
                if matches!(silence, Silence::Refused(_)) {
                    shared.fleet.lock().refused(id);
                    cursor.clear();
                }
                Err(Error::from(silence))
            }
        };
        match heard {
            Ok(digest) => {
                shared.counts.digests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                shared.fleet.lock().hear(id, &digest, asked, Instant::now());
                if !std::mem::replace(&mut was_well, true) {
                    tracing::info!(instance = name, "says again what it has");
                }
                handed_over = match digest.draining {
                    true => Some(handed_over.unwrap_or_else(|| {
                        let handing = hand_over(Arc::clone(&shared), id, name.clone(), options.clone());
                        AbortOnDropHandle::new(tokio::spawn(handing))
                    })),
                    false => None,
                };
                cursor = digest.cursor;
            }
            Err(error) => {
                shared.counts.silences.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if error.kind() == crate::error::ErrorKind::InvalidArgument {
                    shared.fleet.lock().babbled(id);
                    cursor.clear();
                }
                if std::mem::replace(&mut was_well, false) {
                    let error = error.report();
                    tracing::warn!(
                        instance = name,
                        error,
                        "does not say what it has: the ring decides, once that is old"
                    );
                }
            }
        }
    }
}

/// Has neighbours bring what leaves with an instance.
async fn hand_over(shared: Arc<Shared>, id: Id, name: String, options: WatchOptions) {
    use futures_util::StreamExt;
    let heirs = shared.fleet.lock().heirs(id, |model| hash(model), options.handover, Instant::now());
    tracing::info!(instance = name, models = heirs.len(), "is on its way out: its neighbours bring what it has");
    let bring = |(model, heir): (Arc<str>, Id)| {
        let (shared, token) = (Arc::clone(&shared), options.token.clone());
        async move {
            let Some(address) = shared.fleet.lock().name(heir).map(str::to_owned) else { return };
            let path = format!("/v1/models/{}/prefetch", percent::encode(&model));
            let asked = Instance::at(address.clone(), token).ask(Method::POST, &path, PREFETCH).await;
            if let Err(silence) = asked {
                tracing::warn!(model = &*model, instance = address, error = %silence, "was not brought");
            }
        }
    };
    futures_util::stream::iter(heirs).for_each_concurrent(PREFETCHES, bring).await;
}
