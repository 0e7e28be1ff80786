//! Cgroups that look like containers, a process in each, made and removed by a few threads at once.

use kpulse_common::container::Hierarchies;
use kpulse_common::paths::Paths;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::Worker;
use kpulse_tests::{DEADLINE, until};
use std::collections::HashMap;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// What the ids of these containers begin with, so that those of the machine and of another run are left alone.
pub static PREFIX: LazyLock<String> = LazyLock::new(|| format!("50a7{:08x}", std::process::id()));
/// Families that every container here has something in.
pub const FAMILIES: [&str; 3] =
    ["kpulse_runqueue_latency_seconds", "kpulse_cpu_seconds_total", "kpulse_memory_bytes"];
/// Each has a hierarchy of its own on cgroup v1, and those that share one are beside each other.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "blkio"];
const MAKERS: u32 = 4;
/// Containers that one thread has at once.
const BATCH: u32 = 25;
/// One batch in so many lives for no scrape at all.
const SHORT: u32 = 4;
/// How long the others live, and until two scrapes have met them.
const LIFE: Duration = Duration::from_millis(600);
/// What a process here waits between two pieces of work.
const PAUSE: Duration = Duration::from_millis(20);

/// When scrapes began, for as long as anyone may ask.
#[derive(Default)]
pub struct Scrapes {
    begun: Mutex<Vec<Instant>>,
    ended: AtomicU32,
}

/// What the threads share.
pub struct Churn {
    scrapes: Scrapes,
    removed: Mutex<HashMap<u32, Instant>>,
    next: AtomicU32,
    is_over: AtomicBool,
}

/// Ends the churn when it is dropped, however the test ends.
pub struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Churn {
    pub fn new(scrapes: Scrapes) -> Self {
        Self { scrapes, removed: Mutex::default(), next: AtomicU32::new(0), is_over: AtomicBool::new(false) }
    }

    /// Lets a panic of the test end the threads too.
    pub fn end_with_this(&self) -> End<'_> {
        End(&self.is_over)
    }

    /// Notes a scrape that is over.
    pub fn scraped(&self, begin: Instant) {
        lock(&self.scrapes.begun).push(begin);
        self.scrapes.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// How many scrapes began after `since` and before `until`.
    pub fn scrapes_since(&self, since: Instant, until: Instant) -> usize {
        lock(&self.scrapes.begun)
            .iter()
            .rev()
            .take_while(|begin| **begin > since)
            .filter(|begin| **begin < until)
            .count()
    }

    /// When a container was gone.
    pub fn removed(&self, number: u32) -> Option<Instant> {
        lock(&self.removed).get(&number).copied()
    }

    /// Starts the threads; they end when `wanted` containers were there.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        wanted: u32,
    ) -> Vec<ScopedJoinHandle<'scope, ()>> {
        (0..MAKERS).map(|_| scope.spawn(move || self.make(wanted))).collect()
    }

    fn make(&self, wanted: u32) {
        while !self.is_over.load(Ordering::Relaxed) {
            let first = self.next.fetch_add(BATCH, Ordering::Relaxed);
            if first >= wanted {
                return;
            }
            let batch: Vec<_> = (first..(first + BATCH).min(wanted)).map(Container::start).collect();
            if !(first / BATCH).is_multiple_of(SHORT) {
                self.live();
            }
            for container in batch {
                let number = container.number;
                container.remove();
                lock(&self.removed).insert(number, Instant::now());
            }
        }
    }

    /// Waits for [`LIFE`], and for two scrapes to end, of which the second began after this.
    fn live(&self) {
        let (begin, ended) = (Instant::now(), self.scrapes.ended.load(Ordering::Relaxed));
        let is_met = || self.scrapes.ended.load(Ordering::Relaxed) >= ended + 2;
        while (begin.elapsed() < LIFE || !is_met()) && !self.is_over.load(Ordering::Relaxed) {
            assert!(begin.elapsed() < DEADLINE, "no two scrapes in {DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How many cgroups the machine has now, in the hierarchy that has most.
pub fn cgroups_alive() -> usize {
    let hierarchies = Hierarchies::detect(&Paths::default());
    let mounts = CONTROLLERS.iter().filter_map(|controller| hierarchies.mount(hierarchies.of(controller)));
    mounts.map(count_folders).max().unwrap_or(0)
}

fn count_folders(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    1 + below.map(|entry| count_folders(&entry.path())).sum::<usize>()
}

struct Container {
    number: u32,
    worker: Worker,
    cgroups: Vec<Cgroup>,
}

impl Container {
    /// One cgroup in each hierarchy that has a controller of ours, and a process in all of them.
    fn start(number: u32) -> Self {
        let hierarchies = Hierarchies::detect(&Paths::default());
        let mut controllers = CONTROLLERS.to_vec();
        controllers.dedup_by_key(|controller| hierarchies.mount(hierarchies.of(controller)));
        let id = format!("{}{number:052x}", *PREFIX);
        let made = controllers.into_iter().map(|controller| Cgroup::named(controller, &id).unwrap());
        let cgroups: Vec<_> = made.collect();
        let worker = Worker::start(None, || {
            cgroups.iter().try_for_each(Cgroup::enter)?;
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            loop {
                // Nobody listens there: a packet is dropped.
                socket.send_to(b"?", "127.0.0.1:9")?;
                std::hint::black_box(vec![1u8; 64 << 10]);
                std::thread::sleep(PAUSE);
            }
        });
        Self { number, worker, cgroups }
    }

    fn remove(self) {
        let Self { worker, cgroups, .. } = self;
        drop(worker);
        for cgroup in cgroups {
            until("end of a cgroup", || cgroup.remove().ok());
        }
    }
}
