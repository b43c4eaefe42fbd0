//! A real store of another make: signatures, listings and ranges as SeaweedFS understands them.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use futures_util::future::BoxFuture;
use roundhouse::error::{Error, ErrorKind, Result};
use roundhouse::repository::ModelRepository;
use roundhouse::repository::conformance::{Tree, repository_conformance};
use roundhouse::repository::download::{DownloadOptions, Downloader, Meter};
use roundhouse::repository::s3::{Keys, S3, S3Options};
use tokio::runtime::Handle;

use crate::support::within;

/// One identity that may do all, and what anybody may do.
const IDENTITIES: &str = r#"{"identities": [
    {"name": "tester", "credentials": [{"accessKey": "AKIDEXAMPLE", "secretKey": "a-secret"}],
     "actions": ["Admin", "Read", "List", "Tagging", "Write"]},
    {"name": "anonymous", "actions": ["Read:public", "List:public"]}
]}"#;

/// The server; it ends with this value.
struct Seaweed {
    child: Child,
    port: u16,
    /// What it leaves behind, at places that cannot be chosen.
    sockets: Vec<String>,
    _data: tempfile::TempDir,
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        for socket in &self.sockets {
            let _gone = std::fs::remove_file(socket);
        }
    }
}

impl Seaweed {
    fn start() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the Makefile says where the server is")]
        let binary = std::env::var_os("ROUNDHOUSE_SEAWEEDFS")
            .expect("ROUNDHOUSE_SEAWEEDFS must name SeaweedFS's binary (weed); `make rust-test` gets one");
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join("s3.json"), IDENTITIES).unwrap();
        // Held together, so that they differ; let go just before the server takes them.
        let held: Vec<_> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = held.iter().map(|port| port.local_addr().unwrap().port()).collect();
        drop(held);
        let names = ["master", "volume", "filer", "s3"];
        let listen = names.iter().zip(ports.chunks(2)).flat_map(|(name, ports)| {
            [format!("-{name}.port={}", ports[0]), format!("-{name}.port.grpc={}", ports[1])]
        });
        let path = |option: &str, file: &str| format!("-{option}={}", data.path().join(file).display());
        let log = std::fs::File::create(data.path().join("log")).unwrap();
        let child = Command::new(Path::new(&binary))
            .env("TMPDIR", data.path())
            .arg("-logtostderr")
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.port.iceberg=0"])
            .args(["-s3.port.lance=0", "-s3.iam=false", "-volume.max=20", "-master.volumeSizeLimitMB=64"])
            .args([path("dir", ""), path("s3.config", "s3.json"), path("s3.localSocket", "s3.sock")])
            .args([path("filer.localSocket", "filer.sock")])
            .args(listen)
            .current_dir(data.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let socket = |(name, ports): (&&str, &[u16])| format!("/tmp/seaweedfs-{name}-grpc-{}.sock", ports[1]);
        let sockets = names.iter().zip(ports.chunks(2)).map(socket).collect();
        Self { child, port: ports[6], sockets, _data: data }
    }

    fn repository(&self, path: &str, options: S3Options) -> Arc<S3> {
        let uri = format!("s3://http://127.0.0.1:{}/{path}", self.port).parse().unwrap();
        let options = S3Options { negative_ttl: Duration::ZERO, ..options };
        Arc::new(S3::open(&uri, options, Handle::current()).unwrap())
    }

    /// Who writes; asks until the server is up.
    fn writer(&self) -> Client {
        let retries = RetryConfig::standard()
            .with_max_attempts(300)
            .with_initial_backoff(Duration::from_millis(50))
            .with_max_backoff(Duration::from_millis(200));
        let http = aws_smithy_http_client::Builder::new().build_http();
        Client::from_conf(
            aws_sdk_s3::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .http_client(http)
                .region(Region::from_static("us-east-1"))
                .credentials_provider(Credentials::new("AKIDEXAMPLE", "a-secret", None, None, "test"))
                .endpoint_url(format!("http://127.0.0.1:{}", self.port))
                .retry_config(retries)
                .force_path_style(true)
                .build(),
        )
    }
}

fn keys(secret: &str) -> S3Options {
    let keys = Keys { id: "AKIDEXAMPLE".into(), secret: secret.into(), session_token: None };
    S3Options { keys: Some(keys), ..S3Options::default() }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("SeaweedFS refused to write").with_source(error)
}

