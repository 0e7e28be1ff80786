//! What the headers of an object file say, read bit by bit: nothing is mapped, since a file that somebody cuts short would
//! end a process that looks at its mapping.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
