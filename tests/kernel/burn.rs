//! A burner of [`kpulse_tests::burn`] with its account of what it burnt.

use super::*;
use kpulse_tests::burn::{BURNS, BURNT};
pub use kpulse_tests::burn::{HARDIRQ, IRQS_OFF, KERNEL, SOFTIRQ};
pub use kpulse_tests::is_guest;

/// A burner in the kernel; dropping it takes it out.
pub struct Burner {
    set: ProbeSet,
    name: &'static str,
}

impl Burner {
    pub fn start(probe: &'static Probe) -> Self {
        Self { set: load_probe(probe, &wanting(Want::Metrics)), name: probe.name }
    }

    /// How many burns have begun, and how long those took that are over.
    pub fn burnt(&mut self) -> (u64, Duration) {
        let samples = scrape(&mut self.set, self.name, &mut identities());
        let nanoseconds = count(&samples, BURNT.name, &[]);
        (count(&samples, BURNS.name, &[]), Duration::from_nanos(nanoseconds))
    }
}
