//! `roundhouse models`: asks a running server what is where, and has it load, drop, keep or bring models.

mod client;
mod table;
mod waiting;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Method;
use serde_json::{Map, Value, json};

use self::client::Server;
use self::table::printable;
use self::waiting::Waiting;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::percent;

/// How long a document may take.
const ANSWER: Duration = Duration::from_secs(30);

/// Rows a page: the most the server gives.
const ROWS: usize = 10_000;

/// Between two tables of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);

/// What `roundhouse models` was asked.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a command it lists. The tier is the nearest place a model can be answered from: a device \
    (cpu, gpu:0), host (RAM, to be copied to the device), disk, or remote (the repository alone).\n\nExamples:\n  \
    roundhouse models list --watch\n  roundhouse models load digits team/resnet\n  roundhouse models explain digits\n  \
    roundhouse models --url http://gpu-7:8000 --json | jq '.models[].name'"
)]
pub struct ModelsArgs {
    /// The server's HTTP port
    #[arg(long, global = true, value_name = "URL", default_value = "http://localhost:8000")]
    url: String,
    /// Print the server's JSON, one document a line
    #[arg(long, global = true)]
    json: bool,
    /// What to do.
    #[command(subcommand)]
    command: Option<ModelsCommand>,
}

/// The subcommands of `roundhouse models`.
#[derive(Debug, clap::Subcommand)]
enum ModelsCommand {
    /// Show the models on the server's machine, where each is, and what room is left
    List(ListArgs),
    /// Load models, those that have changed anew, and wait until they answer
    Load(Names),
    /// Free the memory of models; the next request loads them again
    Unload(Names),
    /// Load models and never evict them
    Pin(Names),
    /// Let pinned models go again when their room is needed
    Unpin(Names),
    /// Bring models to the server's disk, and to memory that is free, so that their first request is quick
    Prefetch(Names),
    /// Say why a model is where it is, and what its next load would cost
    Explain(ExplainArgs),
}

#[derive(Debug, Default, clap::Args)]
struct ListArgs {
    /// Show it anew every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, clap::Args)]
struct Names {
    /// Models by name, as the repository has them: digits, team/resnet
    #[arg(required = true, value_name = "NAME", value_parser = name)]
    names: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct ExplainArgs {
    /// The model
    #[arg(value_parser = name)]
    name: String,
}

fn name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("a model's name is not empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// What is done to models by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Load,
    Unload,
    Pin,
    Unpin,
    Prefetch,
}

impl Action {
    fn path(self, name: &str) -> String {
        let name = percent::encode(name);
        match self {
            Self::Load => format!("/v2/repository/models/{name}/load"),
            Self::Unload => format!("/v2/repository/models/{name}/unload"),
            Self::Pin => format!("/v1/models/{name}/pin"),
            Self::Unpin => format!("/v1/models/{name}/unpin"),
            Self::Prefetch => format!("/v1/models/{name}/prefetch"),
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Load => "loaded",
            Self::Unload => "unloaded",
            Self::Pin => "pinned",
            Self::Unpin => "unpinned",
            Self::Prefetch => "on disk",
        }
    }
}

/// Asks the server and prints what it says.
///
/// # Errors
/// `InvalidArgument` or `Unsupported` for a wrong URL, `NotReady` where no server can be reached, or the server's error.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let server = Server::parse(&args.url)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal("cannot start the asynchronous runtime").with_source(error))?;
    let first = ListArgs::default();
    let result = runtime.block_on(async {
        match args.command.as_ref() {
            None => list(&server, &first, args.json).await,
            Some(ModelsCommand::List(list_args)) => list(&server, list_args, args.json).await,
            Some(ModelsCommand::Load(names)) => each(&server, Action::Load, names, args.json).await,
            Some(ModelsCommand::Unload(names)) => each(&server, Action::Unload, names, args.json).await,
            Some(ModelsCommand::Pin(names)) => each(&server, Action::Pin, names, args.json).await,
            Some(ModelsCommand::Unpin(names)) => each(&server, Action::Unpin, names, args.json).await,
            Some(ModelsCommand::Prefetch(names)) => each(&server, Action::Prefetch, names, args.json).await,
            Some(ModelsCommand::Explain(explain_args)) => explain(&server, &explain_args.name, args.json).await,
        }
    });
    // A name that is still being resolved is waited for by no one.
    runtime.shutdown_background();
    result
}

async fn list(server: &Server, args: &ListArgs, as_json: bool) -> Result<()> {
    if !args.watch {
        let document = residency(server).await?;
        return print(&shown(document, as_json)?).map(|_| ());
    }
    let clear = if io::stdout().is_terminal() && !as_json { "\x1b[2J\x1b[H" } else { "" };
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let document = tokio::select! {
            document = residency(server) => document?,
            _ = &mut interrupted => return Ok(()),
        };
        if !print(&format!("{clear}{}", shown(document, as_json)?))? {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            _ = &mut interrupted => return Ok(()),
        }
    }
}

