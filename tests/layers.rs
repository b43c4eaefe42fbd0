//! The floors of ARCHITECTURE.md, held by a test: every file under `src/` imports only from floors below its own or
//! from its own top-level module, names a protocol or a runtime only where that is at home, and is named by a `mod`
//! line. Comments and literals do not count: the sources go through a small scanner first.

#[path = "layers/tokens.rs"]
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokens::{Token, is_word, tokens};

/// Floor 1 first. A new top-level module gets its place here and in ARCHITECTURE.md.
const FLOORS: [&str; 11] = [
    "error sync",
    "tensor config",
    "inference kernels telemetry",
    "model_config metrics device",
    "backend repository artifact",
    "scheduler cache picker",
    "lifecycle",
    "server",
    "frontend",
    "app",
    "cli main",
];

/// Modules of one floor that may look at each other all the same: (who, whom, why).
const SIBLINGS: [(&str, &str, &str); 2] = [
    ("main", "cli", "main parses the command line that cli defines"),
    ("inference", "telemetry", "a request carries its trace"),
];

/// Crates with a home: what they are, the crates, and the only places that name them, each with its reason. A crate
/// that ends in `_` stands for all that begin so; a place that ends in `/` for a folder.
const HOMES: [Home; 10] = [
    Home {
        what: "JSON",
        crates: &["serde_json", "sonic_rs", "simd_json"],
        places: &[
            ("frontend/", "the protocols are at home here"),
            ("cli/", "prints --json for programs and reads the server's answers"),
            ("cache/", "the manifest of a disk entry"),
            ("telemetry/", "log lines are JSON where no terminal is; trace files always"),
            ("metrics/cloudwatch/", "the embedded metric format is JSON"),
        ],
    },
    Home {
        what: "HTTP or protobuf",
        crates: &[
            "axum", "axum_", "h2", "http", "http_", "httparse", "hyper", "hyper_", "prost", "prost_", "tonic", "tonic_",
        ],
        places: &[
            ("frontend/", "the protocols are at home here"),
            ("app.rs", "binds the listeners and hands them to the front ends"),
            ("cli/", "talks to a running server as a client"),
            ("telemetry/trace/", "sends spans to a collector"),
        ],
    },
    // Before the other crates of AWS: the first home that knows a crate counts.
    Home {
        what: "AWS's event streams",
        crates: &["aws_smithy_eventstream", "aws_smithy_types"],
        places: &[
            ("frontend/", "streamed answers of SageMaker's runtime API, and dates of its signatures"),
            ("repository/", "only the S3 repository knows its client"),
            ("metrics/cloudwatch/", "times and bodies of reports"),
        ],
    },
    Home { what: "S3", crates: &["aws_sdk_"], places: &[("repository/", "only the S3 repository knows its client")] },
    Home {
        what: "AWS",
        crates: &["aws_config", "aws_credential_types", "aws_sigv4", "aws_smithy_"],
        places: &[
            ("repository/", "only the S3 repository knows its client"),
            ("metrics/cloudwatch/", "reports are signed and sent as the S3 client does it"),
        ],
    },
    Home {
        what: "NVML",
        crates: &["nvml_wrapper"],
        places: &[("device/", "only a device monitor knows how a device is asked")],
    },
    Home {
        what: "CUDA",
        crates: &["cudarc"],
        places: &[
            ("device/cuda/", "contexts, streams and memory are handed out here alone"),
            ("kernels.rs", "launches kernels on a stream it is given"),
            ("kernels/", "compares each kernel with its twin"),
        ],
    },
    Home {
        what: "shared libraries",
        crates: &["libloading"],
        places: &[("backend/", "plugins are opened here"), ("kernels/", "NVRTC from a path that we choose")],
    },
    Home {
        what: "the C ABI of plugins",
        crates: &["roundhouse_abi"],
        places: &[("backend/", "only a backend knows its runtime")],
    },
    Home {
        what: "ONNX Runtime",
        crates: &["ort", "ort_sys"],
        places: &[("backend/", "only a backend knows its runtime")],
    },
];

