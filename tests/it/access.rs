//! Bearer tokens over both versions of HTTP: who may ask what, and when it is refused.

use std::path::Path;

use tokio::net::TcpStream;

use crate::support::client::{Request, get, infer, load, post};
use crate::support::http2::Http2;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

/// The tokens "ci-ci-ci" and "root-root".
const TOKENS: &str = r#"
[[token]]
name = "ci"
sha256 = "CI"
allow = ["inference"]
models = ["a"]

[[token]]
name = "root"
sha256 = "ROOT"
allow = ["all"]
"#;

fn write(path: &Path) {
    use sha2::{Digest, Sha256};
    let hex = |token: &str| Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    std::fs::write(path, TOKENS.replace("CI", &hex("ci-ci-ci")).replace("ROOT", &hex("root-root"))).unwrap();
}

async fn start() -> (TestServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    write(&path);
    let repository = Repository::gated(&["a", "b"]);
    let server = TestServer::start_with(repository, |config| config.security.access_tokens = Some(path)).await;
    (server, folder)
}

fn by(token: &str, request: Request) -> Request {
    request.header("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn each_token_may_what_it_is_for_over_both_versions_of_http() {
    let (server, _folder) = start().await;
    let http2 = Http2::over(TcpStream::connect(server.addresses.http).await.unwrap()).await;
    // None, an unknown one, "ci", "root".
    for (request, expected) in [
        (get("/v2/health/live"), [200, 200, 200, 200]),
        (infer("a", 1), [401, 401, 200, 200]),
        (infer("b", 1), [401, 401, 403, 200]),
        (get("/v2"), [401, 401, 403, 200]),
        (get("/v2/models/a"), [401, 401, 403, 200]),
        (get("/v2/models"), [401, 401, 403, 200]),
        (load("a"), [401, 401, 403, 200]),
        (post("/v2/repository/index", ""), [401, 401, 403, 200]),
        (get("/v1/residency"), [401, 401, 403, 200]),
        (get("/nothing"), [401, 401, 403, 404]),
    ] {
        let asked = [
            request.clone(),
            by("unknown", request.clone()),
            by("ci-ci-ci", request.clone()),
            by("root-root", request.clone()),
        ];
        for (request, expected) in asked.iter().zip(expected) {
            let (one, two) = (server.ask(request).await, http2.ask(request).await);
            assert_eq!((one.status, two.status), (expected, expected), "{request:?}");
            assert_eq!(one.header("www-authenticate").is_some(), matches!(expected, 401 | 403), "{request:?}");
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn what_is_refused_says_why_and_its_body_is_not_waited_for() {
    let (server, _folder) = start().await;
    let mut client = server.client().await;
    // Announced, and never sent.
    client.write(&post("/v2/models/a/infer", "").header("content-length", 1 << 20).head()).await;
    let refused = client.receive().await.expect(401);
    assert_eq!(refused.error(), "a token is needed: send the header Authorization: Bearer TOKEN");
    let refused = server.ask(&by("ci-ci-ci", infer("b", 1))).await.expect(403);
    assert_eq!(refused.error(), "token 'ci' is not for model 'b'");
    assert_eq!(server.gated.counts("a").loads_begun, 0);
    server.finish().await;
}

#[tokio::test]
async fn the_other_ports_ask_for_tokens_too() {
    let (server, _folder) = start().await;
    let metrics = Http2::over(TcpStream::connect(server.addresses.metrics).await.unwrap()).await;
    metrics.ask(&get("/v2/health/ready")).await.expect(200);
    metrics.ask(&get("/metrics")).await.expect(401);
    metrics.ask(&by("root-root", get("/metrics"))).await.expect(200);
    let mut sagemaker = server.sagemaker().await;
    sagemaker.ask(&get("/ping")).await.expect(200);
    for path in ["/models", "/endpoints/e/invocations", "/invocations"] {
        let request = if path == "/models" { get(path) } else { post(path, "{}") };
        server.sagemaker().await.ask(&request).await.expect(401);
    }
    let named = |model: &str| post("/endpoints/e/invocations", "{}").header("x-amzn-sagemaker-target-model", model);
    server.ask(&named("a")).await.expect(401);
    server.ask(&by("ci-ci-ci", named("b"))).await.expect(403);
    assert_ne!(server.ask(&by("ci-ci-ci", named("a"))).await.status, 403);
    server.finish().await;
}
