//! Are stacks of Java whole and named, with no flag and no agent in the JVM? And what of code that cannot be read so?

use crate::{built, needs_root};
use kpulse_tests::profile::{Line, parse, record_for, record_samples};
use kpulse_tests::until;
use kpulse_tests::workload::java::{self, compile, start};
use kpulse_tests::workload::{Quality, Running, is_native_root, percent};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Other JDKs of this machine than the one in the PATH, by version.
fn other_jdks() -> Vec<(u32, PathBuf)> {
    let own = fs::canonicalize("/usr/bin/java").ok();
    let entries = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let java = fs::canonicalize(entry.path().join("bin/java")).ok()?;
            let release = fs::read_to_string(entry.path().join("release")).ok()?;
            let version = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION=\""))?;
            let major = version.split(['.', '"']).next()?.parse().ok()?;
            (own.as_ref() != Some(&java)).then_some((major, java))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

fn judge_burn(pid: u32) {
    Quality::recorded(pid, java::judge).assert_true(java::TARGET);
}

/// Stacks of the hard program: how many reach the root, and how many frames have no name.
fn judge_stress(folded: &str) {
    let (mut samples, mut rooted, mut nameless, mut ours) = (0, 0, 0, 0);
    for line in parse(folded) {
        samples += line.count;
        rooted += if is_native_root(&line) { line.count } else { 0 };
        let count = |is: fn(&String) -> bool| if line.frames.iter().any(is) { line.count } else { 0 };
        nameless += count(|frame| frame.starts_with("[java: ") || frame == "[unknown]");
        ours += count(|frame| frame.starts_with("Stress."));
    }
    println!(
        "{samples} samples, {:.2} % to the root, {nameless} with a frame without a name",
        percent(rooted, samples)
    );
    assert!(ours >= 1000, "too few samples: {ours}");
    assert!(percent(rooted, samples) >= 99.0, "{rooted} of {samples} reach the root: {folded}");
    assert!(
        percent(nameless, samples) <= 1.0,
        "{nameless} of {samples} have a frame without a name: {folded}"
    );
}

#[test]
fn a_java_program_is_walked_whole() {
    const TEST: &str = "a_java_program_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    built!(TEST, compile("Burn", folder.path()));
    for java in std::iter::once(PathBuf::from("java")).chain(other_jdks().into_iter().map(|(_, java)| java)) {
        println!("{}", java.display());
        let program = start(&java, &[], folder.path(), &["Burn", "300"]);
        judge_burn(program.pid());
    }
}

#[test]
fn stacks_of_short_java_calls_reach_the_root() {
    const TEST: &str = "stacks_of_short_java_calls_reach_the_root";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    built!(TEST, compile("Stress", folder.path()));
    let variants: [&[&str]; 3] = [&[], &["-Xint"], &["-XX:TieredStopAtLevel=1"]];
    for flags in variants {
        println!("{flags:?}");
        let program = start(Path::new("java"), flags, folder.path(), &["Stress", "300"]);
        judge_stress(&record_samples(program.pid(), 2000));
    }
}

#[test]
fn virtual_threads_and_newer_jvms_are_walked_to_the_root() {
    const TEST: &str = "virtual_threads_and_newer_jvms_are_walked_to_the_root";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    built!(TEST, compile("Stress", folder.path()));
    let newer: Vec<_> = other_jdks().into_iter().filter(|(version, _)| *version >= 21).collect();
    if newer.is_empty() {
        return kpulse_tests::skip(TEST, "/usr/lib/jvm has no JDK of 21 or newer beside the default one");
    }
    for (version, java) in newer {
        for arguments in [&["Stress", "300"][..], &["Stress", "300", "virtual"]] {
            println!("{version} {arguments:?}");
            let program = start(&java, &[], folder.path(), arguments);
            judge_stress(&record_samples(program.pid(), 2000));
        }
    }
}

