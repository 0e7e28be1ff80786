//! What the headers of an object file say, read bit by bit: nothing is mapped, since a file that somebody cuts short would
//! end a process that looks at its mapping.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// `EM_…` of this machine.
#[cfg(target_arch = "aarch64")]
pub const MACHINE: u16 = 183;
/// `EM_…` of this machine.
#[cfg(not(target_arch = "aarch64"))]
pub const MACHINE: u16 = 62;

const MAX_HEADERS: u64 = 65_536;
const MAX_NAMES_BYTES: u64 = 1 << 20;

/// Bytes by their place in a file.
pub trait ReadAt {
    /// Fills all of `bytes`, or fails.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let part = self.get(start..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(bytes, offset)
    }
}

/// Numbers in bytes; zero beyond their end.
#[derive(Debug, Clone)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let end = at.saturating_add(N);
        self.0.get(at..end).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    /// One byte.
    pub fn u8(&self, at: usize) -> u8 {
        self.array::<1>(at)[0]
    }

    /// Two bytes.
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    /// Four bytes.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    /// Eight bytes.
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// A part of the file that is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Its place in the file.
    pub offset: u64,
    /// How much of it is in the file.
    pub bytes: u64,
    /// Where it is in memory, before the file is moved.
    pub address: u64,
}

/// A segment with what it is for.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// `PT_…`
    pub kind: u32,
    /// `PF_…`
    pub flags: u32,
    /// Where it is.
    pub segment: Segment,
}

/// A named part of the file.
#[derive(Debug, Clone)]
pub struct Section {
    /// Its name.
    pub name: Vec<u8>,
    /// `SHT_…`
    pub kind: u32,
    /// Where it is.
    pub segment: Segment,
}

/// The header of a 64-bit file of one machine, `EM_…`; `None` when it is another one's, or none at all.
pub fn header<R: ReadAt + ?Sized>(file: &R, machine: u16) -> Option<Bytes> {
    let header = Bytes(part(file, 0, 64, 64)?);
    (header.0.starts_with(b"\x7fELF\x02\x01") && header.u16(18) == machine).then_some(header)
}

/// All segments.
pub fn segments<R: ReadAt + ?Sized>(file: &R, header: &Bytes) -> Option<Vec<Header>> {
    let [segment_bytes, segments] = [54, 56].map(|at| u64::from(header.u16(at)));
    let segments = table(file, header.u64(32), segments, segment_bytes, 56)?;
    let read = |segment: Bytes| {
        let [offset, address, bytes] = [8, 16, 32].map(|at| segment.u64(at));
        let (kind, flags) = (segment.u32(0), segment.u32(4));
        Header { kind, flags, segment: Segment { offset, bytes, address } }
    };
    Some(segments.into_iter().map(read).collect())
}

