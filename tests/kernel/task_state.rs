//! Task states against `/proc/PID/stat`, time in state D against the sleeper's own clock, hung tasks against the kernel's log.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::kernel_log::KernelLog;
use kpulse_tests::load::{self, Worker};
use kpulse_tests::stuck_page::StuckPage;
use kpulse_tests::{skip, until};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::Instant;

const NAME: &str = "task_state";
const SLEPT: &str = "kpulse_offcpu_uninterruptible_seconds";
const TASKS: &str = "kpulse_tasks";
const HUNG: &str = "kpulse_hung_tasks_total";
const SLEEPS: u32 = 3;
const SLEEP: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(600);

fn measures_the_time_in_state_d(options: &LoadOptions, number: u32) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut set = load(NAME, options);
    let clock = Instant::now();
    let (_, went_well) =
        load::in_child(Some(&container), || (0..SLEEPS).try_for_each(|_| load::sleep_uninterruptibly(SLEEP)));
    let elapsed = clock.elapsed();
    assert!(went_well);
    let slept = histogram(&scrape(&mut set, NAME, &mut identities()), SLEPT, &[&Cgroup::id(number)]);
    let sum = Duration::from_nanos(slept.sum_ns);
    assert!(slept.count() >= u64::from(SLEEPS), "{slept:?}");
    // The child may have slept for a while when its parent begins to wait for it.
    assert!(sum >= SLEEP * SLEEPS * 9 / 10 && sum <= elapsed, "{sum:?} in {elapsed:?}");
    // Above 125 ms, each of them.
    assert!(slept.slots[18..].iter().sum::<u64>() >= u64::from(SLEEPS), "{slept:?}");
}

#[test]
fn a_container_sleeps_uninterruptibly_for_as_long_as_it_does() {
    needs_root!();
    measures_the_time_in_state_d(&wanting(Want::Metrics), 0xe1);
}

#[test]
fn raw_tracepoints_measure_the_same() {
    needs_root!();
    let options = LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) };
    measures_the_time_in_state_d(&options, 0xe2);
}

#[test]
fn sleeping_otherwise_is_not_in_it() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xe3).expect("a cgroup can be made");
    let mut set = load(NAME, &wanting(Want::Metrics));
    let (_, went_well) = load::in_child(Some(&container), || {
        sleep(SLEEP);
        Ok(())
    });
    assert!(went_well);
    let samples = scrape(&mut set, NAME, &mut identities());
    // The child may have waited for a disk to start.
    if let Some(Value::Histogram(slept)) = value(&samples, SLEPT, &[&Cgroup::id(0xe3)]) {
        assert!(Duration::from_nanos(slept.sum_ns) < SLEEP, "{slept:?}");
    }
}

#[test]
fn a_long_sleep_is_an_event_with_its_stack_and_waker_and_a_short_one_is_none() {
    needs_root!();
    let container = &Cgroup::container("cpu", 0xe7).expect("a cgroup can be made");
    let mut options = wanting(Want::Events);
    options.thresholds.task_state.min_stuck = SLEEP;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let clock = Instant::now();
    let ((pid, went_well), channels) = thread::scope(|scope| {
        let (end, is_over) = mpsc::channel::<()>();
        let watcher = scope.spawn(move || wait_channels(container, &is_over));
        let outcome = load::in_child(Some(container), || {
            load::sleep_uninterruptibly(SLEEP / 3)?;
            (0..SLEEPS).try_for_each(|_| load::sleep_uninterruptibly(SLEEP))
        });
        drop(end);
        (outcome, watcher.join().expect("it only reads"))
    });
    let elapsed = clock.elapsed().as_nanos() as u64;
    assert!(went_well);
    let facts = drain_for(&mut events, Duration::from_millis(100));
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.cgroup == Some(container.cgroup_id())).collect();
    assert_eq!(ours.len(), SLEEPS as usize, "{ours:?}");
    let whole: u64 = ours.iter().filter_map(|fact| fact.value_ns).sum();
    assert!(whole <= elapsed, "{whole} ns in {elapsed}");
    for fact in ours {
        assert_eq!((fact.kind, fact.pid), ("task_stuck", pid));
        assert!(fact.value_ns >= fact.threshold_ns && fact.threshold_ns == Some(SLEEP.as_nanos() as u64));
        // The parent of a vfork waits in there, and the child wakes it when it ends.
        let has = |function: &str| fact.kernel_stack.iter().any(|frame| frame.contains(function));
        assert!(has("kernel_clone") || has("do_fork"), "{:?}", fact.kernel_stack);
        assert!(fact.body["waker"]["pid"].as_u64().is_some_and(|waker| waker != u64::from(pid)), "{fact:?}");
        let channel = fact.body["wait_channel"].as_str().unwrap_or_default();
        assert!(fact.kernel_stack.iter().any(|function| function == channel), "{fact:?}");
        assert!(channels.is_empty() || channels.contains(channel), "{channels:?}: {fact:?}");
    }
    assert_sum_closes(set, &mut events, facts.len());
}

