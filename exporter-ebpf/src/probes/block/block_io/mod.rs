#![doc = include_str!("README.md")]

use crate::collect::{ByContainer, Entry, Sum, Total};
use crate::devices::{BlockDevices, DeviceNumber};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, known, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples, Value};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

mod status;

abi!("block_io");

const BY_OWNER: &[Label] = &[Label::Container, Label::Named("operation")];
const BY_DEVICE: &[Label] = &[Label::Named("device"), Label::Named("operation")];
const D2C: MetricDef = MetricDef::histogram(
    "kpulse_block_d2c_seconds",
    "Time that block requests spent in the driver and the device, up to completion.",
    BY_DEVICE,
);
const Q2C: MetricDef = MetricDef::histogram(
    "kpulse_block_q2c_seconds",
    "Time from queueing an I/O to its completion, waiting for a free tag and the I/O scheduler included.",
    BY_DEVICE,
);
const OWNER_D2C: MetricDef = MetricDef::histogram(
    "kpulse_container_block_d2c_seconds",
    "Time that the block requests of a container spent in the driver and the device, up to completion.",
    BY_OWNER,
);
const OWNER_Q2C: MetricDef = MetricDef::histogram(
    "kpulse_container_block_q2c_seconds",
    "Time from queueing an I/O of a container to its completion.",
    BY_OWNER,
);
const BYTES: MetricDef =
    MetricDef::counter("kpulse_block_bytes_total", "Bytes of completed block requests.", BY_DEVICE);
const ERRORS: MetricDef = MetricDef::counter(
    "kpulse_block_errors_total",
    "Block requests, or parts of them, that completed with an error.",
    &[Label::Named("device"), Label::Named("operation"), Label::Named("status")],
);
const UNTIMED: MetricDef = MetricDef::counter(
    "kpulse_block_untimed_total",
    "Completed block requests that a histogram lacks, since their start was not seen.",
    &[Label::Named("device"), Label::Named("operation"), Label::Named("histogram")],
);
const OVERFLOW: MetricDef = MetricDef::counter(
    "kpulse_block_overflow_total",
    "Completed block requests and errors that are in no series, since there are more devices than the map holds.",
    &[],
);

/// `REQ_OP_*` that a device sees in normal life; numbers are the kernel's own and stable (include/linux/blk_types.h).
const OPERATIONS: [(u32, &str); 6] =
    [(0, "read"), (1, "write"), (2, "flush"), (3, "discard"), (5, "secure_erase"), (9, "write_zeroes")];

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "block_io",
    object: bpf_object!("block_io"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any(
            "block_bio_queue",
            &[
                tp_btf("block_bio_queue_with_queue", "block_bio_queue"),
                tp_btf("block_bio_queue", "block_bio_queue"),
            ],
        ),
        Hook::any(
            "block_rq_issue",
            &[
                tp_btf("block_rq_issue_with_queue", "block_rq_issue"),
                tp_btf("block_rq_issue", "block_rq_issue"),
            ],
        ),
        Hook::any("block_rq_complete", &[tp_btf("block_rq_complete", "block_rq_complete")]),
    ],
    controller: "blkio",
    sized_by_containers: &[("owners", abi::OWNER_OPERATIONS)],
    thresholds: |thresholds| vec![thresholds.block_io.min_d2c, thresholds.block_io.min_q2c],
    metrics: &[D2C, Q2C, OWNER_D2C, OWNER_Q2C, BYTES, ERRORS, UNTIMED, OVERFLOW],
    events: &[
        EventDef {
            kind: "block_io_slow",
            help: "A block request took long in the device, or waited long for it.",
            decode,
            body: schema_of::<Body>,
            names: |_| Names::new(),
        },
        EventDef {
            kind: "block_io_error",
            help: "A block request failed.",
            decode,
            body: schema_of::<Body>,
            names: |_| Names::new(),
        },
    ],
    collector: Some(|maps, kernel| {
        let owners: Table<abi::block_io_owner_key, abi::block_io_owner_value> = maps.table("owners")?;
        for operation in OWNER_OPERATIONS {
            // Holds what finds no room later.
            owners.set(&abi::block_io_owner_key { cgroup_id: 0, operation }, &Default::default())?;
        }
        Ok(Box::new(Reader {
            latency: maps.table("latency")?,
            errors: maps.table("errors")?,
            losses: maps.table("losses")?,
            devices: BlockDevices::new(kernel.paths),
            owners,
            by_owner: ByContainer::new(kernel.hierarchy),
        }))
    }),
    in_flight: &[InFlight::all("queued"), InFlight::all("issued")],
    priority: Priority::High,
    ..Probe::EMPTY
};

/// Operations that are told apart by container.
const OWNER_OPERATIONS: [u64; abi::OWNER_OPERATIONS as usize] =
    [abi::OPERATION_READ as u64, abi::OPERATION_WRITE as u64, abi::OPERATION_REST as u64];

struct Reader {
    latency: Table<abi::block_io_key, abi::block_io_value>,
    errors: Table<abi::block_io_error_key, u64>,
    losses: Table<u32, u64>,
    devices: BlockDevices,
    owners: Table<abi::block_io_owner_key, abi::block_io_owner_value>,
    by_owner: ByContainer<Latencies>,
}

/// Both families by owner, which come and go together.
#[derive(Default)]
struct Latencies {
    d2c: Histogram,
    q2c: Histogram,
}

impl Sum for Latencies {
    fn add(&mut self, other: &Self) {
        self.d2c.add(&other.d2c);
        self.q2c.add(&other.q2c);
    }

