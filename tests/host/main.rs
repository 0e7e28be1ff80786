//! Every family that needs no BPF: provoke a fact on this kernel, and compare what is served with another source.
//!
//! Runs on this machine by `cargo test`, and in the guests of the matrix as a program of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod cpu;
mod disk;
mod hardware;
mod listen_overflow;
mod load_average;
mod memory;
mod network;
mod page_fault;
mod pressure;
mod protocols;

use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::in_child;
use kpulse_tests::process::{Service, command};
use kpulse_tests::{DEADLINE, binary, http, until};
use std::time::{Duration, Instant};

/// A running exporter with some collectors and no probe.
struct Exporter {
    service: Service,
    address: String,
}

impl Exporter {
    fn start(collectors: &[&str]) -> Self {
        Self::with(collectors, &[])
    }

    fn with(collectors: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut exporter = command(binary("kpulse-exporter"));
        exporter.env("KPULSE_EXPORTER__WEB__LISTEN_ADDRESS", "127.0.0.1:0");
        exporter.envs(environment.iter().copied());
        exporter.arg("--collector.disable-defaults");
        exporter.args(collectors.iter().map(|name| format!("--collector.{name}")));
        let service = Service::start(&mut exporter);
        let address = service.logged("message=listening", "address");
        Self { service, address }
    }

    fn scrape(&self) -> Page {
        let page = Page(http::get(&self.address, "/metrics", "").body);
        for line in page.0.lines().filter(|line| line.starts_with("kpulse_scrape_collector_success")) {
            assert!(line.ends_with(" 1"), "{line}\n{}", self.service.stderr());
        }
        page
    }
}

/// What one scrape served.
struct Page(String);

impl Page {
    /// The value of the only series of a family with these label values; `None` where there is none.
    fn find(&self, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has =
            |line: &str| labels.iter().all(|(name, value)| line.contains(&format!("{name}=\"{value}\"")));
        let is_of = |line: &str| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let mut found = self.0.lines().filter(|line| is_of(line) && has(line));
        let line = found.next()?;
        assert_eq!(found.next(), None, "{family}{labels:?} is one series");
        line.rsplit_once(' ')?.1.parse().ok()
    }

    fn value(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(family, labels).unwrap_or_else(|| panic!("no {family}{labels:?} in\n{}", self.0))
    }

    /// The sum of all series of a family.
    fn sum(&self, family: &str) -> f64 {
        let lines = self
            .0
            .lines()
            .filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' '])));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

/// A scrape, with an oracle asked right before and right after: each of its numbers only grows.
fn between<T>(exporter: &Exporter, oracle: impl Fn() -> T) -> (T, Page, T) {
    let before = oracle();
    let page = exporter.scrape();
    (before, page, oracle())
}

fn assert_between(what: &str, before: f64, value: f64, after: f64) {
    // Values travel as decimal fractions.
    assert!(before <= value + 1e-6 && value <= after + 1e-6, "{what}: {before} <= {value} <= {after}");
}

/// Runs `during`, given its pid, while a child in the cgroup holds what `prepare` made.
fn while_child_holds<T, R>(
    cgroup: &Cgroup,
    prepare: impl FnOnce() -> T + Send,
    during: impl FnOnce(u32) -> R,
) -> R {
    let folder = tempfile::tempdir().unwrap();
    let release = folder.path().join("release");
    let is_released = || std::fs::exists(&release).unwrap_or(true);
    std::thread::scope(|scope| {
        let child = scope.spawn(|| {
            in_child(Some(cgroup), || {
                let held = prepare();
                let start = Instant::now();
                while !is_released() && start.elapsed() < 5 * DEADLINE {
                    std::thread::sleep(Duration::from_millis(5));
                }
                drop(std::hint::black_box(held));
                Ok(())
            })
        });
        let pid = until("process in the cgroup", || cgroup.number("cgroup.procs", None));
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(pid.try_into().unwrap())));
        std::fs::write(&release, "").unwrap();
        let (_, went_well) = child.join().unwrap();
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(went_well);
        result
    })
}
