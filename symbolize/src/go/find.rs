//! Where in a file is the table, and which addresses does it count from?

use super::image::Image;
use crate::object::{Bytes, ReadAt, Section};

/// Functions of one program; the largest known have a few hundred thousand.
pub const MAX_FUNCTIONS: u64 = 1 << 20;
/// How much is searched of a file whose table no section names.
const MAX_SEARCHED: u64 = 128 << 20;
/// Places that look like a table's header or a module's and are not.
const MAX_CANDIDATES: usize = 8;
const MAX_RELOCATIONS_BYTES: u64 = 128 << 20;
/// Words of the module's description that are looked at.
pub const MODULE_WORDS: usize = 64;

const WRITABLE: u32 = 2;
const DYNAMIC: u32 = 2;
const RELATIVE: [u32; 2] = [8, 1027];

/// How the table is laid out: the first release with this layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Go1_2,
    Go1_16,
    Go1_18,
    Go1_20,
}

impl Version {
    /// From the first bytes of the table.
    fn of(magic: u32, rest: u32) -> Option<Self> {
        // Two zeros, the smallest instruction's size, and that of a pointer.
        if rest & 0xffff != 0 || ![1, 2, 4].contains(&(rest >> 16 & 0xff)) || rest >> 24 != 8 {
            return None;
        }
        Some(match magic {
            0xffff_fffb => Self::Go1_2,
            0xffff_fffa => Self::Go1_16,
            0xffff_fff0 => Self::Go1_18,
            0xffff_fff1 => Self::Go1_20,
            _ => return None,
        })
    }
}

/// The table's header; its parts by their addresses.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub at: u64,
    pub version: Version,
    pub quantum: u32,
    pub functions: u64,
    /// From where functions are counted, if the header tells.
    pub text: u64,
    pub names: u64,
    pub values: u64,
    pub entries: u64,
}

/// Finds the table by its section's name, or by its header where Go's sections have lost their names.
pub fn table<R: ReadAt>(image: &mut Image<R>, sections: &[Section]) -> Option<Found> {
    const NAMES: [&[u8]; 2] = [b".gopclntab", b".data.rel.ro.gopclntab"];
    if let Some(section) = sections.iter().find(|section| NAMES.contains(&section.name.as_slice())) {
        return header(image, section.segment.address);
    }
    let is_gos =
        |section: &Section| section.name.starts_with(b".go.") || section.name.starts_with(b".note.go");
    if !sections.is_empty() && !sections.iter().any(is_gos) {
        return None;
    }
    let mut start = 0;
    for _ in 0..MAX_CANDIDATES {
        let candidate = image.scan(
            |_| true,
            MAX_SEARCHED,
            |address, bytes| {
                let is_table = |at: &usize| Version::of(bytes.u32(*at), bytes.u32(at + 4)).is_some();
                let mut places = (0..bytes.0.len().saturating_sub(7)).step_by(8);
                places.find(|at| address + *at as u64 >= start && is_table(at)).map(|at| address + at as u64)
            },
        )?;
        if let Some(found) = header(image, candidate) {
            return Some(found);
        }
        start = candidate + 8;
    }
    None
}

fn header<R: ReadAt>(image: &mut Image<R>, at: u64) -> Option<Found> {
    let rest = image.u32(at.checked_add(4)?)?;
    let version = Version::of(image.u32(at)?, rest)?;
    let (_, left) = image.place(at)?;
    let mut word = |number: u64| image.u64(at.checked_add(8 + number * 8)?);
    let functions = word(0)?;
    let (text, offsets) = match version {
        Version::Go1_2 => (0, [0, 0, 8 + 8]),
        Version::Go1_16 => (0, [word(2)?, word(5)?, word(6)?]),
        _ => (word(2)?, [word(3)?, word(6)?, word(7)?]),
    };
    let is_ordered = offsets.is_sorted() && offsets[2] < left;
    let [names, values, entries] = offsets.map(|offset| at.checked_add(offset));
    let is_usable = (1..=MAX_FUNCTIONS).contains(&functions) && is_ordered;
    is_usable.then_some(Found {
        at,
        version,
        quantum: rest >> 16 & 0xff,
        functions,
        text,
        names: names?,
        values: values?,
        entries: entries?,
    })
}

/// The module's description: it begins with the addresses of the table and of its names. In a program that is moved when
/// it starts, what the file lacks is in relocations.
pub fn module<R: ReadAt>(image: &mut Image<R>, found: &Found) -> Option<[u64; MODULE_WORDS]> {
    let in_place = image.scan(
        |flags| flags & WRITABLE != 0,
        MAX_SEARCHED,
        |address, bytes| {
            let mut places = (0..bytes.0.len().saturating_sub(15)).step_by(8);
            let is_module = |at: &usize| bytes.u64(*at) == found.at && bytes.u64(at + 8) == found.names;
            places.find(is_module).map(|at| address + at as u64)
        },
    );
    let mut words = [0; MODULE_WORDS];
    if let Some(address) = in_place {
        for (number, word) in words.iter_mut().enumerate() {
            *word = image.u64(address + number as u64 * 8).unwrap_or(0);
        }
        return Some(words);
    }
    let [entries, bytes] = relocations(image)?;
    let mut addresses = Vec::new();
    each_relocation(image, entries, bytes, |at, value| {
        if value == found.at {
            addresses.push(at);
        }
    })?;
    addresses.truncate(MAX_CANDIDATES);
    for start in addresses {
        for (number, word) in words.iter_mut().enumerate() {
            *word = image.u64(start.saturating_add(number as u64 * 8)).unwrap_or(0);
        }
        each_relocation(image, entries, bytes, |at, value| {
            let number = at.checked_sub(start).filter(|within| within % 8 == 0).map(|within| within / 8);
            if let Some(word) = number.and_then(|number| words.get_mut(usize::try_from(number).ok()?)) {
                *word = value;
            }
        })?;
        if words[..2] == [found.at, found.names] {
            return Some(words);
        }
    }
    None
}

/// Address and size of the relocations, from the dynamic section.
fn relocations<R: ReadAt>(image: &mut Image<R>) -> Option<[u64; 2]> {
    const TABLE: u64 = 7;
    const SIZE: u64 = 8;
    let dynamic = image.segments.iter().find(|part| part.kind == DYNAMIC)?.segment;
    let (mut table, mut size) = (None, None);
    for number in 0..(dynamic.bytes / 16).min(256) {
        let entry = dynamic.address.checked_add(number * 16)?;
        let value = image.u64(entry.checked_add(8)?)?;
        match image.u64(entry)? {
            0 => break,
            TABLE => table = Some(value),
            SIZE => size = Some(value),
            _ => {}
        }
    }
    let size = size?;
    (size <= MAX_RELOCATIONS_BYTES).then_some([table?, size])
}

/// Calls `visit` with the place and the value of each relocation that only moves an address.
fn each_relocation<R: ReadAt>(
    image: &mut Image<R>,
    at: u64,
    bytes: u64,
    mut visit: impl FnMut(u64, u64),
) -> Option<()> {
    for number in 0..bytes / 24 {
        let entry = Bytes(image.bytes::<24>(at.checked_add(number * 24)?)?.to_vec());
        if RELATIVE.contains(&entry.u32(8)) {
            visit(entry.u64(0), entry.u64(16));
        }
    }
    Some(())
}
