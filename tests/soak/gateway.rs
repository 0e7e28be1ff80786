//! An event gateway that keeps its state in a folder of the test and takes any free port.

use kpulse_tests::process::Service;
use std::path::Path;
use std::process::Command;

pub fn command(state: &Path, subcommand: &str) -> Command {
    let mut gateway = kpulse_tests::process::command(kpulse_tests::binary("kpulse-event-gateway"));
    gateway.arg(subcommand).env("KPULSE_STATE_DIR", state);
    gateway.env("KPULSE_GATEWAY__WEB__LISTEN_ADDRESS", "127.0.0.1:0");
    gateway.env("KPULSE_GATEWAY__API__LISTEN_ADDRESS", "127.0.0.1:0");
    gateway
}

/// Starts it, and waits until its probes are loaded.
pub fn start(command: &mut Command) -> Service {
    let service = Service::start(command);
    service.line("message=ready");
    service
}
