//! Faults that a healthy kernel does not have, made by a BPF program that burns time in the right place.

use crate::is_guest;
use kpulse_common::container::Identities;
use kpulse_common::metric::{MetricDef, Samples};
use kpulse_exporter_ebpf::hook::{Hook, tp_btf};
use kpulse_exporter_ebpf::maps::{Maps, Table};
use kpulse_exporter_ebpf::probe::Kernel;
use kpulse_exporter_ebpf::{Collector, Probe, ProbeError};

/// How many burns have begun.
pub const BURNS: MetricDef = MetricDef::counter("burns_total", "Burns begun.", &[]);
/// How long those took that are over.
pub const BURNT: MetricDef = MetricDef::counter("burnt_nanoseconds_total", "Time burnt.", &[]);

/// As the parser of ELF files needs it.
#[repr(C, align(32))]
struct Aligned<const N: usize>([u8; N]);

const OBJECT: &[u8] = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/burn.bpf.o"))).0;

const BURN: Probe =
    Probe { object: OBJECT, metrics: &[BURNS, BURNT], collector: Some(counter), ..Probe::EMPTY };

/// Never: a program that does nothing at each context switch.
pub const NEVER: Probe = Probe {
    name: "burn_never",
    hooks: &[Hook::any("sched_switch", &[tp_btf("nothing", "sched_switch")])],
    ..BURN
};

/// With interrupts off, when a thread `burn-irqs` leaves a CPU: three times 60 ms.
pub const IRQS_OFF: Probe = Probe {
    name: "burn_irqs_off",
    hooks: &[Hook::any(
        "sched_switch",
        &[tp_btf("irqs_off_loop", "sched_switch"), tp_btf("irqs_off_copy", "sched_switch")],
    )],
    globals: || vec![("burn_ns", 60_000_000), ("gap_ns", 200_000_000), ("burns_max", 3)],
    ..BURN
};

/// In a softirq that interrupts a thread `burn-kernel`, once: so long that in a guest the kernel's own watchdog speaks.
pub const KERNEL: Probe = Probe {
    name: "burn_kernel",
    hooks: &[Hook::any(
        "softirq_entry",
        &[tp_btf("kernel_loop", "softirq_entry"), tp_btf("kernel_copy", "softirq_entry")],
    )],
    globals: || vec![("burn_ns", if is_guest() { 5_000_000_000 } else { 1_500_000_000 })],
    ..BURN
};

/// At the entry of the softirq `timer`: 40 ms each second.
pub const SOFTIRQ: Probe = Probe {
    name: "burn_softirq",
    hooks: &[Hook::any(
        "softirq_entry",
        &[tp_btf("softirq_loop", "softirq_entry"), tp_btf("softirq_copy", "softirq_entry")],
    )],
    globals: || vec![("burn_ns", 40_000_000), ("gap_ns", 1_000_000_000), ("burns_max", 30)],
    ..BURN
};

/// At the entry of a device interrupt's handler, once 40 ms.
pub const HARDIRQ: Probe = Probe {
    name: "burn_hardirq",
    hooks: &[Hook::any(
        "irq_handler_entry",
        &[tp_btf("hardirq_loop", "irq_handler_entry"), tp_btf("hardirq_copy", "irq_handler_entry")],
    )],
    globals: || vec![("burn_ns", 40_000_000)],
    ..BURN
};

fn counter(maps: &Maps<'_>, _: &Kernel<'_>) -> Result<Box<dyn Collector>, ProbeError> {
    Ok(Box::new(Counter(maps.table("burnt")?)))
}

struct Counter(Table<u32, [u64; 2]>);

impl Collector for Counter {
    fn collect(&mut self, _: &mut Identities, out: &mut Samples) -> Result<(), ProbeError> {
        let [burns, nanoseconds] = self.0.get(&0)?.unwrap_or_default();
        out.count(&BURNS, &[], burns);
        out.count(&BURNT, &[], nanoseconds);
        Ok(())
    }
}
