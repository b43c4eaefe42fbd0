//! The real binary in a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;
use tempfile::TempDir;

use super::LONG;
use super::client::{Client, Request, Response};

/// A running `roundhouse serve`.
pub(crate) struct Binary {
    child: Child,
    /// Its log lines, as they come.
    log: Receiver<Value>,
    /// KServe v2 HTTP.
    pub(crate) http: SocketAddr,
    /// Metrics.
    pub(crate) metrics: SocketAddr,
    _folder: TempDir,
}

/// `roundhouse` with these arguments, and nothing of this process's environment that it would read.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundhouse"));
    command.args(arguments).stdin(Stdio::null()).env_remove("ORT_DYLIB_PATH").env_remove("ROUNDHOUSE_MODEL_REPOSITORY");
    command
}

/// How a command ended that ends by itself: its exit code and what it wrote to standard error.
pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let (code, _, stderr) = run_for_output(arguments);
    (code, stderr)
}

/// Like [`run`], with what it wrote to standard output in the middle.
pub(crate) fn run_for_output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = command(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

impl Binary {
    /// Starts a server over `repository` and waits until it says that it is ready.
    pub(crate) fn start(repository: &Path, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port_file = folder.path().join("ports.json");
        let fixed = ["serve", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--log-format", "json"];
        let mut command = command(&fixed);
        command.arg("--model-repository").arg(repository).arg("--port-file").arg(&port_file).args(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut binary = Self { child, log, http: unknown, metrics: unknown, _folder: folder };
        binary.wait_for_line("ready");
        // The file is written before the first load begins, and whole or not at all.
        let ports: Value = serde_json::from_slice(&std::fs::read(&port_file).unwrap()).unwrap();
        binary.http = ports["http"].as_str().unwrap().parse().unwrap();
        binary.metrics = ports["metrics"].as_str().unwrap().parse().unwrap();
        binary
    }

    /// Waits for a log line with this message.
    pub(crate) fn wait_for_line(&mut self, message: &str) -> Value {
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(LONG) {
                Ok(line) if line["message"] == message => return line,
                Ok(line) => seen.push(line.to_string()),
                Err(error) => panic!("no line {message:?} ({error}), only\n{}", seen.join("\n")),
            }
        }
    }

    /// The next log line.
    pub(crate) fn next_line(&mut self) -> Value {
        self.log.recv_timeout(LONG).unwrap()
    }

    /// Asks over a connection of its own.
    pub(crate) async fn ask(&self, request: &Request) -> Response {
        Client::connect(self.http).await.ask(request).await
    }

    /// The names of the process's threads.
    pub(crate) fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // A thread may end while it is looked at.
        let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        let mut names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
        names.sort();
        names
    }

    /// Sends a signal by its name: `TERM`, `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("/bin/sh").arg("-c").arg(format!("kill -{name} {}", self.child.id())).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end of the process, and gives how it ended and the rest of its log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let log: Vec<_> = self.log.iter().map(|line| line.to_string()).collect();
        (status, log.join("\n"))
    }

    /// Sends SIGTERM; the process must end in peace, and no thread of it may have panicked.
    pub(crate) fn finish(self) {
        self.signal("TERM");
        let (status, log) = self.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("panicked at"), "{log}");
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // It may be gone already.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
