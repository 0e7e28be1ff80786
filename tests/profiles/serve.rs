//! `serve`: past profiles over HTTP, for the scopes and forms that are offered, and to this machine only.

use crate::needs_root;
use crate::outputs::go_pprof;
use crate::program::{Shares, compile, start};
use kpulse_tests::process::Service;
use kpulse_tests::profile::{parse, profiler};
use kpulse_tests::workload::Running;
use kpulse_tests::{http, until, within};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// With its history in this folder.
fn serve(state: &Path) -> Command {
    let mut command = profiler();
    command.args(["serve", "--web.listen-address=127.0.0.1:0", "--api.listen-address=127.0.0.1:0"]);
    command.env("KPULSE_STATE_DIR", state.join("state"));
    command
}

#[test]
fn serves_what_ran_until_it_is_told_to_stop() {
    const TEST: &str = "serves_what_ran_until_it_is_told_to_stop";
    needs_root!(TEST);
    let directory = tempfile::tempdir().expect("a folder");
    let program = start(&compile(directory.path()), 120);
    let mut service = Service::start(&mut serve(directory.path()));
    let (web, api) = (service.logged("message=listening", "web"), service.logged("message=listening", "api"));
    let ask = |path: &str| http::get(&api, path, "");
    let path = format!("/api/v1/profile?scope=process&pid={}&seconds=60", program.pid());
    let shares = until("profile of the program", || {
        Some(Shares::of(&ask(&path).body)).filter(|shares| shares.samples >= 50)
    });
    assert!(shares.whole > 90.0, "{shares:?}");

    let json: serde_json::Value =
        serde_json::from_str(&ask(&format!("{path}&format=json")).body).expect("JSON");
    assert!(
        json["stacks"][0]["frames"].as_array().is_some_and(|frames| frames.iter().any(|name| name == "main"))
    );
    assert!(!json.to_string().contains("0xffff"), "kernel addresses stay in the kernel");
    let svg = ask(&format!("{path}&format=svg"));
    assert!(svg.status == 200 && svg.body.contains("hot ("), "{}", svg.headers);
    assert!(
        svg.headers.to_lowercase().contains("content-security-policy: default-src 'none'"),
        "{}",
        svg.headers
    );
    for (format, field) in [("speedscope", "profiles"), ("firefox", "threads")] {
        let answer = ask(&format!("{path}&format={format}"));
        let json: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        assert!(json[field].as_array().is_some_and(|threads| !threads.is_empty()), "{json}");
    }
    let pid = program.pid();
    if let Some(top) = go_pprof(TEST, &format!("http://{api}/debug/pprof/profile?pid={pid}&seconds=60")) {
        assert!(top.contains(" hot\n"), "{top}");
    }
    assert_eq!(ask(&format!("{path}&ago=3600")).status, 503, "nothing is that old");
    let compared = ask(&format!("{path}&baseline=3600"));
    assert!(compared.status == 503, "{}", compared.body);
    let targets: serde_json::Value =
        serde_json::from_str(&ask("/api/v1/targets?seconds=60").body).expect("JSON");
    let processes = targets["targets"]["processes"].as_array().expect("a list");
    let listed =
        processes.iter().any(|process| process["pid"] == program.pid() && process["name"] == "chain");
    assert!(listed, "{targets}");
    let page = ask("/");
    assert!(page.status == 200 && page.body.contains(&format!("pid={}", program.pid())), "{}", page.body);
    assert_eq!(ask("/api/v1/profile?scope=process").status, 400);
    assert_eq!(ask("/nothing").status, 404);

    assert_eq!(http::get(&web, "/-/healthy", "").status, 200);
    assert_eq!(http::get(&web, "/-/ready", "").body, "kpulse-profiler is ready.\n");
    assert!(http::get(&web, "/probes", "").body.contains("\"cpu_sample\",\"state\":\"active\""));
    let metrics = http::get(&web, "/metrics", "").body;
    let value = |name: &str| -> f64 {
        let values = metrics
            .lines()
            .filter(|line| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']));
        values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let taken = value("kpulse_profiler_samples_total");
    let kept = value("kpulse_profiler_samples_stored_total") + value("kpulse_profiler_samples_lost_total");
    assert!(taken > 0.0 && taken == kept, "{taken} taken, {kept} stored or lost");
    assert!(value("kpulse_profiler_history_bytes") > 0.0);

    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}

#[test]
fn what_ran_before_a_kill_is_answered_after_it_with_the_same_counts() {
    needs_root!("what_ran_before_a_kill_is_answered_after_it_with_the_same_counts");
    let directory = tempfile::tempdir().expect("a folder");
    let began = seconds();
    let program = start(&compile(directory.path()), 120);
    let pid = program.pid();
    let start = || Service::start(serve(directory.path()).arg("--history.window=2s"));
    let ask =
        |service: &Service, path: &str| http::get(&service.logged("message=listening", "api"), path, "");
    let written = |service: &Service| {
        let metrics = http::get(&service.logged("message=listening", "web"), "/metrics", "").body;
        let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
        let disk = "kpulse_profiler_history_windows{place=\"disk\"}";
        metrics.lines().find(|line| line.starts_with(disk)).and_then(value)
    };
    let mut service = start();
    until("windows on the disk", || written(&service).filter(|windows| *windows >= 3.0));
    let ended = seconds();
    drop(program);
    // A later window tells that all of the stretch are closed.
    let windows = written(&service).expect("there is a disk");
    until("two more windows", || written(&service).filter(|later| *later >= windows + 2.0));
    let path = format!("/api/v1/profile?scope=process&pid={pid}&from={began}&until={ended}&format=");
    let before = ask(&service, &format!("{path}folded"));
    let shares = Shares::of(&before.body);
    assert!(before.status == 200 && shares.samples >= 50, "{shares:?} {}", before.body);
    let raw = |service: &Service| ask(service, &format!("{path}json")).body;
    let json = raw(&service);
    service.signal(libc::SIGKILL);
    service.wait();

    let mut again = start();
    assert_eq!(ask(&again, &format!("{path}folded")).body, before.body);
    assert_eq!(raw(&again), json);
    let pprof = directory.path().join("yesterday.pprof");
    let api = again.logged("message=listening", "api");
    let url = format!("http://{api}{path}pprof");
    let got = Command::new("curl").args(["-sf", "-o"]).arg(&pprof).arg(&url).status().expect("curl runs");
    assert!(got.success());
    let unpacked = Command::new("gzip").arg("-dc").arg(&pprof).output().expect("gzip runs").stdout;
    let program = directory.path().join("chain").display().to_string();
    let is_named = unpacked.windows(program.len()).any(|part| part == program.as_bytes());
    assert!(is_named, "the program is gone, and its path is known");
    let listed = ask(&again, &format!("/api/v1/targets?from={began}&until={ended}")).body;
    assert!(listed.contains(&format!("\"pid\":{pid}")), "{listed}");
    assert_eq!(again.stop(), Some(0), "{}", again.stderr());
}

/// The document that Chromium makes of an address, after its scripts have run; `None` where there is no Chromium, which is told.
fn seen_by_chromium(test: &str, address: &str) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut chromium = Command::new("chromium");
    // Nobody else's pages are opened, so it may run as root, whom its sandbox does not take.
    chromium.args([
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]);
    chromium.arg(format!("--user-data-dir={}", folder.path().display()));
    chromium.args(["--window-size=800,600", "--virtual-time-budget=5000", "--dump-dom", address]);
    match chromium.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).expect("text"))
        }
        Err(error) => {
            kpulse_tests::skip(test, &format!("chromium does not run: {error}"));
            None
        }
    }
}

