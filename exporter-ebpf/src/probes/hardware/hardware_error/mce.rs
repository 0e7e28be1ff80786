//! Machine checks of x86.

use super::{abi, hex, hex_unless_zero};
use schemars::JsonSchema;
use serde::Serialize;

/// Bits of `MCi_STATUS`, of all vendors but for the last, which is AMD's and Hygon's.
const OVERFLOW: u64 = 1 << 62;
const UNCORRECTED: u64 = 1 << 61;
const MISC_VALID: u64 = 1 << 59;
const ADDRESS_VALID: u64 = 1 << 58;
const CONTEXT_CORRUPT: u64 = 1 << 57;
const DEFERRED: u64 = 1 << 44;

/// Vendors whose CPUs defer errors, by the kernel's numbers (`X86_VENDOR_AMD`, `X86_VENDOR_HYGON`).
const DEFER: [u8; 2] = [2, 9];

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Mce {
    /// The CPU that reported it.
    cpu: u32,
    /// Its package.
    socket: u32,
    /// Number of the bank of registers: which part of the CPU, by its model.
    bank: u8,
    /// `MCi_STATUS`.
    status: String,
    /// The kind of error by the architecture: the low 16 bits of `status`.
    error_code: u16,
    /// The kind of error by the CPU's model: the next 16 bits.
    model_error_code: u16,
    /// Whether the bank lost another error, since it had room for one.
    overflow: bool,
    /// `MCi_ADDR`; absent where `status` calls it invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// `MCi_MISC`; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    misc: Option<String>,
    /// `MCG_STATUS`.
    mcg_status: String,
    /// `MCA_SYND` of AMD: what the error was.
    #[serde(skip_serializing_if = "Option::is_none")]
    syndrome: Option<String>,
    /// `MCA_IPID` of AMD: which block of the chip reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipid: Option<String>,
    /// Where the CPU was; absent where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction: Option<String>,
    /// Revision of the CPU's microcode.
    microcode: String,
}

impl Mce {
    pub(super) fn of(raw: &abi::hardware_error_mce) -> Self {
        let valid = |bit, register| (raw.status & bit != 0).then(|| hex(register));
        let [low, low_model] = [raw.status, raw.status >> 16].map(|bits| (bits & 0xffff) as u16);
        Self {
            cpu: raw.cpu,
            socket: raw.socket,
            bank: raw.bank,
            status: hex(raw.status),
            error_code: low,
            model_error_code: low_model,
            overflow: raw.status & OVERFLOW != 0,
            address: valid(ADDRESS_VALID, raw.address),
            misc: valid(MISC_VALID, raw.misc),
            mcg_status: hex(raw.mcg_status),
            syndrome: hex_unless_zero(raw.synd),
            ipid: hex_unless_zero(raw.ipid),
            instruction: hex_unless_zero(raw.ip),
            microcode: hex(raw.microcode.into()),
        }
    }
}

pub(super) fn severity(raw: &abi::hardware_error_mce) -> &'static str {
    let has = |bit| raw.status & bit != 0;
    match (has(UNCORRECTED), has(CONTEXT_CORRUPT)) {
        (true, true) => "fatal",
        (true, false) => "uncorrected",
        _ if has(DEFERRED) && DEFER.contains(&raw.vendor) => "deferred",
        _ => "corrected",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_how_bad_it_is() {
        let of = |status, vendor| {
            // SAFETY: the record is plain numbers, for which all zeros are a value.
            let zeros: abi::hardware_error_mce = unsafe { std::mem::zeroed() };
            severity(&abi::hardware_error_mce { status, vendor, ..zeros })
        };
        assert_eq!(of(0x9c00_0000_0001_0090, 0), "corrected");
        assert_eq!(of(0xbd80_0000_0010_0134, 0), "uncorrected");
        assert_eq!(of(0xbe00_0000_0080_0400, 0), "fatal");
        assert_eq!(of(0x9c00_1000_0001_0090, 2), "deferred");
        assert_eq!(of(0x9c00_1000_0001_0090, 0), "corrected", "to Intel the bit means something else");
    }
}
