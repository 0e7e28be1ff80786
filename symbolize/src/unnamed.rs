//! Which function of a file is it that has no name? The address at which it begins there, by which debug information that
//! lies elsewhere names it later.
//!
//! `.eh_frame_hdr` is a table of functions in order of address, made for the unwinder and in stripped files too. The
//! instruction itself is not told: a frame for each would make as many stacks as instructions.

use crate::object::{Bytes, Header, MACHINE, ReadAt, Segment, build_id, header, part, segments};
use std::fmt::Write;

const LOAD: u32 = 1;
const SEARCH_TABLE: u32 = 0x6474_e550;
const EXECUTABLE: u32 = 1;
const PAGE: u64 = 4095;

/// What all linkers write: a table of 4-byte numbers, relative to the header, with a 4-byte count of entries.
const ENCODINGS: [u8; 2] = [0x03, 0x3b];
const HEADER_BYTES: u64 = 12;
const MAX_ENTRIES: u64 = 1 << 24;

/// A part of a file with code, whose functions have no names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Part {
    /// The file, as its process sees it.
    pub path: String,
    /// What tells it from another build.
    pub build_id: Option<String>,
    /// Where the code is in the file, and by the file's own addresses.
    pub code: Segment,
}

impl Part {
    /// The address of the function that a frame of this part stands for.
    pub fn address(&self, frame: &str) -> Option<u64> {
        let file = self.path.rsplit('/').next().unwrap_or_default();
        let (name, address) = function(frame)?;
        let is_inside = address.checked_sub(self.code.address).is_some_and(|at| at < self.code.bytes);
        (name == file && is_inside).then_some(address)
    }
}

/// The frame that stands for a function of a file.
pub fn frame(file: &str, address: u64) -> String {
    let mut frame = String::with_capacity(file.len() + 16);
    // Writing to a string does not fail.
    let _ = write!(frame, "[{file}+{address:#x}]");
    frame
}

/// The file's name and the function's address of such a frame; `None` for any other.
pub fn function(frame: &str) -> Option<(&str, u64)> {
    let (file, address) = frame.strip_prefix('[')?.strip_suffix(']')?.rsplit_once("+0x")?;
    Some((file, u64::from_str_radix(address, 16).ok()?))
}

/// A file that is asked for functions.
pub struct Functions<R> {
    file: R,
    loaded: Vec<Header>,
    table: Segment,
    entries: u64,
    build_id: Option<String>,
}

impl<R: ReadAt> Functions<R> {
    /// Reads the headers; `None` for a file without the table.
    pub fn read(file: R) -> Option<Self> {
        let all = segments(&file, &header(&file, MACHINE)?)?;
        let table = all.iter().find(|part| part.kind == SEARCH_TABLE)?.segment;
        let head = Bytes(part(&file, table.offset, HEADER_BYTES, HEADER_BYTES)?);
        if head.u8(0) != 1 || [head.u8(2), head.u8(3)] != ENCODINGS {
            return None;
        }
        let entries = u64::from(head.u32(8)).min(MAX_ENTRIES);
        let build_id = build_id(&file);
        let loaded = all.into_iter().filter(|part| part.kind == LOAD).collect();
        Some(Self { file, loaded, table, entries, build_id })
    }

    /// The function at a place in the file: the code that it lies in, and where it begins.
    pub fn find(&self, offset: u64) -> Option<(Segment, u64)> {
        let code = self.loaded.iter().filter(|part| part.flags & EXECUTABLE != 0).map(|part| part.segment);
        let code = code
            .into_iter()
            .find(|code| code.offset & !PAGE <= offset && offset < code.offset.saturating_add(code.bytes))?;
        let address = code.address.wrapping_add(offset).wrapping_sub(code.offset);
        let (mut first, mut end) = (0, self.entries);
        while first < end {
            let middle = first + (end - first) / 2;
            if self.entry(middle)?.0 <= address {
                first = middle + 1;
            } else {
                end = middle;
            }
        }
        let (start, description) = self.entry(first.checked_sub(1)?)?;
        let bytes = self.length(start, description)?;
        (address - start < bytes).then_some((code, start))
    }

