//! Whole servers on GPUs that are the double's: models hold memory of them through the real calls of the driver, and see
//! at each run whether it is theirs. Each test is a process of its own, with a machine of its own.

mod faults;
mod sleep;
mod thrash;
mod wiring;

use std::fmt::Write;
use std::future::Future;

use crate::cuda::MIB;
use crate::support::client::{Request, infer};
use crate::support::repository::Repository;
use crate::support::server::TestServer;

/// Runs a test of a whole server.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// A model's parameters: weights, said to be as many, in so many blocks; scratch of each run. In MiB.
fn weighs(weights: u64, blocks: u64, scratch: u64) -> String {
    let all = [
        ("memory_bytes", weights * MIB),
        ("weight_bytes", weights * MIB),
        ("weight_blocks", blocks),
        ("scratch_bytes", scratch * MIB),
    ];
    all.iter().fold(String::new(), |mut text, (key, value)| {
        writeln!(text, "parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}").unwrap();
        text
    })
}

/// Models of so many MiB each.
fn models(names: &[&str], weights: u64) -> Repository {
    let add = |repository: Repository, name: &&str| repository.with(name, "gated", &weighs(weights, 3, 1));
    names.iter().fold(Repository::empty(), add)
}

/// Asks a model, which answers what it was asked if all its memory is as it was left.
async fn answers(server: &TestServer, model: &str) {
    let answer = server.ask(&ask(model)).await;
    assert_eq!((answer.status, answer.tag()), (200, 7), "{}", answer.text());
}

fn ask(model: &str) -> Request {
    infer(model, 7)
}
