//! Soft lockups: against a burn of known length, and in a guest against the kernel's own watchdog.

use super::*;
use crate::burn::Burner;
use kpulse_tests::kernel_log::KernelLog;
use kpulse_tests::load::{self, Worker};
use kpulse_tests::{skip, until};
use std::fs;

const NAME: &str = "soft_lockup";
const FAMILY: &str = "kpulse_soft_lockups_total";
const WATCHDOG: &str = "/proc/sys/kernel/watchdog_thresh";

fn lockups(set: &mut ProbeSet) -> u64 {
    count(&scrape(set, NAME, &mut identities()), FAMILY, &[])
}

fn from_half_a_second(want: Want) -> LoadOptions {
    let mut options = wanting(want);
    options.thresholds.soft_lockup.min_duration = Duration::from_millis(500);
    options
}

/// Works on the first CPU for as long as the test needs it.
fn on_first_cpu(work: impl FnOnce()) -> Worker {
    Worker::start(None, || {
        load::pin(0)?;
        work();
        Ok(())
    })
}

#[test]
fn a_cpu_that_stays_in_the_kernel_is_one_lockup_and_busy_programs_are_none() {
    needs_root!();
    let mut set = load(NAME, &from_half_a_second(Want::Metrics));
    let mut telling = load(NAME, &from_half_a_second(Want::Events));
    let mut events = telling.take_events().expect("the rings open");
    let _waiting = on_first_cpu(|| load::spin(Duration::MAX));
    let _asking = on_first_cpu(|| {
        loop {
            let _ = std::hint::black_box(fs::read_to_string("/proc/self/stat"));
        }
    });
    // Programs that compute, and that call the kernel all the time, share the CPU for longer than a lockup takes.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(lockups(&mut set), 0);
    assert_eq!(drain_for(&mut events, Duration::ZERO), []);

    if burn::is_guest() {
        fs::write(WATCHDOG, "1").expect("a guest's watchdog can be set");
    }
    let mut log = KernelLog::open();
    let mut burner = Burner::start(&burn::KERNEL);
    let _stuck = on_first_cpu(|| {
        load::rename(c"burn-kernel");
        load::spin(Duration::MAX);
    });
    let (burns, burnt) = until("end of the burn", || {
        let (burns, burnt) = burner.burnt();
        (!burnt.is_zero()).then_some((burns, burnt))
    });
    if burnt < Duration::from_secs(1) {
        skip(module_path!(), "this kernel's BPF cannot burn for as long as a lockup takes");
        return;
    }
    assert_eq!(burns, 1);
    assert_eq!(lockups(&mut set), 1, "{burnt:?} were burnt");
    let facts = drain_for(&mut events, Duration::from_millis(100));
    let [lockup] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((lockup.comm.as_str(), lockup.cpu), ("burn-kernel", Some(0)));
    assert!(lockup.value_ns >= lockup.threshold_ns && !lockup.kernel_stack.is_empty(), "{lockup:?}");
    assert!(!lockup.kernel_stack[0].contains("hrtimer"), "{lockup:?}");
    // The burn is a softirq's, on top of the task.
    assert_eq!(lockup.user_stack, None);
    assert_sum_closes(telling, &mut events, 1);
    if burn::is_guest() {
        assert!(log.lines_with("soft lockup") > 0, "the kernel's watchdog says nothing of {burnt:?}");
        fs::write(WATCHDOG, "10").expect("a guest's watchdog can be set");
    }
}
