//! What the probes may cost.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The `governor:` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Governor {
    /// Part of the machine's CPU time that the programs of all probes may take together, such as 0.01; 0 is no bound.
    pub budget: f64,
    /// For how long a probe is detached when they take more; each time that it has to go again soon, twice as long.
    #[serde(with = "humantime_serde")]
    pub pause: Duration,
}

impl Default for Governor {
    fn default() -> Self {
        Self { budget: 0.01, pause: Duration::from_secs(5 * 60) }
    }
}

impl Governor {
    /// The key that cannot be, and why.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !(0.0..=1.0).contains(&self.budget) {
            let why = "must be between 0, which is no bound, and 1, all of the machine's CPU time";
            return Err(("governor.budget", why));
        }
        if self.pause < Duration::from_secs(1) {
            return Err(("governor.pause", "must be at least 1s"));
        }
        Ok(())
    }
}