/// In a namespace of its own for processes and for mounts, as a container has them, with a `/tmp` of its own: the program lies elsewhere.
fn contained(program: &mut Command) -> (Running, u32) {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--mount", "--fork", "--kill-child", "sh", "-c"]);
    command.args(["mount -t tmpfs tmpfs /tmp && exec \"$@\"", "sh"]);
    command.arg(program.get_program()).args(program.get_args()).stdout(Stdio::null());
    let outer = Running(command.spawn().expect("unshare comes with util-linux"));
    let name = Path::new(program.get_program()).file_name().expect("a name").to_string_lossy().into_owned();
    let parent = format!("PPid:\t{}\n", outer.pid());
    let is_it = |pid: &u32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").trim() == name && read("status").contains(&parent)
    };
    let inner = until("the program", || {
        let pids = fs::read_dir("/proc").expect("processes").flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_it)
    });
    (outer, inner)
}

#[test]
fn a_jvm_in_a_container_is_walked_whole() {
    const TEST: &str = "a_jvm_in_a_container_is_walked_whole";
    needs_root!(TEST);
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    built!(TEST, compile("Burn", folder.path()));
    let mut java = Command::new("java");
    let (_outer, pid) = contained(java.arg("-cp").arg(folder.path()).args(["Burn", "300"]));
    judge_burn(pid);
}

/// Compiles the program that makes code, beside a library that calls itself a JVM if wanted.
fn compile_jit(folder: &Path, is_jvm: bool) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/jit.c");
    let (program, library) = (folder.join("jit"), folder.join("libjvm.so"));
    let mut command = Command::new("gcc");
    command.args(["-O1", "-fno-omit-frame-pointer", "-o"]).arg(&program).arg(source);
    if is_jvm {
        let empty =
            Command::new("gcc").args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&library).status();
        assert!(empty.expect("gcc runs; it comes with build-essential").success());
        command.args(["-Wl,--no-as-needed"]).arg(&library);
    }
    assert!(command.status().expect("gcc runs; it comes with build-essential").success());
    program
}

/// Share of the samples of the made code that have this leaf below `main`, percent.
fn share_of(folded: &str, leaf: &str) -> f64 {
    let lines = parse(folded);
    let made = |line: &&Line| line.frames.last().is_some_and(|last| !last.ends_with("_[k]"));
    let samples: u64 = lines.iter().filter(made).map(|line| line.count).sum();
    let named = lines.iter().filter(made).filter(|line| line.frames.ends_with(&["main".into(), leaf.into()]));
    let named: u64 = named.map(|line| line.count).sum();
    assert!(samples >= 500, "too few samples: {folded}");
    percent(named, samples)
}

#[test]
fn code_of_a_jit_is_named_by_its_perf_map_in_a_container_too() {
    const TEST: &str = "code_of_a_jit_is_named_by_its_perf_map_in_a_container_too";
    needs_root!(TEST);
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let program = compile_jit(folder.path(), false);
    let (_outer, pid) = contained(Command::new(&program).arg("300"));
    let folded = record_samples(pid, 1000);
    assert!(share_of(&folded, "made_while_running") >= 98.0, "{folded}");
}

#[test]
fn a_jvm_that_tells_nothing_of_itself_has_frames_that_say_so() {
    const TEST: &str = "a_jvm_that_tells_nothing_of_itself_has_frames_that_say_so";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile_jit(folder.path(), true);
    let program = Running(Command::new(program).args(["300", "silent"]).spawn().expect("starts"));
    let folded = record_samples(program.pid(), 1000);
    assert!(share_of(&folded, "[java: no unwinder for this JVM]") >= 98.0, "{folded}");
}

#[test]
fn a_jvm_that_ends_meanwhile_keeps_its_names() {
    const TEST: &str = "a_jvm_that_ends_meanwhile_keeps_its_names";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    built!(TEST, compile("Burn", folder.path()));
    let mut program = start(Path::new("java"), &[], folder.path(), &["Burn", "6"]);
    let folded = record_for(program.pid(), 10);
    assert!(program.0.try_wait().expect("can be asked").is_some(), "it ended during the recording");
    let lines = parse(&folded);
    let hot = |line: &&Line| line.frames.iter().any(|frame| frame.starts_with("Burn.hot"));
    let named: u64 = lines.iter().filter(hot).map(|line| line.count).sum();
    let samples: u64 = lines.iter().map(|line| line.count).sum();
    // The last samples may come after it is gone, when what is new has no name any more.
    assert!(named >= 300 && named * 2 > samples, "{named} of {samples}: {folded}");
}
