#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::devices::{BlockDevices, DeviceNumber};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf, tracepoint};
use crate::maps::Table;
use crate::probe::{Collector, EventDef, InFlight, Probe, Want};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::container::Identities;
use kpulse_common::event::schema_of;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use schemars::JsonSchema;
use serde::Serialize;

abi!("xfs_log");

const BY_DEVICE: &[Label] = &[Label::Named("device")];
const GRANT: MetricDef = MetricDef::histogram(
    "kpulse_xfs_log_grant_wait_seconds",
    "Time that transactions of XFS waited for room in the log.",
    BY_DEVICE,
);
const FORCE: MetricDef = MetricDef::histogram(
    "kpulse_xfs_log_force_seconds",
    "Time that tasks waited for the log of XFS to reach the disk, as fsync does.",
    BY_DEVICE,
);
const WRITE: MetricDef = MetricDef::histogram(
    "kpulse_xfs_log_write_seconds",
    "Time that a buffer of the log of XFS took to be written.",
    BY_DEVICE,
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_xfs_log_unmeasured_total",
    "Waits that the histograms lack, since there are more devices, or more tasks waiting for one buffer, than the maps hold.",
    &[Label::Named("reason")],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "xfs_log",
    object: bpf_object!("xfs_log"),
    needs: &[Feature::Xfs, Feature::RingBuffer],
    hooks: &[
        Hook::any(
            "xfs_log_grant_sleep",
            &[
                tp_btf("xfs_log_grant_sleep", "xfs_log_grant_sleep"),
                tracepoint("xfs_log_grant_sleep_classic", "xfs", "xfs_log_grant_sleep"),
            ],
        ),
        Hook::any(
            "xfs_log_grant_wake",
            &[
                tp_btf("xfs_log_grant_wake", "xfs_log_grant_wake"),
                tracepoint("xfs_log_grant_wake_classic", "xfs", "xfs_log_grant_wake"),
            ],
        ),
        Hook::any(
            "xfs_log_force",
            &[
                tp_btf("xfs_log_force", "xfs_log_force"),
                tracepoint("xfs_log_force_classic", "xfs", "xfs_log_force"),
            ],
        ),
        Hook::optional(
            "xlog_iclog_wait_on",
            &[
                tp_btf("xlog_iclog_wait_on", "xlog_iclog_wait_on"),
                tracepoint("xlog_iclog_wait_on_classic", "xfs", "xlog_iclog_wait_on"),
            ],
        ),
        Hook::optional(
            "xlog_iclog_clean",
            &[
                tp_btf("xlog_iclog_clean", "xlog_iclog_clean"),
                tracepoint("xlog_iclog_clean_classic", "xfs", "xlog_iclog_clean"),
            ],
        ),
        Hook::optional(
            "xlog_iclog_syncing",
            &[
                tp_btf("xlog_iclog_syncing", "xlog_iclog_syncing"),
                tracepoint("xlog_iclog_syncing_classic", "xfs", "xlog_iclog_syncing"),
            ],
        )
        .only(Want::Metrics),
        Hook::optional(
            "xlog_iclog_sync_done",
            &[
                tp_btf("xlog_iclog_sync_done", "xlog_iclog_sync_done"),
                tracepoint("xlog_iclog_sync_done_classic", "xfs", "xlog_iclog_sync_done"),
            ],
        )
        .only(Want::Metrics),
    ],
    thresholds: |thresholds| vec![thresholds.xfs_log.min_wait],
    metrics: &[GRANT, FORCE, WRITE, UNMEASURED],
    events: &[EventDef {
        kind: "xfs_log_wait",
        help: "A task waited long for the log of XFS.",
        decode,
        body: schema_of::<Body>,
        names: |_| Names::new(),
    }],
    collector: Some(|maps, kernel| {
        Ok(Box::new(Reader {
            waits: maps.table("waits")?,
            losses: maps.table("losses")?,
            devices: BlockDevices::new(kernel.paths),
        }))
    }),
    in_flight: &[
        InFlight::all("grants"),
        InFlight::all("forces"),
        InFlight::all("writes"),
        InFlight::all("waiting"),
    ],
    ..Probe::EMPTY
};

struct Reader {
    waits: Table<abi::xfs_log_key, histogram>,
    losses: Table<u32, abi::xfs_log_value>,
    devices: BlockDevices,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let waits = self.waits.entries()?;
        let names =
            self.devices.names(waits.iter().map(|(key, _)| DeviceNumber::from_dev(key.dev)).collect());
        for (key, raw) in waits {
            let def = match key.wait {
                abi::WAIT_GRANT => &GRANT,
                abi::WAIT_FORCE => &FORCE,
                _ => &WRITE,
            };
            match &names[&DeviceNumber::from_dev(key.dev)] {
                Some(device) => out.histogram(def, &[device], Histogram::from(raw)),
                None => self.waits.remove(&key)?,
            }
        }
        let losses = self.losses.get(&0)?.unwrap_or_default();
        out.count(&UNMEASURED, &["devices_full"], losses.devices_full);
        out.count(&UNMEASURED, &["waiters_full"], losses.waiters_full);
        Ok(())
    }
}

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// The kernel's number of the device, `major:minor`.
    device: String,
    /// What the task waited for: room in the log (`grant`), or for the log to reach the disk (`force`), as fsync does.
    wait: &'static str,
}

fn decode(bytes: &[u8], _: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::xfs_log_record = view(bytes)?;
    let body = Body {
        device: DeviceNumber::from_dev(record.dev).to_string(),
        wait: if record.wait == abi::WAIT_GRANT { "grant" } else { "force" },
    };
    Ok(Decoded::new(Header::from(&record.header), &body)?.with_user_stack(&record.user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    #[test]
    fn a_real_record_decodes() {
        let hex = include_str!("fixtures/xfs_log_wait.hex");
        let json = include_str!("fixtures/xfs_log_wait.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), hex, json);
        assert!(!decoded.header.comm.is_empty());
    }
}