/// What a container's tasks in state D wait in by the kernel's own word, until the sender is gone. Before 5.16 a kernel
/// without frame pointers has none.
fn wait_channels(container: &Cgroup, is_over: &mpsc::Receiver<()>) -> BTreeSet<String> {
    let mut channels = BTreeSet::new();
    while is_over.recv_timeout(Duration::from_millis(5)) == Err(mpsc::RecvTimeoutError::Timeout) {
        for thread in threads_of(container).into_iter().filter(|&thread| state(thread) == Some('D')) {
            channels.extend(fs::read_to_string(format!("/proc/{thread}/wchan")));
        }
    }
    // It ran by then.
    channels.remove("0");
    channels
}

fn forever() -> io::Result<()> {
    sleep(LONG);
    Ok(())
}

/// The letter of a thread's state.
fn state(thread: u32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

fn threads_of(container: &Cgroup) -> Vec<u32> {
    let file = if container.is_v1() { "tasks" } else { "cgroup.threads" };
    let threads = fs::read_to_string(container.path().join(file)).unwrap_or_default();
    threads.lines().filter_map(|thread| thread.parse().ok()).collect()
}

/// Letters of the states of a cgroup's threads and of one process that the cgroup may not list, by `/proc`.
fn states(container: &Cgroup, zombie: u32) -> Vec<char> {
    let mut threads = threads_of(container);
    threads.push(zombie);
    threads.sort_unstable();
    threads.dedup();
    let mut states: Vec<char> = threads.into_iter().filter_map(state).collect();
    states.sort_unstable();
    states
}

#[test]
fn a_container_has_as_many_tasks_in_each_state_as_proc_says() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xe4).expect("a cgroup can be made");
    let start = |work: fn() -> io::Result<()>| Worker::start(Some(&container), work);
    let spin = || {
        load::pin(0)?;
        load::spin(LONG);
        Ok(())
    };
    let stop = || {
        // SAFETY: stops this process only.
        unsafe { libc::raise(libc::SIGSTOP) };
        Ok(())
    };
    let _busy = [start(spin), start(spin)];
    let _asleep = [start(forever), start(forever), start(forever)];
    let _stopped = start(stop);
    // A process in state D, and the child that it waits for.
    let _waiting = start(|| load::sleep_uninterruptibly(LONG));
    let zombie = start(|| Ok(()));
    let expected = ['D', 'R', 'R', 'S', 'S', 'S', 'S', 'T', 'Z'];
    until("states", || (states(&container, zombie.pid()) == expected).then_some(()));

    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut identities = identities();
    let samples = scrape(&mut set, NAME, &mut identities);
    let tasks = |state| count(&samples, TASKS, &[&Cgroup::id(0xe4), state]);
    assert_eq!(tasks("running") + tasks("runnable"), 2, "{samples:?}");
    assert!(tasks("running") <= 1, "both share a CPU");
    for (state, number) in [("interruptible", 4), ("uninterruptible", 1), ("stopped", 1), ("zombie", 1)] {
        assert_eq!(tasks(state), number, "{state}");
    }
    // What the container's tasks do not do is known, and zero.
    assert!(value(&samples, TASKS, &["", "running"]).is_some());
    assert_eq!(value(&samples, TASKS, &[&Cgroup::id(0xe4), "idle"]), None);
}

