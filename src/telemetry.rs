//! What the server tells of itself while it runs: log lines and traces of requests.

pub mod logging;
pub mod trace;
