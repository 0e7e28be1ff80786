//! Who began and ended is told with what names it, also when it is gone with its container before anyone looks.

use super::{load, needs_root, wanting};
use kpulse_exporter_ebpf::life::{Change, Life, LifeStream};
use kpulse_exporter_ebpf::{ProbeSet, Want};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::until;
use std::io::Read;
use std::process::{Command, Stdio};

const NAME: &str = "process_life";

fn open() -> (ProbeSet, LifeStream) {
    let mut set = load(NAME, &wanting(Want::Events));
    let lives = set.take_lives().expect("the ring opens").expect("the probe is active");
    (set, lives)
}

fn drain(stream: &mut LifeStream) -> Vec<Life> {
    let mut lives = Vec::new();
    stream.drain(&mut |life| lives.push(life));
    lives
}

/// What was told of a process, in order.
fn of(lives: &[Life], pid: u32) -> Vec<&Life> {
    lives.iter().filter(|life| life.process.pid == pid).collect()
}

#[test]
fn a_process_is_told_that_is_gone_with_its_container_before_anyone_looks() {
    needs_root!();
    let (_set, mut stream) = open();
    let container = Cgroup::container("cpu", 0x11fe).expect("a container's cgroup");
    let cgroup_id = container.cgroup_id();
    // The shell waits for a copy of itself that never calls exec.
    let script = "(:) & wait; exit 3";
    let procs = container.path().join("cgroup.procs");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo 0 >\"$0\" && exec /bin/sh -c \"$1\""]).arg(&procs).arg(script);
    let mut child = command.spawn().expect("a shell");
    let pid = child.id();
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
    container.remove().expect("nobody is left in it");

    let lives = drain(&mut stream);
    let told = of(&lives, pid);
    let exec = told.iter().rfind(|life| matches!(life.change, Change::Exec { .. }));
    let exec = exec.expect("the exec is told");
    let text = |text: &str| Some(text.to_owned());
    let command_line = text(&format!("/bin/sh -c {script}"));
    assert_eq!(exec.change, Change::Exec { executable: text("/bin/sh"), command_line });
    assert_eq!((exec.name.as_str(), exec.cgroup_id), ("sh", Some(cgroup_id.id)));
    assert_eq!(stream.hierarchy(), cgroup_id.hierarchy);
    let last = told.last().expect("the end is told");
    assert_eq!(last.change, Change::Exit { forked_from: None });
    assert_eq!(last.process, exec.process);
    assert!(exec.process.start_ns <= exec.boot_ns && exec.boot_ns < last.boot_ns, "{told:?}");

    let forks = lives.iter().filter(|life| life.change == Change::Exit { forked_from: Some(exec.process) });
    let forks: Vec<_> = forks.collect();
    assert_eq!(forks.len(), 1, "{lives:?}");
    assert_eq!((forks[0].name.as_str(), forks[0].cgroup_id), ("sh", Some(cgroup_id.id)));
    let path = format!("/docker/{}", Cgroup::id(0x11fe));
    let told_path = lives.iter().find(|life| life.cgroup_id == Some(cgroup_id.id));
    assert_eq!(
        told_path.map(|life| &life.change),
        Some(&Change::Cgroup { path, is_whole: true }),
        "the path comes before whoever is in it"
    );
    assert_eq!(stream.losses().map(|(_, count)| count), [0, 0]);
}

#[test]
fn an_orphan_is_not_taken_for_the_one_that_took_it_over() {
    needs_root!();
    let (_set, mut stream) = open();
    // The inner shell ends at once; its copy reads on, as a child of some ancestor, until its input is closed.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "/bin/sh -c 'exec 3<&0; (read line <&3) >&- & echo $!'"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
    let (input, mut out) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
    let mut orphan = String::new();
    out.read_to_string(&mut orphan).expect("the inner shell tells the pid");
    let orphan: u32 = orphan.trim().parse().expect("a pid");
    assert!(child.wait().expect("it ends").success());
    drop(input);
    let end = until("end of the orphan", || {
        drain(&mut stream).into_iter().rfind(|life| life.process.pid == orphan)
    });
    assert_eq!((end.name.as_str(), end.change), ("sh", Change::Exit { forked_from: None }));
}

#[test]
fn a_full_ring_is_counted() {
    needs_root!();
    let (_set, mut stream) = open();
    // More records of full length than the ring has room for, and nobody reads.
    let script = "i=0; while [ $i -lt 2800 ]; do /bin/true \"$0\"; i=$((i+1)); done";
    let status = Command::new("/bin/sh").args(["-c", script, &"x".repeat(300)]).status().expect("a shell");
    assert!(status.success());
    let [(reason, lost), _] = stream.losses();
    assert!(reason == "ring_full" && lost > 0, "{reason}: {lost}");
    let kept = drain(&mut stream).len();
    assert!(kept > 2_000, "{kept}");
    let mut child = Command::new("/bin/true").spawn().expect("true runs");
    child.wait().expect("it ends");
    assert_eq!(of(&drain(&mut stream), child.id()).len(), 2, "there is room again");
}
