//! Many events while those who carry them are killed, come and go, or have no room: each event ends once, as a document or
//! as a dead letter.
//!
//! `KPULSE_SOAK_EVENTS`, `KPULSE_SOAK_KILLS`, `KPULSE_SOAK_AWAY` (seconds) and `KPULSE_SOAK_SEED` change how many, how often,
//! how long and when; `make soak` kills more often than `make test`.

use crate::pair::{LONG, Pair, Way, event, id, metric, pair};
use kpulse_tests::disk::SmallDisk;
use kpulse_tests::process::Service;
use kpulse_tests::{skip, until, within};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

const EVENTS: u64 = 100_000;
const KILLS: u64 = 5;
/// One event of so many can be no document.
const POISON: usize = 1_000;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Events of which some are refused.
fn mixed(number: usize) -> Value {
    let mut event = event(number);
    if number % POISON == POISON - 1 {
        event["kpulse"]["packet_drop"]["source"]["ip"] = json!("nowhere");
    }
    event
}

/// Waits until the fate of all events is known, and asserts that each is there once.
fn all_are_there_once(way: &Way, events: usize) {
    let refused: BTreeSet<_> = (0..events).filter(|number| number % POISON == POISON - 1).map(id).collect();
    let documents = events - refused.len();
    way.holds(documents);
    let ids = way.ids();
    let found: BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(found.len(), ids.len(), "a document is there twice");
    // Who is killed between a dead letter and its commit sends it again: it is the same event.
    let letters = || -> BTreeSet<String> {
        way.dead_letters().iter().map(|letter| id_of(&letter["payload"])).collect()
    };
    within(LONG, "the last dead letter", || (letters().len() >= refused.len()).then_some(()));
    assert_eq!(letters(), refused);
    let wanted: BTreeSet<_> = (0..events).map(id).filter(|id| !refused.contains(id)).collect();
    let missing: Vec<_> = wanted.difference(&found).take(5).collect();
    assert!(found == wanted, "{} documents; missing for example {missing:?}", found.len());
}

fn id_of(payload: &str) -> String {
    let event: Value = serde_json::from_str(payload).unwrap();
    event["event"]["id"].as_str().unwrap().to_owned()
}

/// The numbers of one part of so many.
fn part(events: usize, number: usize, of: usize) -> Range<usize> {
    events * number / of..events * (number + 1) / of
}

fn ends(forward: &mut Service) {
    within(LONG, "end of the file", || forward.has_ended().then_some(()));
    assert!(forward.wait().success(), "{}", forward.stderr());
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Forward,
    Index,
    Kafka,
    Elasticsearch,
}

const VICTIMS: [Victim; 4] = [Victim::Forward, Victim::Index, Victim::Kafka, Victim::Elasticsearch];

/// Kills one, and starts it again.
fn kill(victim: Victim, pair: &mut Pair, way: &Way, file: &Path, forward: &mut Service, index: &mut Service) {
    let crash = |service: &mut Service| {
        service.signal(libc::SIGKILL);
        service.wait();
    };
    match victim {
        // What the spool had taken is sent first; the file anew, which changes no document.
        Victim::Forward => {
            crash(forward);
            *forward = Service::start(&mut way.forward(file));
        }
        Victim::Index => {
            crash(index);
            *index = way.index();
        }
        Victim::Kafka => {
            pair.kafka.kill();
            pair.kafka.resume();
        }
        Victim::Elasticsearch => {
            pair.elasticsearch.kill();
            pair.elasticsearch.resume();
        }
    }
}

