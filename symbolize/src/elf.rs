//! How many symbols does a file have? All of them are sorted for the first look-up, so a file that has, or claims, more
//! than any program needs is not read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most bytes of symbol tables: 2.8 million symbols, several times those of a browser.
pub const SYMBOL_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of the names of sections.
const NAME_BYTES_MAX: u64 = 1 << 20;
/// Sections that the reader takes for symbol tables, by name.
const TABLES: [&[u8]; 2] = [b".symtab\0", b".dynsym\0"];

/// Where things stand in the header and in a section's, in bytes from the begin.
struct Class {
    word_bytes: usize,
    sections: usize,
    counts: usize,
    section_bytes: usize,
    offset: usize,
    size: usize,
}

const CLASS_32: Class =
    Class { word_bytes: 4, sections: 32, counts: 46, section_bytes: 40, offset: 16, size: 20 };
const CLASS_64: Class =
    Class { word_bytes: 8, sections: 40, counts: 58, section_bytes: 64, offset: 24, size: 32 };

/// Size of a file's symbol tables; an error for what is no object file of this machine, or a strange one.
pub fn symbol_bytes(file: &File) -> io::Result<u64> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    // Little-endian, as the machines are on which this runs.
    let class = match &header[..6] {
        b"\x7fELF\x01\x01" => CLASS_32,
        b"\x7fELF\x02\x01" => CLASS_64,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let sections = number(&header[class.sections..], class.word_bytes);
    let [section_bytes, count, names] = [0, 2, 4].map(|at| number(&header[class.counts + at..], 2) as usize);
    if sections == 0 {
        return Ok(0);
    }
    // A count of 0 stands for one that has no room here, which no program has.
    if section_bytes != class.section_bytes || names >= count {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut table = vec![0; section_bytes * count];
    file.read_exact_at(&mut table, sections)?;
    let part = |section: &[u8]| [class.offset, class.size].map(|at| number(&section[at..], class.word_bytes));
    let [names_at, name_bytes] = part(&table[names * section_bytes..]);
    if name_bytes > NAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut names = vec![0; name_bytes as usize];
    file.read_exact_at(&mut names, names_at)?;
    let is_table = |section: &&[u8]| {
        let name = names.get(number(section, 4) as usize..).unwrap_or_default();
        TABLES.iter().any(|table| name.starts_with(table))
    };
    let tables = table.chunks_exact(section_bytes).filter(is_table);
    Ok(tables.fold(0, |sum, section| part(section)[1].saturating_add(sum)))
}

fn number(bytes: &[u8], width: usize) -> u64 {
    bytes[..width].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A file with one symbol table of this size, which is not in it.
    fn claiming(size: u64) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64 + 2 * 64, 0);
        bytes.extend_from_slice(b"\0.symtab\0");
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(40, &64u64.to_le_bytes());
        put(58, &[64, 0, 2, 0, 1, 0]);
        // Of any type: the reader goes by the name.
        put(64, &1u32.to_le_bytes());
        put(64 + 32, &size.to_le_bytes());
        put(128 + 24, &192u64.to_le_bytes());
        put(128 + 32, &9u64.to_le_bytes());
        bytes
    }

    #[test]
    fn what_a_file_claims_counts() {
        for size in [0, 24, u64::MAX] {
            assert_eq!(symbol_bytes(&file(&claiming(size))).unwrap(), size);
        }
        let own = symbol_bytes(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!((1024..SYMBOL_BYTES_MAX).contains(&own), "{own}");
        for strange in [&b"#!/bin/sh"[..], &[0; 64], &claiming(24)[..150]] {
            assert!(symbol_bytes(&file(strange)).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(at in 0usize..190, with in any::<[u8; 8]>()) {
            let mut bytes = claiming(24);
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&with[..end - at]);
            let _ = symbol_bytes(&file(&bytes));
        }
    }
}
