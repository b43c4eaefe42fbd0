//! TLS on the ports that speak it: whose certificates are taken, what protocols are agreed on, and files that change.

use std::path::Path;

use roundhouse::config::security::{TlsFiles, TlsPort};
use roundhouse::frontend::listener::tls::Tls;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::certificates::{Authority, Identity};
use crate::support::client::infer;
use crate::support::http2::Http2;
use crate::support::repository::Repository;
use crate::support::server::TestServer;
use crate::support::within;

/// A server with this certificate; with `clients`, for those alone that the authority has signed.
async fn start(own: &Identity, clients: Option<&Authority>) -> (TestServer, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = own.write(folder.path());
    let client_ca = clients.map(|authority| {
        let path = folder.path().join("ca.crt");
        std::fs::write(&path, authority.pem()).unwrap();
        path
    });
    let server = TestServer::start_with(Repository::gated(&["a"]), |config| {
        config.security.tls = Some(TlsFiles { certificate, key, client_ca });
        config.security.tls_ports = vec![TlsPort::Http];
    })
    .await;
    (server, folder)
}

/// Asks over HTTP/1.1 and gives all that is answered.
async fn ask_plainly(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    within("the end of the answer", stream.read_to_end(&mut answer)).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_client_chooses_its_version_of_http() {
    let authority = Authority::new();
    let (server, _folder) = start(&authority.sign(), None).await;
    let address = server.addresses.http;
    let stream = authority.connect(address, None, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(Http2::over(stream).await.ask(&infer("a", 7)).await.tag(), 7);
    for protocols in [&["http/1.1"][..], &[]] {
        let stream = authority.connect(address, None, protocols).await.unwrap();
        let answer = ask_plainly(stream, "/v2/health/live").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    // The metrics are not among the ports.
    let plain = TcpStream::connect(server.addresses.metrics).await.unwrap();
    assert!(ask_plainly(plain, "/metrics").await.unwrap().starts_with("HTTP/1.1 200 OK"));
    server.finish().await;
}

#[tokio::test]
async fn who_speaks_the_wrong_thing_is_told_or_closed() {
    let authority = Authority::new();
    let (server, _folder) = start(&authority.sign(), None).await;
    let plain = TcpStream::connect(server.addresses.http).await.unwrap();
    let answer = ask_plainly(plain, "/v2/health/live").await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("this port speaks TLS: use https://\n"),
        "{answer}"
    );
    let mut other = TcpStream::connect(server.addresses.http).await.unwrap();
    other.write_all(b"\0\x01\x02").await.unwrap();
    let mut nothing = Vec::new();
    let _reset = within("the end", other.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
    // TLS where clear text is spoken.
    within("a refusal", authority.connect(server.addresses.metrics, None, &[])).await.unwrap_err();
    server.finish().await;
}

#[tokio::test]
async fn with_mutual_tls_only_clients_of_the_authority_come_in() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (server, _folder) = start(&servers.sign(), Some(&clients)).await;
    let address = server.addresses.http;
    let ask = async |own: Option<&Identity>| {
        // With TLS 1.3 a client learns only after its handshake that its certificate is refused.
        let stream = servers.connect(address, own, &["http/1.1"]).await?;
        ask_plainly(stream, "/v2/health/live").await
    };
    assert!(ask(Some(&clients.sign())).await.unwrap().starts_with("HTTP/1.1 200 OK"));
    for (what, own) in [
        ("no certificate", None),
        ("another authority's", Some(strangers.sign())),
        ("an expired one", Some(clients.sign_until(2001))),
    ] {
        let answer = ask(own.as_ref()).await;
        assert!(!answer.as_ref().is_ok_and(|answer| answer.contains("200")), "{what}: {answer:?}");
    }
    assert!(
        strangers.connect(address, Some(&clients.sign()), &[]).await.is_err(),
        "the client trusts another authority"
    );
    server.finish().await;
}

#[tokio::test]
async fn handshakes_that_are_not_finished_keep_nobody_out() {
    let authority = Authority::new();
    let (server, _folder) = start(&authority.sign(), None).await;
    let mut half_open = Vec::new();
    for index in 0..1000 {
        let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
        if index % 2 == 0 {
            stream.write_all(b"\x16\x03\x01").await.unwrap();
        }
        half_open.push(stream);
    }
    let stream = within("a handshake", authority.connect(server.addresses.http, None, &[])).await.unwrap();
    assert!(ask_plainly(stream, "/v2/health/live").await.unwrap().contains("200 OK"));
    // They do not keep the server from ending either.
    server.finish().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_without_a_request_that_fails() {
    let authority = Authority::new();
    let (first, second) = (authority.sign(), authority.sign());
    let (server, folder) = start(&first, None).await;
    let address = server.addresses.http;
    let before = authority.connect(address, None, &["h2"]).await.unwrap();
    let before = Http2::over(before).await;
    second.write(folder.path());
    let mut asked = 0;
    within("the new certificate", async {
        loop {
            let stream = authority.connect(address, None, &["h2"]).await.unwrap();
            let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
            assert_eq!(Http2::over(stream).await.ask(&infer("a", asked)).await.tag(), asked);
            assert_eq!(before.ask(&infer("a", asked)).await.tag(), asked);
            asked += 1;
            if shown == *second.der() {
                return;
            }
            assert_eq!(shown, *first.der());
        }
    })
    .await;
    server.finish().await;
}

fn open(folder: &Path, client_ca: Option<&str>) -> String {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let client_ca = client_ca.map(|name| folder.join(name));
    let opened = Tls::open(&TlsFiles { certificate, key, client_ca });
    opened.err().map(|error| error.report()).unwrap_or_default()
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_is_wrong() {
    let authority = Authority::new();
    let (one, other) = (authority.sign(), authority.sign());
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let check = |client_ca: Option<&str>, expected: &str| {
        let report = open(folder.path(), client_ca);
        assert!(report.contains(expected) && !report.contains("PRIVATE KEY-----"), "{expected}: {report}");
    };
    check(None, "cannot read --tls-cert");
    one.write(folder.path());
    assert_eq!(open(folder.path(), None), "");
    std::fs::write(at("tls.key"), &other.key).unwrap();
    check(None, "is not the key of the certificate in --tls-cert");
    std::fs::write(at("tls.key"), &one.certificate).unwrap();
    check(None, "has no private key in it");
    std::fs::write(at("tls.key"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .unwrap();
    check(None, "is encrypted");
    std::fs::write(at("tls.crt"), "").unwrap();
    check(None, "has no certificate in it");
    std::fs::write(at("tls.crt"), "x".repeat(2 << 20)).unwrap();
    check(None, "is larger than 1048576 bytes");
    one.write(folder.path());
    std::fs::create_dir(at("ca")).unwrap();
    check(Some("ca"), "cannot read --tls-client-ca");
    std::fs::write(at("ca.crt"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    check(Some("ca.crt"), "--tls-client-ca");
    // Clients refuse it; that is no reason not to start.
    authority.sign_until(2001).write(folder.path());
    assert_eq!(open(folder.path(), None), "");
}

#[test]
fn a_broken_new_file_leaves_the_old_one_in_place() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.sign().write(folder.path());
    let (_tls, mut watched) = Tls::open(&TlsFiles { certificate: certificate.clone(), key, client_ca: None }).unwrap();
    std::fs::write(&certificate, "broken").unwrap();
    assert!(!watched.look());
    assert!(watched.look(), "it is read, and refused");
}
