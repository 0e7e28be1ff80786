//! A gateway that stands still for seconds while the kernel drops more than its ring holds.

use crate::gateway;
use crate::page::Page;
use kpulse_tests::network::drop_datagrams;
use kpulse_tests::{http, is_root, skip, until};
use std::time::{Duration, Instant};

const STOPPED: Duration = Duration::from_secs(5);
const NO_LIMIT: &str = "thresholds: {rate_limit: {events_per_second: 1000000000, burst: 1000000000}}\n";

#[test]
fn a_gateway_that_stood_still_accounts_for_every_drop_and_goes_on() {
    if !is_root() {
        return skip("a_gateway_that_stood_still", "needs root");
    }
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("gateway.yaml");
    std::fs::write(&file, NO_LIMIT).unwrap();
    let gateway = gateway::start(gateway::command(state.path(), "run").arg("--config.file").arg(&file));
    let (web, api) = (gateway.logged("message=listening", "web"), gateway.logged("message=listening", "api"));
    gateway.signal(libc::SIGSTOP);
    let (stopped, mut dropped) = (Instant::now(), 0);
    while stopped.elapsed() < STOPPED {
        drop_datagrams(500).unwrap();
        dropped += 500;
    }
    gateway.signal(libc::SIGCONT);
    let page = until("equal sums", || {
        let page = Page::parse(&http::get(&web, "/metrics", "").body);
        let of = |family: &str| page.sum(&format!("{family}{{probe=\"packet_drop\""));
        let accounted = of("kpulse_events_stored_total") + of("kpulse_records_lost_total");
        // Some kernels of sandboxes run no program for a packet in twenty.
        let is_whole = accounted >= f64::from(dropped) * 0.9;
        (of("kpulse_events_produced_total") == accounted && is_whole).then_some(page)
    });
    let full = page.sum("kpulse_records_lost_total{probe=\"packet_drop\",reason=\"ring_full\"}");
    assert!(full > 0.0, "{dropped} drops filled no ring");
    let port = drop_datagrams(3).unwrap();
    until("events of what was dropped afterwards", || {
        let events = http::get(&api, "/api/v1/events?since=1m&kind=packet_drop&limit=1000", "").body;
        events.contains(&format!("\"port\":{port}")).then_some(())
    });
}
