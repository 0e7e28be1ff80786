//! Device interrupts: counted against `/sys/kernel/irq`, timed against a burn of known length.

use super::*;
use crate::burn::Burner;
use kpulse_tests::{load, skip, until};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

const NAME: &str = "hardirq";
/// Blocks of 64 KiB.
const READS: u64 = 50;

/// Has a disk interrupt: the empty one of a guest, or that of temporary files.
fn interrupt() {
    if burn::is_guest() {
        return load::read_directly(Path::new("/dev/vda"), READS).expect("the disk can be read");
    }
    let mut file = tempfile::NamedTempFile::new().expect("temporary files can be made");
    file.write_all(&vec![1; 65_536 * READS as usize]).expect("there is room");
    file.as_file().sync_all().expect("the file can be written to its disk");
    load::read_directly(file.path(), READS).expect("the file can be read");
}

/// Interrupts by name, by the kernel's own count; without those that several devices share.
fn raised() -> BTreeMap<String, u64> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir("/sys/kernel/irq").expect("every kernel has it") {
        let folder = entry.expect("a directory entry").path();
        let read = |file| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let name = read("actions").trim().to_owned();
        let counts = read("per_cpu_count");
        let count: u64 = counts.trim().split(',').filter_map(|count| count.parse::<u64>().ok()).sum();
        if !name.is_empty() && !name.contains(',') {
            *names.entry(name).or_default() += count;
        }
    }
    names
}

fn measured(set: &mut ProbeSet) -> BTreeMap<String, Histogram> {
    let samples = scrape(set, NAME, &mut identities());
    let all = samples.families().iter().flat_map(|family| family.series.iter());
    let histogram = |value: &Value| match value {
        Value::Histogram(histogram) => (**histogram).clone(),
        other => panic!("{other:?}"),
    };
    all.map(|series| (series.labels[0].to_string(), histogram(&series.value))).collect()
}

fn counts_what_the_kernel_counts(options: &LoadOptions) {
    let mut set = load(NAME, options);
    let count =
        |measured: &BTreeMap<String, Histogram>, name: &str| measured.get(name).map_or(0, Histogram::count);
    let kernel_outer = raised();
    let ours_before = measured(&mut set);
    let kernel_inner = raised();
    interrupt();
    let kernel_inner_end = raised();
    let ours = measured(&mut set);
    let kernel_outer_end = raised();
    // The kernel counts before the handler and we behind it: one of each CPU may be between the two.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut seen = 0;
    for (name, end) in &kernel_inner_end {
        let least = (end - kernel_inner[name]).saturating_sub(cpus);
        let most = kernel_outer_end[name] - kernel_outer[name] + cpus;
        let counted = count(&ours, name) - count(&ours_before, name);
        assert!((least..=most).contains(&counted), "{name}: {counted} not in {least}..={most}");
        seen += counted;
    }
    if seen == 0 {
        assert!(!burn::is_guest(), "{READS} reads of a disk without an interrupt");
        skip(module_path!(), "temporary files are on no disk that interrupts");
    }
}

#[test]
fn counts_what_the_kernel_counts_by_device() {
    needs_root!();
    counts_what_the_kernel_counts(&wanting(Want::Metrics));
}

#[test]
fn raw_tracepoints_count_the_same() {
    needs_root!();
    counts_what_the_kernel_counts(&LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) });
}

#[test]
fn a_slow_handler_is_measured() {
    needs_root!();
    let mut set = load(NAME, &wanting(Want::Metrics));
    // Behind the probe on the same tracepoint: the handler has been entered, as the probe sees it.
    let mut burner = Burner::start(&burn::HARDIRQ);
    let total = until("slow handler", || {
        interrupt();
        let mut total = Histogram::default();
        measured(&mut set).values().for_each(|histogram| total.add(histogram));
        // Above 31.25 ms.
        (total.slots[16..].iter().sum::<u64>() > 0).then_some(total)
    });
    let (burns, burnt) = burner.burnt();
    assert!(burns > 0 && Duration::from_nanos(total.sum_ns) >= burnt, "{total:?} for {burnt:?}");
}