/// Where `unsafe` may stand, each block with a SAFETY note.
const UNSAFE: [&str; 8] = [
    "artifact/",
    "backend/onnxruntime.rs",
    "backend/onnxruntime/",
    "backend/plugin.rs",
    "backend/plugin/",
    "device/",
    "kernels.rs",
    "kernels/nvrtc.rs",
];

const ENVIRONMENT: [&str; 6] = ["remove_var", "set_var", "var", "var_os", "vars", "vars_os"];
const MOST_LINES: usize = 500;

struct Home {
    what: &'static str,
    crates: &'static [&'static str],
    places: &'static [(&'static str, &'static str)],
}

/// A path as written, with the module it stands in.
struct Mention<'a> {
    path: Vec<&'a str>,
    module: Vec<&'a str>,
    line: usize,
    is_macro: bool,
}

/// What a file says: the paths it names and the modules it declares in files of their own.
#[derive(Default)]
struct Scan<'a> {
    mentions: Vec<Mention<'a>>,
    declared: Vec<Vec<&'a str>>,
}

/// Reads one tree of a `use` line from `at`, adds its leaves, and returns where it ended.
fn use_tree<'a>(
    tokens: &[Token<'a>],
    from: usize,
    prefix: &[&'a str],
    leaves: &mut Vec<(Vec<&'a str>, usize)>,
) -> usize {
    let (mut at, mut path) = (from, prefix.to_vec());
    while let Some(token) = tokens.get(at) {
        match token.text {
            "::" => at += 1,
            "as" => at += 2,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = if tokens[at].text == "," { at + 1 } else { use_tree(tokens, at, &path, leaves) };
                }
                return at + 1;
            }
            "," | "}" | ";" => {
                leaves.push((path, token.line));
                return at;
            }
            text => {
                path.push(text);
                at += 1;
            }
        }
    }
    at
}

fn scan<'a>(tokens: &[Token<'a>], module: &[&'a str]) -> Scan<'a> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let is_name = |at: usize| text(at).bytes().next().is_some_and(is_word);
    let (mut scan, mut inside, mut inline) = (Scan::default(), module.to_vec(), Vec::new());
    let (mut at, mut depth) = (0, 0_usize);
    while at < tokens.len() {
        let line = tokens[at].line;
        match text(at) {
            "{" => (at, depth) = (at + 1, depth + 1),
            "}" => {
                (at, depth) = (at + 1, depth.saturating_sub(1));
                if inline.last() == Some(&depth) {
                    inline.pop();
                    inside.pop();
                }
            }
            "mod" if text(at + 2) == ";" => {
                scan.declared.push([&inside[..], &[text(at + 1)]].concat());
                at += 3;
            }
            "mod" if text(at + 2) == "{" => {
                inline.push(depth);
                inside.push(text(at + 1));
                at += 2;
            }
            "use" if text(at + 1) != "<" => {
                let mut leaves = Vec::new();
                at = use_tree(tokens, at + 1, &[], &mut leaves);
                let module = || inside.clone();
                let leaves = leaves.into_iter();
                scan.mentions.extend(leaves.map(|(path, line)| Mention {
                    path,
                    module: module(),
                    line,
                    is_macro: false,
                }));
            }
            _ if is_name(at) && text(at + 1) == "::" => {
                let mut path = vec![text(at)];
                at += 1;
                while text(at) == "::" && is_name(at + 1) {
                    path.push(text(at + 1));
                    at += 2;
                }
                scan.mentions.push(Mention { path, module: inside.clone(), line, is_macro: text(at) == "!" });
            }
            _ => at += 1,
        }
    }
    scan
}

