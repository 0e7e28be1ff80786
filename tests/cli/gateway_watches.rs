//! What kpulse-event-gateway tells with no program in the kernel: facts of files and sockets, provoked.

use crate::gateway::{Gateway, Running, assert_obeys_the_schema};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::{Worker, spin};
use kpulse_tests::{is_root, skip, until};
use serde_json::Value;
use std::io;
use std::time::Duration;

/// A tenth of a CPU, in periods of a fiftieth of a second.
const QUOTA_US: u64 = 2_000;
const PERIOD_US: u64 = 20_000;

fn limit(container: &Cgroup) -> io::Result<()> {
    if container.is_v1() {
        container.set("cpu.cfs_period_us", &PERIOD_US.to_string())?;
        return container.set("cpu.cfs_quota_us", &QUOTA_US.to_string());
    }
    container.set("cpu.max", &format!("{QUOTA_US} {PERIOD_US}"))
}

#[test]
fn a_container_that_its_quota_stops_is_told_with_the_quota_and_one_that_sleeps_is_not() {
    const TEST: &str = "a_container_that_its_quota_stops";
    if !is_root() {
        return skip(TEST, "only root can make cgroups");
    }
    let numbers = [0x7407, 0x7408];
    let [busy, idle] = numbers.map(|number| Cgroup::container("cpu", number).unwrap());
    if let Err(error) = limit(&busy).and_then(|()| limit(&idle)) {
        return skip(TEST, &format!("this kernel has no CPU quota: {error}"));
    }
    let gateway = Gateway::new();
    let mut command = gateway.command("run");
    let mut running = Running::start(command.env("KPULSE_GATEWAY__THRESHOLDS__CPU_THROTTLED__WINDOW", "1s"));
    let forever = Duration::from_secs(600);
    let _spins = Worker::start(Some(&busy), || {
        spin(forever);
        Ok(())
    });
    let _sleeps = Worker::start(Some(&idle), || {
        std::thread::sleep(forever);
        Ok(())
    });
    let told = |number: u32| {
        let id = Cgroup::id(number);
        let events = running.events("cpu_throttled").into_iter();
        events.filter(|event| event["container"]["id"] == *id).collect::<Vec<Value>>()
    };
    let events = until("two windows", || Some(told(numbers[0])).filter(|events| events.len() >= 2));
    for event in &events {
        assert_obeys_the_schema(event);
        let body = &event["kpulse"]["cpu_throttled"];
        let number = |key: &str| body[key].as_u64().unwrap_or_else(|| panic!("{key} of {event}"));
        assert_eq!((number("quota_ns"), number("period_ns")), (QUOTA_US * 1_000, PERIOD_US * 1_000));
        let (periods, throttled) = (number("periods"), number("throttled_periods"));
        assert!(throttled <= periods && 2 * throttled >= periods, "{event}");
        assert!(Some(throttled) <= busy.number("cpu.stat", Some("nr_throttled")), "{event}");
        assert!(periods * number("period_ns") <= number("window_ns") + 2 * number("period_ns"), "{event}");
        let (key, unit) = if busy.is_v1() { ("throttled_time", 1) } else { ("throttled_usec", 1_000) };
        let stopped = busy.number("cpu.stat", Some(key)).map(|count| count * unit);
        assert!(Some(number("throttled_ns")) <= stopped, "{event}");
        let path = event["kpulse"]["cgroup"]["path"].as_str().unwrap();
        assert!(busy.path().to_str().unwrap().ends_with(path), "{event}");
        assert!(event.get("process").is_none() && event["kpulse"].get("cpu").is_none(), "{event}");
    }
    assert_eq!(told(numbers[1]), [] as [Value; 0], "a container that sleeps is not stopped");
    running.accounts_for("cpu_throttled", 2);
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}
