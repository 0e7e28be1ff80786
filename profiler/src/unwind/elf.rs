//! Which parts of a program's file does unwinding need? Its code segments and `.eh_frame`, read into memory.
//!
//! Not mapped: a file that somebody cuts short would end a process that looks at its mapping.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A row comes from 5 to 8 bytes, so that a larger section has more rows than the kernel's table.
const MAX_SECTION_BYTES: u64 = 5 << 20;
const MAX_HEADERS: u64 = 65_536;
const MAX_NAMES_BYTES: u64 = 1 << 20;

const LOAD: u32 = 1;
const EXECUTABLE: u32 = 1;
const NO_BITS: u32 = 8;
const X86_64: u16 = 62;

/// Bytes by their place in a file.
pub trait ReadAt {
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

/// A part of the file that is mapped as code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub bytes: u64,
    pub address: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Elf {
    pub code: Vec<Segment>,
    pub eh_frame: Vec<u8>,
    /// It has a section that is too large to be read.
    pub is_too_large: bool,
    pub eh_frame_address: u64,
    pub text_address: u64,
    pub got_address: u64,
}

impl Elf {
    /// Reads a 64-bit x86 file; `None` when it is not one, or is broken.
    pub fn read<R: ReadAt + ?Sized>(file: &R) -> Option<Self> {
        let header = Bytes(part(file, 0, 64, 64)?);
        let is_known = header.0.starts_with(b"\x7fELF\x02\x01") && header.u16(18) == X86_64;
        if !is_known {
            return None;
        }
        let mut elf = Self::default();
        let [segment_bytes, segments] = [54, 56].map(|at| u64::from(header.u16(at)));
        for segment in table(file, header.u64(32), segments, segment_bytes, 56)? {
            if segment.u32(0) == LOAD && segment.u32(4) & EXECUTABLE != 0 {
                let [offset, address, bytes] = [8, 16, 32].map(|at| segment.u64(at));
                elf.code.push(Segment { offset, bytes, address });
            }
        }
        // A file without sections, or with broken ones, still has segments.
        elf.read_sections(file, &header);
        Some(elf)
    }

    fn read_sections<R: ReadAt + ?Sized>(&mut self, file: &R, header: &Bytes) -> Option<()> {
        let [section_bytes, sections, names] = [58, 60, 62].map(|at| u64::from(header.u16(at)));
        let sections: Vec<Bytes> = table(file, header.u64(40), sections, section_bytes, 64)?.collect();
        let names = sections.get(usize::try_from(names).ok()?)?;
        let names = part(file, names.u64(24), names.u64(32), MAX_NAMES_BYTES)?;
        for section in &sections {
            let name = names.get(section.u32(0) as usize..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let (kind, address) = (section.u32(4), section.u64(16));
            match name {
                b".text" => self.text_address = address,
                b".got" => self.got_address = address,
                b".eh_frame" if section.u64(32) > MAX_SECTION_BYTES => self.is_too_large = true,
                b".eh_frame" if kind != NO_BITS => {
                    self.eh_frame = part(file, section.u64(24), section.u64(32), MAX_SECTION_BYTES)?;
                    self.eh_frame_address = address;
                }
                _ => {}
            }
        }
        Some(())
    }

    /// What to subtract from addresses of a mapping of this file to have the file's own.
    pub fn bias(code: &[Segment], start: u64, offset: u64) -> Option<u64> {
        const PAGE: u64 = 4095;
        let holds = |segment: &&Segment| {
            let begin = segment.offset & !PAGE;
            begin <= offset && offset < segment.offset.saturating_add(segment.bytes)
        };
        let segment = code.iter().find(holds)?;
        let address = (segment.address & !PAGE).wrapping_add(offset - (segment.offset & !PAGE));
        Some(start.wrapping_sub(address))
    }
}

/// Numbers at places that were checked when the bytes were cut.
struct Bytes(Vec<u8>);

impl Bytes {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

fn part<R: ReadAt + ?Sized>(file: &R, offset: u64, bytes: u64, most: u64) -> Option<Vec<u8>> {
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
) -> Option<impl Iterator<Item = Bytes>> {
    if entry_bytes != agreed || entries > MAX_HEADERS {
        return None;
    }
    let bytes = part(file, offset, entries * entry_bytes, MAX_HEADERS * agreed)?;
    let entries: Vec<Bytes> = bytes.chunks(agreed as usize).map(|entry| Bytes(entry.to_vec())).collect();
    Some(entries.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::eh_frame::{Section, rules};
    use crate::unwind::pages::Pages;
    use proptest::prelude::*;
    use std::fs;

    fn libc() -> Vec<u8> {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains("libc.so") || line.contains("libc-")).unwrap();
        fs::read(&line[line.find('/').unwrap()..]).unwrap()
    }

    fn section(elf: &Elf) -> Section<'_> {
        let (text, got) = (elf.text_address, elf.got_address);
        Section { bytes: &elf.eh_frame, address: elf.eh_frame_address, text, got }
    }

    #[test]
    fn a_real_library_has_rules_for_its_code() {
        let elf = Elf::read(libc().as_slice()).unwrap();
        let rules = rules(section(&elf));
        assert!(rules.len() > 10_000, "{}", rules.len());
        assert!(rules.is_sorted_by_key(|(address, _)| *address));
        let code = elf.code[0];
        let inside = |address: u64| (code.address..code.address + code.bytes).contains(&address);
        assert!(rules.iter().filter(|(address, _)| inside(*address)).count() * 100 > rules.len() * 95);
        let pages = Pages::of(&rules).unwrap();
        for &(address, rule) in rules.iter().step_by(7) {
            assert_eq!(pages.rule(address), Some(rule), "{address:x}");
        }
    }

    #[test]
    fn a_mapping_is_placed_by_the_segment_that_it_shows() {
        let code = [
            Segment { offset: 0x1000, bytes: 0x500, address: 0x1000 },
            Segment { offset: 0x2fc0, bytes: 0x100, address: 0x403fc0 },
        ];
        assert_eq!(Elf::bias(&code, 0x7000, 0x1000), Some(0x6000));
        assert_eq!(Elf::bias(&code, 0x403000, 0x2000), Some(0));
        assert_eq!(Elf::bias(&code, 0x7000, 0x9000), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Real files with broken bytes where the headers and the section are.
        #[test]
        fn broken_files_are_survived(
            breaks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
            is_header in any::<bool>(),
        ) {
            let mut file = fs::read("/proc/self/exe").unwrap();
            let whole = Elf::read(file.as_slice()).unwrap();
            let at = file.windows(64).position(|part| whole.eh_frame.starts_with(part)).unwrap();
            let sections = Bytes(file[..64].to_vec()).u64(40) as usize;
            for (index, byte) in breaks {
                let place = match is_header {
                    true if index.index(2) == 0 => index.index(1024),
                    true => sections + index.index(file.len() - sections),
                    false => at + index.index(8192),
                };
                file[place] = byte;
            }
            // Only the start of the section, which has the broken bytes: each case reads it whole.
            if let Some(mut elf) = Elf::read(file.as_slice()) {
                elf.eh_frame.truncate(64 << 10);
                let _ = Pages::of(&rules(section(&elf)));
            }
        }

        #[test]
        fn any_section_is_survived(noise in prop::collection::vec(any::<u8>(), 0..600), address in any::<u64>()) {
            let section = Section { bytes: &noise, address, text: address, got: address };
            let _ = Pages::of(&rules(section));
            let _ = Elf::read(noise.as_slice());
        }
    }
}
