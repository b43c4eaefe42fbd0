//! Traces of requests: who called, and when the answer has left.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use crate::telemetry::trace::activity::Activity;
use crate::telemetry::trace::context::Caller;
use crate::telemetry::trace::record::Trace;

/// The caller's trace, by `traceparent` and `tracestate`. Two parents are none; several states are one list.
#[must_use]
pub fn caller(headers: &HeaderMap) -> Option<Caller> {
    let mut parents = headers.get_all("traceparent").iter();
    let parent = parents.next().filter(|_| parents.next().is_none())?;
    let states: Vec<&[u8]> = headers.get_all("tracestate").iter().map(http::HeaderValue::as_bytes).collect();
    Caller::read(Some(parent.as_bytes()), Some(&states.join(&b',')))
}

/// An answer on its way out: says so when it is handed over, and again when it is dropped.
#[derive(Debug)]
pub struct Sending {
    trace: Arc<Trace>,
    end: Activity,
}

impl Sending {
    /// The answer to the traced request is handed to its connection of HTTP.
    #[must_use]
    pub fn start(trace: Arc<Trace>) -> Self {
        trace.mark(Activity::HttpSendStart, Instant::now());
        Self { trace, end: Activity::HttpSendEnd }
    }

    /// An answer to the traced request is handed to its call of gRPC.
    #[must_use]
    pub fn start_grpc(trace: Arc<Trace>) -> Self {
        trace.mark(Activity::GrpcSendStart, Instant::now());
        Self { trace, end: Activity::GrpcSendEnd }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.trace.mark(self.end, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_parent_is_followed_and_two_are_none() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = HeaderMap::new();
        headers.append("traceparent", parent.parse().unwrap());
        headers.append("tracestate", "a=b".parse().unwrap());
        headers.append("tracestate", "c=d".parse().unwrap());
        assert_eq!(caller(&headers).unwrap().state, "a=b,c=d");
        headers.append("traceparent", parent.parse().unwrap());
        assert_eq!(caller(&headers), None);
    }
}
