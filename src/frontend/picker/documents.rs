//! The picker over plain HTTP.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use serde_json::json;

use super::super::body::Body;
use super::super::percent;
use super::target::{TARGET, Target, target};
use super::{Shared, hash};
use crate::error::{Error, Result};
use crate::picker::choice::{Reason, Standing};

pub(super) fn empty() -> Response<Body> {
    Response::new(Body::full(bytes::Bytes::new()))
}

fn document(content: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::full(format!("{content}\n").into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `/pick?model=NAME` or `/pick?path=PATH`, or with the header that names the model: who is to be asked. What is picked here
/// is not counted as a request in flight, since nobody tells its end.
///
/// # Errors
/// `InvalidArgument` where no model is named, `NotReady` where nobody is known.
pub(super) fn pick(shared: &Shared, headers: &HeaderMap, query: &str) -> Result<Response<Body>> {
    let header = headers.get(TARGET).and_then(|value| value.to_str().ok());
    let parameter = query.split('&').find_map(|pair| pair.split_once('='));
    let value = parameter.and_then(|(_, value)| percent::decode(value));
    let found = match (parameter, &value) {
        (Some(("model", _)), Some(name)) => target(Some(name), ""),
        (Some(("path", _)), Some(path)) => target(header, path),
        (Some((other, _)), _) => {
            let other: String = other.chars().take(32).collect();
            return Err(Error::invalid(format!("unknown query parameter '{other}', known are 'model' and 'path'")));
        }
        (None, _) => target(header, ""),
    };
    let named = || Error::invalid(format!("no model is named: ask /pick?model=NAME, or send the header {TARGET}"));
    let Target { name, hashed } = found.ok_or_else(named)?;
    let model: Arc<str> = (*name).into();
    let (mut fleet, now) = (shared.fleet.lock(), Instant::now());
    let picked = fleet
        .pick(&model, hash(hashed), now, |_| true)
        .ok_or_else(|| Error::not_ready("no instance is known: name some with --instance HOST:PORT"))?;
    fleet.finish(&picked.ticket, now);
    let endpoints: Vec<_> = picked.choice.order.iter().filter_map(|id| fleet.name(*id)).collect();
    let content = json!({ "model": &*model, "endpoints": endpoints, "reason": picked.choice.reason.name() });
    drop(fleet);
    shared.counts.picked(picked.choice.reason);
    Ok(document(&content))
}

const fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Fresh => "fresh",
        Standing::Stale => "stale",
        Standing::Down => "down",
    }
}

/// `/v1/fleet`: what is known of each instance.
pub(super) fn fleet(shared: &Shared) -> Result<Response<Body>> {
    let rows = shared.fleet.lock().overview(Instant::now());
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            json!({
                "instance": row.name,
                "standing": standing(row.standing),
                "ready": row.ready,
                "draining": row.draining,
                "digest_age_seconds": row.age.map(|age| age.as_secs_f64()),
                "models": row.models,
                "in_flight": row.in_flight,
            })
        })
        .collect();
    Ok(document(&json!({ "instances": rows })))
}

/// Models of a share at most.
const MOST_SHARED: usize = 4096;

/// `/v1/digest?for=IP:PORT`: the digest that an instance at this address would have if it held its share of what the fleet has in
/// memory, for one that starts.
///
/// # Errors
/// `InvalidArgument` where it is not said for whom.
pub(super) fn share(shared: &Shared, query: &str) -> Result<Response<Body>> {
    let named = query.split('&').find_map(|pair| pair.strip_prefix("for=")).and_then(percent::decode);
    let address: Option<SocketAddr> = named.and_then(|text| text.parse().ok());
    let address = address.ok_or_else(|| {
        Error::invalid(
            "this is a picker, which has no models: say for whom, /v1/digest?for=IP:PORT, or ask an instance",
        )
    })?;
    // The lock is a request's too: it is held for the copy alone.
    let warm = shared.fleet.lock().warm(Instant::now());
    let share = warm.share_of(&address.to_string(), |model| hash(model), MOST_SHARED);
    let row = |(model, uses): &(Arc<str>, u64)| json!({ "name": &**model, "state": "READY", "in_use": 0, "parallel": 1, "load_seconds": null, "uses": uses });
    Ok(document(&json!({
        "cursor": "share",
        "complete": true,
        "ready": true,
        "draining": false,
        "load_places": 1,
        "loads": 0,
        "executors": 1,
        "models": share.iter().map(row).collect::<Vec<_>>(),
    })))
}

/// `/metrics`, for Prometheus.
pub(super) fn metrics(shared: &Shared) -> Response<Body> {
    let rows = shared.fleet.lock().overview(Instant::now());
    let counts = &shared.counts;
    let mut page = String::with_capacity(2048);
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing into a String cannot fail.
        let _ = writeln!(page, "# HELP roundhouse_picker_{name} {help}\n# TYPE roundhouse_picker_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(page, "roundhouse_picker_{name}{labels} {value}");
        }
    };
    let picks = Reason::ALL.iter().zip(&counts.picks);
    let picks: Vec<_> = picks
        .map(|(reason, count)| (format!("{{reason=\"{}\"}}", reason.name()), count.load(Ordering::Relaxed)))
        .collect();
    family("picks_total", "counter", "Requests by why their instance was picked.", &picks);
    let one = |value: u64| [(String::new(), value)];
    let load = |count: &std::sync::atomic::AtomicU64| one(count.load(Ordering::Relaxed));
    family("passes_total", "counter", "Requests let pass without a pick.", &load(&counts.passes));
    family("digests_total", "counter", "Digests that came and could be read.", &load(&counts.digests));
    family("silences_total", "counter", "Digests that did not come or could not be read.", &load(&counts.silences));
    let of = |wanted: Standing| {
        let count = rows.iter().filter(|row| row.standing == wanted).count();
        (format!("{{standing=\"{}\"}}", standing(wanted)), count as u64)
    };
    let standings = [Standing::Fresh, Standing::Stale, Standing::Down].map(of);
    family("instances", "gauge", "Instances by what their word is worth.", &standings);
    let in_flight = rows.iter().map(|row| u64::from(row.in_flight)).sum();
    family("in_flight", "gauge", "Requests picked for and not answered yet.", &one(in_flight));
    let mut response = Response::new(Body::full(page.into()));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
