//! Which parts of a program's file does unwinding need? Its code segments and `.eh_frame`, read into memory.

use kpulse_symbolize::object::{Bytes, Header, header, part, sections, segments};
pub use kpulse_symbolize::object::{ReadAt, Segment};

/// A row comes from 5 to 8 bytes, so that a larger section has more rows than the kernel's table.
const MAX_SECTION_BYTES: u64 = 5 << 20;

const LOAD: u32 = 1;
const EXECUTABLE: u32 = 1;
const NO_BITS: u32 = 8;
const X86_64: u16 = 62;

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
        let header = header(file, X86_64)?;
        let mut elf = Self { code: code(file, &header)?, ..Self::default() };
        // A file without sections, or with broken ones, still has segments.
        for section in sections(file, &header).unwrap_or_default() {
            let Segment { offset, bytes, address } = section.segment;
            match section.name.as_slice() {
                b".text" => elf.text_address = address,
                b".got" => elf.got_address = address,
                b".eh_frame" if bytes > MAX_SECTION_BYTES => elf.is_too_large = true,
                b".eh_frame" if section.kind != NO_BITS => {
                    elf.eh_frame = part(file, offset, bytes, MAX_SECTION_BYTES).unwrap_or_default();
                    elf.eh_frame_address = address;
                }
                _ => {}
            }
        }
        Some(elf)
    }

    /// Only where its code is.
    pub fn code<R: ReadAt + ?Sized>(file: &R) -> Option<Vec<Segment>> {
        code(file, &header(file, X86_64)?)
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

fn code<R: ReadAt + ?Sized>(file: &R, header: &Bytes) -> Option<Vec<Segment>> {
    let is_code = |part: &Header| part.kind == LOAD && part.flags & EXECUTABLE != 0;
    Some(segments(file, header)?.into_iter().filter(is_code).map(|part| part.segment).collect())
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
            let sections = u64::from_le_bytes(file[40..48].try_into().unwrap()) as usize;
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
