//! One Kafka and one Elasticsearch that ask who comes, with an authority and certificates of their own.

use crate::pair::{Access, folder};
use kpulse_tests::process::{command, run};
use kpulse_tests::services::{Kind, Server, free_ports};
use kpulse_tests::until;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Name and password of the user of both services.
pub const USER: (&str, &str) = ("kpulse", "s3cret-of-kpulse");
/// As `elasticsearch.sh` has it.
const ADMIN: &str = "admin:kpulse-tests";

/// Both services and what is needed to get in; a test has them for itself.
pub struct Secured {
    _servers: [Server; 2],
    files: PathBuf,
    /// Users and passwords over TLS.
    pub kafka: String,
    /// Client certificates.
    pub kafka_by_certificate: String,
    /// A listener whose certificate is no longer valid.
    pub kafka_expired: String,
    /// One without TLS.
    pub kafka_plain: String,
    /// `127.0.0.1:port`.
    pub elasticsearch: String,
}

/// The pair, or why there is none here.
pub fn secured() -> Result<MutexGuard<'static, Secured>, String> {
    static SECURED: OnceLock<Result<Mutex<Secured>, String>> = OnceLock::new();
    let start = || {
        Kind::Kafka.install()?;
        Kind::Elasticsearch.install()?;
        Ok(Mutex::new(Secured::start()))
    };
    let secured = SECURED.get_or_init(start).as_ref().map_err(String::clone)?;
    Ok(secured.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Secured {
    fn start() -> Self {
        let folder = folder();
        let files = folder.join("certificates");
        std::fs::create_dir_all(&files).unwrap();
        make_certificates(&files);
        let [port, by_certificate, expired, controller] = free_ports();
        let (name, password) = USER;
        let module = "org.apache.kafka.common.security";
        let listeners = format!(
            "SECURED://127.0.0.1:{port},CERTIFIED://127.0.0.1:{by_certificate},EXPIRED://127.0.0.1:{expired}"
        );
        let at = |name: &str| files.join(name).display().to_string();
        let kafka = [
            format!("user={name}:{password}"),
            format!("listeners={listeners},CONTROLLER://127.0.0.1:{controller}"),
            format!("advertised.listeners={listeners}"),
            "listener.security.protocol.map=SECURED:SASL_SSL,CERTIFIED:SSL,EXPIRED:SSL,CONTROLLER:PLAINTEXT"
                .to_owned(),
            "inter.broker.listener.name=SECURED".to_owned(),
            "sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN".to_owned(),
            "sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512".to_owned(),
            format!(
                "listener.name.secured.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required username=\"{name}\" password=\"{password}\";"
            ),
            format!(
                "listener.name.secured.plain.sasl.jaas.config={module}.plain.PlainLoginModule required username=\"{name}\" password=\"{password}\" user_{name}=\"{password}\";"
            ),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", at("server.both.pem")),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", at("authority.pem")),
            "listener.name.certified.ssl.client.auth=required".to_owned(),
            format!("listener.name.expired.ssl.keystore.location={}", at("expired.both.pem")),
        ];
        let started = {
            let folder = folder.join("kafka-secured");
            std::thread::spawn(move || {
                let settings: Vec<_> = kafka.iter().map(String::as_str).collect();
                Server::start_at([port, controller], Kind::Kafka, &folder, &settings)
            })
        };
        let ssl = |key: &str, value: String| format!("xpack.security.http.ssl.{key}={value}");
        for kind in ["pem", "key"] {
            std::fs::copy(at(&format!("server.{kind}")), at(&format!("elasticsearch.{kind}"))).unwrap();
        }
        let settings = [
            "xpack.security.enabled=true".to_owned(),
            "xpack.security.transport.ssl.enabled=false".to_owned(),
            // A certificate that is renewed is noticed this soon.
            "resource.reload.interval.high=1s".to_owned(),
            ssl("enabled", "true".to_owned()),
            ssl("certificate", at("elasticsearch.pem")),
            ssl("key", at("elasticsearch.key")),
            ssl("certificate_authorities", at("authority.pem")),
            ssl("client_authentication", "required".to_owned()),
        ];
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let search = Server::start(Kind::Elasticsearch, &folder.join("elasticsearch-secured"), &settings);
        let elasticsearch = search.address();
        let secured = Self {
            _servers: [started.join().unwrap(), search],
            files,
            kafka: format!("127.0.0.1:{port}"),
            kafka_by_certificate: format!("127.0.0.1:{by_certificate}"),
            kafka_expired: format!("127.0.0.1:{expired}"),
            kafka_plain: format!("127.0.0.1:{controller}"),
            elasticsearch,
        };
        let role = json!({"cluster": ["manage_index_templates"], "indices": [{"names": ["logs-kpulse.*"], "privileges": ["create_doc", "auto_configure"]}]});
        secured.ask("PUT", "_security/role/kpulse", &role);
        secured.set_password(password);
        secured
    }

    /// The path of a certificate or key.
    pub fn file(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }

    /// A file of the test with this in it.
    pub fn secret(&self, name: &str, text: &str) -> String {
        std::fs::write(self.files.join(name), format!("{text}\n")).unwrap();
        self.file(name)
    }

    /// The user's password in Elasticsearch from now on.
    pub fn set_password(&self, password: &str) {
        let user = json!({"password": password, "roles": ["kpulse"]});
        self.ask("PUT", &format!("_security/user/{}", USER.0), &user);
    }

    /// An API key, as it is configured.
    pub fn api_key(&self, expiration: &str) -> String {
        let answer =
            self.ask("POST", "_security/api_key", &json!({"name": "kpulse", "expiration": expiration}));
        answer["encoded"].as_str().unwrap().to_owned()
    }

    /// Elasticsearch shows the certificate that has expired as long as what this returns lives.
    pub fn expired(&self) -> impl Drop {
        self.show_certificate("expired");
        Renewal(self)
    }

    /// Returns when Elasticsearch has read it.
    fn show_certificate(&self, name: &str) {
        // The key is the same.
        std::fs::copy(self.file(&format!("{name}.pem")), self.file("elasticsearch.pem")).unwrap();
        let mut curl = command("curl");
        curl.args(["-sS", &format!("https://{}/", self.elasticsearch)]).args(self.curl());
        until("the certificate", || {
            (run(&mut curl).code == Some(if name == "expired" { 60 } else { 0 })).then_some(())
        });
    }

    /// By user and password to Kafka, as the administrator to Elasticsearch.
    pub fn access(&self) -> Access {
        let (admin, password) = ADMIN.split_once(':').unwrap();
        let properties = [
            ("security.protocol", "sasl_ssl".to_owned()),
            ("ssl.ca.location", self.file("authority.pem")),
            ("sasl.mechanism", "SCRAM-SHA-512".to_owned()),
            ("sasl.username", USER.0.to_owned()),
            ("sasl.password", USER.1.to_owned()),
        ];
        let elasticsearch = [
            ("CA_FILE", self.file("authority.pem")),
            ("CERTIFICATE_FILE", self.file("client.pem")),
            ("KEY_FILE", self.file("client.key")),
            ("USERNAME", admin.to_owned()),
            ("PASSWORD", password.to_owned()),
        ];
        Access {
            brokers: self.kafka.clone(),
            url: format!("https://{}", self.elasticsearch),
            properties: properties.into(),
            elasticsearch: elasticsearch.into(),
            curl: self.curl(),
        }
    }

    fn curl(&self) -> Vec<String> {
        let [authority, certificate, key] =
            ["authority.pem", "client.pem", "client.key"].map(|name| self.file(name));
        ["--cacert", &authority, "--cert", &certificate, "--key", &key, "--user", ADMIN]
            .map(str::to_owned)
            .into()
    }

    /// As the administrator.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut curl = command("curl");
        curl.args([
            "-sS",
            "--fail-with-body",
            "-X",
            method,
            &format!("https://{}/{path}", self.elasticsearch),
        ]);
        curl.args(self.curl()).args([
            "-H",
            "content-type: application/json",
            "--data-binary",
            &body.to_string(),
        ]);
        let ended = run(&mut curl);
        assert_eq!(ended.code, Some(0), "{method} {path}: {}{}", ended.stdout, ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }
}

/// Two authorities, of which one is `stranger.pem` to the services; certificates of the other for server and client, and
/// one of the server that has expired. They hold for the address 127.0.0.1 and for no name.
fn make_certificates(files: &Path) {
    let write = |name: &str, text: &str| std::fs::write(files.join(name), text).unwrap();
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
        Issuer::new(params, key)
    };
    authority("stranger");
    let issuer = authority("authority");
    let server_key = KeyPair::generate().unwrap();
    for (name, year, key) in [
        ("server", 2100, &server_key),
        ("expired", 2020, &server_key),
        ("client", 2100, &KeyPair::generate().unwrap()),
    ] {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(key, &issuer).unwrap().pem();
        write(&format!("{name}.pem"), &certificate);
        write(&format!("{name}.key"), &key.serialize_pem());
        write(&format!("{name}.both.pem"), &(key.serialize_pem() + &certificate));
    }
}

struct Renewal<'s>(&'s Secured);

impl Drop for Renewal<'_> {
    fn drop(&mut self) {
        self.0.show_certificate("server");
    }
}
