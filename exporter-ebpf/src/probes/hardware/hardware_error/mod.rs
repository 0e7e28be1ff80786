#![doc = include_str!("README.md")]

mod mce;
mod memory;
mod pcie;

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::probe::{EventDef, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{Decoded, Header, Names, view};
use kpulse_common::event::schema_of;
use schemars::JsonSchema;
use serde::Serialize;

abi!("hardware_error");

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "hardware_error",
    object: bpf_object!("hardware_error"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::optional("mce_record", &[tp_btf("mce_record", "mce_record")]),
        Hook::optional("mc_event", &[tp_btf("mc_event", "mc_event")]),
        Hook::optional("aer_event", &[tp_btf("aer_event", "aer_event")]),
        Hook::optional("memory_failure_event", &[tp_btf("memory_failure_event", "memory_failure_event")]),
    ],
    events: &[EventDef {
        kind: "hardware_error",
        help: "A CPU, the memory or a PCI Express device reported an error.",
        decode,
        body: schema_of::<Body>,
        names: memory::names,
    }],
    ..Probe::EMPTY
};

/// Fields of the event beyond the common ones.
#[derive(Debug, Serialize, JsonSchema)]
struct Body {
    /// What reported it, `mce`, `memory` or `pcie`; or `page`, where the kernel dealt with a broken page of memory.
    r#type: &'static str,
    /// `corrected`, `deferred`, `uncorrected`, `fatal`, or another that the kernel names.
    severity: String,
    /// A machine check.
    #[serde(skip_serializing_if = "Option::is_none")]
    mce: Option<mce::Mce>,
    /// What a memory controller's driver, or the firmware, told.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<memory::Memory>,
    /// An error of PCI Express.
    #[serde(skip_serializing_if = "Option::is_none")]
    pcie: Option<pcie::Pcie>,
    /// A broken page, and what the kernel did about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<memory::Page>,
}

fn decode(bytes: &[u8], names: &Names) -> Result<Decoded, ProbeError> {
    let record: abi::hardware_error_record = view(bytes)?;
    let body = |r#type, severity| Body { r#type, severity, mce: None, memory: None, pcie: None, page: None };
    let body = match u32::try_from(record.type_) {
        Ok(abi::TYPE_MCE) => {
            let mce = Some(mce::Mce::of(&record.mce));
            Body { mce, ..body("mce", mce::severity(&record.mce).into()) }
        }
        Ok(abi::TYPE_MEMORY) => {
            let memory = Some(memory::Memory::of(&record.memory));
            Body { memory, ..body("memory", memory::severity(&record.memory, names)) }
        }
        Ok(abi::TYPE_PCIE) => {
            let pcie = Some(pcie::Pcie::of(&record.pcie));
            Body { pcie, ..body("pcie", pcie::severity(&record.pcie).into()) }
        }
        // Whatever could be corrected breaks no page.
        _ => {
            let page = Some(memory::Page::of(&record.page, names));
            Body { page, ..body("page", "uncorrected".into()) }
        }
    };
    Decoded::new(Header::from(&record.header), &body)
}

/// A register. In hexadecimal, as manuals have it: some use all 64 bits, for which a store's integers have no room.
fn hex(register: u64) -> String {
    format!("{register:#x}")
}

fn hex_unless_zero(register: u64) -> Option<String> {
    (register != 0).then(|| hex(register))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::assert_decodes;

    const HEX: &str = include_str!("fixtures/hardware_error.hex");

    #[test]
    fn a_real_record_decodes() {
        let json = include_str!("fixtures/hardware_error.json");
        let decoded = assert_decodes(&PROBE.events[0], &Names::new(), HEX, json);
        assert_eq!((decoded.header.pid, decoded.header.value_ns), (0, None));
    }
}
