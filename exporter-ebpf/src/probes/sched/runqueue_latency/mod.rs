#![doc = include_str!("README.md")]

use crate::collect::{ByContainer, Entry, Sum, Total};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, raw_tp, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Priority, Probe, Want};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, comm, known, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples, Value};
use schemars::JsonSchema;
use serde::Serialize;

abi!("runqueue_latency");

const LATENCY: MetricDef = MetricDef::histogram(
    "kpulse_runqueue_latency_seconds",
    "Time that tasks waited for a CPU, from runnable to running.",
    &[Label::Container],
);
const SWITCHES: MetricDef = MetricDef::counter(
    "kpulse_context_switches_total",
    "Times that a task got a CPU again after it had given it up (voluntary) or lost it to another (involuntary).",
    &[Label::Container, Label::Named("kind")],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_runqueue_latency_unmeasured_total",
    "Waits that are no switches, and lack what they waited at another CPU (displaced), or count in ~other (table_full).",
    &[Label::Named("reason")],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "runqueue_latency",
    object: bpf_object!("runqueue_latency"),
    needs: &[Feature::RingBuffer, Feature::WaitAccount],
    hooks: &[
        Hook::any(
            "sched_switch",
            &[tp_btf("sched_switch", "sched_switch"), raw_tp("sched_switch_raw", "sched_switch")],
        ),
        Hook::any(
            "sched_wakeup",
            &[tp_btf("sched_wakeup", "sched_wakeup"), raw_tp("sched_wakeup_raw", "sched_wakeup")],
        )
        .only(Want::Events),
        Hook::any(
            "sched_wakeup_new",
            &[
                tp_btf("sched_wakeup_new", "sched_wakeup_new"),
                raw_tp("sched_wakeup_new_raw", "sched_wakeup_new"),
            ],
        )
        .only(Want::Events),
    ],
    controller: "cpu",
    sized_by_containers: &[("accounts", 1)],
    of_events: &["throttle_before"],
    thresholds: |thresholds| vec![thresholds.runqueue_latency.min_wait],
    metrics: &[LATENCY, SWITCHES, UNMEASURED],
    events: &[EventDef {
        kind: "runqueue_delay",
        help: "A task was runnable for long before it got a CPU.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, kernel| {
        let accounts: Table<u64, abi::runqueue_latency_account> = maps.table("accounts")?;
        // What finds no room later is counted here.
        accounts.set(&0, &abi::runqueue_latency_account::default())?;
        let containers = ByContainer::new(kernel.hierarchy);
        Ok(Box::new(Reader { accounts, losses: maps.table("losses")?, containers }))
    }),
    in_flight: &[InFlight::all("waited")],
    priority: Priority::High,
    ..Probe::EMPTY
};

/// What is told of one cgroup.
#[derive(Default)]
struct Account {
    waits: Histogram,
    voluntary: u64,
    involuntary: u64,
}

impl Sum for Account {
    fn add(&mut self, other: &Self) {
        Sum::add(&mut self.waits, &other.waits);
        self.voluntary.add(&other.voluntary);
        self.involuntary.add(&other.involuntary);
    }

    fn is_zero(&self) -> bool {
        self.waits.is_zero()
    }
}

impl From<abi::runqueue_latency_account> for Account {
    fn from(raw: abi::runqueue_latency_account) -> Self {
        Self { waits: raw.waits.into(), voluntary: raw.voluntary, involuntary: raw.involuntary }
    }
}

struct Reader {
    accounts: Table<u64, abi::runqueue_latency_account>,
    losses: Table<u32, abi::runqueue_latency_value>,
    containers: ByContainer<Account>,
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let entries = self.accounts.entries()?.into_iter().map(|(cgroup_id, account)| Entry {
            cgroup_id,
            labels: Vec::new(),
            total: Account::from(account),
        });
        let gone = self.containers.report_each(entries.collect(), identities, |labels, account| {
            for (kind, count) in [("voluntary", account.voluntary), ("involuntary", account.involuntary)] {
                let labels = labels.iter().cloned().chain([kind.into()]).collect::<Vec<_>>();
                out.push(&SWITCHES, labels, Value::Count(count));
            }
            out.push(&LATENCY, labels, account.waits.into_value());
        });
        gone.iter().try_for_each(|id| self.accounts.remove(id))?;
        let losses = self.losses.get(&0)?.unwrap_or_default();
        out.count(&UNMEASURED, &["displaced"], losses.displaced);
        out.count(&UNMEASURED, &["table_full"], losses.table_full);
        Ok(())
    }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// Who had the CPU until the task got it.
    occupant: Occupant,
    /// How much of the value a CPU quota held the task back, that of its cgroup or of one above; absent where the kernel
    /// does not tell, or the task changed the CPU meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    throttled_ns: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Occupant {
    /// Process id.
    pid: u32,
    /// Thread id.
    tid: u32,
    /// Name of the thread.
    name: String,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::runqueue_latency_record = view(bytes)?;
    let occupant =
        Occupant { pid: record.occupant_tgid, tid: record.occupant_tid, name: comm(&record.occupant_comm) };
    let body = Body { occupant, throttled_ns: known(record.throttled_ns) };
    Decoded::new(Header::from(&record.header), &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/runqueue_delay.hex");

    #[test]
    fn a_real_record_decodes() {
        let names: Names = Names::new();
        let decoded =
            assert_decodes(&PROBE.events[0], &names, HEX, include_str!("fixtures/runqueue_delay.json"));
        assert!(!decoded.header.comm.is_empty());
        assert!(decoded.header.value_ns >= decoded.header.threshold_ns);
    }
}
