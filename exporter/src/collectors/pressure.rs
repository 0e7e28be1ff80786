//! How long tasks waited for CPU, memory and I/O: pressure stall information of the host and of containers.
//!
//! The host has families of its own, since the pressure of containers overlaps and does not add up to it.

use super::container::{FileDef, Form, Slot, Source};
use super::text::pressure_micros;
use super::{Host, HostCollector};
use anyhow::Context;
use kpulse_common::container::Hierarchy;
use kpulse_common::metric::{Label, MetricDef, Samples};

const HOST_WAITING: MetricDef = MetricDef::counter(
    "kpulse_host_pressure_waiting_seconds_total",
    "Time in which at least one task of the host waited for the resource.",
    &[Label::Named("resource")],
);
const HOST_STALLED: MetricDef = MetricDef::counter(
    "kpulse_host_pressure_stalled_seconds_total",
    "Time in which every non-idle task of the host waited for the resource at once.",
    &[Label::Named("resource")],
);
const WAITING: MetricDef = MetricDef::counter(
    "kpulse_pressure_waiting_seconds_total",
    "Time in which at least one task of the container waited for the resource.",
    &[Label::Container, Label::Named("resource")],
);
const STALLED: MetricDef = MetricDef::counter(
    "kpulse_pressure_stalled_seconds_total",
    "Time in which every non-idle task of the container waited for the resource at once.",
    &[Label::Container, Label::Named("resource")],
);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "pressure",
    metrics: &[HOST_WAITING, HOST_STALLED, WAITING, STALLED],
    is_default: true,
    make: |_| Box::new(make()),
};

const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];

/// The unified hierarchy alone has these files, on a hybrid host too where the controllers are on v1.
const UNIFIED: &[FileDef] = &[
    file("cpu.pressure", &[waiting("cpu"), stalled("cpu")]),
    file("memory.pressure", &[waiting("memory"), stalled("memory")]),
    file("io.pressure", &[waiting("io"), stalled("io")]),
];

const fn file(name: &'static str, slots: &'static [Slot]) -> FileDef {
    FileDef { name, form: Form::Pressure, slots }
}

const fn waiting(resource: &'static str) -> Slot {
    Slot { key: "some", def: &WAITING, label: Some(resource), divisor: 1_000_000 }
}

const fn stalled(resource: &'static str) -> Slot {
    Slot { key: "full", def: &STALLED, label: Some(resource), divisor: 1_000_000 }
}

fn make() -> impl FnMut(&mut Host, &mut Samples) -> anyhow::Result<()> {
    let mut source = Source::new(Hierarchy::Unified, UNIFIED);
    move |host: &mut Host, out: &mut Samples| {
        of_host(host, out)?;
        source.collect(host, out);
        Ok(())
    }
}

fn of_host(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    for resource in RESOURCES {
        let path = host.paths.procfs.join("pressure").join(resource);
        let text = host.text.read(&path).context("the kernel may need the boot parameter psi=1")?;
        if let Some(micros) = pressure_micros(text, "some") {
            out.number(&HOST_WAITING, &[resource], micros as f64 / 1e6);
        }
        // On a whole host some task always has the CPU: the kernel writes a zero that measures nothing.
        if let Some(micros) = pressure_micros(text, "full").filter(|_| resource != "cpu") {
            out.number(&HOST_STALLED, &[resource], micros as f64 / 1e6);
        }
    }
    Ok(())
}
