#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, known, view};
use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples, Value};
use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

abi!("block_io");

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
const BYTES: MetricDef =
    MetricDef::counter("kpulse_block_bytes_total", "Bytes of completed block requests.", BY_DEVICE);
const ERRORS: MetricDef = MetricDef::counter(
    "kpulse_block_errors_total",
    "Block requests that completed with an error.",
    BY_DEVICE,
);
const UNTIMED: MetricDef = MetricDef::counter(
    "kpulse_block_untimed_total",
    "Completed block requests that a histogram lacks, since their start was not seen.",
    &[Label::Named("device"), Label::Named("operation"), Label::Named("histogram")],
);
const OVERFLOW: MetricDef = MetricDef::counter(
    "kpulse_block_overflow_total",
    "Completed block requests that are in no series, since there are more devices than the map holds.",
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
    globals: |thresholds| {
        vec![
            ("min_d2c_ns", thresholds.block_io.min_d2c.as_nanos() as u64),
            ("min_q2c_ns", thresholds.block_io.min_q2c.as_nanos() as u64),
        ]
    },
    metrics: &[D2C, Q2C, BYTES, ERRORS, UNTIMED, OVERFLOW],
    events: &[EventDef {
        kind: "block_io_slow",
        help: "A block request took long in the device, or waited long for it.",
        decode,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, kernel| {
        Ok(Box::new(Reader {
            latency: maps.table("latency")?,
            losses: maps.table("losses")?,
            devices: kernel.paths.sysfs.join("dev/block"),
            names: HashMap::new(),
        }))
    }),
    ..Probe::EMPTY
};

struct Reader {
    latency: Table<abi::block_io_key, abi::block_io_value>,
    losses: Table<u32, u64>,
    devices: PathBuf,
    /// Bound: the capacity of `latency`.
    names: HashMap<(u32, u32), Arc<str>>,
}

impl Reader {
    /// The kernel's name of a device; its numbers once it is gone and was never seen.
    fn device(&mut self, key: &abi::block_io_key) -> Arc<str> {
        let number = format!("{}:{}", key.major, key.minor);
        let link = fs::read_link(self.devices.join(&number)).ok();
        let name =
            link.as_deref().and_then(|path| path.file_name()).and_then(|name| name.to_str()).map(Arc::from);
        let known = self.names.entry((key.major, key.minor));
        match name {
            Some(name) => known.insert_entry(name).get().clone(),
            None => known.or_insert_with(|| number.into()).clone(),
        }
    }
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        for (key, value) in self.latency.entries()? {
            let labels = [self.device(&key), operation(key.operation).into()];
            let mut count = |def, value| out.push(def, labels.to_vec(), value);
            for (def, histogram) in [(&D2C, value.d2c), (&Q2C, value.q2c)] {
                let histogram = Histogram::from(histogram);
                if histogram.count() > 0 {
                    count(def, Value::Histogram(Box::new(histogram)));
                }
            }
            count(&BYTES, Value::Count(value.bytes));
            count(&ERRORS, Value::Count(value.errors));
            for (name, untimed) in [("d2c", value.d2c_untimed), ("q2c", value.q2c_untimed)] {
                let labels = labels.iter().cloned().chain([name.into()]);
                out.push(&UNTIMED, labels.collect(), Value::Count(untimed));
            }
        }
        out.count(&OVERFLOW, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

fn operation(number: u32) -> &'static str {
    OPERATIONS.iter().find(|(code, _)| *code == number).map_or("other", |(_, name)| name)
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize)]
struct Body {
    /// The kernel's number of the device, `major:minor`.
    device: String,
    operation: &'static str,
    sector: u64,
    bytes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    d2c_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    q2c_ns: Option<u64>,
    /// The kernel's number of the error; 0 for success.
    error: i32,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::block_io_record = view(bytes)?;
    let body = Body {
        device: format!("{}:{}", record.key.major, record.key.minor),
        operation: operation(record.key.operation),
        sector: record.sector,
        bytes: record.bytes,
        d2c_ns: known(record.d2c_ns),
        q2c_ns: known(record.q2c_ns),
        error: record.error,
    };
    Decoded::new(Header::from(&record.header), &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::{assert_decodes, assert_total};

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
    fn any_bytes_of_the_right_size_decode() {
        assert_total(&PROBE.events[0], HEX);
    }
}
