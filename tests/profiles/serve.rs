//! `serve`: past profiles over HTTP, for the scopes and forms that are offered, and to this machine only.

use crate::program::{Running, Shares, compile, profiler, start};
use crate::skip;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

struct Served {
    child: Running,
    web: String,
    api: String,
}

fn serve() -> Served {
    let mut command = profiler();
    command.args(["serve", "--web.listen-address", "127.0.0.1:0", "--api.listen-address", "127.0.0.1:0"]);
    let mut child = Running(command.stderr(Stdio::piped()).spawn().expect("starts"));
    let mut lines = BufReader::new(child.0.stderr.take().expect("piped")).lines();
    let line = lines.find_map(|line| line.ok().filter(|line| line.contains("listening"))).expect("says where");
    let address = |key: &str| {
        let part = line.split_whitespace().find_map(|part| part.strip_prefix(key));
        part.unwrap_or_else(|| panic!("no {key} in {line}")).trim_matches('"').to_owned()
    };
    let (web, api) = (address("web="), address("api="));
    std::thread::spawn(move || lines.for_each(drop));
    Served { child, web, api }
}

/// Status and body.
fn get(address: &str, path: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
}

#[test]
fn serves_what_ran_until_it_is_told_to_stop() {
    if skip() {
        return;
    }
    let directory = tempfile::tempdir().expect("a folder");
    let program = start(&compile(directory.path()), 120);
    let mut served = serve();
    let ask = |path: &str| get(&served.api, path, "localhost");
    let path = format!("/api/v1/profile?scope=process&pid={}&seconds=60", program.pid());
    let deadline = Instant::now() + Duration::from_secs(60);
    let shares = loop {
        let shares = Shares::of(&ask(&path).1);
        if shares.samples >= 50 || Instant::now() > deadline {
            break shares;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(shares.samples >= 50 && shares.whole > 90.0, "{shares:?}");

    let json: serde_json::Value = serde_json::from_str(&ask(&format!("{path}&format=json")).1).expect("JSON");
    assert!(json["stacks"][0]["frames"].as_array().is_some_and(|frames| frames.iter().any(|name| name == "main")));
    assert!(!json.to_string().contains("0xffff"), "kernel addresses stay in the kernel");
    let (status, svg) = ask(&format!("{path}&format=svg"));
    assert!(status == 200 && svg.contains("hot ("), "{status}");
    let targets: serde_json::Value = serde_json::from_str(&ask("/api/v1/targets?seconds=60").1).expect("JSON");
    let processes = targets["targets"]["processes"].as_array().expect("a list");
    let listed = processes.iter().any(|process| process["pid"] == program.pid() && process["name"] == "chain");
    assert!(listed, "{targets}");
    let (status, page) = ask("/");
    assert!(status == 200 && page.contains(&format!("pid={}", program.pid())), "{page}");
    assert_eq!(ask("/api/v1/profile?scope=process").0, 400);
    assert_eq!(ask("/nothing").0, 404);
    assert_eq!(get(&served.api, "/", "rebound.example").0, 403);

    assert_eq!(get(&served.web, "/-/healthy", "any").0, 200);
    assert_eq!(get(&served.web, "/-/ready", "any"), (200, "kpulse-profiler is ready.\n".to_owned()));
    assert!(get(&served.web, "/probes", "any").1.contains("cpu_sample"));
    let metrics = get(&served.web, "/metrics", "any").1;
    let value = |name: &str| -> f64 {
        let values = metrics.lines().filter(|line| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']));
        values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let taken = value("kpulse_profiler_samples_total");
    let kept = value("kpulse_profiler_samples_stored_total") + value("kpulse_profiler_samples_lost_total");
    assert!(taken > 0.0 && taken == kept, "{taken} taken, {kept} stored or lost");
    assert!(value("kpulse_profiler_history_bytes") > 0.0);

    let pid = i32::try_from(served.child.pid()).expect("a pid");
    // SAFETY: the pid is that of a child that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert_eq!(served.child.0.wait().expect("ends").code(), Some(0));
}
