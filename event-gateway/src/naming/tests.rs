use super::*;
use crate::enrich::Enrich;
use crate::enrich::tests::fact;
use crate::spool::Capacity;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::Fact;
use serde_json::Value;
use std::process::{Child, Command, Stdio};

/// What this process runs.
fn own_space() -> AddressSpace {
    let its = Processes::new(Path::new("/proc")).process(std::process::id()).unwrap().identity;
    AddressSpace { code: its.code, stack: its.stack }
}

#[inline(never)]
fn a_function_of_this_test() -> u64 {
    std::hint::black_box(a_function_of_this_test as fn() -> u64 as usize as u64)
}

fn named(stack: &UserStack) -> (Vec<String>, Unnamed) {
    name(&mut Native::new(Processes::new(Path::new("/proc")), Detail::Symbols), stack, Instant::now())
}

#[test]
fn a_stack_ends_where_it_leads_astray() {
    let function = a_function_of_this_test();
    // Heap is no code. Of a return address the call is the instruction before.
    let heap = Box::new(0u64);
    let astray = std::ptr::from_ref(&*heap) as u64;
    let frames = vec![function, function + 1, astray, function + 1];
    let stack = UserStack { pid: std::process::id(), space: own_space(), frames };
    let (names, unnamed) = named(&stack);
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().all(|name| name.contains("a_function_of_this_test")), "{names:?}");
    assert_eq!(unnamed, BTreeMap::from([("unmapped", 2)]));
}

#[test]
fn another_program_under_the_pid_names_nothing() {
    let (pid, frames) = (std::process::id(), vec![a_function_of_this_test()]);
    let space = AddressSpace { stack: 0, ..own_space() };
    assert_eq!(named(&UserStack { pid, space, frames }), (vec![], BTreeMap::from([("process_gone", 1)])));
}

/// A program that ends with its test.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_was_named_while_it_lived_is_named_when_it_is_gone() {
    let mut native = Native::new(Processes::new(Path::new("/proc")), Detail::Symbols);
    let processes = Processes::new(Path::new("/proc"));
    let mut child =
        Sleeper(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    // It runs its own program as soon as it answers.
    std::io::Write::write_all(child.0.stdin.as_mut().unwrap(), b"x").unwrap();
    std::io::Read::read_exact(child.0.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let pid = child.0.id();
    let its = processes.process(pid).unwrap().identity;
    let space = AddressSpace { code: its.code, stack: its.stack };
    let stack = UserStack { pid, space, frames: vec![its.code] };
    let (before, _) = name(&mut native, &stack, Instant::now());
    drop(child);
    assert_eq!(before.len(), 1);
    assert_eq!(name(&mut native, &stack, Instant::now()).0, before);
    let other = UserStack { frames: vec![its.code + 1], ..stack };
    assert_eq!(name(&mut native, &other, Instant::now()), (vec![], BTreeMap::from([("process_gone", 1)])));
}

#[test]
fn names_are_text_whatever_a_file_says() {
    assert_eq!(clean("f\u{1b}[2J\n(\u{202e}int) const"), "f_[2J_(_int) const");
}

/// A naming whose thread is stuck, as one is that reads a file of a file system that does not answer.
fn stuck(spool: &Arc<Spool>) -> Naming {
    let (state, changed) = (Mutex::default(), Condvar::new());
    Naming { state, changed, spool: spool.clone(), tally: Arc::default() }
}

fn draft() -> Draft {
    let user_stack = Some(UserStack { pid: 1, space: own_space(), frames: vec![1, 2] });
    Enrich::new(&Paths::default(), BTreeMap::new()).draft(Fact { user_stack, ..fact() })
}

#[test]
fn no_event_waits_for_a_file_that_cannot_be_read() {
    let spool = Arc::new(Spool::new(Capacity { events: 1000, bytes: 1 << 30 }));
    let naming = stuck(&spool);
    let begin = Instant::now();
    for _ in 0..WAITING_MAX + 3 {
        naming.push(draft());
    }
    assert_eq!(naming.tally.counts().in_naming, WAITING_MAX as u64);
    assert_eq!(spool.depth().events, 3, "those that found too many before them");
    naming.finish();
    assert!(begin.elapsed() >= PATIENCE);
    assert_eq!(spool.depth().events, WAITING_MAX + 3);
    let counts = naming.tally.counts();
    assert_eq!(counts.in_naming, 0);
    assert_eq!(counts.frames_unnamed, BTreeMap::from([("late", 2 * WAITING_MAX as u64), ("queue_full", 6)]));
}

#[test]
fn a_user_stack_stands_beside_the_kernels() {
    let spool = Arc::new(Spool::new(Capacity { events: 10, bytes: 1 << 30 }));
    let naming = Naming::start(&spool, &Arc::default()).unwrap();
    let frames = vec![a_function_of_this_test()];
    let user_stack = Some(UserStack { pid: std::process::id(), space: own_space(), frames });
    naming.push(Enrich::new(&Paths::default(), BTreeMap::new()).draft(Fact { user_stack, ..fact() }));
    let [document] = spool.take(1, 10 * PATIENCE, Duration::ZERO).try_into().unwrap();
    naming.finish();
    let event: Value = serde_json::from_str(&document.json).unwrap();
    let stack = &event["kpulse"]["stack"];
    assert_eq!(stack["kernel"], serde_json::json!(["kfree_skb"]));
    assert!(stack["user"][0].as_str().unwrap().contains("a_function_of_this_test"), "{stack}");
}