    /// The address of a function, and that of its description.
    fn entry(&self, number: u64) -> Option<(u64, u64)> {
        let at = self.table.offset.checked_add(HEADER_BYTES + number * 8)?;
        let entry = Bytes(part(&self.file, at, 8, 8)?);
        let address = |at: usize| self.table.address.wrapping_add_signed(signed(&entry, at));
        Some((address(0), address(4)))
    }

    /// How long the function is, if its description is of the usual form, and of this function.
    fn length(&self, start: u64, description: u64) -> Option<u64> {
        let holds = |part: &&Header| {
            description.checked_sub(part.segment.address).is_some_and(|at| at < part.segment.bytes)
        };
        let segment = self.loaded.iter().find(holds)?.segment;
        let at = segment.offset.checked_add(description - segment.address)?;
        let bytes = Bytes(part(&self.file, at, 16, 16)?);
        let begin = description.wrapping_add(8).wrapping_add_signed(signed(&bytes, 8));
        (begin == start).then(|| u64::from(bytes.u32(12)))
    }

    /// The part of the file that this code is.
    pub fn part(&self, path: &str, code: Segment) -> Part {
        Part { path: path.to_owned(), build_id: self.build_id.clone(), code }
    }
}

fn signed(bytes: &Bytes, at: usize) -> i64 {
    i64::from(bytes.u32(at).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, File};

    fn own() -> Functions<File> {
        Functions::read(File::open("/proc/self/exe").unwrap()).unwrap()
    }

    /// Where this program's own code lies in its file.
    fn offset(address: usize) -> u64 {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let offset = |line: &str| {
            let mut fields = line.split(' ');
            let (start, end) = fields.next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            let range = number(start)?..number(end)?;
            range
                .contains(&(address as u64))
                .then_some(address as u64 - range.start + number(fields.nth(1)?)?)
        };
        maps.lines().find_map(offset).unwrap()
    }

    #[test]
    fn a_function_begins_where_the_linker_put_it() {
        let functions = own();
        let begin = offset(own as fn() -> Functions<File> as usize);
        let (code, start) = functions.find(begin).unwrap();
        assert_eq!(start - code.address, begin - code.offset);
        assert_eq!(functions.find(begin + 5), Some((code, start)), "and all of it is the same function");
        assert!(functions.find(begin - 1).is_none_or(|(_, before)| before < start));
        assert_eq!(functions.find(u64::MAX / 2), None);
        assert!(functions.part("/bin/own", code).build_id.is_some());
    }

    #[test]
    fn a_frame_tells_its_function_to_the_file_that_it_is_of() {
        let code = Segment { offset: 0x1000, bytes: 0x200, address: 0x2000 };
        let part = Part { path: "/usr/lib/my+0x1 lib.so".into(), build_id: None, code };
        let frame = frame("my+0x1 lib.so", 0x2010);
        assert_eq!((frame.as_str(), part.address(&frame)), ("[my+0x1 lib.so+0x2010]", Some(0x2010)));
        for other in
            ["[my+0x1 lib.so+0x2200]", "[my+0x1 lib.so+0x10]", "[lib.so+0x2010]", "[libc.so]", "main"]
        {
            assert_eq!(part.address(other), None, "{other}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A real file with broken bytes in its headers and its table.
        #[test]
        fn broken_files_are_survived(
            breaks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
            is_header in any::<bool>(),
            offset in any::<u64>(),
        ) {
            static FILE: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| fs::read("/proc/self/exe").unwrap());
            let whole = own();
            let mut file = FILE.clone();
            let (start, length) = if is_header { (0, 1024) } else { (whole.table.offset as usize, 64) };
            for (index, byte) in breaks {
                file[start + index.index(length)] = byte;
            }
            if let Some(functions) = Functions::read(file.as_slice()) {
                let _ = functions.find(offset);
                let _ = functions.find(offset % file.len() as u64);
            }
        }
    }
}
