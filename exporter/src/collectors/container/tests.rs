use crate::collectors::{ALL, Collect, Host};
use kpulse_common::metric::{Samples, Value};
use kpulse_common::paths::Paths;
use std::fs;
use std::path::PathBuf;

const ID: &str = "0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f405162738495a6b7c8d9eafb";

/// A machine of directories: its hierarchies, and what the kernel would write in them.
struct Machine {
    root: tempfile::TempDir,
    host: Host,
    collectors: Vec<Box<dyn Collect>>,
}

impl Machine {
    /// With v1 hierarchies for these lists of controllers, and the unified one if wanted.
    fn new(v1: &[&str], has_unified: bool, container_max: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("proc/self")).unwrap();
        let mut mounts = String::new();
        for controllers in v1 {
            fs::create_dir_all(at(controllers)).unwrap();
            let point = at(controllers);
            mounts += &format!("30 25 0:26 / {} rw - cgroup cgroup rw,{controllers}\n", point.display());
        }
        if has_unified {
            fs::create_dir_all(at("unified")).unwrap();
            mounts += &format!("31 25 0:27 / {} rw - cgroup2 cgroup2 rw\n", at("unified").display());
        }
        fs::write(at("proc/self/mountinfo"), mounts).unwrap();
        fs::write(at("proc/stat"), "cpu  1 2 3 4 5 6 7 8 9 10\n").unwrap();
        fs::create_dir(at("proc/pressure")).unwrap();
        for resource in ["cpu", "memory", "io"] {
            fs::write(at("proc/pressure").join(resource), "some avg10=0.00 total=1\n").unwrap();
        }
        let paths = Paths { procfs: at("proc"), cgroupfs: root.path().to_owned(), ..Paths::default() };
        let names = ["cpu", "memory", "pressure"];
        let wanted = ALL.iter().filter(|collector| names.contains(&collector.name));
        let collectors = wanted.map(|collector| (collector.make)(&paths)).collect();
        Self { host: Host::new(&paths, container_max), collectors, root }
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Every series of a container as `family{label}` and value.
    fn scrape(&mut self, container: &str) -> Vec<(String, f64)> {
        // A walk is allowed once a second, and the tests do not wait for it.
        let paths = self.host.paths.clone();
        self.host.identities = kpulse_common::container::Identities::new(&paths);
        let mut out = Samples::default();
        for collector in &mut self.collectors {
            collector.collect(&mut self.host, &mut out).unwrap();
        }
        let mut found = Vec::new();
        for family in out.families() {
            for series in &family.series {
                let mut labels = series.labels.iter().map(|label| &**label);
                if !labels.any(|label| label == container) {
                    continue;
                }
                let name = family.def.name.trim_start_matches("kpulse_").trim_end_matches("_total");
                let label = series.labels.last().filter(|_| series.labels.len() > 4);
                let value = match series.value {
                    Value::Count(count) => count as f64,
                    Value::Number(number) => number,
                    Value::Histogram(_) => panic!("no histogram is read here"),
                };
                found.push((format!("{name}{{{}}}", label.map_or("", |label| &**label)), value));
            }
        }
        found
    }
}

fn named<'a>(found: &'a [(String, f64)]) -> impl Fn(&str) -> Option<f64> + 'a {
    |name| found.iter().find(|(have, _)| have == name).map(|(_, value)| *value)
}

#[test]
fn reads_a_container_of_cgroup_v2() {
    let mut machine = Machine::new(&[], true, 8);
    let base = format!("unified/system.slice/docker-{ID}.scope");
    machine.write(
        &format!("{base}/cpu.stat"),
        "usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 250000\nnr_bursts 0\n",
    );
    machine.write(&format!("{base}/memory.current"), "8192\n");
    machine.write(&format!("{base}/memory.max"), "max\n");
    machine
        .write(&format!("{base}/memory.stat"), "anon 4096\nfile 2048\nslab 512\nkernel 1024\nanon_thp 7\n");
    machine.write(
        &format!("{base}/memory.events"),
        "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
    );
    machine.write(
        &format!("{base}/io.pressure"),
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n",
    );
    let found = machine.scrape(ID);
    let value = named(&found);
    assert_eq!(value("cpu_seconds{user}"), Some(2.5));
    assert_eq!(value("cpu_seconds{system}"), Some(1.0));
    assert_eq!(value("cpu_periods{}"), Some(10.0));
    assert_eq!(value("cpu_throttled_periods{}"), Some(4.0));
    assert_eq!(value("cpu_throttled_seconds{}"), Some(0.25));
    assert_eq!(value("memory_bytes{usage}"), Some(8192.0));
    assert_eq!(value("memory_bytes{limit}"), None, "no limit is no number");
    assert_eq!(value("memory_bytes{anon}"), Some(4096.0));
    assert_eq!(value("memory_bytes{kernel}"), Some(1024.0));
    assert_eq!(value("memory_bytes{sock}"), None, "what the kernel does not tell is absent");
    for (event, count) in [("low", 1.0), ("high", 2.0), ("max", 3.0), ("oom", 4.0), ("oom_kill", 5.0)] {
        assert_eq!(value(&format!("memory_events{{{event}}}")), Some(count));
    }
    assert_eq!(value("pressure_waiting_seconds{io}"), Some(1.5));
    assert_eq!(value("pressure_stalled_seconds{io}"), Some(0.5));
    assert_eq!(value("pressure_waiting_seconds{cpu}"), None);
    assert_eq!(found.len(), 17, "{found:?}");
}

