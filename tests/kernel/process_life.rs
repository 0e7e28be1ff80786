//! Who began and ended is told with what names it, also when it is gone with its container before anyone looks.

use super::{load, needs_root, wanting};
use kpulse_exporter_ebpf::life::{Change, Life, LifeStream, ProcessId};
use kpulse_exporter_ebpf::{ProbeSet, Want};
use kpulse_tests::cgroup::Cgroup;
use std::process::Command;

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
    // The shell waits for a copy of itself, and the copy for one of its own, whose parent is gone by then.
    let script = "(:) & wait; exit 3";
    let mut command = Command::new("/bin/sh");
    let mut child = container.run(command.args(["-c", script])).expect("a shell");
    let pid = child.id();
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
    container.remove().expect("nobody is left in it");

    let lives = drain(&mut stream);
    let told = of(&lives, pid);
    let exec = told.iter().find(|life| matches!(life.change, Change::Exec { .. })).expect("the exec is told");
    let text = |text: &str| Some(text.to_owned());
    let command_line = text(&format!("/bin/sh -c {script}"));
    assert_eq!(exec.change, Change::Exec { executable: text("/bin/sh"), command_line });
    assert_eq!((exec.name.as_str(), exec.cgroup_id), ("sh", Some(cgroup_id.id)));
    assert_eq!(stream.cgroup(cgroup_id.id), cgroup_id);
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
    // The inner shell ends at once; its copy goes on until the pipe is closed, as a child of some ancestor.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "/bin/sh -c 'echo $$; (read line) & exit 0'; sleep 0"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut inner = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut out, &mut inner).expect("the inner shell tells its pid");
    let inner: u32 = inner.trim().parse().expect("a pid");
    let input = child.stdin.take();
    let ended = child.wait().expect("it ends");
    assert!(ended.success());
    drop(input);
    // Its end closes the other end of the pipe.
    std::io::Read::read_to_end(&mut out, &mut Vec::new()).expect("the orphan ends");
    let lives = kpulse_tests::until("end of the orphan", || {
        let lives = drain(&mut stream);
        lives.iter().any(|life| is_end_of_fork(life, inner)).then_some(lives)
    });
    let orphan = lives.iter().find(|life| is_end_of_fork(life, inner)).expect("it was found");
    assert_eq!(orphan.change, Change::Exit { forked_from: None }, "{orphan:?}");
}

fn is_end_of_fork(life: &Life, after: u32) -> bool {
    matches!(life.change, Change::Exit { .. }) && life.name == "sh" && life.process.pid > after
}

#[test]
fn a_full_ring_is_counted() {
    needs_root!();
    let (_set, mut stream) = open();
    let long = "x".repeat(300);
    // More records of full length than the ring has room for, and nobody reads.
    for _ in 0..2_800 {
        let status = Command::new("/bin/true").arg(&long).status().expect("true runs");
        assert!(status.success());
    }
    let lost = stream.losses();
    assert!(lost[0].1 > 0, "{lost:?}");
    let before = drain(&mut stream).len();
    assert!(before > 2_000, "{before}");
    let mut child = Command::new("/bin/true").spawn().expect("true runs");
    child.wait().expect("it ends");
    assert_eq!(of(&drain(&mut stream), child.id()).len(), 2, "there is room again");
    let _: ProcessId = ProcessId { pid: child.id(), start_ns: 0 };
}
