//! The probe library: BPF programs, the loader that fits them to the running kernel, and the pure decoders of what
//! they measure. Binaries load probes from [`probes::ALL`] and name none of them.
#![warn(missing_docs)]

mod abi;
mod attached;
pub mod btf;
pub mod collect;
mod cpu_clock;
pub mod devices;
pub mod error;
#[cfg(test)]
mod example;
pub mod features;
mod flow;
mod governor;
pub mod hook;
pub mod keyed;
pub mod life;
pub mod loader;
pub mod maps;
pub mod net_devices;
mod object;
pub mod policy;
pub mod probe;
pub mod probes;
pub mod record;
pub mod ring;
pub mod scan;
mod stamps;
mod statistics;
pub mod symbols;

pub use error::ProbeError;
pub use features::{Finding, doctor};
pub use governor::{Excess, Pauses};
pub use loader::{
    HookStatus, Host, LoadOptions, Loader, ProbeSet, ProbeState, ProbeStatus, SELF_METRICS, tell_status,
};
pub use policy::Policies;
pub use probe::{Collector, EventDef, Probe, Want};
pub use record::{AddressSpace, UserStack};
pub use ring::{EventStream, Fact, Loss};
pub use statistics::{ProgramCost, count_runs};