fn shown(document: Value, as_json: bool) -> Result<String> {
    if as_json {
        return Ok(format!("{document}\n"));
    }
    let page = serde_json::from_value(document).map_err(unlike_ours)?;
    Ok(table::page(&page, SystemTime::now(), !io::stdout().is_terminal()))
}

/// All pages as one document; its generation is the first one's.
async fn residency(server: &Server) -> Result<Value> {
    let mut whole: Option<Map<String, Value>> = None;
    let mut path = format!("/v1/residency?limit={ROWS}");
    loop {
        let mut page: Map<String, Value> =
            serde_json::from_slice(&server.ask(Method::GET, &path, Some(ANSWER)).await?).map_err(unlike_ours)?;
        let next = page.insert("next".to_owned(), Value::Null).unwrap_or_default();
        let Some(models) = page.get_mut("models").and_then(Value::as_array_mut) else {
            return Err(Error::not_ready("the server's answer has no models in it: it is no Roundhouse server"));
        };
        let rows = models.len();
        match whole.as_mut().and_then(|whole| whole.get_mut("models")?.as_array_mut()) {
            Some(before) => before.append(models),
            None => whole = Some(page),
        }
        match next.as_str() {
            // Pages go on while they bring something.
            Some(after) if rows > 0 => path = format!("/v1/residency?limit={ROWS}&after={}", percent::encode(after)),
            _ => return Ok(Value::Object(whole.unwrap_or_default())),
        }
    }
}

async fn explain(server: &Server, name: &str, as_json: bool) -> Result<()> {
    let path = format!("/v1/models/{}/explain", percent::encode(name));
    let answer = server.ask(Method::GET, &path, None).await?;
    if as_json {
        return print(&format!("{}\n", read(&answer)?)).map(|_| ());
    }
    let explained = serde_json::from_slice(&answer).map_err(unlike_ours)?;
    print(&table::explained(&explained, SystemTime::now())).map(|_| ())
}

/// Does it to one model after the other; one that fails does not keep it from the others.
async fn each(server: &Server, action: Action, names: &Names, as_json: bool) -> Result<()> {
    let mut failed = 0;
    for name in &names.names {
        let line = match act(server, action, name, as_json).await {
            Ok(line) => line,
            Err(error) if names.names.len() == 1 => return Err(error),
            Err(error) => {
                failed += 1;
                // Nobody may be reading.
                let _ = writeln!(io::stderr(), "{}: {}", printable(name), error.report());
                continue;
            }
        };
        print(&line)?;
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::not_ready(format!("{failed} of {} models failed", names.names.len()))),
    }
}