/// The path from the crate's root, or `None` where it begins in another crate or is a name in scope.
fn from_root<'a>(mention: &Mention<'a>) -> Option<Vec<&'a str>> {
    let mut absolute = match *mention.path.first()? {
        "crate" | "roundhouse" => Vec::new(),
        "self" | "super" => mention.module.clone(),
        _ => return None,
    };
    for segment in &mention.path {
        match *segment {
            "crate" | "roundhouse" | "self" => {}
            "super" => drop(absolute.pop()),
            name => absolute.push(name),
        }
    }
    Some(absolute)
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.split(' ').any(|name| name == module)).map(|index| index + 1)
}

/// Where `path` is the place: a file, or below a folder that ends in `/`.
fn stands_in(path: &str, place: &str) -> bool {
    path == place || (place.ends_with('/') && path.starts_with(place))
}

/// What is wrong with one arrow, if anything is.
fn arrow_fault(own: &str, mention: &Mention<'_>) -> Option<String> {
    let absolute = from_root(mention)?;
    let Some(top) = absolute.first().filter(|top| **top != "*") else {
        return Some("names the crate's root; name the module that defines the thing".to_owned());
    };
    if *top == own || (mention.is_macro && absolute.len() == 1) {
        return None;
    }
    let Some((from, to)) = floor(own).zip(floor(top)) else {
        return Some(format!("names {top}, which is not in the table of floors"));
    };
    let allowed = SIBLINGS.iter().any(|(who, whom, _)| *who == own && whom == top);
    (to >= from && !allowed).then(|| {
        let kind = if to > from { "an arrow upward" } else { "a sibling of the same floor" };
        format!("{own} (floor {from}) imports {top} (floor {to}), {kind}: move the thing down or pass it in")
    })
}

/// What is wrong with naming a crate here, if anything is.
fn home_fault(path: &str, name: &str) -> Option<String> {
    let is_it = |known: &&str| name == *known || (known.ends_with('_') && name.starts_with(known));
    let home = HOMES.iter().find(|home| home.crates.iter().any(is_it))?;
    let is_home = home.places.iter().any(|(place, _)| stands_in(path, place));
    (!is_home).then(|| format!("names the crate {name}; {} is at home in {:?} alone", home.what, home.places))
}

/// The lines that read the environment, through std, libc or an `env` in one of clap's attributes.
fn environment_lines(tokens: &[Token<'_>], mentions: &[Mention<'_>]) -> Vec<usize> {
    let named = mentions.iter().filter(|mention| match mention.path[..] {
        ["std", "env", name, ..] | ["env", name] => ENVIRONMENT.contains(&name),
        ["libc", name] => name.ends_with("getenv"),
        _ => false,
    });
    let mut lines: Vec<usize> = named.map(|mention| mention.line).collect();
    for (at, window) in tokens.windows(3).enumerate() {
        if ["#", "[", "arg"] == [window[0].text, window[1].text, window[2].text] {
            let attribute = tokens[at..].iter().take_while(|token| token.text != "]");
            lines.extend(attribute.filter(|token| token.text == "env").map(|token| token.line));
        }
    }
    lines
}

/// The module that a file under `src/` is: `cache/table.rs` is `cache::table`, `cache/mod.rs` is `cache`.
fn module_of(path: &str) -> Vec<&str> {
    let stem = path.trim_end_matches(".rs");
    if matches!(stem, "lib" | "main") {
        return Vec::new();
    }
    stem.trim_end_matches("/mod").split('/').collect()
}

