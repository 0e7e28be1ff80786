//! How long does a query over a day take? `cargo test -p kpulse-profiler a_day -- --ignored --nocapture`.

use super::*;
use crate::export::{Format, Profile};
use std::hash::{DefaultHasher, Hash, Hasher};

const WINDOWS: u64 = 8640;
/// Stacks of a window, one in ten of them new.
const STACKS: u64 = 1500;
/// Of so many regular ones.
const REGULAR: u64 = 4096;
const DEPTH: u64 = 30;
const PROCESSES: u64 = 60;
const NAMES: u64 = 8000;

/// A number that looks random.
fn any(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn window(number: u64, from: SystemTime, names: &[Arc<str>]) -> Window {
    let mut window = Window::new(from, 65_536);
    window.to = from + Duration::from_secs(10);
    for index in 0..STACKS {
        let draw = any((number, index));
        let regular = draw % REGULAR;
        let salt = if index % 10 == 0 { draw } else { 0 };
        let pid = regular % PROCESSES;
        let stack: Stack = (0..DEPTH)
            .map(|depth| {
                // As stacks branch: the further from the root, the more.
                let branch = regular >> (12 - depth * 12 / DEPTH);
                let own = if depth >= DEPTH - 5 { salt } else { 0 };
                names[(any((pid, depth, branch, own)) % NAMES) as usize].clone()
            })
            .collect();
        let process = format!("process{pid}").as_str().into();
        let container = pid.is_multiple_of(2).then(|| format!("{pid:064x}").as_str().into());
        window.add(Key { pid: pid as u32, process, thread: "worker".into(), container, stack }, 1 + draw % 3);
    }
    window
}

#[test]
#[ignore = "takes minutes, and measures"]
fn a_day_is_answered_in_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let day = Duration::from_secs(86_400);
    let retention = Retention { max_age: 2 * day, max_bytes: 4 << 30 };
    let now = SystemTime::now();
    let store = Arc::new(Store::open(&directory.path().join(FILE), retention, now).unwrap());
    let names: Vec<Arc<str>> = (0..NAMES)
        .map(|name| format!("library{}::module{}::function_{name}", name % 50, name % 500).into())
        .collect();
    let begin = now - day - Duration::from_secs(300);
    let started = Instant::now();
    for number in 0..WINDOWS + 30 {
        let from = begin + Duration::from_secs(number * 10);
        store.append(&Packed::of(number, &Sum::of(&window(number, from, &names))).unwrap(), now).unwrap();
    }
    println!("{:?} to write {:?}", started.elapsed(), store.held());
    let bounds =
        Bounds { window: Duration::from_secs(10), window_entries: 65_536, max_age: day, max_bytes: 1 << 20 };
    let shared = Shared::new(bounds);
    shared.lock().history.keep_in(store.clone(), std::sync::mpsc::sync_channel(1).0);
    let ask = |how: &str| {
        println!("{how}: {:?}", store.held());
        for (scope, detail) in [
            (Scope::Host, Detail::Stacks),
            (Scope::Process(7), Detail::Stacks),
            (Scope::Host, Detail::Targets),
        ] {
            let started = Instant::now();
            let stretch = Stretch::of(day, Duration::ZERO, now);
            let found = shared.select(&scope, detail, stretch).unwrap().unwrap();
            let took = started.elapsed();
            let (samples, stacks, lost) = (found.samples, found.entries.len(), &found.lost);
            println!(
                "  {took:?} for {scope:?}, {detail:?}: {samples} samples, {stacks} stacks, lost {lost:?}"
            );
            if detail == Detail::Stacks {
                let started = Instant::now();
                let profile = Profile { scope: &scope, selection: &found, period: Duration::from_millis(10) };
                let picture = profile.render(Format::Svg).unwrap();
                println!("  {:?} for its picture of {} bytes", started.elapsed(), picture.len());
            }
        }
    };
    ask("windows alone");
    let started = Instant::now();
    while sums::make_next(&store, 65_536, now).unwrap().is_some() {}
    println!("{:?} to make all sums", started.elapsed());
    ask("with sums");
}
