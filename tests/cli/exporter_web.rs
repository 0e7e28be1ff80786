//! kpulse-exporter behind TLS and passwords, as Prometheus, curl and those who try their luck meet it.

use crate::exporter::{exporter, ready};
use crate::prometheus::{Prometheus, certificate};
use kpulse_tests::process::{Ended, Service, command, run};
use kpulse_tests::{binary, http, is_root, skip, until};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

/// "secret", hashed with the least cost there is.
const HASH: &str = "$2y$04$abcdefghijklmnopqrstuOfrqeSITpvd1V.IA.l3/5qdGsljcj0dW";

/// The web configuration with TLS and the user alice.
fn protected() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (cert, key) = (certificate("server.pem"), certificate("server.key"));
    let text = format!(
        "tls_server_config: {{cert_file: {cert}, key_file: {key}}}\nbasic_auth_users: {{alice: {HASH}}}\n"
    );
    std::fs::write(file.path(), text).unwrap();
    file
}

fn flag(file: &Path) -> String {
    format!("--web.config.file={}", file.display())
}

/// Starts without a password at hand, so readiness is in the log.
fn ready_behind_tls(file: &Path) -> (Service, String) {
    let service = Service::start(exporter().arg(flag(file)));
    let address = service.logged("message=listening", "address");
    service.line("message=ready");
    (service, address)
}

/// What curl gets; it knows the authority.
fn curl(address: &str, path: &str, arguments: &[&str]) -> Ended {
    let mut curl = command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--cacert", &certificate("authority.pem")]);
    run(curl.args(arguments).arg(format!("https://{address}{path}")))
}

const ALICE: [&str; 2] = ["--user", "alice:secret"];

/// Answers plain requests with what the exporter says over TLS when it is asked for text alone: Prometheus 2.42 cannot
/// be told to.
fn relay_text(target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let page = curl(
                &target,
                "/metrics",
                &[&ALICE[..], &["--header", "Accept: text/plain;version=0.0.4"]].concat(),
            );
            let length = page.stdout.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{}",
                page.stdout
            );
        }
    });
    address
}

#[test]
fn prometheus_reads_every_format_over_tls_with_a_password_and_knows_quantiles() {
    let web = protected();
    let (mut service, address) = ready_behind_tls(web.path());
    let job = |password: &str| {
        format!(
            "{{job_name: kpulse, scheme: https, tls_config: {{ca_file: {}}}, basic_auth: {{username: alice, \
             password: {password}}}, static_configs: [{{targets: ['{address}']}}]}}",
            certificate("authority.pem")
        )
    };
    let text =
        format!("{{job_name: text, static_configs: [{{targets: ['{}']}}]}}", relay_text(address.clone()));
    let Some(classic) = Prometheus::start(&format!("{}, {text}", job("secret")), &[]) else {
        return skip("prometheus_reads_every_format", "prometheus is not installed");
    };
    let native = Prometheus::start(&job("secret"), &["--enable-feature=native-histograms"]).unwrap();
    let refused = Prometheus::start(&job("wrong"), &[]).unwrap();
    classic.is_content(2);
    native.is_content(1);
    // Only OpenMetrics names the family without `_total`, only text with it.
    assert_eq!(classic.kind("process_cpu_seconds"), "counter");
    assert_eq!(classic.kind("process_cpu_seconds_total"), "counter");
    assert_eq!(native.kind("process_cpu_seconds_total"), "counter");
    classic.becomes("count(kpulse_build_info)", 2.0);
    native.becomes("count(kpulse_build_info)", 1.0);
    refused.becomes("up", 0.0);
    if !is_root() {
        return skip("prometheus_reads_every_format", "histograms come from probes, which need root");
    }
    let quantile = |quantile: &str| {
        let of_job = |job: &str| {
            classic.number(&format!(
                "histogram_quantile({quantile}, sum by (le) (kpulse_runqueue_latency_seconds_bucket{{job=\"{job}\"}}))"
            ))
        };
        let native =
            native.number(&format!("histogram_quantile({quantile}, sum(kpulse_runqueue_latency_seconds))"));
        (of_job("kpulse"), of_job("text"), native)
    };
    for share in ["0.5", "0.9"] {
        let (open, text, native) = quantile(share);
        assert!(open > 0.0 && open < 32.0, "{share}: {open}");
        // The scrapes are seconds apart and the interpolation differs within a slot; slots are a factor of two.
        for other in [text, native] {
            assert!((0.2..5.0).contains(&(other / open)), "{share}: {open} and {other}");
        }
    }
    assert!(
        native.query("kpulse_runqueue_latency_seconds_bucket").is_empty(),
        "native histograms have no le"
    );
    let count = native.number("histogram_count(sum(kpulse_runqueue_latency_seconds))");
    let classic_count = classic.number("sum(kpulse_runqueue_latency_seconds_count{job=\"kpulse\"})");
    assert!(count > 0.0 && (0.2..5.0).contains(&(classic_count / count)), "{count} and {classic_count}");
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}

