//! Writes one real record of a probe as a fixture: `cargo run -p kpulse-exporter-ebpf --example record -- PROBE [KIND]`.
//!
//! Loads the probe with thresholds of a nanosecond and takes the first record that comes, of the probe's first kind
//! unless another is named. The record's decoded form goes beside it; look at it before you commit it.

use kpulse_exporter_ebpf::{LoadOptions, ProbeSet, ProbeState, Want, probes};
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

/// How long to wait for something to happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let name = env::args().nth(1).ok_or("usage: record PROBE [KIND]")?;
    let probe = probes::ALL.iter().find(|probe| probe.name == name).ok_or("there is no such probe")?;
    let event = probe.events.first().ok_or("the probe has no events")?;
    let kind = env::args().nth(2).unwrap_or_else(|| event.kind.to_owned());
    let mut options = LoadOptions { want: Want::Events, ..LoadOptions::default() };
    let shortest = Duration::from_nanos(1);
    options.thresholds.runqueue_latency.min_wait = shortest;
    options.thresholds.block_io.min_d2c = shortest;
    options.thresholds.xfs_log.min_wait = shortest;
    options.thresholds.direct_reclaim.min_duration = shortest;
    options.thresholds.irqs_off.min_duration = shortest;
    options.thresholds.softirq.min_delay = shortest;
    options.thresholds.soft_lockup.min_duration = shortest;
    options.thresholds.compaction.min_duration = shortest;
    options.thresholds.task_state.min_stuck = shortest;
    options.thresholds.task_state.min_memory_stall = shortest;
    // Only of readers: on the way to a socket there is mostly no task to name.
    options.thresholds.receive.min_to_user = shortest;
    let mut set = ProbeSet::load(&[probe], &options);
    if let Some(status) = set.status().iter().find(|status| status.state != ProbeState::Active) {
        return Err(status.state.to_string().into());
    }
    let mut events = set.take_events()?;
    let begin = Instant::now();
    let (record, decoded) = loop {
        if let Some(record) = events.next_record() {
            let decoded = (event.decode)(&record, &(event.names)(set.types()))?;
            if decoded.kind.unwrap_or(event.kind) == kind {
                break (record, decoded);
            }
            continue;
        }
        if begin.elapsed() > PATIENCE {
            return Err("nothing came within a minute: provoke the fact meanwhile".into());
        }
        events.wait(Duration::from_secs(1))?;
    };
    let found =
        walk(Path::new("exporter-ebpf/src/probes"), &name).ok_or("run this at the top of the repository")?;
    let folder = found.join("fixtures");
    fs::create_dir_all(&folder)?;
    let mut hex = String::new();
    for line in record.chunks(32) {
        for byte in line {
            write!(hex, "{byte:02x}")?;
        }
        hex.push('\n');
    }
    fs::write(folder.join(format!("{kind}.hex")), hex)?;
    let text = serde_json::to_string_pretty(&decoded.body)?;
    fs::write(folder.join(format!("{kind}.json")), format!("{text}\n"))?;
    println!("{text}");
    Ok(())
}

fn walk(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path().join(name)).find(|path| path.is_dir())
}
