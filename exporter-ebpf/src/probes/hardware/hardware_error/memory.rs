//! Errors that memory controllers report, and pages that the kernel takes out of use.

use super::{abi, hex, hex_unless_zero};
use crate::btf::KernelTypes;
use crate::record::{Names, comm};
use schemars::JsonSchema;
use serde::Serialize;

/// Enumerations of the kernel, and what their names begin with.
const ENUMERATIONS: [(&str, &str); 3] =
    [("hw_event_mc_err_type", "HW_EVENT_ERR_"), ("mf_action_page_type", "MF_MSG_"), ("mf_result", "MF_")];
const SEVERITY: u64 = 0;
const KIND: u64 = 1;
const RESULT: u64 = 2;

/// Names of three enumerations: the upper half of a number tells of which.
pub(super) fn names(types: &KernelTypes) -> Names {
    let mut names = Names::new();
    for (index, (enumeration, prefix)) in (0..).zip(ENUMERATIONS) {
        for (number, name) in types.members(enumeration, prefix) {
            names.insert(index << 32 | number, name.to_lowercase());
        }
    }
    names
}

fn name(names: &Names, enumeration: u64, number: u32) -> String {
    let known = names.get(&(enumeration << 32 | u64::from(number)));
    known.cloned().unwrap_or_else(|| format!("unknown_{number}"))
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Memory {
    /// Number of the controller: the N of `/sys/devices/system/edac/mc/mcN`.
    controller: u8,
    /// The module by the name that the mainboard or its owner gave it.
    label: String,
    /// What the driver calls the error.
    message: String,
    /// Errors that this stands for.
    count: u32,
    /// Place in the controller's outer layer, such as a branch or row; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_layer: Option<u32>,
    /// The same in the layer below, such as a channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    middle_layer: Option<u32>,
    /// The same in the innermost.
    #[serde(skip_serializing_if = "Option::is_none")]
    low_layer: Option<u32>,
    /// Physical address; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// How exact the address is.
    grain_bytes: u64,
    /// What the check bits said; 0x0 also where the controller does not tell.
    syndrome: String,
    /// What else the driver tells.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

impl Memory {
    pub(super) fn of(raw: &abi::hardware_error_memory) -> Self {
        let [top_layer, middle_layer, low_layer] = raw.layers.map(|place| u32::try_from(place).ok());
        Self {
            controller: raw.controller,
            label: comm(&raw.label),
            message: comm(&raw.message),
            count: raw.count,
            top_layer,
            middle_layer,
            low_layer,
            address: hex_unless_zero(raw.address),
            grain_bytes: 1 << (raw.grain_bits & 31),
            syndrome: hex(raw.syndrome),
            detail: comm(&raw.detail).trim().into(),
        }
    }
}

pub(super) fn severity(raw: &abi::hardware_error_memory, names: &Names) -> String {
    name(names, SEVERITY, raw.severity)
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Page {
    /// Number of the page frame.
    pfn: u64,
    /// What the page was used for, in the words of the running kernel (`enum mf_action_page_type`).
    kind: String,
    /// What the kernel achieved: `recovered`, `delayed`, `ignored` or `failed`, or another of its own words.
    result: String,
}

impl Page {
    pub(super) fn of(raw: &abi::hardware_error_page, names: &Names) -> Self {
        Self { pfn: raw.pfn, kind: name(names, KIND, raw.kind), result: name(names, RESULT, raw.result) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn field<const BYTES: usize>(text: &str) -> [u8; BYTES] {
        let mut field = [0; BYTES];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    }

    #[test]
    fn an_error_of_a_memory_controller_has_what_its_driver_knows() {
        let raw = abi::hardware_error_memory {
            address: 0x12_3456_7000,
            syndrome: 0,
            severity: 0,
            count: 1,
            layers: [1, 0, -1],
            controller: 0,
            grain_bits: 5,
            _pad: [0; 2],
            message: field("memory read error"),
            label: field("CPU_SrcID#0_MC#1_Chan#0_DIMM#0"),
            detail: field(" err_code:0x0101:0x0090"),
        };
        let names = Names::from([(0, "corrected".to_owned())]);
        assert_eq!(severity(&raw, &names), "corrected");
        let expected = json!({
            "controller": 0, "label": "CPU_SrcID#0_MC#1_Chan#0_DIMM#0", "message": "memory read error", "count": 1,
            "top_layer": 1, "middle_layer": 0, "address": "0x1234567000", "grain_bytes": 32, "syndrome": "0x0",
            "detail": "err_code:0x0101:0x0090",
        });
        assert_eq!(serde_json::to_value(Memory::of(&raw)).unwrap(), expected);
    }

    #[test]
    fn names_of_the_three_enumerations_do_not_mix() {
        let names =
            Names::from([(1, "a".to_owned()), (1 << 32 | 1, "b".to_owned()), (2 << 32 | 1, "c".to_owned())]);
        let page = Page::of(&abi::hardware_error_page { pfn: 7, kind: 1, result: 1 }, &names);
        assert_eq!(serde_json::to_value(page).unwrap(), json!({"pfn": 7, "kind": "b", "result": "c"}));
        let other = Page::of(&abi::hardware_error_page { pfn: 7, kind: 1, result: 2 }, &names);
        assert_eq!(other.result, "unknown_2", "a number that this kernel does not name");
    }
}