/// All sections; a file needs none to run.
pub fn sections<R: ReadAt + ?Sized>(file: &R, header: &Bytes) -> Option<Vec<Section>> {
    let [section_bytes, sections, names] = [58, 60, 62].map(|at| u64::from(header.u16(at)));
    let sections = table(file, header.u64(40), sections, section_bytes, 64)?;
    let names = sections.get(usize::try_from(names).ok()?)?;
    let names = part(file, names.u64(24), names.u64(32), MAX_NAMES_BYTES)?;
    let read = |section: &Bytes| {
        let name = names.get(section.u32(0) as usize..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let [address, offset, bytes] = [16, 24, 32].map(|at| section.u64(at));
        Section { name, kind: section.u32(4), segment: Segment { offset, bytes, address } }
    };
    Some(sections.iter().map(read).collect())
}

/// Addresses of the exported symbols whose names begin so; none where there are too many.
pub fn exports<R: ReadAt + ?Sized>(file: &R, prefix: &str) -> Option<HashMap<String, u64>> {
    const DYNAMIC_SYMBOLS: u32 = 11;
    let header = header(file, MACHINE)?;
    let [section_bytes, sections] = [58, 60].map(|at| u64::from(header.u16(at)));
    let sections = table(file, header.u64(40), sections, section_bytes, 64)?;
    let dynamic = sections.iter().find(|section| section.u32(4) == DYNAMIC_SYMBOLS)?;
    let names = sections.get(dynamic.u32(40) as usize)?;
    let names = part(file, names.u64(24), names.u64(32), MAX_NAMES_BYTES)?;
    let symbols = table(file, dynamic.u64(24), dynamic.u64(32) / 24, dynamic.u64(56), 24)?;
    let named = symbols.iter().filter_map(|symbol| {
        let name = names.get(symbol.u32(0) as usize..)?.split(|byte| *byte == 0).next()?;
        let name = std::str::from_utf8(name).ok().filter(|name| name.starts_with(prefix))?;
        Some((name.to_owned(), symbol.u64(8)))
    });
    Some(named.collect())
}

/// What tells one build from another: the linker's identifier in hexadecimal, or Go's as it is.
pub fn build_id<R: ReadAt + ?Sized>(file: &R) -> Option<String> {
    const NOTE: u32 = 4;
    const MAX_NOTES_BYTES: u64 = 1 << 16;
    let segments = segments(file, &header(file, MACHINE)?)?;
    let mut gos = None;
    for Header { segment, .. } in segments.iter().filter(|part| part.kind == NOTE) {
        let notes = Bytes(part(file, segment.offset, segment.bytes, MAX_NOTES_BYTES)?);
        let mut at = 0;
        while at < notes.0.len() {
            let [name, content] = [0, 4].map(|field| notes.u32(at + field) as usize);
            let start = at + 12 + name.next_multiple_of(4);
            let bytes =
                notes.0.get(start..start + content).filter(|bytes| !bytes.is_empty() && bytes.len() <= 128);
            match (notes.u32(at + 8), notes.0.get(at + 12..at + 16), bytes) {
                (3, Some(b"GNU\0"), Some(bytes)) => {
                    return Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
                }
                (4, Some(b"Go\0\0"), Some(bytes)) => gos = String::from_utf8(bytes.to_vec()).ok(),
                _ => {}
            }
            at = start + content.next_multiple_of(4);
        }
    }
    gos
}

/// A part of the file, unless it is larger than `most`.
pub fn part<R: ReadAt + ?Sized>(file: &R, offset: u64, bytes: u64, most: u64) -> Option<Vec<u8>> {
    if bytes > most {
        return None;
    }
    let mut part = vec![0; usize::try_from(bytes).ok()?];
    file.read_exact_at(&mut part, offset).ok()?;
    Some(part)
}

fn table<R: ReadAt + ?Sized>(
    file: &R,
    offset: u64,
    entries: u64,
    entry_bytes: u64,
    agreed: u64,
) -> Option<Vec<Bytes>> {
    if entry_bytes != agreed || entries > MAX_HEADERS {
        return None;
    }
    let bytes = part(file, offset, entries * entry_bytes, MAX_HEADERS * agreed)?;
    Some(bytes.chunks(agreed as usize).map(|entry| Bytes(entry.to_vec())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_program_has_a_build_id() {
        let id = build_id(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(id.len() >= 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }

    proptest! {
        #[test]
        fn any_notes_are_taken(notes in prop::collection::vec(any::<u32>(), 0..40), small in 0u32..64) {
            let mut file = vec![0; 64 + 56];
            file[..6].copy_from_slice(b"\x7fELF\x02\x01");
            file[18..20].copy_from_slice(&MACHINE.to_le_bytes());
            file[32] = 64;
            file[54..58].copy_from_slice(&[56, 0, 1, 0]);
            file[64] = 4;
            file[64 + 8] = 120;
            file[64 + 32] = 12 + notes.len() as u8 * 4;
            file.extend([4, small, 3].iter().chain(&notes).flat_map(|word| word.to_le_bytes()));
            let _ = build_id(file.as_slice());
        }
    }
}
