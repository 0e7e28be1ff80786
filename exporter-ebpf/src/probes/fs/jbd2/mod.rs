#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::devices::{BlockDevices, DeviceNumber};
use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf, tracepoint};
use crate::maps::Table;
use crate::probe::{Collector, InFlight, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};

abi!("jbd2");

const COMMIT: MetricDef = MetricDef::histogram(
    "kpulse_jbd2_commit_seconds",
    "Time that a commit of the journal of ext4 spent in each of its phases.",
    &[Label::Named("device"), Label::Named("phase")],
);
const UNMEASURED: MetricDef = MetricDef::counter(
    "kpulse_jbd2_unmeasured_total",
    "Phases of commits that are in no series, since there are more journals than the map holds.",
    &[],
);

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "jbd2",
    object: bpf_object!("jbd2"),
    needs: &[Feature::Jbd2],
    hooks: &[
        Hook::any(
            "jbd2_start_commit",
            &[
                tp_btf("jbd2_start_commit", "jbd2_start_commit"),
                tracepoint("jbd2_start_commit_classic", "jbd2", "jbd2_start_commit"),
            ],
        ),
        Hook::any(
            "jbd2_commit_flushing",
            &[
                tp_btf("jbd2_commit_flushing", "jbd2_commit_flushing"),
                tracepoint("jbd2_commit_flushing_classic", "jbd2", "jbd2_commit_flushing"),
            ],
        ),
        Hook::any(
            "jbd2_commit_logging",
            &[
                tp_btf("jbd2_commit_logging", "jbd2_commit_logging"),
                tracepoint("jbd2_commit_logging_classic", "jbd2", "jbd2_commit_logging"),
            ],
        ),
        Hook::any(
            "jbd2_end_commit",
            &[
                tp_btf("jbd2_end_commit", "jbd2_end_commit"),
                tracepoint("jbd2_end_commit_classic", "jbd2", "jbd2_end_commit"),
            ],
        ),
    ],
    metrics: &[COMMIT, UNMEASURED],
    collector: Some(|maps, kernel| {
        Ok(Box::new(Reader {
            phases: maps.table("phases")?,
            losses: maps.table("losses")?,
            devices: BlockDevices::new(kernel.paths),
        }))
    }),
    in_flight: &[InFlight::all("commits")],
    ..Probe::EMPTY
};

struct Reader {
    phases: Table<abi::jbd2_key, histogram>,
    losses: Table<u32, u64>,
    devices: BlockDevices,
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let phases = self.phases.entries()?;
        let names =
            self.devices.names(phases.iter().map(|(key, _)| DeviceNumber::from_dev(key.dev)).collect());
        for (key, raw) in phases {
            match &names[&DeviceNumber::from_dev(key.dev)] {
                Some(device) => out.histogram(&COMMIT, &[device, phase(key.phase)], Histogram::from(raw)),
                None => self.phases.remove(&key)?,
            }
        }
        out.count(&UNMEASURED, &[], self.losses.get(&0)?.unwrap_or(0));
        Ok(())
    }
}

fn phase(number: u32) -> &'static str {
    match number {
        abi::PHASE_LOCKING => "locking",
        abi::PHASE_FLUSHING => "flushing",
        _ => "logging",
    }
}
