//! What the memory of containers is used for, and how often they met their limits: cgroup files.

use super::container::{FileDef, Form, Slot, Source};
use super::{Host, HostCollector};
use kpulse_common::container::{Hierarchies, Hierarchy};
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;

const BYTES: MetricDef = MetricDef::gauge(
    "kpulse_memory_bytes",
    "Memory of the container by kind: usage is all that counts against limit, the others are parts of it and swap.",
    &[Label::Container, Label::Named("kind")],
);
const EVENTS: MetricDef = MetricDef::counter(
    "kpulse_memory_events_total",
    "Times that the container met a bound: the events of memory.events, or failcnt and oom_kill of cgroup v1.",
    &[Label::Container, Label::Named("event")],
);

const FAULTS: MetricDef = MetricDef::counter(
    "kpulse_page_faults_total",
    "Page faults of the container's tasks: major ones waited for I/O, minor ones did not.",
    &[Label::Container, Label::Named("kind")],
);

pub const COLLECTOR: HostCollector = HostCollector {
    name: "memory",
    metrics: &[BYTES, EVENTS, FAULTS],
    is_default: true,
    make: |paths| Box::new(make(paths)),
};

const UNIFIED: &[FileDef] = &[
    single("memory.current", &[bytes("", "usage")]),
    single("memory.max", &[bytes("", "limit")]),
    single("memory.swap.current", &[bytes("", "swap")]),
    FileDef {
        name: "memory.stat",
        form: Form::KeyedNet,
        slots: &[
            faults("pgfault", "minor"),
            faults("pgmajfault", "major"),
            bytes("anon", "anon"),
            bytes("file", "file"),
            bytes("shmem", "shmem"),
            bytes("file_mapped", "mapped"),
            bytes("file_dirty", "dirty"),
            bytes("inactive_file", "inactive_file"),
            bytes("kernel", "kernel"),
            bytes("slab", "slab"),
            bytes("sock", "sock"),
        ],
    },
    FileDef {
        name: "memory.events",
        form: Form::Keyed,
        slots: &[
            event("low", "low"),
            event("high", "high"),
            event("max", "max"),
            event("oom", "oom"),
            event("oom_kill", "oom_kill"),
        ],
    },
];
/// `total_` counts a cgroup's descendants too, as v2 does everywhere.
const V1: &[FileDef] = &[
    single("memory.usage_in_bytes", &[bytes("", "usage")]),
    single("memory.kmem.usage_in_bytes", &[bytes("", "kernel")]),
    single("memory.failcnt", &[event("", "failcnt")]),
    FileDef {
        name: "memory.stat",
        form: Form::KeyedNet,
        slots: &[
            faults("total_pgfault", "minor"),
            faults("total_pgmajfault", "major"),
            bytes("total_rss", "anon"),
            bytes("total_cache", "file"),
            bytes("total_shmem", "shmem"),
            bytes("total_mapped_file", "mapped"),
            bytes("total_dirty", "dirty"),
            bytes("total_inactive_file", "inactive_file"),
            bytes("total_swap", "swap"),
            bytes("hierarchical_memory_limit", "limit"),
        ],
    },
    FileDef { name: "memory.oom_control", form: Form::Keyed, slots: &[event("oom_kill", "oom_kill")] },
];

const fn single(name: &'static str, slots: &'static [Slot]) -> FileDef {
    FileDef { name, form: Form::Single, slots }
}

const fn bytes(key: &'static str, kind: &'static str) -> Slot {
    Slot { key, def: &BYTES, label: Some(kind), divisor: 1 }
}

const fn faults(key: &'static str, kind: &'static str) -> Slot {
    Slot { key, def: &FAULTS, label: Some(kind), divisor: 1 }
}

const fn event(key: &'static str, event: &'static str) -> Slot {
    Slot { key, def: &EVENTS, label: Some(event), divisor: 1 }
}

fn make(paths: &Paths) -> impl FnMut(&mut Host, &mut Samples) -> anyhow::Result<()> + use<> {
    let hierarchy = Hierarchies::detect(paths).of("memory");
    let mut source = Source::new(hierarchy, if hierarchy == Hierarchy::Unified { UNIFIED } else { V1 });
    move |host: &mut Host, out: &mut Samples| {
        source.collect(host, out);
        Ok(())
    }
}
