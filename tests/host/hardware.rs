//! Errors of the hardware, provoked in a guest: this machine's is not ours to break.

use super::*;
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