    fn is_zero(&self) -> bool {
        self.d2c.is_zero() && self.q2c.is_zero()
    }
}

impl Reader {
    fn collect_devices(&mut self, out: &mut Samples) -> Result<(), ProbeError> {
        let (latency, errors) = (self.latency.entries()?, self.errors.entries()?);
        let numbers = latency.iter().map(|(key, _)| key).chain(errors.iter().map(|(key, _)| &key.device));
        let names = self.devices.names(numbers.map(number).collect());
        for (key, value) in latency {
            match &names[&number(&key)] {
                Some(device) => report(device, &key, &value, out),
                None => self.latency.remove(&key)?,
            }
        }
        // Statuses that share a name are one series.
        let mut series: BTreeMap<[Arc<str>; 3], u64> = BTreeMap::new();
        for (key, errors) in errors {
            let Some(device) = &names[&number(&key.device)] else {
                self.errors.remove(&key)?;
                continue;
            };
            let labels =
                [device.clone(), operation(key.device.operation).into(), status::name(key.status).into()];
            *series.entry(labels).or_default() += errors;
        }
        for (labels, errors) in series {
            out.push(&ERRORS, labels.to_vec(), Value::Count(errors));
        }
        Ok(())
    }

    fn collect_owners(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let entries = self.owners.entries()?.into_iter().map(|(key, value)| Entry {
            cgroup_id: key.cgroup_id,
            labels: vec![owner_operation(key.operation).into()],
            total: Latencies { d2c: value.d2c.into(), q2c: value.q2c.into() },
        });
        let (mut d2c, mut q2c) = (Vec::new(), Vec::new());
        let gone = self.by_owner.report_each(entries.collect(), identities, |labels, total| {
            d2c.push((labels.clone(), total.d2c));
            q2c.push((labels, total.q2c));
        });
        for (def, series) in [(&OWNER_D2C, d2c), (&OWNER_Q2C, q2c)] {
            for (labels, latency) in series.into_iter().filter(|(_, latency)| latency.count() > 0) {
                out.push(def, labels, latency.into_value());
            }
        }
        for cgroup_id in gone {
            for operation in OWNER_OPERATIONS {
                self.owners.remove(&abi::block_io_owner_key { cgroup_id, operation })?;
            }
        }
        Ok(())
    }
}

impl Collector for Reader {
    fn collect(&mut self, identities: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        self.collect_devices(out)?;
        self.collect_owners(identities, out)?;
        out.count(&OVERFLOW, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

fn report(device: &Arc<str>, key: &abi::block_io_key, value: &abi::block_io_value, out: &mut Samples) {
    let labels = [device.clone(), operation(key.operation).into()];
    let mut count = |def, value| out.push(def, labels.to_vec(), value);
    for (def, histogram) in [(&D2C, value.d2c), (&Q2C, value.q2c)] {
        let histogram = Histogram::from(histogram);
        if histogram.count() > 0 {
            count(def, Value::Histogram(Box::new(histogram)));
        }
    }
    count(&BYTES, Value::Count(value.bytes));
    for (name, untimed) in [("d2c", value.d2c_untimed), ("q2c", value.q2c_untimed)] {
        let labels = labels.iter().cloned().chain([name.into()]);
        out.push(&UNTIMED, labels.collect::<Vec<_>>(), Value::Count(untimed));
    }
}

fn number(key: &abi::block_io_key) -> DeviceNumber {
    DeviceNumber { major: key.major, minor: key.minor }
}

fn owner_operation(number: u64) -> &'static str {
    if number == u64::from(abi::OPERATION_REST) { "other" } else { operation(number as u32) }
}

fn operation(number: u32) -> &'static str {
    OPERATIONS.iter().find(|(code, _)| *code == number).map_or("other", |(_, name)| name)
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// The kernel's number of the device, `major:minor`.
    device: String,
    /// What was asked of the device: `read`, `write`, `flush`, `discard` and the like.
    operation: &'static str,
    /// Where on the device it begins, in units of 512 bytes.
    sector: u64,
    /// How much it moves.
    bytes: u32,
    /// Time in the driver and the device; absent when its start was not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    d2c_ns: Option<u64>,
    /// Time from queueing to completion; absent when its start was not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    q2c_ns: Option<u64>,
    /// The kernel's number of the error; 0 for success.
    error: i32,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::block_io_record = view(bytes)?;
    let body = Body {
        device: number(&record.key).to_string(),
        operation: operation(record.key.operation),
        sector: record.sector,
        bytes: record.bytes,
        d2c_ns: known(record.d2c_ns),
        q2c_ns: known(record.q2c_ns),
        error: record.error,
    };
    let kind = if record.error == 0 { "block_io_slow" } else { "block_io_error" };
    Ok(Decoded { kind: Some(kind), ..Decoded::new(Header::from(&record.header), &body)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/block_io_slow.hex");

    #[test]
    fn a_real_record_decodes() {
        let names: Names = Names::new();
        let decoded =
            assert_decodes(&PROBE.events[0], &names, HEX, include_str!("fixtures/block_io_slow.json"));
        assert!(!decoded.header.comm.is_empty());
        assert_eq!(decoded.header.value_ns, decoded.body["d2c_ns"].as_u64());
    }

    #[test]
    fn a_real_record_of_a_failed_request_is_of_the_other_kind() {
        let hex = include_str!("fixtures/block_io_error.hex");
        let json = include_str!("fixtures/block_io_error.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), hex, json);
        assert_eq!((decoded.kind, decoded.header.threshold_ns), (Some("block_io_error"), None));
    }
}