#[test]
fn no_kill_at_a_random_point_loses_or_doubles_an_event() {
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("no_kill_at_a_random_point", &why),
    };
    let events = usize::try_from(setting("KPULSE_SOAK_EVENTS").unwrap_or(EVENTS)).unwrap();
    let kills = usize::try_from(setting("KPULSE_SOAK_KILLS").unwrap_or(KILLS)).unwrap();
    let seed = setting("KPULSE_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{events} events, {kills} kills, KPULSE_SOAK_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let way = Way::new("kill", &pair.kafka, &pair.elasticsearch);
    let mut index = way.index();
    let mut order = VICTIMS.to_vec();
    for round in 0..kills {
        if round % VICTIMS.len() == 0 {
            random.shuffle(&mut order);
        }
        let victim = order[round % VICTIMS.len()];
        let file = way.file(part(events, round, kills), mixed);
        let records = way.watch();
        let point = records() + random.usize(0..events / kills);
        let mut forward = Service::start(&mut way.forward(&file));
        if matches!(victim, Victim::Forward) {
            // Once before Kafka has much of it: the spool has.
            let log = way.state.path().join("spool.db-wal");
            until("spooled events", || (std::fs::metadata(&log).ok()?.len() > 100_000).then_some(()));
            kill(victim, &mut pair, &way, &file, &mut forward, &mut index);
        }
        within(LONG, "a random point", || (records() >= point || forward.has_ended()).then_some(()));
        println!("{victim:?} dies with {} records in Kafka", records());
        kill(victim, &mut pair, &way, &file, &mut forward, &mut index);
        ends(&mut forward);
    }
    all_are_there_once(&way, events);
}

#[test]
fn members_that_come_and_go_leave_no_gap_and_no_double() {
    const ROUNDS: usize = 4;
    const EVENTS: usize = 20_000;
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("members_that_come_and_go", &why),
    };
    let way = Way::new("members", &pair.kafka, &pair.elasticsearch);
    let mut members = [way.index(), way.index(), way.index()];
    let has_share = |member: &Service| member.stderr().contains("partitions are ours");
    for round in 0..ROUNDS {
        within(LONG, "a share for each", || members.iter().all(has_share).then_some(()));
        let records = way.watch();
        let before = records();
        let mut forward = Service::start(&mut way.forward(&way.file(part(EVENTS, round, ROUNDS), mixed)));
        within(LONG, "records", || (records() > before).then_some(()));
        let member = &mut members[round % 3];
        if round % 2 == 0 {
            assert_eq!(member.stop(), Some(0), "{}", member.stderr());
        } else {
            member.signal(libc::SIGKILL);
            member.wait();
        }
        *member = way.index();
        ends(&mut forward);
    }
    all_are_there_once(&way, EVENTS);
}

/// Writes events into a pipe over this time, and ends it.
fn write_over(period: Duration, pipe: std::path::PathBuf, events: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut file = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
        let start = Instant::now();
        for number in 0..events {
            let due = period.mul_f64(number as f64 / events as f64);
            if number % 100 == 0 {
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
            writeln!(file, "{}", mixed(number)).unwrap();
        }
    })
}

#[test]
fn a_member_that_leaves_and_one_that_joins_every_two_seconds_leave_no_gap_and_no_double() {
    const TICK: Duration = Duration::from_secs(2);
    const ROUNDS: u32 = 8;
    const EVENTS: usize = 10_000;
    let pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("a_member_that_leaves", &why),
    };
    let way = Way::new("clock", &pair.kafka, &pair.elasticsearch);
    let pipe = way.state.path().join("pipe");
    let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path is a string that ends with a zero and lives longer than the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let mut forward = Service::start(&mut way.forward(&pipe));
    let writer = write_over(TICK * ROUNDS, pipe, EVENTS);
    let start = || Service::start(&mut way.command("index"));
    let (mut members, mut left) = ([start(), start(), start()], Vec::new());
    let began = Instant::now();
    for round in 1..=ROUNDS {
        std::thread::sleep((TICK * round).saturating_sub(began.elapsed()));
        // One in four dies without a word; nobody is waited for.
        let is_killed = round % 4 == 0;
        let leaves = std::mem::replace(&mut members[round as usize % 3], start());
        leaves.until_it_catches(libc::SIGTERM);
        leaves.signal(if is_killed { libc::SIGKILL } else { libc::SIGTERM });
        left.push((leaves, is_killed));
    }
    writer.join().unwrap();
    ends(&mut forward);
    all_are_there_once(&way, EVENTS);
    for (mut member, is_killed) in left {
        let code = member.wait().code();
        assert!(is_killed || code == Some(0), "{code:?}: {}", member.stderr());
    }
    let had_a_share = |member: &Service| member.stderr().contains("partitions are ours");
    assert!(members.iter().any(had_a_share));
}

