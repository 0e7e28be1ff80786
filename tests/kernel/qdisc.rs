//! Packets that wait in a token bucket, against its arithmetic and the clock of who receives them.

use super::*;
use kpulse_tests::{network, shaper};

const NAME: &str = "qdisc";
const UNMEASURED: &str = "kpulse_qdisc_unmeasured_total";
const FAMILY: &str = "kpulse_qdisc_latency_seconds";
const DATAGRAMS: u32 = 15;

/// What was measured behind the bucket, and the numbers that `work` returned; `None` where there are no buckets.
fn provoke(
    device: &str,
    work: impl FnOnce() -> std::io::Result<Vec<u64>>,
) -> Option<(Histogram, Vec<u64>, ProbeSet)> {
    let mut set = load(NAME, &wanting(Want::Metrics));
    let told = network::in_namespace(None, || match shaper::slow_loopback(device) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(vec![]),
        outcome => outcome.and_then(|()| work()),
    });
    let told = told.expect("the work goes well");
    if told.is_empty() {
        kpulse_tests::skip(module_path!(), "the kernel has no token buckets (module sch_tbf)");
        return None;
    }
    let measured = histogram(&scrape(&mut set, NAME, &mut identities()), FAMILY, &[device, "tbf"]);
    Some((measured, told, set))
}

#[test]
fn datagrams_wait_as_long_as_the_bucket_makes_them() {
    needs_root!();
    let device = format!("kpq{}", std::process::id());
    let work = || {
        let waits = shaper::datagrams(DATAGRAMS)?;
        Ok([waits.least, waits.most].map(|time| time.as_nanos() as u64).to_vec())
    };
    let Some((measured, told, mut set)) = provoke(&device, work) else { return };
    assert_eq!(measured.count(), u64::from(DATAGRAMS), "{measured:?}");
    assert_eq!(count(&scrape(&mut set, NAME, &mut identities()), UNMEASURED, &[]), 0);
    assert!((told[0]..=told[1]).contains(&measured.sum_ns), "{} ns, not of {told:?}", measured.sum_ns);
    // The namespace is gone, and with it the device.
    kpulse_tests::until("end of the series", || {
        value(&scrape(&mut set, NAME, &mut identities()), FAMILY, &[&device]).is_none().then_some(())
    });
}

#[test]
fn segments_cut_within_the_qdisc_are_measured_too() {
    needs_root!();
    let device = format!("kps{}", std::process::id());
    let work = || {
        let elapsed = shaper::stream(60_000)?;
        Ok(vec![shaper::packets_sent(&device)?, elapsed.as_nanos() as u64])
    };
    let Some((measured, told, _)) = provoke(&device, work) else { return };
    let [packets, elapsed] = told[..] else { panic!("{told:?}") };
    // What ends the connection leaves the bucket after the device was asked.
    assert!((packets..=packets * 5 / 4).contains(&measured.count()), "{} of {packets}", measured.count());
    assert!(packets >= 40, "60 kB are 42 segments at the least");
    let mean = measured.sum_ns / measured.count();
    assert!((12_000_000 / 2..elapsed).contains(&mean), "{mean} ns on average, all took {elapsed}");
}
