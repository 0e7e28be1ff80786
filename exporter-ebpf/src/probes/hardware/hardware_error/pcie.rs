//! Errors of PCI Express, as its Advanced Error Reporting has them.

use super::abi;
use crate::record::comm;
use schemars::JsonSchema;
use serde::Serialize;

/// Bits of the correctable and of the uncorrectable error status, by the words of the kernel's log and of lspci.
const CORRECTABLE: [(u32, &str); 8] = [
    (0, "RxErr"),
    (6, "BadTLP"),
    (7, "BadDLLP"),
    (8, "Rollover"),
    (12, "Timeout"),
    (13, "NonFatalErr"),
    (14, "CorrIntErr"),
    (15, "HeaderOF"),
];
const UNCORRECTABLE: [(u32, &str); 23] = [
    (0, "Undefined"),
    (4, "DLP"),
    (5, "SDES"),
    (12, "TLP"),
    (13, "FCP"),
    (14, "CmpltTO"),
    (15, "CmpltAbrt"),
    (16, "UnxCmplt"),
    (17, "RxOF"),
    (18, "MalfTLP"),
    (19, "ECRC"),
    (20, "UnsupReq"),
    (21, "ACSViol"),
    (22, "UncorrIntErr"),
    (23, "BlockedTLP"),
    (24, "AtomicOpBlocked"),
    (25, "TLPBlockedErr"),
    (26, "PoisonTLPBlocked"),
    (27, "DMWrReqBlocked"),
    (28, "IDECheck"),
    (29, "MisIDETLP"),
    (30, "PCRC_CHECK"),
    (31, "TLPXlatBlocked"),
];

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Pcie {
    /// Address of the device that reported it: domain, bus, device and function.
    device: String,
    /// The device's register of correctable or, by `severity`, of uncorrectable errors.
    status: String,
    /// Its bits by name, as the kernel's log has them; a bit without a name by its number.
    errors: Vec<String>,
    /// Header of the packet at fault: four words of 32 bits. Absent where the device kept none.
    #[serde(skip_serializing_if = "Option::is_none")]
    tlp_header: Option<String>,
}

impl Pcie {
    pub(super) fn of(raw: &abi::hardware_error_pcie) -> Self {
        let names: &[_] =
            if u32::from(raw.severity) == abi::PCIE_CORRECTED { &CORRECTABLE } else { &UNCORRECTABLE };
        let name = |bit| {
            let known = names.iter().find(|(number, _)| *number == bit);
            known.map_or_else(|| format!("bit{bit}"), |(_, name)| (*name).into())
        };
        Self {
            device: comm(&raw.device),
            status: super::hex(raw.status.into()),
            errors: (0..u32::BITS).filter(|bit| raw.status >> bit & 1 != 0).map(name).collect(),
            tlp_header: (raw.has_tlp != 0).then(|| raw.tlp.map(|word| format!("{word:08x}")).join(" ")),
        }
    }
}

pub(super) fn severity(raw: &abi::hardware_error_pcie) -> &'static str {
    match raw.severity.into() {
        abi::PCIE_CORRECTED => "corrected",
        abi::PCIE_FATAL => "fatal",
        _ => "uncorrected",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_severity_says_of_which_register_the_bits_are() {
        let of = |severity: u32| {
            let severity = u8::try_from(severity).unwrap();
            let raw = abi::hardware_error_pcie {
                device: [0; 32],
                status: 1 << 12 | 1 << 10,
                severity,
                has_tlp: 0,
                _pad: [0; 2],
                tlp: [0; 4],
            };
            Pcie::of(&raw).errors
        };
        assert_eq!(of(abi::PCIE_CORRECTED), ["bit10", "Timeout"]);
        assert_eq!(of(abi::PCIE_FATAL), ["bit10", "TLP"]);
    }
}