#[test]
fn a_wrong_password_and_no_password_see_nothing() {
    let web = protected();
    let (mut service, address) = ready_behind_tls(web.path());
    for path in ["/metrics", "/probes", "/-/healthy", "/-/ready", "/", "/nothing"] {
        for arguments in
            [&[][..], &["--user", "alice:wrong"], &["--user", "eve:secret"], &["--user", "alice:"]]
        {
            let answer = curl(&address, path, &[arguments, &["--write-out", " %{http_code}"]].concat());
            assert_eq!(answer.stdout, "Unauthorized\n 401", "{path} {arguments:?}");
        }
    }
    assert!(
        curl(&address, "/metrics", &ALICE).stdout.contains("kpulse_http_requests_total{code=\"401\"} 24\n")
    );
    assert!(
        !service.stderr().contains("secret") && !service.stderr().contains("$2y"),
        "{}",
        service.stderr()
    );
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn what_is_no_tls_is_shrugged_off() {
    let web = protected();
    let (mut service, address) = ready_behind_tls(web.path());
    let mut hello = vec![0x16, 0x03, 0x01, 0x40, 0x00, 0x01];
    hello.resize(20_000, 0xff);
    for garbage in [&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], &hello, &[0; 4096], b"\x80\x2e\x01"] {
        let mut stream = TcpStream::connect(&address).unwrap();
        // The server may close before it has taken all of it.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("kpulse"), "{answer:?}");
    }
    let silent: Vec<_> = (0..50).map(|_| TcpStream::connect(&address).unwrap()).collect();
    assert_eq!(curl(&address, "/-/healthy", &ALICE).code, Some(0));
    drop(silent);
    assert!(!service.stderr().contains("panicked"), "{}", service.stderr());
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_web_configuration_that_cannot_be_used_is_one_sentence_and_code_2() {
    for (text, part) in [
        ("tls_server_config: {cert_file: /nonexistent.pem, key_file: /nonexistent.key}", "/nonexistent"),
        ("basic_auth_users: {alice: plain}", "bcrypt"),
        ("unknown_key: 1", "unknown_key"),
        ("\0\u{1}", "not valid"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().display().to_string();
        for mut command in
            [exporter(), with_state("kpulse-event-gateway", "run"), with_state("kpulse-profiler", "serve")]
        {
            let ended = run(command.arg(flag(file.path())));
            assert_eq!(ended.code, Some(2), "{text}: {}", ended.stderr);
            let said = ended.stderr.lines().last().unwrap();
            assert!(said.contains(&path) && said.contains(part), "{text}: {said}");
        }
    }
    assert_eq!(run(exporter().arg("--web.config.file=/nonexistent.yml")).code, Some(2));
}

/// Another binary, whose files go away with the test.
fn with_state(name: &str, subcommand: &str) -> std::process::Command {
    let mut other = command(binary(name));
    other.arg(subcommand).args(["--web.listen-address=127.0.0.1:0", "--api.listen-address=127.0.0.1:0"]);
    other.env("KPULSE_STATE_DIR", std::env::temp_dir().join("kpulse-test-unused"));
    other
}

#[test]
fn an_unreadable_web_configuration_is_told_and_the_last_good_one_stays() {
    let web = protected();
    let good = std::fs::read_to_string(web.path()).unwrap();
    let (mut service, address) = ready_behind_tls(web.path());
    for bad in ["tls_server_config: [", ""] {
        std::fs::write(web.path(), bad).unwrap();
        until("complaint", || {
            assert_eq!(curl(&address, "/-/healthy", &ALICE).code, Some(0), "still served over TLS");
            assert_eq!(curl(&address, "/-/healthy", &[]).stdout, "Unauthorized\n");
            service.stderr().contains("web configuration stays as it was").then_some(())
        });
    }
    std::fs::write(web.path(), good.replace("alice", "bob")).unwrap();
    until("bob", || {
        let answer = curl(&address, "/-/healthy", &["--user", "bob:secret"]);
        answer.stdout.contains("is healthy").then_some(())
    });
    assert_eq!(curl(&address, "/-/healthy", &ALICE).stdout, "Unauthorized\n");
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn every_binary_serves_its_metrics_behind_the_same_file() {
    let web = protected();
    let state = tempfile::tempdir().unwrap();
    for (name, subcommand) in [("kpulse-event-gateway", "run"), ("kpulse-profiler", "serve")] {
        let mut other = with_state(name, subcommand);
        other.env("KPULSE_STATE_DIR", state.path()).arg(flag(web.path()));
        let mut service = Service::start(&mut other);
        let address = service.logged("message=listening", "web");
        let page = until("metrics", || {
            let page = curl(&address, "/metrics", &ALICE).stdout;
            page.contains("kpulse_build_info").then_some(page)
        });
        assert!(page.contains("kpulse_http_requests_total"), "{page}");
        assert_eq!(curl(&address, "/metrics", &[]).stdout, "Unauthorized\n");
        assert_eq!(service.stop(), Some(0), "{}", service.stderr());
    }
}

#[test]
fn serves_the_socket_that_systemd_opened() {
    if command("systemd-socket-activate").arg("--version").output().is_err() {
        return skip("serves_the_socket", "systemd-socket-activate is not installed");
    }
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut activate = command("systemd-socket-activate");
    activate.arg(format!("--listen={address}")).arg(binary("kpulse-exporter")).arg("--web.systemd-socket");
    let mut service = Service::start(&mut activate);
    let answer = until("answer", || http::request(&address, "GET", "/-/healthy", "").ok());
    assert_eq!((answer.status, answer.body.as_str()), (200, "kpulse-exporter is healthy.\n"));
    assert_eq!(service.logged("message=listening", "address"), address);
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
}

#[test]
fn without_a_socket_of_systemd_it_says_so() {
    let ended = run(exporter().arg("--web.systemd-socket"));
    assert_eq!((ended.code, ended.stderr.lines().count()), (Some(1), 1), "{}", ended.stderr);
    assert!(ended.stderr.contains("--web.systemd-socket"), "{}", ended.stderr);
}

#[test]
fn node_exporter_beside_it_shares_no_family() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut node = command("prometheus-node-exporter");
    if node.arg("--version").output().is_err() {
        return skip("node_exporter_beside_it", "prometheus-node-exporter is not installed");
    }
    let mut node = command("prometheus-node-exporter");
    let _node = Service::start(node.arg(format!("--web.listen-address={address}")));
    let (mut service, own) = ready(&mut exporter());
    let families = |page: &str| -> std::collections::BTreeSet<String> {
        let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        names.map(str::to_owned).collect()
    };
    let theirs = until("node_exporter", || http::request(&address, "GET", "/metrics", "").ok()).body;
    let ours = http::get(&own, "/metrics", "").body;
    let shared: Vec<_> = families(&ours).intersection(&families(&theirs)).cloned().collect();
    // Every exporter tells of its own process by these names; `instance` and `job` tell them apart.
    assert!(shared.iter().all(|name| name.starts_with("process_")), "{shared:?}");
    assert!(families(&theirs).len() > 50 && families(&ours).len() > 20);
    let jobs = format!("{{job_name: both, static_configs: [{{targets: ['{address}', '{own}']}}]}}");
    if let Some(prometheus) = Prometheus::start(&jobs, &[]) {
        prometheus.is_content(2);
    }
    assert_eq!(service.stop(), Some(0));
}
