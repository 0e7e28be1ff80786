use super::find::Version;
use super::{Function, Table};
use proptest::prelude::*;

const BASE: u64 = 0x40_0000;
const TEXT: u64 = BASE + 0x1000;
const VERSIONS: [Version; 4] = [Version::Go1_2, Version::Go1_16, Version::Go1_18, Version::Go1_20];

const NAMES: &[u8] = b"\0main.outer\0runtime.goexit\0main.(*k[go.shape.int]).inner\0";
const OUTER: u32 = 1;
const GOEXIT: u32 = 12;
const INNER: u32 = 27;

/// A file without sections: 64 bytes of `main.outer`, with a call inlined into bytes 16 to 31, and 32 of `runtime.goexit`.
fn program(version: Version) -> Vec<u8> {
    let mut file = vec![0; 0xa00];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let mut words = |at: usize, words: &[u64]| {
        for (number, word) in words.iter().enumerate() {
            put(at + number * 8, &word.to_le_bytes());
        }
    };
    let is_old = version < Version::Go1_18;
    let size = 0xa00;
    words(64, &[7 << 32 | 1, 0, BASE, BASE, size, size, 4096]);
    words(32, &[64]);
    words(54 - 6, &[56 << 48, 1]);
    let entries: usize = if version == Version::Go1_2 { 0x110 } else { 0x400 };
    match version {
        Version::Go1_2 => words(0x108, &[2]),
        Version::Go1_16 => words(0x108, &[2, 0, 0x100, 0, 0, 0x200, 0x300]),
        _ => words(0x108, &[2, 0, 0, 0x100, 0, 0, 0x200, 0x300]),
    }
    // Names and tables are counted from their own parts, and in the oldest version from the header.
    let from = |part: usize| if version == Version::Go1_2 { 0x100 } else { part };
    let records = [0x480, 0x500];
    let starts = [TEXT, TEXT + 64, TEXT + 96];
    if is_old {
        for (number, start) in starts.iter().enumerate() {
            let record = records.get(number).map_or(0, |record| record - from(0x400));
            words(entries + number * 16, &[*start, record as u64]);
        }
    } else {
        // What the module says: the table, its names, the first and the last address, the code, the inlined calls.
        words(0x700, &[BASE + 0x100, BASE + 0x200]);
        words(0x700 + 20 * 8, &[starts[0], starts[2], TEXT, starts[2]]);
        words(0x700 + if version == Version::Go1_18 { 38 } else { 40 } * 8, &[BASE + 0x600]);
        for (number, start) in starts.iter().enumerate() {
            let record = records.get(number).map_or(0, |record| record - 0x400);
            words(entries + number * 8, &[(record as u64) << 32 | (start - TEXT)]);
        }
    }
    let magic: u32 = match version {
        Version::Go1_2 => 0xffff_fffb,
        Version::Go1_16 => 0xffff_fffa,
        Version::Go1_18 => 0xffff_fff0,
        Version::Go1_20 => 0xffff_fff1,
    };
    put(0, b"\x7fELF\x02\x01");
    put(18, &crate::object::MACHINE.to_le_bytes());
    put(0x100, &magic.to_le_bytes());
    put(0x104, &[0, 0, 1, 8]);
    put(0x200, NAMES);
    // Distances 0, 16 and 0; then where the inlined call is.
    put(0x301, &[2, 4, 32, 0x38, 31, 4, 0]);
    put(0x311, &[0, 16, 2, 16, 1, 32, 0]);
    let call: &[u32] = if version == Version::Go1_20 { &[0, INNER, 8, 0] } else { &[0, 0, 0, INNER, 8] };
    for (number, part) in call.iter().enumerate() {
        put(0x600 + number * 4, &part.to_le_bytes());
    }
    let wide = if is_old { 4 } else { 0 };
    let tail = match version {
        Version::Go1_2 | Version::Go1_18 => 36,
        _ => 40,
    };
    for (record, (name, flags)) in records.into_iter().zip([(OUTER, 0), (GOEXIT, u8::from(!is_old))]) {
        let mut number = |at: usize, number: usize| put(record + at, &(number as u32).to_le_bytes());
        number(wide + 4, name as usize + 0x200 - from(0x200));
        number(wide + 16, 0x301 - from(0x300));
        number(wide + 28, 3);
        number(tail + 4 + 8, 0x311 - from(0x300));
        number(tail + 4 + 12 + 8, u32::MAX as usize);
        put(record + tail, &[0, flags, 0, 4]);
    }
    file
}

type Distances = Vec<(u64, i32)>;
type Names = Vec<Option<Vec<String>>>;

fn everything(file: &[u8]) -> Option<(Vec<Function>, Distances, Names)> {
    let mut table = Table::read(file)?;
    let functions: Vec<Function> =
        (0..table.functions().min(100)).filter_map(|number| table.function(number)).collect();
    let mut distances = Vec::new();
    for function in &functions {
        table.distances(function, |address, distance| {
            distances.push((address, distance));
            distances.len() < 1000
        });
    }
    let addresses = [0, TEXT, TEXT + 20, TEXT + 70, TEXT + 96];
    Some((functions, distances, addresses.map(|address| table.names(address, true)).into()))
}

#[test]
fn every_layout_is_read() {
    for version in VERSIONS {
        let (functions, distances, names) = everything(&program(version)).unwrap();
        assert_eq!(functions[0].range, TEXT..TEXT + 64, "{version:?}");
        assert_eq!(functions.iter().map(|function| function.is_top).collect::<Vec<_>>(), [false, true]);
        assert_eq!(distances[..3], [(TEXT, 0), (TEXT + 4, 16), (TEXT + 60, 0)], "{version:?}");
        let inlined: &[&str] =
            if version < Version::Go1_18 { &["main.outer"] } else { &["main.outer", "main.(*k[...]).inner"] };
        let names: Vec<Vec<&str>> =
            names.iter().map(|names| names.iter().flatten().map(String::as_str).collect()).collect();
        assert_eq!(names, [&[][..], &["main.outer"], inlined, &["runtime.goexit"], &[]], "{version:?}");
    }
}

#[test]
fn another_file_is_no_go_program() {
    assert!(Table::read(std::fs::File::open("/proc/self/exe").unwrap()).is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_taken(
        version in prop::sample::select(&VERSIONS[..]),
        breaks in prop::collection::vec((0usize..0xa00, any::<u8>()), 1..12),
        words in prop::collection::vec((0usize..0x140, prop::sample::select(&[0, 1, u64::MAX, 1 << 56, BASE][..])), 0..2),
    ) {
        let mut file = program(version);
        for (at, byte) in breaks {
            file[at] = byte;
        }
        for (at, word) in words {
            file[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        let _ = everything(&file);
    }

    #[test]
    fn any_value_table_is_taken(noise in prop::collection::vec(any::<u8>(), 0xc0)) {
        let mut file = program(Version::Go1_20);
        file[0x301..0x301 + noise.len()].copy_from_slice(&noise);
        let _ = everything(&file);
    }
}