async fn act(server: &Server, action: Action, name: &str, as_json: bool) -> Result<String> {
    let (waiting, path) = (Waiting::begin(name), action.path(name));
    tokio::select! {
        done = server.ask(Method::POST, &path, None) => done?,
        never = waiting.follow(server, name) => match never {},
    };
    drop(waiting);
    if !as_json {
        return Ok(format!("{}: {}\n", printable(name), action.done()));
    }
    match row(server, name).await {
        Ok(row) => Ok(format!("{}\n", read(&row)?)),
        // Nothing of it is left.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(format!("{}\n", json!({"name": name, "tier": "remote"})))
        }
        Err(error) => Err(error),
    }
}

async fn row(server: &Server, name: &str) -> Result<Bytes> {
    let path = format!("/v1/models/{}/residency", percent::encode(name));
    server.ask(Method::GET, &path, Some(ANSWER)).await
}

fn read(answer: &[u8]) -> Result<Value> {
    serde_json::from_slice(answer).map_err(unlike_ours)
}

fn unlike_ours(error: serde_json::Error) -> Error {
    Error::not_ready("the server's answer is not that of a Roundhouse server of this version").with_source(error)
}

/// Prints; whether somebody goes on reading.
fn print(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::internal("cannot write to standard output").with_source(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A server that gives one answer a connection, and then tells what it was asked.
    fn canned(answers: Vec<String>) -> (Server, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let asked = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                asked.push(String::from_utf8(head).unwrap().lines().next().unwrap().to_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        (server, asked)
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn pages_are_followed_and_become_one_document() {
        let (server, asked) = canned(vec![
            ok(r#"{"generation":7,"books":[],"models":[{"name":"a"},{"name":"b/c d"}],"next":"b/c d"}"#),
            ok(r#"{"generation":8,"books":[],"models":[{"name":"e"}],"next":null}"#),
        ]);
        let document = wait(residency(&server)).unwrap();
        let names = json!([{"name": "a"}, {"name": "b/c d"}, {"name": "e"}]);
        assert_eq!(document, json!({"generation": 7, "books": [], "models": names, "next": null}));
        let asked = asked.join().unwrap();
        assert_eq!(asked[0], "GET /v1/residency?limit=10000 HTTP/1.1");
        assert_eq!(asked[1], "GET /v1/residency?limit=10000&after=b%2Fc%20d HTTP/1.1");
    }

    #[test]
    fn an_answer_that_is_not_ours_is_an_error_whatever_it_is() {
        let answers = [
            ok("<html>"),
            ok("[]").replace("200 OK", "502 Bad Gateway"),
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_owned(),
            "SSH-2.0-OpenSSH\r\n".to_owned(),
            String::new(),
        ];
        for answer in answers {
            let (server, asked) = canned(vec![answer.clone()]);
            let error = wait(list(&server, &ListArgs::default(), false)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotReady, "{answer:?}: {}", error.report());
            asked.join().unwrap();
        }
        for document in ["[]", "{}", "7", "null", r#"{"books":[],"models":[{"name":"a"}],"next":null}"#] {
            let (server, asked) = canned(vec![ok(document)]);
            let error = wait(list(&server, &ListArgs::default(), false)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotReady, "{document}: {}", error.report());
            asked.join().unwrap();
        }
    }

    #[test]
    fn a_model_of_which_nothing_is_left_has_a_row_for_programs() {
        let gone = r#"{"error":"nothing of model 'a/b' is on this machine","code":"not_found"}"#;
        let (server, asked) = canned(vec![ok(""), ok(gone).replace("200 OK", "404 Not Found")]);
        let line = wait(act(&server, Action::Unload, "a/b", true)).unwrap();
        assert_eq!(line, "{\"name\":\"a/b\",\"tier\":\"remote\"}\n");
        let asked = asked.join().unwrap();
        assert_eq!(asked[0], "POST /v2/repository/models/a%2Fb/unload HTTP/1.1");
        assert_eq!(asked[1], "GET /v1/models/a%2Fb/residency HTTP/1.1");
    }
}
