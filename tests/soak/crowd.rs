//! A machine with very many threads and sockets: every collector answers in time, and the memory of both programs that
//! keep facts of tasks stays bounded.

use crate::gateway;
use crate::page::Page;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::Worker;
use kpulse_tests::network::drop_datagrams;
use kpulse_tests::process::{Service, command, rss_kib, status};
use kpulse_tests::{PACED, binary, http, is_root, skip, until, within};
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread;

const PROCESSES: u32 = 5;
const THREADS: usize = 10_000;
/// Both ends of a connection over the loopback device are here.
const CONNECTIONS: usize = 1_000;
/// Pids that a machine has beside the crowd.
const PIDS: u32 = 20_000;
/// What a program may grow by; it holds no fact of a task that nothing was told of.
const GROWTH_MAX_KIB: u64 = 16 << 10;

/// The kernel's highest pid, raised for as long as this value lives.
struct PidMax(Option<String>);

impl PidMax {
    const FILE: &str = "/proc/sys/kernel/pid_max";

    fn at_least(wanted: u32) -> io::Result<Self> {
        let before = fs::read_to_string(Self::FILE)?;
        if before.trim().parse().is_ok_and(|max: u32| max >= wanted) {
            return Ok(Self(None));
        }
        fs::write(Self::FILE, wanted.to_string()).map(|()| Self(Some(before)))
    }
}

impl Drop for PidMax {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Tasks above it live on; the machine's own limit holds for new ones.
            let _ = fs::write(Self::FILE, before);
        }
    }
}

/// Threads that sleep and connections that are idle, until the process is ended.
fn be_a_crowd() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push((TcpStream::connect(listener.local_addr()?)?, listener.accept()?));
    }
    let sleep = || {
        loop {
            thread::park();
        }
    };
    for _ in 0..THREADS {
        thread::Builder::new().stack_size(16 << 10).spawn(sleep)?;
    }
    sleep()
}

fn scrape(exporter: &Service, address: &str) -> Page {
    let page = Page::parse(&http::get(address, "/metrics", "").body);
    let failed: Vec<_> = page.of("kpulse_scrape_collector_success").filter(|(_, it)| *it != 1.0).collect();
    assert!(failed.is_empty(), "{failed:?}: {}", exporter.stderr());
    page
}

#[test]
fn fifty_thousand_threads_and_ten_thousand_sockets_are_counted_in_time() {
    if !is_root() {
        return skip("fifty_thousand_threads", "needs root");
    }
    let Ok(_pid_max) = PidMax::at_least(PROCESSES * u32::try_from(THREADS).unwrap() + PIDS) else {
        return skip("fifty_thousand_threads", "kernel.pid_max cannot be raised");
    };
    let exporter = Service::start(
        command(binary("kpulse-exporter")).env("KPULSE_EXPORTER__WEB__LISTEN_ADDRESS", "127.0.0.1:0"),
    );
    let address = exporter.logged("message=listening", "address");
    exporter.line("message=ready");
    let state = tempfile::tempdir().unwrap();
    let gateway = gateway::start(&mut gateway::command(state.path(), "run"));
    let api = gateway.logged("message=listening", "api");
    scrape(&exporter, &address);
    let at_rest = [exporter.pid(), gateway.pid()].map(rss_kib);

    let container = Cgroup::container("cpu", 0xc0fd).unwrap();
    let crowd: Vec<_> = (0..PROCESSES).map(|_| Worker::start(Some(&container), be_a_crowd)).collect();
    until("the crowd", || {
        crowd.iter().all(|it| status(it.pid(), "Threads") == Some(THREADS + 1)).then_some(())
    });

    let id = Cgroup::id(0xc0fd);
    until("the crowd's threads", || {
        let page = scrape(&exporter, &address);
        let tasks: f64 =
            page.of("kpulse_tasks").filter(|(name, _)| name.contains(&id)).map(|(_, tasks)| tasks).sum();
        (tasks >= f64::from(PROCESSES) * THREADS as f64).then_some(())
    });
    let established = "kpulse_tcp_connections{namespace=\"\",pod=\"\",container=\"\",container_id=\"\",state=\"established\"}";
    let sockets = 2.0 * f64::from(PROCESSES) * CONNECTIONS as f64;
    within(PACED, "the crowd's sockets", || {
        scrape(&exporter, &address).value(established).is_some_and(|told| told >= sockets).then_some(())
    });
    let port = drop_datagrams(3).unwrap();
    until("an event beside the crowd", || {
        let events = http::get(&api, "/api/v1/events?since=1m&kind=packet_drop&limit=1000", "").body;
        events.contains(&format!("\"port\":{port}")).then_some(())
    });
    for (service, at_rest) in [&exporter, &gateway].into_iter().zip(at_rest) {
        let grown = rss_kib(service.pid()).saturating_sub(at_rest);
        assert!(grown <= GROWTH_MAX_KIB, "it grew by {grown} KiB from {at_rest} KiB");
    }
}