/// The faults of one file, whose path is relative to `src/`: line and text.
fn file_faults(path: &str, source: &str, tokens: &[Token<'_>], mentions: &[Mention<'_>]) -> Vec<(usize, String)> {
    let own = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
    let mut found = Vec::new();
    if own == "lib" {
        let re_exports = tokens.windows(2).filter(|pair| matches!(pair[0].text, "pub" | ")") && pair[1].text == "use");
        found.extend(
            re_exports.map(|pair| (pair[1].line, "re-exports; import from where a thing is defined".to_owned())),
        );
    } else {
        if floor(own).is_none() {
            found.push((1, format!("{own} is a new top-level module: give it a floor here and in ARCHITECTURE.md")));
        }
        found.extend(mentions.iter().filter_map(|mention| Some((mention.line, arrow_fault(own, mention)?))));
    }
    let named = mentions.iter().filter_map(|mention| Some((mention.line, *mention.path.first()?)));
    found.extend(named.filter_map(|(line, name)| Some((line, home_fault(path, name)?))));
    if path != "config.rs" && !path.starts_with("config/") {
        let lines = environment_lines(tokens, mentions).into_iter();
        found.extend(lines.map(|line| (line, "reads the environment, which only config does".to_owned())));
    }
    if !UNSAFE.iter().any(|place| stands_in(path, place)) {
        let words = tokens.iter().filter(|token| token.text == "unsafe");
        found.extend(words.map(|token| (token.line, format!("unsafe stands only in {UNSAFE:?}"))));
    }
    if !source.starts_with("//! ") {
        found.push((1, "begins without a `//!` line that says what the file is for".to_owned()));
    }
    let lines = source.lines().count();
    if lines > MOST_LINES {
        found.push((lines, format!("has {lines} lines, of {MOST_LINES} at most: cut it along what it does")));
    }
    found
}

/// Every fault of a tree of sources, whose paths are relative to `src/`.
fn faults(files: &BTreeMap<String, String>) -> Vec<String> {
    let (mut found, mut declared) = (Vec::new(), BTreeSet::new());
    for (path, source) in files {
        let tokens = tokens(source);
        let scan = scan(&tokens, &module_of(path));
        let faults = file_faults(path, source, &tokens, &scan.mentions).into_iter();
        found.extend(faults.map(|(line, text)| format!("src/{path}:{line}: {text}")));
        declared.extend(scan.declared.iter().map(|module| module.join("::")));
    }
    let named = files.keys().filter(|path| !matches!(path.as_str(), "lib.rs" | "main.rs"));
    let orphans = named.filter(|path| !declared.contains(&module_of(path).join("::")));
    found.extend(orphans.map(|path| format!("src/{path}:1: is named by no `mod` line, so nothing compiles it")));
    found
}

fn read_sources(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            read_sources(&entry.path(), &format!("{name}/"), files)?;
        } else if name.ends_with(".rs") {
            files.insert(name, std::fs::read_to_string(entry.path())?);
        }
    }
    Ok(())
}

/// The faults of a small sound tree once `path` holds `code`.
fn faults_with(path: &str, code: &str) -> Vec<String> {
    let sound = [
        ("lib.rs", "//! a\npub mod cache; pub mod error; pub mod scheduler; pub mod server; pub mod cli; pub mod app;"),
        ("main.rs", "//! a\nuse roundhouse::cli;\nfn main() { roundhouse::error::fail(); }"),
        ("app.rs", "//! a\nuse axum::Router;"),
        ("cache/mod.rs", "//! a\npub mod table;\nuse self::table::Table;"),
        ("cache/table.rs", "//! a\nuse crate::error::{Error, Result};\nmod tests { use super::*; }"),
        ("cli/mod.rs", "//! a\nuse serde_json::json;"),
        ("error.rs", "//! a"),
        ("scheduler.rs", "//! a\n"),
        ("server.rs", "//! a\nuse crate::{cache::table, scheduler};"),
    ];
    let mut files: BTreeMap<_, _> = sound.into_iter().map(|(path, code)| (path.to_owned(), code.to_owned())).collect();
    files.insert(path.to_owned(), code.to_owned());
    faults(&files)
}

#[test]
fn every_source_keeps_to_its_floor() {
    let mut files = BTreeMap::new();
    read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files).unwrap();
    assert!(files.contains_key("lib.rs"), "the sources are not where they are expected");
    let faults = faults(&files);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn architecture_md_holds_the_same_table_of_floors() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for (index, modules) in FLOORS.iter().enumerate() {
        let row = format!("| {} | {modules} |", index + 1);
        assert!(text.lines().any(|line| line.starts_with(&row)), "ARCHITECTURE.md lacks the line `{row}`");
    }
}

