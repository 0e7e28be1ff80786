//! What does a HotSpot JVM tell of its own structures? The tables that libjvm exports for debuggers: names of types and
//! fields with sizes, offsets, and addresses of static fields.

use super::memory::{Cached, Numbers};
use crate::unwind::elf::ReadAt;
use std::collections::HashMap;

/// Entries of one table; JDK 11 to 25 have 335 to 838.
const MAX_ENTRIES: u64 = 4096;
const MAX_ENTRY_BYTES: u64 = 256;

/// The name of every symbol begins so.
pub const PREFIX: &str = "gHotSpotVM";

/// A field: where it is in its structure, or in memory if it is static.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub place: u64,
    pub is_static: bool,
    /// Its type has two bytes.
    pub is_short: bool,
}

/// Fields by `Type::field`, and the sizes of types.
#[derive(Debug, Default)]
pub struct Structs {
    fields: HashMap<String, Field>,
    sizes: HashMap<String, u64>,
}

/// Why there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The JVM has not filled them yet.
    NotYet,
    /// It has none, or none that can be understood.
    Unknown,
}

impl Structs {
    /// Reads the tables; `exports` are addresses in memory.
    pub fn read<M: ReadAt + ?Sized>(memory: &M, exports: &HashMap<String, u64>) -> Result<Self, Missing> {
        let memory = &Cached::new(memory);
        let mut structs = Self::default();
        let [owner, name, kind, is_static, offset, address] =
            ["TypeName", "FieldName", "TypeString", "IsStatic", "Offset", "Address"]
                .map(|part| format!("StructEntry{part}Offset"));
        let offsets = [&owner, &name, &kind, &is_static, &offset, &address].map(String::as_str);
        entries(memory, exports, "Structs", "StructEntryArrayStride", offsets, |entry| {
            let [owner, name, kind, is_static, offset, address] = entry;
            let is_static = memory.u32(is_static)? != 0;
            let place = memory.u64(if is_static { address } else { offset })?;
            let kind = memory.u64(kind).filter(|kind| *kind != 0).and_then(|kind| memory.text(kind));
            let is_short = matches!(kind.as_deref(), Some("int16_t" | "short" | "u2"));
            let name = format!("{}::{}", memory.text(memory.u64(owner)?)?, memory.text(memory.u64(name)?)?);
            structs.fields.insert(name, Field { place, is_static, is_short });
            Some(())
        })?;
        let offsets = ["TypeEntryTypeNameOffset", "TypeEntrySizeOffset"];
        entries(memory, exports, "Types", "TypeEntryArrayStride", offsets, |[name, size]| {
            structs.sizes.insert(memory.text(memory.u64(name)?)?, memory.u64(size)?);
            Some(())
        })?;
        Ok(structs)
    }

    /// The first of these that this version has.
    pub fn field(&self, names: &[&str]) -> Option<Field> {
        names.iter().find_map(|name| self.fields.get(*name)).copied()
    }

    /// The size of a type.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.sizes.get(name).copied()
    }
}

/// Goes over a table until its first name is null: `each` is given where the wanted parts of an entry are.
fn entries<M: ReadAt + ?Sized, const N: usize>(
    memory: &M,
    exports: &HashMap<String, u64>,
    table: &str,
    stride: &str,
    offsets: [&str; N],
    mut each: impl FnMut([u64; N]) -> Option<()>,
) -> Result<(), Missing> {
    let number = |name: &str| {
        let symbol = exports.get(&format!("{PREFIX}{name}"))?;
        memory.u64(*symbol)
    };
    let known = |name: &str| number(name).ok_or(Missing::Unknown);
    let (start, stride) = (known(table)?, known(stride)?);
    if start == 0 || stride == 0 {
        return Err(Missing::NotYet);
    }
    let mut places = [0; N];
    for (place, name) in places.iter_mut().zip(offsets) {
        *place = known(name)?;
    }
    if stride > MAX_ENTRY_BYTES || places.iter().any(|place| *place > stride.saturating_sub(4)) {
        return Err(Missing::Unknown);
    }
    for index in 0..MAX_ENTRIES {
        let entry = start.checked_add(index * stride).ok_or(Missing::Unknown)?;
        let first = entry.checked_add(places[0]).and_then(|place| memory.u64(place));
        match first {
            None => return Err(Missing::Unknown),
            Some(0) => return Ok(()),
            // An entry that cannot be read is one that is not known.
            Some(_) => drop(each(places.map(|place| entry.wrapping_add(place)))),
        }
    }
    Err(Missing::Unknown)
}
