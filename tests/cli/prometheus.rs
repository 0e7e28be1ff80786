//! A real Prometheus, for tests that ask it what it understood.

use kpulse_tests::process::{Service, command};
use kpulse_tests::{http, until};
use std::path::Path;
use std::process::Command;

/// Certificates that the unit tests of the server use too.
pub fn certificate(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/src/http/web/fixtures");
    folder.join(name).canonicalize().unwrap().display().to_string()
}

/// A server on a free port, stopped when dropped.
pub struct Prometheus {
    address: String,
    _service: Service,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Scrapes every second what `jobs` lists in YAML's flow form; `None` when it is not installed.
    pub fn start(jobs: &str, flags: &[&str]) -> Option<Self> {
        Command::new("prometheus").arg("--version").output().ok()?;
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        std::fs::write(&config, format!("global: {{scrape_interval: 1s}}\nscrape_configs: [{jobs}]\n"))
            .unwrap();
        // A free port that was just released; nothing else takes one in between on a test machine.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut prometheus = command("prometheus");
        prometheus.arg(format!("--config.file={}", config.display()));
        prometheus.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        prometheus.arg(format!("--web.listen-address={address}")).args(flags).current_dir(folder.path());
        Some(Self { address, _service: Service::start(&mut prometheus), _folder: folder })
    }

    fn ask(&self, path: &str) -> Option<serde_json::Value> {
        let answer = http::request(&self.address, "GET", path, "").ok()?;
        serde_json::from_str(answer.body.trim()).ok()
    }

    /// Asserts that every target was scraped without an error.
    pub fn is_content(&self, targets: usize) {
        let found = until("scrape by Prometheus", || {
            let answer = self.ask("/api/v1/targets")?;
            let found = answer["data"]["activeTargets"].as_array()?.clone();
            let is_asked = |target: &serde_json::Value| target["health"] != "unknown";
            (found.len() == targets && found.iter().all(is_asked)).then_some(found)
        });
        for target in found {
            assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
        }
    }

    /// The type of a family, as soon as it is known.
    pub fn kind(&self, family: &str) -> String {
        until(&format!("metadata of {family}"), || {
            let answer = self.ask(&format!("/api/v1/metadata?metric={family}"))?;
            answer["data"][family][0]["type"].as_str().map(str::to_owned)
        })
    }

    /// The series that a query finds now.
    pub fn query(&self, query: &str) -> Vec<serde_json::Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = until("answer to a query", || self.ask(&format!("/api/v1/query?query={encoded}")));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// Waits until a query for one series gives this number.
    pub fn becomes(&self, query: &str, number: f64) {
        until(&format!("{number} from {query}"), || (self.number(query) == number).then_some(()));
    }

    /// The number that a query for one series gives, as soon as there is one.
    pub fn number(&self, query: &str) -> f64 {
        until(query, || {
            let found = self.query(query);
            assert!(found.len() <= 1, "{query}: {found:?}");
            found.first()?["value"][1].as_str()?.parse().ok().filter(|number: &f64| !number.is_nan())
        })
    }
}
