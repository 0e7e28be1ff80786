//! What does this process cost, and which build is it?

use crate::metric::{Label, MetricDef, Samples};
use crate::paths::Paths;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

const CPU_SECONDS: MetricDef =
    MetricDef::counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", &[]);
const RESIDENT_BYTES: MetricDef =
    MetricDef::gauge("process_resident_memory_bytes", "Resident memory size in bytes.", &[]);
const VIRTUAL_BYTES: MetricDef =
    MetricDef::gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", &[]);
const OPEN_FDS: MetricDef = MetricDef::gauge("process_open_fds", "Number of open file descriptors.", &[]);
const MAX_FDS: MetricDef =
    MetricDef::gauge("process_max_fds", "Maximum number of open file descriptors.", &[]);
const START_TIME: MetricDef = MetricDef::gauge(
    "process_start_time_seconds",
    "Start time of the process since unix epoch in seconds.",
    &[],
);
const BUILD_INFO: MetricDef = MetricDef::gauge(
    "kpulse_build_info",
    "Always 1; the labels say which build of which binary answers.",
    &[Label::Named("binary"), Label::Named("version"), Label::Named("revision")],
);

/// The families of this module.
pub const METRICS: &[MetricDef] =
    &[CPU_SECONDS, RESIDENT_BYTES, VIRTUAL_BYTES, OPEN_FDS, MAX_FDS, START_TIME, BUILD_INFO];

/// The `process_*` families by the names that every Prometheus client library has. What `/proc` does not tell is
/// absent.
pub fn process(paths: &Paths, out: &mut Samples) {
    let own = paths.procfs.join("self");
    if let Some(stat) = read(&own.join("stat")).as_deref().and_then(Stat::parse) {
        let ticks = f64::from(u32::try_from(system_value(libc::_SC_CLK_TCK)).unwrap_or(100));
        out.number(&CPU_SECONDS, &[], stat.cpu_ticks as f64 / ticks);
        out.count(&VIRTUAL_BYTES, &[], stat.virtual_bytes);
        let page_bytes = u64::try_from(system_value(libc::_SC_PAGESIZE)).unwrap_or(4096);
        out.count(&RESIDENT_BYTES, &[], stat.resident_pages * page_bytes);
        static BOOT_SECONDS: OnceLock<Option<u64>> = OnceLock::new();
        // The kernel counts every interrupt of every CPU for this file.
        if let Some(boot) = BOOT_SECONDS.get_or_init(|| boot_seconds(&paths.procfs.join("stat"))) {
            out.number(&START_TIME, &[], *boot as f64 + stat.start_ticks as f64 / ticks);
        }
    }
    if let Some(count) = open_files(&own.join("fd")) {
        out.count(&OPEN_FDS, &[], count);
    }
    if let Some(limit) = open_files_limit(&own.join("limits")) {
        out.count(&MAX_FDS, &[], limit);
    }
}

/// `kpulse_build_info` of this build.
pub fn build_info(binary: &str, out: &mut Samples) {
    out.count(&BUILD_INFO, &[binary, env!("CARGO_PKG_VERSION"), revision()], 1);
}

/// The commit that this was built from; "unknown" outside of a repository.
pub fn revision() -> &'static str {
    option_env!("KPULSE_REVISION").unwrap_or("unknown")
}

fn system_value(name: libc::c_int) -> i64 {
    // SAFETY: sysconf has no preconditions; an unknown name gives -1.
    unsafe { libc::sysconf(name) }
}

/// Fields of `/proc/self/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may hold anything, so the fields are counted from its closing parenthesis: state is the third.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// A file of `/proc`: none tells its size before, and these fit into one read.
fn read(path: &Path) -> Option<String> {
    let mut text = String::with_capacity(4096);
    fs::File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

fn boot_seconds(stat: &Path) -> Option<u64> {
    let text = read(stat)?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Linux tells their number as the size of the directory since 6.2 (f1f1f2569901); else each is counted.
fn open_files(folder: &Path) -> Option<u64> {
    let size = fs::metadata(folder).ok()?.len();
    if size > 0 {
        return Some(size);
    }
    // The directory that is being read is one of them.
    Some((fs::read_dir(folder).ok()?.count() as u64).saturating_sub(1))
}

fn open_files_limit(limits: &Path) -> Option<u64> {
    let text = read(limits)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_of_a_process_whose_name_is_hostile() {
        let text = "42 (a) b) R 9 9) S 1 42 42 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 5000 8192 25 18446744073709551615";
        let expected = Stat { cpu_ticks: 100, start_ticks: 5000, virtual_bytes: 8192, resident_pages: 25 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("42 (x) S 1"), None);
    }

    #[test]
    fn tells_every_family_of_this_process() {
        let mut samples = Samples::default();
        process(&Paths::default(), &mut samples);
        build_info("kpulse-test", &mut samples);
        let names: Vec<_> = samples.families().iter().map(|family| family.def.name).collect();
        for def in METRICS {
            assert!(names.contains(&def.name), "{} is missing of {names:?}", def.name);
        }
    }

    #[test]
    fn counts_files_that_are_opened() {
        let before = open_files(Path::new("/proc/self/fd")).unwrap();
        let held: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = open_files(Path::new("/proc/self/fd")).unwrap();
        // Tests beside this one open and close a few.
        assert!(after.abs_diff(before + 100) < 50, "{before} {after} with {} more", held.len());
    }

    #[test]
    fn leaves_out_what_an_unreadable_proc_does_not_tell() {
        let mut samples = Samples::default();
        process(&Paths { procfs: "/nonexistent".into(), ..Paths::default() }, &mut samples);
        assert!(samples.families().is_empty());
    }
}
