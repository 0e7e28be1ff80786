//! `record`: the stacks and shares of a known program, and every sample accounted for.

use crate::needs_root;
use crate::program::{Shares, compile, compile_with, start};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::process::Service;
use kpulse_tests::profile::{HZ, Line, MAX_SECONDS, assert_closed, parse, profiler, record};
use kpulse_tests::until;
use kpulse_tests::workload::Running;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Records longer and longer until there are samples enough to judge shares by.
fn record_enough(scope: &[&str], file: &Path) -> Shares {
    let mut seconds = 4;
    loop {
        assert_closed(&record(scope, seconds, "folded", file));
        let shares = Shares::of(&fs::read_to_string(file).expect("the profile is there"));
        if shares.samples >= 2000 || seconds >= MAX_SECONDS {
            return shares;
        }
        seconds *= 2;
    }
}

fn until_deleted(program: &Running) {
    let exe = format!("/proc/{}/exe", program.pid());
    until("deleted executable", || {
        fs::read_link(&exe).ok()?.to_string_lossy().ends_with(" (deleted)").then_some(())
    });
}

#[test]
fn a_process_profile_names_the_chain_and_its_shares() {
    needs_root!("a_process_profile_names_the_chain_and_its_shares");
    let directory = tempfile::tempdir().expect("a folder");
    let program = start(&compile(directory.path()), 120);
    let file = directory.path().join("out.folded");
    record_enough(&["--pid", &program.pid().to_string()], &file).assert_true();
    let lines = parse(&fs::read_to_string(&file).expect("the profile is there"));
    assert!(lines.iter().all(|line| line.frames[0] == "chain"), "only the process");
}

#[test]
fn a_host_profile_names_the_chain_and_the_kernel() {
    needs_root!("a_host_profile_names_the_chain_and_the_kernel");
    let directory = tempfile::tempdir().expect("a folder");
    let _program = start(&compile(directory.path()), 120);
    let mut kernel = Running(
        Command::new("dd")
            .args(["if=/dev/zero", "of=/dev/null", "bs=64M"])
            .stderr(Stdio::null())
            .spawn()
            .expect("dd runs"),
    );
    let file = directory.path().join("out.folded");
    record_enough(&["--host"], &file).assert_true();
    let lines = parse(&fs::read_to_string(&file).expect("the profile is there"));
    let in_kernel =
        |line: &&Line| line.frames[0] == "dd" && line.frames.iter().any(|frame| frame.ends_with("_[k]"));
    let named: u64 = lines.iter().filter(in_kernel).map(|line| line.count).sum();
    assert!(named > 0, "dd reads from the kernel");
    let offsets = |frame: &String| frame.ends_with("_[k]") && frame.contains("+0x");
    assert!(!lines.iter().any(|line| line.frames.iter().any(offsets)), "an offset splits a function");
    kernel.0.kill().expect("dd still runs");
}

#[test]
fn an_inlined_function_is_a_frame_of_its_own() {
    needs_root!("an_inlined_function_is_a_frame_of_its_own");
    let directory = tempfile::tempdir().expect("a folder");
    let program = start(&compile_with(&["-g", "-DINLINED"], directory.path()), 120);
    let file = directory.path().join("out.folded");
    record_enough(&["--pid", &program.pid().to_string()], &file).assert_true();
}

#[test]
fn a_deleted_executable_is_still_named() {
    needs_root!("a_deleted_executable_is_still_named");
    let directory = tempfile::tempdir().expect("a folder");
    let path = compile(directory.path());
    let program = start(&path, 120);
    fs::remove_file(&path).expect("can be removed");
    fs::write(&path, "another file by the same name").expect("can be written");
    until_deleted(&program);
    let file = directory.path().join("out.folded");
    record_enough(&["--pid", &program.pid().to_string()], &file).assert_true();
}