#[test]
fn a_browser_shows_the_page_and_runs_the_flame_graph() {
    const TEST: &str = "a_browser_shows_the_page_and_runs_the_flame_graph";
    needs_root!(TEST);
    let directory = tempfile::tempdir().expect("a folder");
    let program = start(&compile(directory.path()), 120);
    let service = Service::start(&mut serve(directory.path()));
    let api = service.logged("message=listening", "api");
    let path = format!("/api/v1/profile?scope=process&pid={}&seconds=60&format=svg", program.pid());
    let picture = until("a profile of the program", || {
        Some(http::get(&api, &path, ""))
            .filter(|answer| answer.status == 200 && answer.body.contains("hot ("))
    });
    let Some(seen) = seen_by_chromium(TEST, &format!("http://{api}{path}")) else { return };
    // Its script moves what stands at the right edge of the picture to that of the window.
    let right_edge = |svg: &str| {
        let search = svg.split_once("id=\"search\"").expect("a search").1;
        let x = search.split_once(" x=\"").expect("a place").1;
        x.split('"').next().and_then(|x| x.parse::<f64>().ok()).expect("a number")
    };
    assert!(seen.contains(">hot (") && right_edge(&seen) < 800.0, "{seen}");
    assert!(right_edge(&picture.body) > 800.0, "{}", picture.body);
    let Some(page) = seen_by_chromium(TEST, &format!("http://{api}/")) else { return };
    let target = format!("pid={}", program.pid());
    assert!(page.contains("<iframe") && page.contains(&target), "{page}");
}

#[test]
fn a_process_that_becomes_another_program_is_named_as_what_it_was() {
    const TEST: &str = "a_process_that_becomes_another_program_is_named_as_what_it_was";
    const LONG: Duration = Duration::from_secs(120);
    needs_root!(TEST);
    let directory = tempfile::tempdir().expect("a folder");
    let (chain, go) = (compile(directory.path()), directory.path().join("go"));
    let mut shell = Command::new("sh");
    shell.args(["-c", "until [ -e \"$1\" ]; do :; done; exec \"$0\" 300"]).arg(chain).arg(&go);
    let program = Running(shell.spawn().expect("a shell runs"));
    let service = Service::start(&mut serve(directory.path()));
    let api = service.logged("message=listening", "api");
    let path = format!("/api/v1/profile?scope=process&pid={}&seconds=600", program.pid());
    let folded = || http::get(&api, &path, "").body;
    let of_shell = |folded: &str| -> Vec<_> {
        parse(folded).into_iter().filter(|line| line.frames[0] == "sh").collect()
    };
    let before = within(LONG, "samples of the shell", || {
        let samples: u64 = of_shell(&folded()).iter().map(|line| line.count).sum();
        (samples >= 200).then_some(samples)
    });
    std::fs::write(go, "").expect("can be written");
    let folded = within(LONG, "samples of the program", || {
        Some(folded()).filter(|folded| Shares::of(folded).samples >= 1_000)
    });
    Shares::of(&folded).assert_true();
    let shell = of_shell(&folded);
    assert!(shell.iter().map(|line| line.count).sum::<u64>() >= before);
    let is_of_chain = |frame: &String| ["hot", "other", "middle", "outer"].contains(&frame.as_str());
    assert!(!shell.iter().any(|line| line.frames.iter().any(is_of_chain)), "{folded}");
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_secs()
}
