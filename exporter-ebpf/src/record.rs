//! Decoding what every record of every ring begins with: bytes in, value out.

use crate::abi;
use crate::error::ProbeError;
use aya::Pod;
use serde::Serialize;
use std::collections::BTreeMap;

/// Kernel numbers by name, as a decoder needs them: reasons, operations.
pub type Names = BTreeMap<u64, String>;

/// A decoded record: the header that all share, and the probe's own fields as a JSON object.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// What every record begins with.
    pub header: Header,
    /// The probe's fields.
    pub body: serde_json::Value,
    /// A kernel address in the body that wants a name, as (field, address).
    pub place: Option<(&'static str, u64)>,
    /// The field that names the function which sleeps, of a stack that its task slept on.
    pub slept_in: Option<&'static str>,
    /// Which of the probe's kinds it is; `None` for the first.
    pub kind: Option<&'static str>,
    /// Where the task was in its own code, where it was the current one.
    pub user_stack: Option<UserStack>,
    /// Whether nothing can work on top of that task where the record is made, as at the end of its system call.
    pub is_in_call: bool,
}

impl Decoded {
    /// A header with the probe's fields.
    pub fn new(header: Header, body: &impl Serialize) -> Result<Self, ProbeError> {
        let body = serde_json::to_value(body).map_err(|error| ProbeError::Layout(error.to_string()))?;
        Ok(Self {
            header,
            body,
            place: None,
            slept_in: None,
            kind: None,
            user_stack: None,
            is_in_call: false,
        })
    }

    /// The same with what the record says of the task's own code.
    #[must_use]
    pub fn with_user_stack(mut self, raw: &abi::user_stack) -> Self {
        let frames = addresses(&raw.frames, raw.stack_bytes);
        let space = AddressSpace { code: raw.code, stack: raw.stack };
        self.user_stack = (!frames.is_empty()).then_some(UserStack { pid: raw.tgid, space, frames });
        self
    }

    /// The same with the user stack of who made the system call that ends.
    #[must_use]
    pub fn with_stack_of_call(self, raw: &abi::user_stack) -> Self {
        Self { is_in_call: true, ..self.with_user_stack(raw) }
    }
}

/// Where a task was in its own code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserStack {
    /// The process, which need not be the one that the event is about.
    pub pid: u32,
    /// What it ran.
    pub space: AddressSpace,
    /// Addresses of that program, innermost first.
    pub frames: Vec<u64>,
}

/// Where the kernel put a program's code and its stack, which exec chooses anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressSpace {
    /// Field 26 of `/proc/PID/stat`.
    pub code: u64,
    /// Field 28.
    pub stack: u64,
}

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// When what is told ended, CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// The measured value; `None` for a fact without one.
    pub value_ns: Option<u64>,
    /// The threshold that it reached.
    pub threshold_ns: Option<u64>,
    /// The cgroup in the probe's hierarchy; `None` when the kernel could not tell.
    pub cgroup_id: Option<u64>,
    /// Records of this cgroup that the rate limit kept back, since its bucket was made.
    pub suppressed_total: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// The CPU.
    pub cpu: u32,
    /// Name of the thread.
    pub comm: String,
    /// Kernel stack, innermost first.
    pub stack: Vec<u64>,
}

impl From<&abi::record_header> for Header {
    fn from(raw: &abi::record_header) -> Self {
        Self {
            boot_ns: raw.boot_ns,
            value_ns: known(raw.value_ns),
            threshold_ns: known(raw.threshold_ns),
            cgroup_id: (raw.cgroup_id != 0).then_some(raw.cgroup_id),
            suppressed_total: raw.suppressed_total,
            pid: raw.tgid,
            tid: raw.tid,
            cpu: raw.cpu,
            comm: comm(&raw.comm),
            stack: addresses(&raw.stack, raw.stack_bytes),
        }
    }
}

/// The frames of a stack of so many bytes, or of none where it is an error.
fn addresses(frames: &[u64], stack_bytes: i32) -> Vec<u64> {
    let count = usize::try_from(stack_bytes).unwrap_or(0) / size_of::<u64>();
    frames.iter().take(count).copied().take_while(|&address| address != 0).collect()
}

/// `None` for the sentinel of a value that could not be measured.
pub fn known(value: u64) -> Option<u64> {
    (value != abi::UNKNOWN_U64).then_some(value)
}

/// A name of at most 16 bytes as the kernel keeps it; what is not UTF-8 is replaced, a program may call itself anything.
pub fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The bytes as a record of this type; an error when the size is not exactly its size.
pub fn view<T: Pod>(bytes: &[u8]) -> Result<T, ProbeError> {
    if bytes.len() != size_of::<T>() {
        let (have, want) = (bytes.len(), size_of::<T>());
        return Err(ProbeError::Layout(format!("a record has {have} bytes where {want} were agreed on")));
    }
    // SAFETY: the length was checked, T is Pod, and read_unaligned needs no alignment.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;
    use crate::probe::EventDef;

    /// The bytes of a `.hex` file.
    pub(crate) fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
    }

    /// Asserts that a real record decodes to what its `.json` file says, and gives the rest of it.
    pub(crate) fn assert_decodes(event: &EventDef, names: &Names, hex: &str, json: &str) -> Decoded {
        let decoded = (event.decode)(&bytes(hex), names).unwrap();
        let expected: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(decoded.body, expected);
        decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes;
    use proptest::prelude::*;

    /// More than any record has.
    const SIZE_MAX: usize = 4096;

    #[test]
    fn each_decoder_takes_any_bytes_of_one_size_and_refuses_any_other() {
        for event in probes::ALL.iter().flat_map(|probe| probe.events) {
            let decode = |bytes: &[u8]| (event.decode)(bytes, &Names::new());
            let zeros = [0; SIZE_MAX];
            let sizes: Vec<usize> = (0..=SIZE_MAX).filter(|&size| decode(&zeros[..size]).is_ok()).collect();
            let [size] = sizes[..] else { panic!("{} decodes records of {sizes:?} bytes", event.kind) };
            proptest!(|(noise in prop::collection::vec(any::<u8>(), size))| {
                prop_assert!(decode(&noise).is_ok(), "{}", event.kind);
                prop_assert!(decode(&noise[1..]).is_err(), "{}", event.kind);
            });
        }
    }
}