#[test]
fn a_process_that_ends_meanwhile_keeps_its_samples() {
    needs_root!("a_process_that_ends_meanwhile_keeps_its_samples");
    let directory = tempfile::tempdir().expect("a folder");
    // Long enough for the profiler to attach on a busy machine, and shorter than the recording.
    let mut program = start(&compile(directory.path()), 10);
    let file = directory.path().join("out.folded");
    let summary = record(&["--pid", &program.pid().to_string()], 12, "folded", &file);
    assert!(assert_closed(&summary) > 0);
    assert!(program.0.try_wait().expect("can be asked").is_some(), "it ended during the recording");
    let shares = Shares::of(&fs::read_to_string(&file).expect("the profile is there"));
    assert!(shares.samples > 0 && shares.whole > 90.0, "{shares:?}");
}

/// A container's file is nowhere in the host's file system.
#[test]
fn a_container_profile_names_what_only_the_container_sees() {
    needs_root!("a_container_profile_names_what_only_the_container_sees");
    const NUMBER: u32 = 0x7e57;
    let directory = tempfile::tempdir().expect("a folder");
    let path = compile(directory.path());
    let cgroup = Cgroup::container("cpu", NUMBER).expect("a cgroup");
    let hidden =
        "echo $$ > $0/cgroup.procs && mount -t tmpfs none /mnt && cp $1 /mnt/chain && exec /mnt/chain 120";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", hidden]).arg(cgroup.path()).arg(&path);
    let program = Running(command.spawn().expect("unshare runs; it comes with util-linux"));
    let exe = format!("/proc/{}/exe", program.pid());
    until("the container's program", || fs::read_link(&exe).ok()?.ends_with("chain").then_some(()));
    let file = directory.path().join("out.folded");
    record_enough(&["--container", &Cgroup::id(NUMBER)], &file).assert_true();
    let lines = parse(&fs::read_to_string(&file).expect("the profile is there"));
    assert!(lines.iter().all(|line| line.frames[0] == "chain"), "only the container");
}

#[test]
fn a_flame_graph_is_xml_and_has_the_hot_function() {
    needs_root!("a_flame_graph_is_xml_and_has_the_hot_function");
    let directory = tempfile::tempdir().expect("a folder");
    let program = start(&compile(directory.path()), 120);
    let file = directory.path().join("out.svg");
    record(&["--pid", &program.pid().to_string()], 4, "svg", &file);
    let svg = fs::read_to_string(&file).expect("the picture is there");
    let mut reader = quick_xml::Reader::from_str(&svg);
    let (mut titles, mut depth) = (0, 0);
    loop {
        use quick_xml::events::Event;
        match reader.read_event().expect("well-formed XML") {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            Event::Text(text) if text.starts_with(b"hot (") => titles += 1,
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0, "every element is closed");
    assert!(titles > 0, "no frame is called hot");
}

#[test]
fn an_interrupt_ends_the_recording_early_and_keeps_it() {
    needs_root!("an_interrupt_ends_the_recording_early_and_keeps_it");
    let directory = tempfile::tempdir().expect("a folder");
    let program = start(&compile(directory.path()), 120);
    let file = directory.path().join("out.folded");
    let mut command = profiler();
    command.args([
        "record",
        "--seconds",
        "600",
        "--sample.hz",
        HZ,
        "--pid",
        &program.pid().to_string(),
        "-o",
    ]);
    let mut recording = Service::start(command.arg(&file));
    let start = until("sampling thread", || sampling_since(recording.pid()));
    until("time to sample", || (start.elapsed() > Duration::from_secs(2)).then_some(()));
    recording.signal(libc::SIGINT);
    assert_eq!(recording.wait().code(), Some(0), "{}", recording.stderr());
    assert_closed(&recording.stderr());
    assert!(Shares::of(&fs::read_to_string(&file).expect("the profile is there")).samples > 0);
}

/// The thread that drains is there once the probe is attached.
fn sampling_since(pid: u32) -> Option<Instant> {
    let name =
        |entry: std::io::Result<fs::DirEntry>| fs::read_to_string(entry.ok()?.path().join("comm")).ok();
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(name);
    threads.any(|name| name.trim() == "kpulse-sample").then(Instant::now)
}