#[test]
fn reads_a_container_of_cgroup_v1_and_its_pressure_on_a_hybrid_host() {
    let mut machine = Machine::new(&["cpu,cpuacct", "memory"], true, 8);
    machine.write(
        &format!("cpu,cpuacct/docker/{ID}/cpu.stat"),
        "nr_periods 10\nnr_throttled 4\nthrottled_time 250000000\n",
    );
    machine.write(&format!("cpu,cpuacct/docker/{ID}/cpuacct.stat"), "user 250\nsystem 100\n");
    let memory = format!("memory/docker/{ID}");
    machine.write(&format!("{memory}/memory.usage_in_bytes"), "8192\n");
    machine.write(&format!("{memory}/memory.failcnt"), "3\n");
    machine.write(
        &format!("{memory}/memory.stat"),
        "cache 1\nrss 1\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 2048\ntotal_rss 4096\ntotal_swap 0\n",
    );
    machine.write(&format!("{memory}/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    machine.write(&format!("unified/docker/{ID}/cpu.pressure"), "some avg10=0.00 total=1500000\n");
    let found = machine.scrape(ID);
    let value = named(&found);
    assert_eq!(value("cpu_seconds{user}"), Some(2.5));
    assert_eq!(value("cpu_seconds{system}"), Some(1.0));
    assert_eq!(value("cpu_throttled_seconds{}"), Some(0.25));
    assert_eq!(value("memory_bytes{usage}"), Some(8192.0));
    assert_eq!(value("memory_bytes{anon}"), Some(4096.0));
    assert_eq!(value("memory_bytes{limit}"), None, "the largest number means no limit");
    assert_eq!(value("memory_events{failcnt}"), Some(3.0));
    assert_eq!(value("memory_events{oom_kill}"), Some(2.0));
    assert_eq!(value("pressure_waiting_seconds{cpu}"), Some(1.5));
    machine.write(
        &format!("{memory}/memory.stat"),
        "hierarchical_memory_limit 1048576\ntotal_cache 1\ntotal_rss 2\n",
    );
    assert_eq!(named(&machine.scrape(ID))("memory_bytes{limit}"), Some(1_048_576.0));
}

#[test]
fn a_file_that_changes_its_shape_costs_only_what_it_no_longer_tells() {
    let mut machine = Machine::new(&[], true, 8);
    let base = format!("unified/docker/{ID}");
    let stat = format!("{base}/cpu.stat");
    machine.write(&format!("{base}/memory.current"), "8192\n");
    for (text, user) in [
        ("user_usec 1000000\nsystem_usec 2000000\n", Some(1.0)),
        ("user_usec 10000", Some(0.01)),
        ("user_usec", None),
        ("user_usec -5\n", None),
        ("user_usec 99999999999999999999\n", None),
        ("user_usec\t7\nuser 1 2 3\n\n\n", None),
        ("", None),
        ("user_usec 3000000\n", Some(3.0)),
    ] {
        machine.write(&stat, text);
        let found = machine.scrape(ID);
        assert_eq!(named(&found)("cpu_seconds{user}"), user, "{text:?}");
        assert_eq!(named(&found)("memory_bytes{usage}"), Some(8192.0), "{text:?}");
    }
    fs::write(machine.root.path().join(&stat), b"user_usec \xff\xff\nsystem_usec 1\n").unwrap();
    assert_eq!(
        named(&machine.scrape(ID))("cpu_seconds{system}"),
        None,
        "bytes that are no text are not guessed at"
    );
    fs::remove_file(machine.root.path().join(&stat)).unwrap();
    assert_eq!(named(&machine.scrape(ID))("memory_bytes{usage}"), Some(8192.0));
    fs::remove_dir_all(machine.root.path().join(&base)).unwrap();
    assert_eq!(machine.scrape(ID), [], "the series end with the container");
}

#[test]
fn containers_beyond_the_bound_share_a_series_that_never_goes_backwards() {
    let mut machine = Machine::new(&[], true, 1);
    let id = |number: u32| format!("{number:064x}");
    let path = |number: u32| format!("unified/docker/{}", id(number));
    machine.write(&format!("{}/cpu.stat", path(0)), "user_usec 1000000\n");
    assert_eq!(machine.scrape(&id(0)), [("cpu_seconds{user}".to_owned(), 1.0)]);
    assert_eq!(machine.scrape("~other"), []);
    for number in 1..=3 {
        machine.write(&format!("{}/cpu.stat", path(number)), "user_usec 2000000\n");
        machine.write(&format!("{}/memory.current", path(number)), "100\n");
    }
    let found = machine.scrape("~other");
    assert_eq!(named(&found)("cpu_seconds{user}"), Some(6.0));
    assert_eq!(named(&found)("memory_bytes{usage}"), Some(300.0));
    assert_eq!(machine.scrape(&id(2)), []);
    fs::remove_dir_all(machine.root.path().join(path(2))).unwrap();
    let found = machine.scrape("~other");
    assert_eq!(named(&found)("cpu_seconds{user}"), Some(6.0));
    assert_eq!(named(&found)("memory_bytes{usage}"), Some(200.0));
    fs::remove_dir_all(machine.root.path().join(path(0))).unwrap();
    assert_eq!(named(&machine.scrape("~other"))("cpu_seconds{user}"), Some(6.0));
    assert_eq!(machine.host.overflow(), 3);
}
