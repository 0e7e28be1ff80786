use super::*;
use kpulse_common::metric::MetricDef;
use std::sync::mpsc::Receiver;

const FOUND: MetricDef = MetricDef::gauge("test_found", "Whether it ran.", &[]);

fn quick(_: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    out.count(&FOUND, &[], 1);
    Ok(())
}

/// Runs once it is allowed to, each time.
fn gated(gate: Receiver<()>) -> Box<dyn Collect> {
    Box::new(move |host: &mut Host, out: &mut Samples| {
        gate.recv()?;
        quick(host, out)
    })
}

fn turns(collectors: Vec<(&'static str, Box<dyn Collect>)>) -> Arc<Turns> {
    Turns::new(&Paths::default(), 4, collectors)
}

fn fared(outcome: &Outcome) -> Vec<(&'static str, Result<(), &str>)> {
    let mut fared: Vec<_> = outcome
        .readings
        .iter()
        .map(|reading| (reading.name, reading.found.as_ref().map(|_| ()).map_err(String::as_str)))
        .collect();
    fared.sort_unstable();
    fared
}

fn scrape_for(turns: &Arc<Turns>, time: Duration) -> Outcome {
    turns.scrape(|_| true, Instant::now() + time)
}

const LATE: &str = "it was not done when the time of the scrape was over";
const BUSY: &str = "it is still busy with an earlier scrape";
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_collector_that_hangs_is_late_and_the_rest_is_there() {
    let (open, gate) = channel();
    let turns = turns(vec![("first", Box::new(quick)), ("slow", gated(gate)), ("last", Box::new(quick))]);
    let first = scrape_for(&turns, Duration::from_millis(400));
    assert_eq!(fared(&first), [("first", Ok(())), ("last", Ok(())), ("slow", Err(LATE))]);
    // The next scrapes do not wait for it at all.
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(
            fared(&scrape_for(&turns, LONG)),
            [("first", Ok(())), ("last", Ok(())), ("slow", Err(BUSY))]
        );
        assert!(start.elapsed() < LONG / 2);
    }
    open.send(()).unwrap();
    // Whoever let it go on finds it back at some time.
    let start = Instant::now();
    loop {
        open.send(()).unwrap();
        let outcome = scrape_for(&turns, LONG);
        if fared(&outcome)[2] == ("slow", Ok(())) {
            break;
        }
        assert!(start.elapsed() < LONG, "{:?}", fared(&outcome));
    }
}

#[test]
fn several_collectors_that_hang_cost_their_own_series_only() {
    let (_keep_one, one) = channel();
    let (_keep_two, two) = channel();
    let turns = turns(vec![("a", gated(one)), ("b", gated(two)), ("c", Box::new(quick))]);
    let outcome = scrape_for(&turns, Duration::from_secs(1));
    assert_eq!(fared(&outcome), [("a", Err(LATE)), ("b", Err(LATE)), ("c", Ok(()))]);
    assert!(!outcome.about.families().is_empty());
}

#[test]
fn a_slow_collector_that_is_done_in_time_is_counted() {
    let (open, gate) = channel();
    let turns = turns(vec![("slow", gated(gate)), ("last", Box::new(quick))]);
    let waiting = Arc::clone(&turns);
    let scrape = std::thread::spawn(move || scrape_for(&waiting, LONG));
    // It is let go after the scrape went on without it.
    let start = Instant::now();
    while turns.lock().generation == 0 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    open.send(()).unwrap();
    assert_eq!(fared(&scrape.join().unwrap()), [("last", Ok(())), ("slow", Ok(()))]);
}

#[test]
fn scrapes_at_once_take_turns_and_all_get_everything() {
    let turns = turns(vec![("a", Box::new(quick)), ("b", Box::new(quick))]);
    let scrapes: Vec<_> = (0..16)
        .map(|_| {
            let turns = Arc::clone(&turns);
            std::thread::spawn(move || scrape_for(&turns, LONG))
        })
        .collect();
    for scrape in scrapes {
        assert_eq!(fared(&scrape.join().unwrap()), [("a", Ok(())), ("b", Ok(()))]);
    }
    assert_eq!(turns.lock().generation, 0, "nobody lost the host");
}

#[test]
fn totals_do_not_go_back_when_a_host_is_given_up() {
    let (_keep, gate) = channel();
    let ask = |host: &mut Host, _: &mut Samples| {
        let unknown = kpulse_common::container::CgroupId {
            hierarchy: kpulse_common::container::Hierarchy::Unified,
            id: 0,
        };
        host.identities.labels(unknown);
        Ok(())
    };
    let turns = turns(vec![("ask", Box::new(ask)), ("slow", gated(gate))]);
    let counted = |turns: &Turns| turns.totals().hits + turns.totals().misses;
    turns.scrape(|name| name == "ask", Instant::now() + LONG);
    let before = counted(&turns);
    assert!(before > 0);
    scrape_for(&turns, Duration::from_millis(50));
    std::thread::sleep(GRACE);
    scrape_for(&turns, LONG);
    assert!(counted(&turns) > before, "{} after {before}", counted(&turns));
}

#[test]
fn a_thread_waits_for_the_next_scrape_and_one_that_is_gone_is_replaced() {
    let (ran, threads) = channel();
    let tell = move |host: &mut Host, out: &mut Samples| {
        ran.send(std::thread::current().id())?;
        quick(host, out)
    };
    let turns = turns(vec![("tell", Box::new(tell))]);
    let scrape = || {
        assert_eq!(fared(&scrape_for(&turns, LONG)), [("tell", Ok(()))]);
        // It is told of the end before it waits.
        while turns.lock().idle.is_none() {
            std::thread::yield_now();
        }
        threads.recv().unwrap()
    };
    let first = scrape();
    assert_eq!(scrape(), first);
    let (gone, _) = channel();
    turns.lock().idle = Some((first, gone));
    assert_ne!(scrape(), first);
}
