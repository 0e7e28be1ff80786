//! kpulse-exporter against clients that ask for too much, too slowly or for nonsense, and collectors that hang.

use crate::exporter::{exporter, ready};
use kpulse_tests::process::Service;
use kpulse_tests::{http, is_root, skip, until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TEXT: &str = "content-type: text/plain; version=0.0.4; charset=utf-8";

/// An exporter with a `/proc` of our own in which `loadavg` is a pipe: whoever opens it waits for a writer.
struct Hanging {
    folder: tempfile::TempDir,
}

impl Hanging {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        assert!(Command::new("mkfifo").arg(folder.path().join("loadavg")).status().unwrap().success());
        std::fs::write(folder.path().join("vmstat"), "pgscan_direct 7\n").unwrap();
        Self { folder }
    }

    /// From now on `loadavg` is a file with this text, which whoever waits gets too.
    fn goes_on(&self, text: &str) {
        let [file, pipe] = ["loadavg", "pipe"].map(|name| self.folder.path().join(name));
        std::fs::rename(&file, &pipe).unwrap();
        std::fs::write(file, text).unwrap();
        std::fs::write(pipe, text).unwrap();
    }

    fn exporter(&self) -> Command {
        let mut command = exporter();
        command.arg(format!("--path.procfs={}", self.folder.path().display()));
        command.args(["--collector.disable-defaults", "--collector.load_average", "--collector.vmstat"]);
        command
    }
}

