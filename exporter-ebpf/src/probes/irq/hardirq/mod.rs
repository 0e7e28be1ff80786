#![doc = include_str!("README.md")]

use crate::abi::histogram;
use crate::error::ProbeError;
use crate::hook::{Hook, raw_tp, tp_btf};
use crate::maps::Table;
use crate::probe::{Collector, InFlight, Priority, Probe};
use crate::probes::{abi, bpf_object};
use kpulse_common::container::Identities;
use kpulse_common::metric::{Histogram, Label, MetricDef, Samples};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

abi!("hardirq");

const DURATION: MetricDef = MetricDef::histogram(
    "kpulse_hardirq_duration_seconds",
    "Time that the handlers of a device interrupt ran.",
    &[Label::Named("irq_name")],
);
/// `irq_name` of interrupts that found no room in the map.
const OTHER: &str = "~other";

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "hardirq",
    object: bpf_object!("hardirq"),
    hooks: &[
        // Before the entry, so that no entry is without its exit.
        Hook::any(
            "irq_handler_exit",
            &[
                tp_btf("irq_handler_exit", "irq_handler_exit"),
                raw_tp("irq_handler_exit_raw", "irq_handler_exit"),
            ],
        ),
        Hook::any(
            "irq_handler_entry",
            &[
                tp_btf("irq_handler_entry", "irq_handler_entry"),
                raw_tp("irq_handler_entry_raw", "irq_handler_entry"),
            ],
        ),
    ],
    metrics: &[DURATION],
    collector: Some(|maps, kernel| {
        let duration: Table<u32, histogram> = maps.table("duration")?;
        duration.set(&abi::OTHER_IRQ, &histogram::default())?;
        let interrupts = kernel.paths.sysfs.join("kernel/irq");
        Ok(Box::new(Reader { duration, interrupts, known: HashMap::new(), former: BTreeMap::new() }))
    }),
    in_flight: &[InFlight::all("running")],
    priority: Priority::Low,
    ..Probe::EMPTY
};

struct Reader {
    duration: Table<u32, histogram>,
    interrupts: PathBuf,
    /// Bound: the capacity of `duration`.
    known: HashMap<u32, Interrupt>,
    /// What interrupts counted under names that they have no more.
    former: BTreeMap<Arc<str>, Histogram>,
}

/// A number that the kernel gives to one device after the other.
struct Interrupt {
    name: Arc<str>,
    /// What it had counted when it got this name.
    before: Histogram,
}

impl Reader {
    /// The devices that share an interrupt, as `/proc/interrupts` lists them.
    fn name(&self, irq: u32) -> Option<Arc<str>> {
        let actions = fs::read_to_string(self.interrupts.join(irq.to_string()).join("actions")).ok()?;
        Some(actions.trim_end()).filter(|actions| !actions.is_empty()).map(Arc::from)
    }

    /// What an interrupt counted since it has its name, and that name.
    fn named(&mut self, irq: u32, counted: &Histogram) -> (Arc<str>, Histogram) {
        let name = self.name(irq);
        let interrupt = self.known.entry(irq).or_insert_with(|| Interrupt {
            name: name.clone().unwrap_or_else(|| irq.to_string().into()),
            before: Histogram::default(),
        });
        let own = difference(counted, &interrupt.before);
        match name.filter(|name| *name != interrupt.name) {
            None => (interrupt.name.clone(), own),
            Some(name) => {
                let former = std::mem::replace(&mut interrupt.name, name.clone());
                interrupt.before = counted.clone();
                self.former.entry(former).or_default().add(&own);
                (name, Histogram::default())
            }
        }
    }
}

fn difference(now: &Histogram, before: &Histogram) -> Histogram {
    Histogram {
        slots: std::array::from_fn(|slot| now.slots[slot].wrapping_sub(before.slots[slot])),
        sum_ns: now.sum_ns.wrapping_sub(before.sum_ns),
    }
}

impl Collector for Reader {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let mut series: BTreeMap<Arc<str>, Histogram> = BTreeMap::new();
        for (irq, counted) in self.duration.entries()? {
            let counted = Histogram::from(counted);
            let (name, own) =
                if irq == abi::OTHER_IRQ { (OTHER.into(), counted) } else { self.named(irq, &counted) };
            series.entry(name).or_default().add(&own);
        }
        for (name, former) in &self.former {
            series.entry(name.clone()).or_default().add(former);
        }
        for (name, histogram) in series {
            if histogram.count() > 0 {
                out.histogram(&DURATION, &[&name], histogram);
            }
        }
        Ok(())
    }
}
