//! An event gateway that keeps its state in a folder of the test and takes any free port.

use kpulse_tests::process::Service;
use std::path::Path;
use std::process::Command;

pub fn command(state: &Path, subcommand: &str) -> Command {
    kpulse_tests::process::gateway(kpulse_tests::binary("kpulse-event-gateway"), state, subcommand)
}

/// Starts it, and waits until its probes are loaded.
pub fn start(command: &mut Command) -> Service {
    let service = Service::start(command);
    service.line("message=ready");
    service
}