#[test]
fn all_tasks_are_as_many_as_the_kernel_counts() {
    needs_root!();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let first = fs::read_dir("/proc/1/task").expect("there is a first process").count() as u64;
    let begin = Instant::now();
    loop {
        let counted = total(&scrape(&mut set, NAME, &mut identities()), TASKS, &[]);
        let text = fs::read_to_string("/proc/loadavg").expect("every kernel has it");
        let threads = text.split(['/', ' ']).nth(4).and_then(|threads| threads.parse::<u64>().ok());
        let threads = threads.expect("the fourth field");
        // Threads come and go between the two, and a sandbox may keep its first process to itself.
        if (threads.saturating_sub(first + 3)..=threads + 3).contains(&counted) {
            return;
        }
        assert!(begin.elapsed() < kpulse_tests::DEADLINE, "{counted} counted, the kernel says {text}");
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn tasks_are_counted_once_a_second_at_most() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xe5).expect("a cgroup can be made");
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut identities = identities();
    let asleep = |set: &mut ProbeSet, identities: &mut Identities| {
        count(&scrape(set, NAME, identities), TASKS, &[&Cgroup::id(0xe5), "interruptible"])
    };
    let first = Instant::now();
    assert_eq!(asleep(&mut set, &mut identities), 0);
    let sleeper = Worker::start(Some(&container), forever);
    until("sleeping child", || (states(&container, sleeper.pid()) == ['S']).then_some(()));
    let counted = asleep(&mut set, &mut identities);
    if first.elapsed() < Duration::from_secs(1) {
        assert_eq!(counted, 0, "this is the count from before");
    }
    until("next count", || (asleep(&mut set, &mut identities) == 1).then_some(()));
}

/// A pipe whose lock a thread holds, since what it writes lies in a page that nobody fills.
struct StuckPipe {
    /// Until the drop.
    page: Option<StuckPage>,
    write_end: OwnedFd,
    _read_end: OwnedFd,
    holder: Option<thread::JoinHandle<()>>,
    /// Who waits for the lock.
    writer: Option<Worker>,
}

impl StuckPipe {
    fn make() -> io::Result<Self> {
        let mut pipe = [0; 2];
        // SAFETY: there is room for both descriptors.
        check(unsafe { libc::pipe(pipe.as_mut_ptr()) }.into())?;
        let page = StuckPage::make()?;
        // SAFETY: the descriptors were just made, and nothing else knows them.
        let [read_end, write_end] = pipe.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let (fd, address) = (write_end.as_raw_fd(), page.address());
        let (sender, receiver) = mpsc::channel();
        let holder = thread::spawn(move || {
            // SAFETY: gettid cannot fail; the page is mapped for as long as the process lives.
            unsafe {
                sender.send(libc::gettid()).expect("the test waits for it");
                libc::write(fd, address as *const libc::c_void, 1);
            }
        });
        let thread = receiver.recv().expect("the thread runs");
        until("thread that holds the pipe", || state(thread.unsigned_abs()).filter(|state| *state != 'R'));
        let holder = Some(holder);
        Ok(Self { page: Some(page), write_end, _read_end: read_end, holder, writer: None })
    }

    /// A process that waits for the lock, in state D.
    fn wait(&mut self) -> u32 {
        let fd = self.write_end.as_raw_fd();
        let writer = Worker::start(None, || {
            // SAFETY: writes one byte of a constant.
            check(unsafe { libc::write(fd, c"x".as_ptr().cast(), 1) } as i64).map(drop)
        });
        let pid = self.writer.insert(writer).pid();
        until("task in state D", || state(pid).filter(|state| *state == 'D'));
        pid
    }
}

impl Drop for StuckPipe {
    /// Lets everyone go on: no signal reaches who waits for the lock.
    fn drop(&mut self) {
        drop(self.page.take());
        let _ = self.holder.take().map(thread::JoinHandle::join);
    }
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[test]
fn a_hung_task_is_counted_as_often_as_the_kernel_logs_it() {
    const TIMEOUT: &str = "/proc/sys/kernel/hung_task_timeout_secs";
    needs_root!();
    if !burn::is_guest() {
        skip(
            module_path!(),
            "the limit for hung tasks is the whole machine's, and only a guest's is changed",
        );
        return;
    }
    let mut set = load(NAME, &wanting(Want::Metrics));
    let mut log = KernelLog::open();
    let limit = fs::read_to_string(TIMEOUT).expect("the kernel looks for hung tasks");
    let mut pipe = StuckPipe::make().expect("root may handle page faults");
    let pid = pipe.wait();
    fs::write(TIMEOUT, "1").expect("a guest's limit can be set");
    let line = format!(":{pid} blocked for more than");
    let logged = until("hung task", || Some(log.lines_with(&line)).filter(|lines| *lines > 0));
    fs::write(TIMEOUT, limit.trim()).expect("a guest's limit can be set");
    drop(pipe);
    let counted = count(&scrape(&mut set, NAME, &mut identities()), HUNG, &[]);
    let all = (logged + log.lines_with(&line)) as u64;
    assert_eq!(counted, all, "{line}");
}
