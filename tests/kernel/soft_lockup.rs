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
    let mut set = load(NAME, &wanting(Want::Metrics));
    let _waiting = on_first_cpu(|| load::spin(Duration::MAX));
    let _asking = on_first_cpu(|| {
        loop {
            let _ = std::hint::black_box(fs::read_to_string("/proc/self/stat"));
        }
    });
    // Programs that compute, and that call the kernel all the time, share the CPU for longer than a lockup takes.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(lockups(&mut set), 0);

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
    if burn::is_guest() {
        assert!(log.lines_with("soft lockup") > 0, "the kernel's watchdog says nothing of {burnt:?}");
        fs::write(WATCHDOG, "10").expect("a guest's watchdog can be set");
    }
}
