//! Interrupts off: against burns of known length, and stolen time against `/proc/stat`.

use super::*;
use crate::burn::Burner;
use kpulse_tests::{load, until};
use std::time::Instant;

const NAME: &str = "irqs_off";
const FAMILY: &str = "kpulse_irqs_off_seconds";
const STOLEN: &str = "kpulse_irqs_off_stolen_seconds_total";
/// The longest tick of a kernel in use, at 100 Hz: a stretch is seen from its first tick on.
const TICK: Duration = Duration::from_millis(10);

/// Time stolen from all CPUs, by the kernel's own account in hundredths of a second.
fn steal() -> Duration {
    let text = std::fs::read_to_string("/proc/stat").expect("every kernel has it");
    let field = text.lines().next().and_then(|line| line.split_ascii_whitespace().nth(8));
    Duration::from_millis(field.and_then(|field| field.parse::<u64>().ok()).unwrap_or(0) * 10)
}

fn late(set: &mut ProbeSet) -> (Histogram, Option<Duration>) {
    let samples = scrape(set, NAME, &mut identities());
    let stolen = match value(&samples, STOLEN, &[]) {
        Some(Value::Number(seconds)) => Some(Duration::from_secs_f64(seconds)),
        None => None,
        other => panic!("{other:?}"),
    };
    (histogram(&samples, FAMILY, &[]), stolen)
}

fn sees_what_is_burnt(options: &LoadOptions) {
    let begin = Instant::now();
    let steal_before = steal();
    let mut set = load(NAME, options);
    let mut burner = Burner::start(&burn::IRQS_OFF);
    // Burns happen where this thread sleeps, and so do the timers that tell them.
    load::pin(0).expect("there is a first CPU");
    load::rename(c"burn-irqs");
    let (burns, burnt) = until("third burn", || {
        let (burns, burnt) = burner.burnt();
        (burns >= 3).then_some((burns, burnt))
    });
    load::rename(c"idle");
    let least = burnt.saturating_sub(TICK * u32::try_from(burns).expect("a few"));
    let (measured, stolen) = until("lateness", || {
        let (late, stolen) = late(&mut set);
        let all = Duration::from_nanos(late.sum_ns) + stolen.unwrap_or_default();
        (all >= least).then_some((late, stolen))
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let time = begin.elapsed() * u32::try_from(cpus).expect("a few");
    assert!(
        Duration::from_nanos(measured.sum_ns) <= time,
        "stretches do not overlap: {measured:?} in {time:?}"
    );
    // Above 31.25 ms. What the hypervisor takes in the middle of a burn may shorten one, hardly all.
    assert!(measured.slots[16..].iter().sum::<u64>() > 0, "{measured:?} for {burns} burns");
    if let Some(stolen) = stolen {
        let account =
            steal() - steal_before + Duration::from_millis(10) * u32::try_from(cpus).expect("a few");
        assert!(stolen <= account, "{stolen:?} stolen, where the kernel says {account:?}");
    }
}

#[test]
fn a_stretch_without_interrupts_is_as_long_as_it_was() {
    needs_root!();
    sees_what_is_burnt(&wanting(Want::Metrics));
}

#[test]
fn the_raw_tracepoint_sees_the_same() {
    needs_root!();
    sees_what_is_burnt(&LoadOptions { avoid: ["tp_btf"].into(), ..wanting(Want::Metrics) });
}

#[test]
fn a_long_stretch_is_an_event_and_a_short_one_is_none() {
    needs_root!();
    let mut options = wanting(Want::Events);
    options.thresholds.irqs_off.min_duration = Duration::from_millis(31);
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    let mut burner = Burner::start(&burn::IRQS_OFF);
    load::pin(0).expect("there is a first CPU");
    load::rename(c"burn-irqs");
    let mut facts = Vec::new();
    let burns = until("third burn, and its event", || {
        facts.extend(drain_for(&mut events, Duration::from_millis(10)));
        let (burns, _) = burner.burnt();
        (burns >= 3 && !facts.is_empty()).then_some(burns)
    });
    load::rename(c"idle");
    facts.extend(drain_for(&mut events, Duration::from_millis(100)));
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.cpu == Some(0)).collect();
    // An emulated machine keeps interrupts off for long by itself.
    let most = if burn::is_guest() { u64::MAX } else { burns };
    assert!((1..=most).contains(&(ours.len() as u64)), "{} events of {burns} burns", ours.len());
    // Each burn lasts 60 ms, which the hypervisor may stretch.
    let is_whole = |fact: &&&Fact| {
        let stolen = fact.body["stolen_ns"].as_u64().unwrap_or(0);
        Duration::from_nanos(fact.value_ns.unwrap_or(0) + stolen) >= Duration::from_millis(60) - TICK
    };
    assert!(ours.iter().any(|fact| is_whole(&fact)), "{ours:?}");
    assert!(ours.iter().all(|fact| !fact.kernel_stack.is_empty() && fact.value_ns >= fact.threshold_ns));
    let is_below = |fact: &&Fact| fact.kernel_stack.iter().all(|function| function != "hrtimer_interrupt");
    assert!(ours.iter().any(is_below), "{ours:?}");
    let is_its = |fact: &&Fact| fact.user_stack.as_ref().is_none_or(|stack| stack.pid == fact.pid);
    assert!(ours.iter().all(is_its), "{ours:?}");
    assert_sum_closes(set, &mut events, facts.len());
}
