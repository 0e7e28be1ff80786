//! What does the way of events through Kafka into Elasticsearch take, of CPU, memory and time? `tests/overhead/run.sh
//! pipeline` runs it, between the real services. Their own CPU stands beside ours: who is the bottleneck?
//!
//!   pipeline_costs [partitions | spool | alone | delay | ring]...    only these parts
//!
//! Each line of the output is `what`, `measured`, `unit`, `target` with tabs between, or `what` and why there is no figure.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on ends here")]

mod load;
mod stub;
mod usage;

use kpulse_tests::process::{Service, gateway};
use kpulse_tests::services::{Kind, Server};
use kpulse_tests::{binary, http, is_root, within};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use usage::{Usage, peak_mib};

const EVENTS: u64 = 100_000;
const PARTITIONS: [u32; 3] = [1, 3, 12];
/// Events a second of the measurement of delays, and how long it takes.
const PACE: (u64, Duration) = (5_000, Duration::from_secs(20));
/// How long the kernel's events are made.
const FLOOD: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(600);
/// How often the file is sent to the topic that is read for no Elasticsearch: a short run is mostly its start.
const TIMES: u64 = 3;
const DECODE: &str = "KPULSE_GATEWAY__ELASTICSEARCH__DECODE";

fn row(what: &str, measured: f64, unit: &str, target: &str) {
    println!("{what}\t{measured:.1}\t{unit}\t{target}");
}

struct Bench {
    folder: tempfile::TempDir,
    kafka: Server,
    elasticsearch: Server,
    events: u64,
}

impl Bench {
    fn start() -> Result<Self, String> {
        for kind in [Kind::Kafka, Kind::Elasticsearch] {
            kind.install()?;
        }
        let folder = tempfile::tempdir().unwrap();
        let kafka = Server::start(Kind::Kafka, &folder.path().join("kafka"), &[]);
        let elasticsearch = Server::start(Kind::Elasticsearch, &folder.path().join("elasticsearch"), &[]);
        let events = std::env::var("PIPELINE_EVENTS").map_or(EVENTS, |text| text.parse().unwrap());
        Ok(Self { folder, kafka, elasticsearch, events })
    }

    fn millions(&self) -> f64 {
        self.events as f64 / 1e6
    }

    fn command(&self, subcommand: &str, name: &str) -> Command {
        let program = binary("kpulse-event-gateway");
        let mut command = gateway(program, &self.folder.path().join(format!("state-{name}")), subcommand);
        for (key, value) in [
            ("KAFKA__BROKERS", self.kafka.address()),
            ("KAFKA__TOPIC", name.to_owned()),
            ("KAFKA__DEAD_LETTER_TOPIC", format!("{name}-dead")),
            ("KAFKA__GROUP", name.to_owned()),
            ("ELASTICSEARCH__URL", format!("http://{}", self.elasticsearch.address())),
            ("ELASTICSEARCH__DATA_STREAM", format!("logs-kpulse.events-{name}")),
        ] {
            command.env(format!("KPULSE_GATEWAY__{key}"), value);
        }
        command
    }

    fn set_up(&self, name: &str, partitions: u32) {
        let mut command = self.command("setup", name);
        command.env("KPULSE_GATEWAY__KAFKA__PARTITIONS", partitions.to_string()).stdout(Stdio::null());
        let status = command.status();
        assert!(status.unwrap().success(), "setup failed");
    }

    /// Sends a file with these events; what that took.
    fn send(&self, name: &str, file: &Path) -> Usage {
        let mut forward = Service::start(self.command("forward", name).arg("--input").arg(file));
        let mut peak = 0.0_f64;
        within(LONG, "end of the file", || {
            peak = peak.max(peak_mib(forward.pid()));
            forward.has_ended().then_some(())
        });
        let used = Usage { peak_mib: peak, ..Usage::of(forward.pid()) };
        assert!(forward.wait().success(), "{}", forward.stderr());
        used
    }

    /// Fills the spool while Kafka is away; what that took.
    fn fill_spool(&mut self, name: &str, file: &Path) -> Usage {
        let bytes = file.metadata().unwrap().len();
        self.kafka.kill();
        let mut forward = Service::start(self.command("forward", name).arg("--input").arg(file));
        let state = self.folder.path().join(format!("state-{name}"));
        let size = |file: &str| state.join(file).metadata().map_or(0, |it| it.len());
        let mut grown = (0, Instant::now());
        // The whole file is in it when it does not grow any more.
        within(LONG, "a full spool", || {
            let size = size("spool.db") + size("spool.db-wal");
            if size != grown.0 {
                grown = (size, Instant::now());
            }
            (size >= bytes && grown.1.elapsed() > Duration::from_secs(3)).then_some(())
        });
        let used = Usage::of(forward.pid());
        forward.stop();
        self.kafka.resume();
        used
    }

