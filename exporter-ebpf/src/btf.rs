//! What the running kernel's BTF says about its enumerations, whose numbers change between releases.

use kpulse_common::paths::Paths;
use std::collections::BTreeMap;
use std::fs;
use std::io;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
const KIND_ENUM: u32 = 6;
const KIND_ENUM64: u32 = 19;

/// Enumerations of the kernel, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct KernelTypes {
    enums: BTreeMap<String, BTreeMap<u64, String>>,
}

impl KernelTypes {
    /// Reads those of `wanted` that the kernel has, and keeps nothing else.
    pub fn read(paths: &Paths, wanted: &[&str]) -> io::Result<Self> {
        let path = paths.sysfs.join("kernel/btf/vmlinux");
        let bytes = fs::read(&path)?;
        Self::parse(&bytes, wanted).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is not BTF", path.display()))
        })
    }

    /// The same from bytes; `None` when they are not BTF.
    pub fn parse(bytes: &[u8], wanted: &[&str]) -> Option<Self> {
        if u16_at(bytes, 0)? != MAGIC {
            return None;
        }
        let header = u32_at(bytes, 4)? as usize;
        if header < HEADER_BYTES {
            return None;
        }
        let section = |offset_at, length_at| {
            let start = header.checked_add(u32_at(bytes, offset_at)? as usize)?;
            bytes.get(start..start.checked_add(u32_at(bytes, length_at)? as usize)?)
        };
        let (types, strings) = (section(8, 12)?, section(16, 20)?);
        let mut enums = BTreeMap::new();
        let mut at = 0;
        while at < types.len() {
            let shape = u32_at(types, at + 4)?;
            let (kind, members) = (shape >> 24 & 0x1f, (shape & 0xffff) as usize);
            let body = at + 12;
            // Few of a kernel's hundred thousand types are enumerations: no other needs its name.
            if matches!(kind, KIND_ENUM | KIND_ENUM64) {
                let name = string_at(strings, u32_at(types, at)?)?;
                if wanted.contains(&name) {
                    let members = members_of(types, strings, body, members, kind == KIND_ENUM64)?;
                    enums.insert(name.to_owned(), members);
                }
            }
            at = body.checked_add(body_bytes(kind, members)?)?;
        }
        Some(Self { enums })
    }

    /// Names by number of an enumeration; `None` when this kernel does not have it.
    pub fn enumeration(&self, name: &str) -> Option<&BTreeMap<u64, String>> {
        self.enums.get(name)
    }

    /// Those of its members whose names begin so, without that beginning; none when this kernel does not have it.
    pub fn members<'a>(&'a self, name: &str, prefix: &'a str) -> impl Iterator<Item = (u64, &'a str)> {
        let members = self.enumeration(name).into_iter().flatten();
        members.filter_map(move |(&number, name)| Some((number, name.strip_prefix(prefix)?)))
    }
}

fn members_of(
    types: &[u8],
    strings: &[u8],
    body: usize,
    count: usize,
    is_wide: bool,
) -> Option<BTreeMap<u64, String>> {
    let member_bytes = if is_wide { 12 } else { 8 };
    let mut members = BTreeMap::new();
    for index in 0..count {
        let at = body + index * member_bytes;
        let low = u64::from(u32_at(types, at + 4)?);
        let high = if is_wide { u64::from(u32_at(types, at + 8)?) } else { 0 };
        members.insert(high << 32 | low, string_at(strings, u32_at(types, at)?)?.to_owned());
    }
    Some(members)
}

/// Bytes that follow the 12 common ones of a type, by kind (Documentation/bpf/btf.rst).
fn body_bytes(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * members,
        6 | 13 => 8 * members,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn string_at(strings: &[u8], at: u32) -> Option<&str> {
    let rest = strings.get(at as usize..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_an_enumeration_of_the_running_kernel() {
        let Ok(types) = KernelTypes::read(&Paths::default(), &["bpf_map_type", "no_such_enum"]) else {
            println!("SKIP reads_an_enumeration_of_the_running_kernel: this kernel shows no BTF");
            return;
        };
        let names = types.enumeration("bpf_map_type").expect("every kernel with BPF has it");
        assert_eq!(names[&1], "BPF_MAP_TYPE_HASH");
        assert_eq!(types.enumeration("no_such_enum"), None);
    }

    proptest! {
        #[test]
        fn never_panics_on_bytes_that_are_not_btf(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = KernelTypes::parse(&bytes, &["x"]);
            if bytes.len() >= HEADER_BYTES {
                bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[4..8].copy_from_slice(&24u32.to_le_bytes());
                bytes[8..12].copy_from_slice(&0u32.to_le_bytes());
                let _ = KernelTypes::parse(&bytes, &["x"]);
            }
        }
    }
}
