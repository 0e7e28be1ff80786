use super::*;
use crate::http::{Server, bind, text};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

/// "secret", as `htpasswd -nbBC 4 x secret` hashes it: with the least cost there is, so that tests do not wait.
const HASH: &str = "$2y$04$abcdefghijklmnopqrstuOfrqeSITpvd1V.IA.l3/5qdGsljcj0dW";
const TLS: &str = "tls_server_config: {cert_file: server.pem, key_file: server.key}\n";

fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/web/fixtures"))
}

/// A folder with the certificates and a web configuration.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(text: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for entry in std::fs::read_dir(fixtures()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.0.path().join(entry.file_name())).unwrap();
        }
        folder.write(text);
        folder
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("web.yml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn open(&self) -> Result<Arc<WebConfig>, HttpError> {
        WebConfig::open(&self.path())
    }
}

/// A server that answers "hello", until it is dropped.
struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(web: Arc<WebConfig>) -> Self {
        let listener = bind("127.0.0.1:0", "--test").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let until = async {
                let _ = stopped.await;
            };
            let server = Server::new(Arc::new(|_| text(200, "hello")), 4).protected_by(Some(web));
            runtime.block_on(server.serve(listener, until)).unwrap();
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn plain(&self, headers: &str) -> String {
        ask(self.connect(), headers).unwrap()
    }

    fn tls(&self, client: ClientConfig, headers: &str) -> std::io::Result<String> {
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(Arc::new(client), name).map_err(std::io::Error::other)?;
        ask(StreamOwned::new(session, self.connect()), headers)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn ask(mut stream: impl Read + Write, headers: &str) -> std::io::Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        // The server need not say goodbye before it closes.
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    let encoded = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {encoded}\r\n")
}

fn client(certificate: Option<&str>, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixtures().join("authority.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let Some(name) = certificate else { return builder.with_no_client_auth() };
    let chain = vec![CertificateDer::from_pem_file(fixtures().join(format!("{name}.pem"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixtures().join(format!("{name}.key"))).unwrap();
    builder.with_client_auth_cert(chain, key).unwrap()
}

fn anonymous() -> ClientConfig {
    client(None, rustls::ALL_VERSIONS)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_the_format_does_not_allow_is_one_sentence() {
    for (text, why) in [
        ("tls_server_config: [", "not valid"),
        ("tls_sever_config: {}", "tls_sever_config"),
        ("tls_server_config: {cert_file: server.pem}", "key_file"),
        ("tls_server_config: {key_file: server.key}", "cert_file"),
        ("tls_server_config: {cert_file: none.pem, key_file: server.key}", "none.pem"),
        ("tls_server_config: {cert_file: server.key, key_file: server.key}", "no certificate"),
        ("tls_server_config: {cert_file: server.pem, key_file: server.pem}", "key"),
        ("tls_server_config: {cert_file: server.pem, key_file: client.key}", "together"),
        ("tls_server_config: {cert_file: server.pem, key_file: server.key, unknown: 1}", "unknown"),
        ("tls_server_config: {cert_file: server.pem, key_file: server.key, min_version: TLS14}", "TLS14"),
        (
            "tls_server_config: {cert_file: server.pem, key_file: server.key, max_version: TLS11}",
            "max_version",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: server.key, min_version: TLS13, max_version: TLS12}",
            "no connection",
        ),
        ("tls_server_config: {cert_file: server.pem, key_file: server.key, cipher_suites: [TLS_X]}", "TLS_X"),
        ("tls_server_config: {cert_file: server.pem, key_file: server.key, curve_preferences: [P1]}", "P1"),
        (
            "tls_server_config: {cert_file: server.pem, key_file: server.key, curve_preferences: [CurveP521]}",
            "X25519",
        ),
        ("tls_server_config: {cert_file: server.pem, key_file: server.key, client_auth_type: Some}", "Some"),
        (
            "tls_server_config: {cert_file: server.pem, key_file: server.key, client_ca_file: authority.pem}",
            "client_auth_type",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: server.key, client_auth_type: RequireAndVerifyClientCert}",
            "client_ca_file",
        ),
        ("http_server_config: {headers: {X-Other: a}}", "X-Other"),
        ("http_server_config: {headers: {X-Frame-Options: allow}}", "sameorigin"),
        ("http_server_config: {headers: {Content-Security-Policy: \"a\\nb\"}}", "no header can have"),
        ("http_server_config: {http3: true}", "http3"),
        ("basic_auth_users: {alice: password}", "bcrypt"),
        ("basic_auth_users: [alice]", "not valid"),
        ("rate_limit: {interval: often, burst: 1}", "often"),
        ("rate_limit: {interval: 1s}", "burst"),
        ("rate_limit: {interval: 25h, burst: 1}", "a day"),
    ] {
        let error = Folder::with(text).open().map(drop).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("web.yml") && !error.contains('\n'), "{text}: {error}");
    }
    let secret = Folder::with("basic_auth_users: {alice: not-a-hash}").open().map(drop).unwrap_err();
    assert!(!secret.to_string().contains("not-a-hash"), "{secret}");
    let missing = WebConfig::open(Path::new("/nonexistent/web.yml")).map(drop).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/web.yml"), "{missing}");
}

#[test]
fn an_empty_file_protects_nothing_and_everybody_may_ask() {
    for text in ["", "---\n# nothing\n", "http_server_config: {http2: false}\n"] {
        let folder = Folder::with(text);
        assert!(Running::start(folder.open().unwrap()).plain("").ends_with("hello"), "{text:?}");
    }
}

#[test]
fn only_the_right_password_is_let_in_and_each_answer_is_the_same_the_second_time() {
    let folder = Folder::with(&format!("basic_auth_users: {{alice: {HASH}, bob: {HASH}}}\n"));
    let server = Running::start(folder.open().unwrap());
    for _ in 0..2 {
        for headers in [basic("alice", "secret"), basic("bob", "secret")] {
            assert!(server.plain(&headers).ends_with("hello"), "{headers}");
        }
        for headers in [
            String::new(),
            basic("alice", "Secret"),
            basic("alice", ""),
            basic("eve", "secret"),
            basic("", ""),
            "Authorization: Basic !!!\r\n".to_owned(),
            "Authorization: Basic YWxpY2U=\r\n".to_owned(),
            "Authorization: Bearer secret\r\n".to_owned(),
            "Authorization: Basic\r\n".to_owned(),
        ] {
            let answer = server.plain(&headers);
            assert!(answer.starts_with("HTTP/1.1 401"), "{headers}: {answer}");
            assert!(answer.contains("www-authenticate: Basic\r\n"), "{answer}");
            assert!(!answer.contains("hello"), "{answer}");
        }
    }
}

#[test]
fn sets_the_configured_headers_on_every_answer() {
    let folder = Folder::with(&format!(
        "http_server_config: {{headers: {{X-Frame-Options: deny, Strict-Transport-Security: max-age=1, \
         X-XSS-Protection: ''}}}}\nbasic_auth_users: {{alice: {HASH}}}\n"
    ));
    let server = Running::start(folder.open().unwrap());
    for headers in [String::new(), basic("alice", "secret")] {
        let answer = server.plain(&headers);
        assert!(answer.contains("x-frame-options: deny\r\n"), "{answer}");
        assert!(answer.contains("strict-transport-security: max-age=1\r\n"), "{answer}");
        assert!(!answer.contains("x-xss-protection"), "{answer}");
    }
}

#[test]
fn answers_429_beyond_the_rate() {
    let folder = Folder::with("rate_limit: {interval: 1h, burst: 2}\n");
    let server = Running::start(folder.open().unwrap());
    let status: Vec<_> = (0..4).map(|_| server.plain("")[9..12].to_owned()).collect();
    assert_eq!(status, ["200", "200", "429", "429"]);
    // Reading the file again does not fill the bucket.
    folder.write("rate_limit: {interval: 1h, burst: 2}\n# touched\n");
    let after = Instant::now() + 2 * CHECK_INTERVAL;
    until("the second look at the file", || {
        assert!(server.plain("").starts_with("HTTP/1.1 429"));
        Instant::now() > after
    });
}

#[test]
fn speaks_tls_of_both_versions_and_shrugs_off_what_is_no_tls() {
    let server = Running::start(Folder::with(TLS).open().unwrap());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        assert!(server.tls(client(None, &[version]), "").unwrap().ends_with("hello"));
    }
    for garbage in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03", "\0\0\0"]
    {
        let mut stream = server.connect();
        stream.write_all(garbage.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("hello"));
    }
    // Connections that never say a word keep nobody out.
    let silent: Vec<_> = (0..20).map(|_| server.connect()).collect();
    assert!(server.tls(anonymous(), "").unwrap().ends_with("hello"));
    drop(silent);
}

#[test]
fn serves_the_versions_suites_and_curves_that_are_listed() {
    let with = |more: &str| {
        let text = format!("tls_server_config: {{cert_file: server.pem, key_file: server.key, {more}}}\n");
        Running::start(Folder::with(&text).open().unwrap())
    };
    let newest = with("min_version: TLS13");
    assert!(newest.tls(client(None, &[&rustls::version::TLS12]), "").is_err());
    assert!(newest.tls(anonymous(), "").is_ok());
    let older = with("min_version: TLS10, max_version: TLS12");
    assert!(older.tls(client(None, &[&rustls::version::TLS13]), "").is_err());
    assert!(older.tls(client(None, &[&rustls::version::TLS12]), "").is_ok());
    let listed = with(
        "cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384], \
         curve_preferences: [CurveP521, CurveP384], prefer_server_cipher_suites: false",
    );
    assert!(listed.tls(client(None, &[&rustls::version::TLS12]), "").is_ok());
    // The server's key is of an elliptic curve, so a suite for RSA alone leaves TLS 1.2 without any.
    let for_rsa = with("cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]");
    assert!(for_rsa.tls(client(None, &[&rustls::version::TLS12]), "").is_err());
    assert!(for_rsa.tls(anonymous(), "").is_ok(), "the suites of 1.3 are not in the list");
}

#[test]
fn takes_certificates_that_are_written_in_the_configuration_itself() {
    let indented =
        |file: &str| std::fs::read_to_string(fixtures().join(file)).unwrap().replace('\n', "\n    ");
    let (cert, key) = (indented("server.pem"), indented("server.key"));
    let folder = Folder::with(&format!("tls_server_config:\n  cert: |\n    {cert}\n  key: |\n    {key}\n"));
    assert!(Running::start(folder.open().unwrap()).tls(anonymous(), "").unwrap().ends_with("hello"));
}

#[test]
fn asks_clients_for_the_certificate_that_the_policy_wants() {
    let server = |policy: &str, more: &str| {
        let text = format!(
            "tls_server_config: {{cert_file: server.pem, key_file: server.key, client_auth_type: {policy}{more}}}\n"
        );
        Running::start(Folder::with(&text).open().unwrap())
    };
    let authority = ", client_ca_file: authority.pem";
    // Whether nobody's, a signed and an unsigned certificate are let in.
    for (policy, more, expected) in [
        ("NoClientCert", "", [true, true, true]),
        ("RequestClientCert", "", [true, true, true]),
        ("RequireAnyClientCert", "", [false, true, true]),
        ("RequireClientCert", "", [false, true, true]),
        ("VerifyClientCertIfGiven", authority, [true, true, false]),
        ("RequireAndVerifyClientCert", authority, [false, true, false]),
    ] {
        let server = server(policy, more);
        for version in rustls::ALL_VERSIONS {
            let is_in =
                |name| server.tls(client(name, &[version]), "").is_ok_and(|said| said.ends_with("hello"));
            assert_eq!([None, Some("client"), Some("unknown")].map(is_in), expected, "{policy} {version:?}");
        }
    }
    for (name, is_in) in [
        ("prometheus.example", true),
        ("10.1.2.3", true),
        ("\"2001:db8::7\"", true),
        ("ops@example.com", true),
        ("\"spiffe://example/prometheus\"", true),
        ("other.example", false),
        ("example", false),
    ] {
        let more = format!("{authority}, client_allowed_sans: [nobody, {name}]");
        let server = server("RequireAndVerifyClientCert", &more);
        assert_eq!(server.tls(client(Some("client"), rustls::ALL_VERSIONS), "").is_ok(), is_in, "{name}");
    }
}

#[test]
fn a_changed_file_counts_without_a_restart() {
    let folder = Folder::with(&format!("basic_auth_users: {{alice: {HASH}}}\n"));
    let server = Running::start(folder.open().unwrap());
    assert!(server.plain(&basic("alice", "secret")).ends_with("hello"));
    folder.write(&format!("{TLS}basic_auth_users: {{bob: {HASH}}}\n"));
    until("TLS for bob", || {
        server.tls(anonymous(), &basic("bob", "secret")).is_ok_and(|said| said.ends_with("hello"))
    });
    let alice = server.tls(anonymous(), &basic("alice", "secret")).unwrap();
    assert!(alice.starts_with("HTTP/1.1 401"), "{alice}");
}

#[test]
fn a_renewed_certificate_is_served_to_the_next_client() {
    let folder = Folder::with(TLS);
    let server = Running::start(folder.open().unwrap());
    assert!(server.tls(anonymous(), "").is_ok());
    for kind in ["pem", "key"] {
        let file = |name: &str| folder.0.path().join(format!("{name}.{kind}"));
        std::fs::copy(file("unknown"), file("server")).unwrap();
    }
    until("the new certificate", || server.tls(anonymous(), "").is_err());
}

#[test]
fn what_cannot_be_used_leaves_the_last_good_version() {
    let good = format!("{TLS}basic_auth_users: {{alice: {HASH}}}\n");
    let folder = Folder::with(&good);
    let web = folder.open().unwrap();
    let server = Running::start(Arc::clone(&web));
    let refused = |part: &str| {
        until(part, || {
            web.current();
            let state = web.state.lock().unwrap();
            state.refused.as_ref().is_some_and(|why| why.contains(part))
        });
        assert!(server.tls(anonymous(), &basic("alice", "secret")).unwrap().ends_with("hello"));
        assert!(server.tls(anonymous(), "").unwrap().starts_with("HTTP/1.1 401"));
    };
    std::fs::remove_file(folder.path()).unwrap();
    refused("cannot be read");
    folder.write("tls_server_config: [");
    refused("not valid");
    // As a file looks that is being written.
    folder.write("");
    refused("tls_server_config any more");
    folder.write(TLS);
    refused("basic_auth_users any more");
    folder.write(&good.replace("server.pem", "missing.pem"));
    refused("missing.pem");
    // What was missing arrives, and the configuration itself has not changed.
    std::fs::copy(fixtures().join("server.pem"), folder.0.path().join("missing.pem")).unwrap();
    until("a good version", || {
        web.current();
        web.state.lock().unwrap().refused.is_none()
    });
}