    /// Starts `index`.
    fn index(&self, name: &str, decode: &str) -> Service {
        Self::ready(self.command("index", name).env(DECODE, decode))
    }

    fn ready(index: &mut Command) -> Service {
        let index = Service::start(index);
        index.line("message=ready");
        index
    }

    /// What `index` itself takes: of a member that is alone with Kafka, and Elasticsearch takes all at once.
    fn measure_index_alone(&self, name: &str, decode: &str, target: &str) {
        let events = TIMES * self.events;
        let mut command = self.command("index", name);
        command.env("KPULSE_GATEWAY__ELASTICSEARCH__URL", format!("http://{}", stub::start()));
        command.env("KPULSE_GATEWAY__KAFKA__GROUP", format!("{name}-{decode}")).env(DECODE, decode);
        let begin = Instant::now();
        let mut index = Self::ready(&mut command);
        within(LONG, "acknowledgements", || {
            (metric(&index, "kpulse_index_documents_total ").unwrap_or(0.0) >= events as f64).then_some(())
        });
        let (took, used) = (begin.elapsed().as_secs_f64(), Usage::of(index.pid()));
        let million = events as f64 / 1e6;
        row(
            &format!("index alone, {decode}, of a million events"),
            used.cpu.as_secs_f64() / million,
            "s",
            target,
        );
        row("  events a second", events as f64 / took, "/s", "");
        row("  resident memory at most", peak_mib(index.pid()), "MiB", "≤ 40");
        index.stop();
    }

    /// Has all events indexed, and tells what that took by this name.
    fn measure_index(&self, name: &str, decode: &str, what: &str, target: &str) {
        let servers = || [&self.kafka, &self.elasticsearch].map(|it| Usage::of(it.pid().unwrap()).cpu);
        let (before, begin) = (servers(), Instant::now());
        let mut index = self.index(name, decode);
        within(LONG, "documents", || {
            let done = metric(&index, "kpulse_index_documents_total ").unwrap_or(0.0);
            (done >= self.events as f64).then_some(())
        });
        let (took, used, after) = (begin.elapsed().as_secs_f64(), Usage::of(index.pid()), servers());
        let million = self.millions();
        row(&format!("index, {what}, of a million events"), used.cpu.as_secs_f64() / million, "s", target);
        row("  events a second", self.events as f64 / took, "/s", "");
        for (server, (after, before)) in ["Kafka", "Elasticsearch"].iter().zip(after.into_iter().zip(before))
        {
            row(
                &format!("  {server} beside it, of a million"),
                (after - before).as_secs_f64() / million,
                "s",
                "",
            );
        }
        row("  resident memory at most", peak_mib(index.pid()), "MiB", "≤ 40");
        index.stop();
    }

