//! Commits of an ext4 journal against its own account, `/proc/fs/jbd2/DEVICE-INODE/info`.

use super::*;
use kpulse_tests::disk::FileSystem;
use kpulse_tests::skip;
use std::fs::{self, File};
use std::io::Write;

const NAME: &str = "jbd2";
const FAMILY: &str = "kpulse_jbd2_commit_seconds";
const COMMITS: u64 = 20;

/// Transactions committed, and their average time, by the journal.
fn journal(file_system: &FileSystem) -> (u64, Duration) {
    let text =
        fs::read_to_string(format!("/proc/fs/jbd2/{}-8/info", file_system.device.name())).expect("a journal");
    let first = text.split(' ').next().and_then(|word| word.parse().ok()).expect("a count");
    let average = text
        .lines()
        .find_map(|line| line.trim().strip_suffix("us average transaction commit time")?.trim().parse().ok());
    (first, Duration::from_micros(average.unwrap_or(0)))
}

fn measures_each_commit_once(options: &LoadOptions) {
    let file_system = match FileSystem::ext4(32 << 20) {
        Ok(made) => made,
        Err(why) => {
            skip(module_path!(), &why);
            return;
        }
    };
    let mut set = load(NAME, options);
    let before = journal(&file_system).0;
    let mut file = File::create(file_system.mount.path().join("file")).expect("a file");
    for _ in 0..COMMITS {
        // Appending changes the inode, which fsync must commit.
        file.write_all(&[1; 4096]).and_then(|()| file.sync_all()).expect("the file can be written");
    }
    drop(file);
    let (after, average) = journal(&file_system);
    let samples = scrape(&mut set, NAME, &mut identities());
    let name = file_system.device.name();
    let phases = ["locking", "flushing", "logging"].map(|phase| histogram(&samples, FAMILY, &[&name, phase]));
    let commits = after - before;
    assert!(commits >= COMMITS, "{commits} commits for {COMMITS} fsyncs");
    for phase in &phases {
        assert_eq!(phase.count(), commits, "by the journal");
    }
    let total: u64 = phases.iter().map(|phase| phase.sum_ns).sum();
    // The journal's average is over its whole life and weighs the last commits more, so it gives the order only.
    let (mean, average) = (total as f64 / commits as f64, average.as_nanos() as f64);
    assert!(mean > average / 10.0 && mean < average * 10.0, "{mean} ns a commit, {average} by the journal");
}

#[test]
fn each_commit_of_a_journal_is_measured_in_its_phases() {
    needs_root!();
    measures_each_commit_once(&wanting(Want::Metrics));
}

#[test]
fn classic_tracepoints_measure_the_same() {
    needs_root!();
    measures_each_commit_once(&LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) });
}