fn success(page: &str, collector: &str) -> Option<bool> {
    let start = format!("kpulse_scrape_collector_success{{collector=\"{collector}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)).map(|value| value == "1")
}

/// Whole answers as they are, headers and body apart.
fn bytes(address: &str, method: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(kpulse_tests::DEADLINE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    (String::from_utf8(answer[..end].to_vec()).unwrap(), answer[end + 4..].to_vec())
}

fn through(program: &str, packed: &[u8]) -> Option<String> {
    let mut command = Command::new(program);
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let mut stdin = child.stdin.take().unwrap();
    let packed = packed.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&packed));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{program}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn an_accept_that_nobody_understands_gives_text() {
    let (mut service, address) = ready(&mut exporter());
    for accept in [
        "",
        "*/*",
        "application/json",
        ";;;,,,",
        "application/openmetrics-text;q=many",
        "application/openmetrics-text;version=2.0.0",
        "application/vnd.google.protobuf",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
        &"text/plain,".repeat(2000),
    ] {
        let answer = http::get(&address, "/metrics", &format!("Accept: {accept}\r\n"));
        assert_eq!(answer.status, 200, "{accept}");
        assert!(answer.headers.contains(TEXT) && answer.body.contains("kpulse_build_info"), "{accept}");
    }
    // Bytes that are no text in a header.
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nAccept: \xff\xfe\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains(TEXT), "{answer}");
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn compresses_as_asked_and_head_has_the_headers_of_get() {
    let (mut service, address) = ready(&mut exporter());
    for (accept, coding, program) in [
        ("gzip", Some("gzip"), "gzip"),
        ("zstd", Some("zstd"), "zstd"),
        ("gzip;q=0.5, zstd;q=0.4", Some("gzip"), "gzip"),
        ("gzip, zstd", Some("zstd"), "zstd"),
        ("br, deflate", None, "cat"),
        ("gzip;q=0", None, "cat"),
        ("gzip;q=x", None, "cat"),
    ] {
        let header = format!("Accept-Encoding: {accept}\r\n");
        let (headers, body) = bytes(&address, "GET", "/metrics", &header);
        let told = headers.lines().find_map(|line| line.strip_prefix("content-encoding: "));
        assert_eq!(told, coding, "{accept}");
        assert!(headers.contains(&format!("content-length: {}", body.len())), "{headers}");
        assert!(headers.contains("vary: accept, accept-encoding"), "{headers}");
        let plain =
            if program == "cat" { Some(String::from_utf8(body).unwrap()) } else { through(program, &body) };
        match plain {
            Some(plain) => assert!(plain.contains("\nkpulse_build_info{"), "{accept}: {plain}"),
            None => skip("compresses_as_asked", &format!("{program} is not installed")),
        }
        let (head, body) = bytes(&address, "HEAD", "/metrics", &header);
        assert!(body.is_empty() && head.contains("content-length: "), "{head}");
        assert_eq!(head.lines().find_map(|line| line.strip_prefix("content-encoding: ")), coding, "{head}");
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_collector_that_hangs_is_dropped_in_time_and_holds_nothing_up() {
    let hanging = Hanging::new();
    let service = Service::start(&mut hanging.exporter());
    let address = service.logged("message=listening", "address");
    let scrape = || {
        let start = Instant::now();
        let page = http::get(&address, "/metrics", "X-Prometheus-Scrape-Timeout-Seconds: 2\r\n").body;
        (page, start.elapsed())
    };
    let (page, took) = scrape();
    assert_eq!(
        (success(&page, "load_average"), success(&page, "vmstat")),
        (Some(false), Some(true)),
        "{page}"
    );
    assert!(
        page.contains("kpulse_vmstat_pgscan_direct_total 7\n") && !page.contains("kpulse_load_average{"),
        "{page}"
    );
    assert!(took >= Duration::from_millis(1700), "it had its 0.9 of the time: {took:?}");
    // From then on nobody waits for it.
    for _ in 0..10 {
        let page = scrape().0;
        assert_eq!(
            (success(&page, "load_average"), success(&page, "vmstat")),
            (Some(false), Some(true)),
            "{page}"
        );
    }
    let count = service.stderr().matches("collector=load_average").count();
    // The first reading after loading may come before or behind it.
    assert!(count <= 3, "late or busy, told when it changes: {}", service.stderr());
    hanging.goes_on("0.25 0.5 0.75 1/2 3\n");
    until("the collector to come back", || {
        let page = scrape().0;
        (success(&page, "load_average") == Some(true)
            && page.contains("kpulse_load_average{window=\"1m\"} 0.25\n"))
        .then_some(())
    });
    service.line("collector works again");
}

#[test]
fn a_timeout_that_makes_no_sense_is_no_timeout() {
    let (mut service, address) = ready(&mut exporter());
    for timeout in ["0", "-1", "NaN", "inf", "soon", "", "1e300"] {
        let header = format!("X-Prometheus-Scrape-Timeout-Seconds: {timeout}\r\n");
        let page = http::get(&address, "/metrics", &header).body;
        assert_eq!(success(&page, "load_average"), Some(true), "{timeout}");
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn huge_slow_and_silent_clients_keep_nobody_out() {
    let (mut service, address) = ready(&mut exporter());
    let huge = format!("X-Huge: {}\r\n", "a".repeat(1 << 20));
    let mut stream = TcpStream::connect(&address).unwrap();
    // The server may close before it has taken all of it.
    let _ = write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n{huge}\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("kpulse_build_info"));
    // Some send a byte and wait; some ask and never read.
    let mut waiting: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    for (index, stream) in waiting.iter_mut().enumerate() {
        let said = if index % 2 == 0 { "G" } else { "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" };
        stream.write_all(said.as_bytes()).unwrap();
    }
    until("an answer beside them", || {
        let answer = http::request(&address, "GET", "/metrics", "").ok()?;
        answer.body.contains("kpulse_build_info").then_some(())
    });
    drop(waiting);
    assert!(!service.stderr().contains("panicked"), "{}", service.stderr());
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_hundred_clients_at_once_get_a_whole_answer_or_503() {
    let (mut service, address) = ready(&mut exporter());
    // They wait for each other.
    let patient = "X-Prometheus-Scrape-Timeout-Seconds: 60\r\n";
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || http::get(&address, "/metrics", patient))
        })
        .collect();
    let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let whole = answers.iter().filter(|it| it.status == 200).count();
    assert!(whole > 0);
    for answer in &answers {
        match answer.status {
            200 => {
                assert_eq!(success(&answer.body, "load_average"), Some(true), "{}", answer.body);
                assert!(answer.headers.contains(&format!("content-length: {}", answer.body.len())));
            }
            status => assert_eq!(status, 503),
        }
    }
    let page = http::get(&address, "/metrics", "").body;
    let counted = |code: u16| {
        let start = format!("kpulse_http_requests_total{{code=\"{code}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
    };
    // One more was asked for readiness.
    assert_eq!((counted(200), counted(503)), (whole + 1, 100 - whole), "{page}");
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn label_values_may_hold_anything() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("net")).unwrap();
    let dev = |device: &[u8]| {
        let mut text = b"Inter-| Receive\n face |bytes\n".to_vec();
        text.extend_from_slice(device);
        text.extend_from_slice(b": 42 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n");
        std::fs::write(folder.path().join("net/dev"), text).unwrap();
    };
    dev(b"a\"b\\c{}=,");
    let mut command = exporter();
    command.arg(format!("--path.procfs={}", folder.path().display()));
    let (mut service, address) = ready(command.args(["--collector.disable-defaults", "--collector.netdev"]));
    let host = "namespace=\"\",pod=\"\",container=\"\",container_id=\"\"";
    let sample = format!("kpulse_netdev_receive_bytes_total{{{host},device=\"a\\\"b\\\\c{{}}=,\"}} 42\n");
    let open = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    for accept in ["", open] {
        let page = http::get(&address, "/metrics", accept).body;
        assert!(page.contains(&sample), "{page}");
    }
    let protobuf = "Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\r\n";
    let (headers, body) = bytes(&address, "GET", "/metrics", protobuf);
    assert!(headers.contains("application/vnd.google.protobuf"), "{headers}");
    assert!(body.windows(9).any(|found| found == b"a\"b\\c{}=,"), "as it is");
    // What is no UTF-8 cannot be a label, and costs this collector alone.
    dev(b"a\xff\xfe");
    let page = http::get(&address, "/metrics", "").body;
    assert_eq!(success(&page, "netdev"), Some(false), "{page}");
    assert!(page.contains("kpulse_build_info"), "{page}");
    assert_eq!(service.stop(), Some(0));
}

/// A field of a thread's status, such as a set of capabilities.
fn field(task: &Path, name: &str) -> String {
    let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}

#[test]
fn keeps_only_the_capabilities_of_a_scrape_and_scrapes_with_them() {
    if !is_root() {
        return skip("keeps_only_the_capabilities", "only root has any to give up");
    }
    let (mut service, address) = ready(&mut exporter());
    let tasks = || {
        let folder = format!("/proc/{}/task", service.pid());
        let tasks: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        tasks
    };
    // CAP_DAC_READ_SEARCH, CAP_SYSLOG, CAP_BPF; and CAP_SYS_ADMIN with the first where runs are counted.
    let scrape: u64 = 1 << 2 | 1 << 34 | 1 << 39;
    let counting: u64 = 1 << 2 | 1 << 21;
    until("the loading thread to end", || {
        let sets = tasks().into_iter().map(|task| (field(&task, "Name:"), field(&task, "CapPrm:")));
        sets.filter(|(name, _)| !name.is_empty())
            .all(|(name, set)| {
                let set = u64::from_str_radix(&set, 16).unwrap_or(u64::MAX);
                let allowed = if name == "statistics" { counting } else { scrape };
                set & !allowed == 0
            })
            .then_some(())
    });
    for task in tasks() {
        assert_ne!(field(&task, "NoNewPrivs:"), "0", "{}", task.display());
    }
    let page = http::get(&address, "/metrics", "").body;
    let probes: Vec<serde_json::Value> =
        serde_json::from_str(&http::get(&address, "/probes", "").body).unwrap();
    let active = probes.iter().filter(|probe| probe["state"] == "active");
    let names: Vec<_> = active.map(|probe| probe["name"].as_str().unwrap().to_owned()).collect();
    assert!(!names.is_empty(), "{probes:?}");
    for name in &names {
        assert_eq!(success(&page, name), Some(true), "{name} is read with what is left: {page}");
    }
    // The first window of counting is over a second after loading.
    until("runs of every probe", || {
        let page = http::get(&address, "/metrics", "").body;
        let is_told = |name: &String| page.contains(&format!("kpulse_probe_runs_total{{probe=\"{name}\"}}"));
        names.iter().all(is_told).then_some(())
    });
    // A container that comes after the capabilities went is found by its id.
    let Ok(cgroup) = kpulse_tests::cgroup::Cgroup::container("cpu", 0xcafe) else {
        return skip("keeps_only_the_capabilities", "no cgroup can be made here");
    };
    let id = kpulse_tests::cgroup::Cgroup::id(0xcafe);
    let entered = cgroup.path().to_owned();
    let mut busy = Command::new("sh");
    busy.args(["-c", &format!("echo $$ >{}/cgroup.procs; while :; do sleep 0.01; done", entered.display())]);
    let mut busy = busy.spawn().unwrap();
    let series = format!("container_id=\"{id}\"");
    until("series of the container", || {
        let page = http::get(&address, "/metrics", "").body;
        page.lines()
            .any(|line| line.starts_with("kpulse_runqueue_latency_seconds_count") && line.contains(&series))
            .then_some(())
    });
    busy.kill().unwrap();
    busy.wait().unwrap();
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}
