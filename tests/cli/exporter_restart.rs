//! What restarts and late probes do to counters: within one process they only grow, and a new process says that it is one.

use crate::exporter::{exporter, ready};
use crate::prometheus::Prometheus;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::Worker;
use kpulse_tests::process::{Service, command};
use kpulse_tests::{binary, http, is_root, skip, until};
use std::os::unix::process::CommandExt;
use std::time::Duration;

const PROBE: &str = "runqueue_latency";
const WAITS: &str = "kpulse_runqueue_latency_seconds_count";
const START: &str = "process_start_time_seconds";
/// Enough for the exporter itself, and too few for a probe.
const FEW_DESCRIPTORS: u64 = 18;

/// The value of the only series that begins so.
fn value(address: &str, series: &str) -> Option<f64> {
    let page = http::request(address, "GET", "/metrics", "").ok()?.body;
    let line = page.lines().find(|line| line.starts_with(series))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[test]
fn a_restart_is_told_by_the_start_time_and_counters_begin_anew() {
    if !is_root() {
        return skip("a_restart_is_told_by_the_start_time", "probes need root");
    }
    let number = 0xd1;
    let container = Cgroup::container("cpu", number).unwrap();
    let series =
        format!("{WAITS}{{namespace=\"\",pod=\"\",container=\"\",container_id=\"{}\"}}", Cgroup::id(number));
    // Many waits at first, and few for each second from then on.
    let (first, then) = (300, Duration::from_millis(200));
    let _worker = Worker::start(Some(&container), || {
        (0..first).for_each(|_| std::thread::sleep(Duration::from_millis(5)));
        loop {
            std::thread::sleep(then);
        }
    });
    // A free port that was just released; nothing else takes one in between on a test machine.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut exporter = command(binary("kpulse-exporter"));
    exporter.env("KPULSE_EXPORTER__WEB__LISTEN_ADDRESS", &address);
    exporter.args(["--collector.disable-defaults", &format!("--collector.{PROBE}")]);
    let prometheus = Prometheus::start(
        &format!("{{job_name: kpulse, static_configs: [{{targets: ['{address}']}}]}}"),
        &[],
    );

    let (mut service, _) = ready(&mut exporter);
    // Half of it, since the probe came after the worker.
    let before = until("waits", || value(&address, &series).filter(|waits| *waits > f64::from(first) / 2.0));
    let start = value(&address, START).unwrap();
    if let Some(prometheus) = &prometheus {
        until("scrape", || (prometheus.number(&series) > f64::from(first) / 2.0).then_some(()));
    }
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());

    let (mut service, _) = ready(&mut exporter);
    let after = until("waits", || value(&address, &series));
    assert!(after < before, "{after} after {before}");
    assert!(value(&address, START).unwrap() > start);
    match prometheus {
        Some(prometheus) => {
            prometheus.becomes(&format!("resets({series}[5m])"), 1.0);
            prometheus.becomes(&format!("changes({START}{{job=\"kpulse\"}}[5m])"), 1.0);
        }
        None => skip("a_restart_is_told_by_the_start_time", "prometheus is not installed"),
    }
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}

/// Sets the soft limit of descriptors of a process, 0 for the caller.
fn limit_descriptors(pid: u32, limit: u64) -> std::io::Result<()> {
    let pid = libc::pid_t::try_from(pid).unwrap();
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` lives through both calls, and a null pointer is allowed.
    let outcome = unsafe {
        libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limits);
        limits.rlim_cur = limit.min(limits.rlim_max);
        libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limits, std::ptr::null_mut())
    };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn a_probe_that_lacked_descriptors_comes_up_when_there_are_more() {
    if !is_root() {
        return skip("a_probe_that_lacked_descriptors", "probes need root");
    }
    let mut exporter = exporter();
    exporter.args(["--collector.disable-defaults", "--collector.load_average"]);
    exporter.arg(format!("--collector.{PROBE}"));
    // SAFETY: the child only makes system calls before it runs the program.
    unsafe { exporter.pre_exec(|| limit_descriptors(0, FEW_DESCRIPTORS)) };
    let mut service = Service::start(&mut exporter);
    let address = service.logged("message=listening", "address");
    service.line("message=ready");
    let up = format!("kpulse_probe_up{{probe=\"{PROBE}\"}}");
    assert_eq!(value(&address, &up), Some(0.0), "{}", service.stderr());
    assert_eq!(value(&address, WAITS), None, "absent, not zero");
    let probes = http::get(&address, "/probes", "").body;
    assert!(probes.contains("\"failed\"") && probes.contains("Too many open files"), "{probes}");
    let start = value(&address, START);
    limit_descriptors(service.pid(), 1024).unwrap();
    service.line("probe is active after another attempt");
    assert_eq!(value(&address, &up), Some(1.0));
    until("waits", || value(&address, WAITS).filter(|waits| *waits > 0.0));
    let probes = http::get(&address, "/probes", "").body;
    assert!(!probes.contains("\"failed\""), "{probes}");
    assert_eq!(value(&address, START), start, "the same process");
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}
