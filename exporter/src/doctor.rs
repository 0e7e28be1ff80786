//! `doctor`: what does this kernel allow, what does the lack of it cost, and what would help?

use crate::table;
use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::{Finding, doctor};

/// Prints one line for each thing that the probes can need.
pub fn run(paths: &Paths) -> anyhow::Result<()> {
    let findings = doctor(paths);
    table::print(
        &["AVAILABLE", "WHAT", "WITHOUT IT", "WHAT HELPS"],
        &findings.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(())
}

fn row(finding: &Finding) -> Vec<String> {
    let (available, costs, help) = if finding.available {
        ("yes", "", "")
    } else {
        ("no", finding.costs.as_str(), finding.help.as_str())
    };
    vec![available.to_owned(), finding.what.clone(), costs.to_owned(), help.to_owned()]
}