#[test]
fn what_either_service_misses_while_it_is_away_is_caught_up() {
    const EVENTS: usize = 20_000;
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("what_either_service_misses", &why),
    };
    let away = Duration::from_secs(setting("KPULSE_SOAK_AWAY").unwrap_or(5));
    let way = Way::new("away", &pair.kafka, &pair.elasticsearch);
    let index = way.index();
    let consumed = || metric(&index, "kpulse_index_consumed_total");
    let is_up = |sink| metric(&index, &format!("kpulse_sink_up{{sink=\"{sink}\"}}")) == 1;
    let mut forward = Service::start(&mut way.forward(&way.file(part(EVENTS, 0, 2), mixed)));
    within(LONG, "records", || (consumed() > 500).then_some(()));
    pair.kafka.kill();
    within(LONG, "Kafka that is missed", || (!is_up("kafka")).then_some(()));
    std::thread::sleep(away);
    pair.kafka.resume();
    within(LONG, "Kafka that is found again", || is_up("kafka").then_some(()));
    ends(&mut forward);
    pair.elasticsearch.kill();
    let mut forward = Service::start(&mut way.forward(&way.file(part(EVENTS, 1, 2), mixed)));
    within(LONG, "Elasticsearch that is missed", || (!is_up("elasticsearch")).then_some(()));
    std::thread::sleep(away);
    pair.elasticsearch.resume();
    ends(&mut forward);
    all_are_there_once(&way, EVENTS);
    assert!(is_up("kafka") && is_up("elasticsearch"));
}

#[test]
fn who_waited_for_elasticsearch_when_kafka_went_goes_on_reading() {
    const EVENTS: usize = 20_000;
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("who_waited_for_elasticsearch", &why),
    };
    let way = Way::new("both", &pair.kafka, &pair.elasticsearch);
    let index = way.index();
    index.line("partitions are ours");
    pair.elasticsearch.kill();
    ends(&mut Service::start(&mut way.forward(&way.file(0..EVENTS, mixed))));
    within(LONG, "a pause", || (metric(&index, "kpulse_index_paused") == 1).then_some(()));
    // Until the session is over, so that no partition is there to be read when Elasticsearch is back.
    pair.kafka.kill();
    within(LONG, "a lost assignment", || index.stderr().contains("partitions go").then_some(()));
    pair.elasticsearch.resume();
    within(LONG, "the end of the pause", || (metric(&index, "kpulse_index_paused") == 0).then_some(()));
    pair.kafka.resume();
    all_are_there_once(&way, EVENTS);
}

#[test]
fn a_spool_on_a_full_disk_gives_back_what_it_took_and_goes_on() {
    const EVENTS: usize = 40_000;
    let mut pair = match pair() {
        Ok(pair) => pair,
        Err(why) => return skip("a_spool_on_a_full_disk", &why),
    };
    let Some(disk) = SmallDisk::with_size(c"size=24m") else {
        return skip("a_spool_on_a_full_disk", "a file system cannot be mounted here (needs root)");
    };
    let way = Way::new("full", &pair.kafka, &pair.elasticsearch);
    let file = way.file(0..EVENTS, mixed);
    let mut command = way.forward(&file);
    command.env("KPULSE_STATE_DIR", disk.path());
    pair.kafka.kill();
    let mut forward = Service::start(&mut command);
    within(LONG, "a full disk", || forward.has_ended().then_some(()));
    assert_eq!(forward.wait().code(), Some(1));
    assert!(forward.stderr().contains("full"), "{}", forward.stderr());
    // Not a byte more than the spool itself left.
    disk.fill();
    pair.kafka.resume();
    command.env("KPULSE_GATEWAY__OUTPUT__SPOOL__MAX_BYTES", (1 << 20).to_string());
    let _index = way.index();
    let mut forward = Service::start(&mut command);
    let records = way.watch();
    within(LONG, "what the spool had taken", || (records() > 1_000).then_some(()));
    forward.signal(libc::SIGTERM);
    forward.wait();
    disk.grow(c"size=256m");
    ends(&mut Service::start(&mut command));
    all_are_there_once(&way, EVENTS);
}