#[test]
fn planted_faults_are_caught() {
    let long = format!("//! a\n{}", "// b\n".repeat(MOST_LINES));
    let planted = [
        ("scheduler.rs", "//! a\nuse crate::server::Server;", "src/scheduler.rs:2: scheduler (floor 6) imports server"),
        ("cache/table.rs", "//! a\nuse crate::{\n error::Error,\n server::{A, B as C},\n};", "table.rs:4: cache"),
        ("cache/table.rs", "//! a\nfn f() -> crate::server::Server {}", "table.rs:2: cache (floor 6)"),
        ("cache/table.rs", "//! a\nuse super::super::app;", "imports app (floor 10), an arrow upward"),
        ("cache/table.rs", "//! a\nmod t { fn f() { super::super::super::server::g(); } }", "imports server"),
        ("cache/table.rs", "//! a\nuse super::super::*;", "the crate's root"),
        ("cache/table.rs", "//! a\nuse crate as all;", "the crate's root"),
        ("cache/table.rs", "//! a\nuse crate::scheduler::Queue;", "a sibling of the same floor"),
        ("cache/table.rs", "//! a\nuse crate::bogus::X;", "bogus, which is not in the table"),
        ("main.rs", "//! a\nuse roundhouse::{bogus::X, app};", "bogus, which is not in the table"),
        ("error.rs", "//! a\nmacro_rules! m { () => { $crate::app::x() } }", "error (floor 1) imports app"),
        ("scheduler.rs", "//! a\nlet x = serde_json::json!({});", "src/scheduler.rs:2: names the crate serde_json"),
        ("scheduler.rs", "//! a\nuse {::http_body_util::Full, std::fmt};", "names the crate http_body_util"),
        ("app.rs", "//! a\nuse ort::session::Session;", "names the crate ort"),
        ("server.rs", "//! a\nlet x = std::env::var(\"X\");", "reads the environment"),
        ("server.rs", "//! a\nuse std::env;\nlet x = env::vars();", "src/server.rs:3: reads the environment"),
        ("cli/mod.rs", "//! a\n#[arg(long, env = \"X\")]", "reads the environment"),
        ("server.rs", "//! a\nunsafe { f() }", "unsafe stands only in"),
        ("server.rs", "// not a doc line", "begins without a `//!` line"),
        ("server.rs", &long, "has 501 lines"),
        ("cache/lost.rs", "//! a", "src/cache/lost.rs:1: is named by no `mod` line"),
        ("extra.rs", "//! a", "extra is a new top-level module"),
        ("lib.rs", "//! a\nuse x;\npub(crate) use error::Error;", "src/lib.rs:3: re-exports"),
    ];
    for (path, code, expected) in planted {
        let faults = faults_with(path, code);
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{path}: {code:?} gave {faults:?}");
    }
}

#[test]
fn sound_sources_pass() {
    let sound = [
        "//! a\n// use crate::server;\n/* crate::app /* serde_json:: */ unsafe */ struct A;",
        "//! a\nconst A: &str = \"use crate::server; \\\" unsafe\"; const B: &str = r#\"crate::app::\" unsafe\"#;",
        "//! a\nfn f<'a>(x: &'a u8) -> char { let _ = (b'\\'', '\"', b\"unsafe\", '\\u{41}'); 'é' }",
        "//! a\nuse super::table::Table;\nuse self::x::y;\nfn f(r#use: u8) -> impl Sized + use<> { crate::m!() }",
        "//! a\nuse crate::error::{self, Error as E};\nuse x::{http::Y, std::env::var};\nlet z = a.http; env!(\"X\");",
        "//! a\n#[cfg(test)]\nmod tests { use super::*; use crate::error; mod deep { use super::super::Table; } }",
    ];
    for code in sound {
        assert_eq!(faults_with("cache/table.rs", code), Vec::<String>::new(), "{code}");
    }
}
