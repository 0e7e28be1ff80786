//! Errors of the hardware, provoked in a guest: this machine's is not ours to break.

use super::*;
use kpulse_tests::memory_controller::{MemoryController, Severity};
use kpulse_tests::root_port::RootPort;
use kpulse_tests::{is_guest, skip};

const ERRORS: &str = "kpulse_hardware_errors_total";

#[test]
fn errors_of_pci_express_are_counted_by_severity() {
    if !is_guest() {
        return skip("errors_of_pci_express", "this machine's devices are not ours to break");
    }
    let port = match RootPort::find() {
        Ok(port) => port,
        Err(why) => return skip("errors_of_pci_express", why),
    };
    let exporter = Exporter::start(&["hardware"]);
    let counts = || {
        let page = exporter.scrape();
        ["corrected", "nonfatal", "fatal"]
            .map(|severity| page.value(ERRORS, &[("type", "pcie"), ("severity", severity)]))
    };
    let mut expected = counts();
    for (severity, [uncorrectable, correctable]) in [(0, [0, 1 << 6]), (1, [1 << 12, 0]), (0, [0, 1 << 6])] {
        // One at a time: while the port has not reported one, it is busy.
        port.inject(uncorrectable, correctable).expect("root may inject");
        expected[severity] += 1.0;
        until("the kernel to count the message", || (counts() == expected).then_some(()));
    }
}

#[test]
fn errors_of_memory_are_what_the_driver_counted() {
    if !is_guest() {
        return skip("errors_of_memory", "this machine's memory is not ours to break");
    }
    let controller = match MemoryController::set_up() {
        Ok(controller) => controller,
        Err(why) => return skip("errors_of_memory", why),
    };
    let exporter = Exporter::start(&["hardware"]);
    let counts = || {
        let page = exporter.scrape();
        ["corrected", "uncorrected"]
            .map(|severity| page.value(ERRORS, &[("type", "memory"), ("severity", severity)]))
    };
    let mut expected = [0.0, 0.0];
    assert_eq!(counts(), expected);
    for (index, severity) in [(0, Severity::Corrected), (1, Severity::Uncorrected), (0, Severity::Corrected)]
    {
        controller.err(severity, 0x1234_5680, 0, 0).expect("root may write to registers");
        expected[index] += 1.0;
        assert_eq!(counts(), expected);
    }
}