    /// From the kernel's stamp to the document, while events come at a pace.
    fn measure_delay(&self, name: &str) {
        let index = self.index(name, "typed");
        let mut command = self.command("forward", name);
        command.args(["--input", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut forward = command.spawn().unwrap();
        load::write_at_pace(&mut forward.stdin.take().unwrap(), PACE.0, PACE.1).unwrap();
        assert!(forward.wait().unwrap().success());
        let sent = (PACE.0 * PACE.1.as_secs()) as f64;
        within(LONG, "documents", || {
            (metric(&index, "kpulse_index_documents_total ").unwrap_or(0.0) >= sent).then_some(())
        });
        let what = format!("from event to document at {} a second, p99", PACE.0);
        row(&what, 1e3 * quantile(&page(&index), "kpulse_index_delay_seconds", 0.99), "ms", "≤ 1000");
    }

    /// The kernel's own events: from their ring to Kafka.
    fn measure_ring(&self, name: &str) {
        if !is_root() {
            return println!("ring to Kafka\tonly root can load probes");
        }
        let mut command = self.command("forward", name);
        for rate in ["EVENTS_PER_SECOND", "BURST"] {
            command.env(format!("KPULSE_GATEWAY__THRESHOLDS__RATE_LIMIT__{rate}"), "1000000");
        }
        let mut forward = Service::start(&mut command);
        forward.line("message=ready");
        let sent = || metric(&forward, "kpulse_events_forwarded_total ").unwrap_or(0.0);
        let (before, sent_before) = (Usage::of(forward.pid()).cpu, sent());
        load::drop_packets(FLOOD);
        // The machine's own events go on coming.
        within(LONG, "an empty spool", || {
            metric(&forward, "kpulse_disk_spool_events ").is_some_and(|events| events < 1_000.0).then_some(())
        });
        let (used, sent) = (Usage::of(forward.pid()).cpu - before, sent() - sent_before);
        row("ring to Kafka, events a second of a core", sent / used.as_secs_f64(), "/s", "≥ 200000");
        row("  events measured", sent, "", "");
        row("  forward, resident memory at most", peak_mib(forward.pid()), "MiB", "≤ 40");
        forward.stop();
    }
}

fn page(service: &Service) -> String {
    http::get(&service.logged("message=listening", "web"), "/metrics", "").body
}

/// Asked seldom: the answer costs CPU time of whoever is measured.
fn metric(service: &Service, series: &str) -> Option<f64> {
    std::thread::sleep(Duration::from_millis(500));
    page(service).lines().find_map(|line| line.strip_prefix(series)?.parse().ok())
}

/// A quantile of a histogram, evenly spread within its bucket.
fn quantile(page: &str, family: &str, quantile: f64) -> f64 {
    let bucket = |line: &str| {
        let (bound, count) = line.strip_prefix(&format!("{family}_bucket{{le=\""))?.split_once("\"} ")?;
        Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().unwrap()))
    };
    let buckets: Vec<(f64, f64)> = page.lines().filter_map(bucket).collect();
    let wanted = quantile * buckets.last().map_or(0.0, |(_, count)| *count);
    let mut below = (0.0, 0.0);
    for (bound, count) in buckets {
        if count >= wanted {
            return below.0 + (bound - below.0) * (wanted - below.1) / (count - below.1);
        }
        below = (bound, count);
    }
    f64::INFINITY
}

type Part = (&'static str, fn(&mut Bench, &Path));

/// What can be measured, in this order.
const PARTS: [Part; 5] =
    [("partitions", partitions), ("spool", spool), ("alone", alone), ("delay", delay), ("ring", ring)];

fn partitions(bench: &mut Bench, file: &Path) {
    for partitions in PARTITIONS {
        let name = format!("p{partitions}");
        bench.set_up(&name, partitions);
        let used = bench.send(&name, file);
        let what = format!("forward of a file, {partitions} partitions, of a million");
        row(&what, used.cpu.as_secs_f64() / bench.millions(), "s", "");
        bench.measure_index(&name, "typed", &format!("typed, {partitions} partitions"), "≤ 6");
    }
}

fn spool(bench: &mut Bench, file: &Path) {
    bench.set_up("verbatim", 12);
    let used = bench.fill_spool("verbatim", file);
    row("file into the spool, of a million", used.cpu.as_secs_f64() / bench.millions(), "s", "");
    let used = bench.send("verbatim", Path::new("/dev/null"));
    let rate = bench.events as f64 / used.cpu.as_secs_f64();
    row("spool to Kafka, events a second of a core", rate, "/s", "≥ 200000");
    row("  resident memory at most", used.peak_mib, "MiB", "≤ 40");
    bench.measure_index("verbatim", "verbatim", "verbatim, 12 partitions", "≤ 3");
}

fn alone(bench: &mut Bench, file: &Path) {
    bench.set_up("alone", 12);
    for _ in 0..TIMES {
        bench.send("alone", file);
    }
    bench.measure_index_alone("alone", "typed", "≤ 6");
    bench.measure_index_alone("alone", "verbatim", "≤ 3");
}

fn delay(bench: &mut Bench, _: &Path) {
    bench.set_up("pace", 3);
    bench.measure_delay("pace");
}

fn ring(bench: &mut Bench, _: &Path) {
    bench.set_up("ring", 3);
    bench.measure_ring("ring");
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(other) = wanted.iter().find(|wanted| !PARTS.iter().any(|(part, _)| part == wanted)) {
        eprintln!("bench: there is no part {other}");
        std::process::exit(2);
    }
    let mut bench = match Bench::start() {
        Ok(bench) => bench,
        Err(why) => return println!("pipeline\t{why}"),
    };
    let file: PathBuf = bench.folder.path().join("events.ndjson");
    load::write(&mut File::create(&file).unwrap(), bench.events).unwrap();
    for (part, measure) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|it| it == part) {
            eprintln!("bench: pipeline, {part}");
            measure(&mut bench, &file);
        }
    }
}