struct SeaweedTree {
    writer: Client,
    repository: Arc<S3>,
}

impl SeaweedTree {
    async fn keys_below(&self, prefix: &str) -> Vec<String> {
        let listing = self.writer.list_objects_v2().bucket("private").prefix(prefix).send().await.unwrap();
        listing.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect()
    }
}

impl Tree for SeaweedTree {
    fn repository(&self) -> &dyn ModelRepository {
        &*self.repository
    }

    fn put<'a>(&'a self, path: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let request = self.writer.put_object().bucket("private").key(format!("models/{path}"));
        let body = content.to_vec().into();
        Box::pin(async move { request.body(body).send().await.map(drop).map_err(failed) })
    }

    fn remove<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut keys = self.keys_below(&format!("models/{path}/")).await;
            keys.push(format!("models/{path}"));
            for key in keys {
                self.writer.delete_object().bucket("private").key(key).send().await.map_err(failed)?;
            }
            Ok(())
        })
    }
}

#[tokio::test]
#[ignore = "needs SeaweedFS's binary in ROUNDHOUSE_SEAWEEDFS: make rust-test gets and runs it"]
async fn seaweedfs_is_read_with_the_right_keys_and_by_nobody_else() {
    let server = Seaweed::start();
    let writer = server.writer();
    for bucket in ["private", "public"] {
        within("SeaweedFS starts", writer.create_bucket().bucket(bucket).send()).await.unwrap();
    }
    let repository = server.repository("private/models", keys("a-secret"));
    let tree = SeaweedTree { writer, repository };
    repository_conformance(&tree).await.unwrap();
    pages_and_odd_keys(&tree).await;
    parts(&tree).await;

    let wrong = server.repository("private/models", keys("another-secret"));
    let error = wrong.resolve("plain").await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::RepositoryFailed, false), "{error:?}");
    assert!(error.to_string().contains("credentials") && !error.to_string().contains("another-secret"), "{error}");

    let anonymous = || S3Options { anonymous: true, ..S3Options::default() };
    let error = server.repository("private/models", anonymous()).resolve("plain").await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("denied"), "{error:?}");
    let put = tree.writer.put_object().bucket("public").key("m.onnx").body(b"anybody's".to_vec().into());
    put.send().await.unwrap();
    let public = server.repository("public", anonymous());
    let manifest = public.resolve("m").await.unwrap();
    assert_eq!(super::download::read_all(&public, &manifest, 0).await.unwrap(), b"anybody's");

    let error = server.repository("no-such-bucket", keys("a-secret")).resolve("m").await.unwrap_err();
    assert!(error.to_string().contains("no such bucket"), "{error:?}");
}

async fn pages_and_odd_keys(tree: &SeaweedTree) {
    for name in ["a b", "a+b", "100%", "a&b=c", "a%20b"] {
        tree.put(&format!("{name}/1/a b+c%&.onnx"), name.as_bytes()).await.unwrap();
        let manifest = tree.repository.resolve(name).await.unwrap();
        assert_eq!(manifest.objects[0].path, "1/a b+c%&.onnx", "{name}");
        let bytes = super::download::read_all(&tree.repository, &manifest, 0).await.unwrap();
        assert_eq!(bytes, name.as_bytes());
    }
    for file in 0..1010 {
        tree.put(&format!("many/1/{file}"), b"x").await.unwrap();
    }
    assert_eq!(tree.repository.resolve("many").await.unwrap().objects.len(), 1010);
    assert!(tree.repository.list().await.unwrap().contains(&"many".to_owned()));
}

async fn parts(tree: &SeaweedTree) {
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    tree.put("large.tar", &content).await.unwrap();
    let manifest = Arc::new(tree.repository.resolve("large").await.unwrap());
    let options = DownloadOptions { part_bytes: Some(3 << 20), ..DownloadOptions::default() };
    let repository: Arc<dyn ModelRepository> = Arc::<S3>::clone(&tree.repository);
    let downloader = Downloader::new(repository, options, Handle::current());
    let file = Arc::new(tempfile::tempfile().unwrap());
    let meter = Arc::new(Meter::new(manifest.bytes()));
    downloader.write(&manifest, 0, Arc::clone(&file), &meter).await.unwrap();
    let mut written = vec![0; content.len()];
    std::os::unix::fs::FileExt::read_exact_at(&*file, &mut written, 0).unwrap();
    assert!(written == content && meter.done() == meter.total());
}
