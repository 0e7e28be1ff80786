//! Names of kernel addresses, from kallsyms, modules included.
//!
//! A table of our own, since it holds functions only, and is read when the first stack arrives.

use kpulse_common::paths::Paths;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What stands for an address without a name.
pub const UNKNOWN: &str = "[unknown]";
/// An address that no function holds may lie in a module that came later: the table is read anew, this often at most.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);
/// No function is larger: an address further behind the last symbol lies in a module that is not in the table.
const FUNCTION_BYTES_MAX: u64 = 1 << 20;
/// Most addresses whose names are remembered.
const FOUND_MAX: usize = 4096;

/// Turns kernel addresses into function names.
pub struct KernelSymbols {
    kallsyms: PathBuf,
    functions: Functions,
    /// The functions between the kernel's marks of the scheduler.
    scheduler: Range<u64>,
    loaded: Option<Instant>,
}

impl KernelSymbols {
    /// For the kernel whose `/proc` this is; reads nothing yet.
    pub fn new(paths: &Paths) -> Self {
        Self {
            kallsyms: paths.procfs.join("kallsyms"),
            functions: Functions::default(),
            scheduler: 0..0,
            loaded: None,
        }
    }

    /// One name for each address, without offsets, which would split functions; [`UNKNOWN`] where there is none.
    pub fn names(&mut self, addresses: &[u64]) -> Vec<String> {
        self.load_for(addresses);
        addresses.iter().map(|&address| self.functions.name(address).unwrap_or(UNKNOWN).to_owned()).collect()
    }

    /// The name of one, without an offset.
    pub fn name(&mut self, address: u64) -> Option<&str> {
        self.load_for(&[address]);
        self.functions.name(address)
    }

    /// Reads the table anew when it is asked for next: what is at an address may have changed.
    pub fn forget(&mut self) {
        (self.functions, self.scheduler, self.loaded) = (Functions::default(), 0..0, None);
    }

    /// All of a stack are named by one table.
    fn load_for(&mut self, addresses: &[u64]) {
        if addresses.iter().all(|&address| self.functions.name(address).is_some()) {
            return;
        }
        if self.loaded.is_none_or(|at| at.elapsed() >= RELOAD_INTERVAL) {
            self.loaded = Some(Instant::now());
            match File::open(&self.kallsyms).and_then(|file| Functions::read(BufReader::new(file))) {
                Ok(functions) => {
                    let mark = |name| functions.ranges(name).next().map_or(0, |range| range.start);
                    self.scheduler = mark("__sched_text_start")..mark("__sched_text_end");
                    self.functions = functions;
                }
                Err(error) => {
                    tracing::warn!(path = %self.kallsyms.display(), %error, "kernel addresses have no names");
                }
            }
        }
    }

    /// Whether the address is of a function that only puts tasks to sleep: the kernel has them in a section of its own.
    /// Of the table that the names came from.
    pub fn is_scheduler(&self, address: u64) -> bool {
        self.scheduler.contains(&address)
    }
}

/// Address ranges of kernel functions, in the order of `wanted`; those that are not there are left out.
pub fn function_ranges(paths: &Paths, wanted: &[&str]) -> io::Result<Vec<Range<u64>>> {
    Ok(ranges_by_function(paths, wanted)?.into_iter().flatten().collect())
}

/// The same with a list for each of `wanted`: several functions may have one name.
pub fn ranges_by_function(paths: &Paths, wanted: &[&str]) -> io::Result<Vec<Vec<Range<u64>>>> {
    let functions = Functions::read(BufReader::new(File::open(paths.procfs.join("kallsyms"))?))?;
    Ok(wanted.iter().map(|name| functions.ranges(name).collect()).collect())
}

/// Functions by address. kallsyms has no sizes: a function ends where the next one begins.
#[derive(Debug, Default)]
struct Functions {
    /// Start, and where the name begins in `names`; sorted by start.
    starts: Vec<(u64, u32)>,
    /// Names, each ended by a line feed.
    names: String,
    /// Where the names of addresses lie in `names` that were asked for before: stacks have few, and a search of the table
    /// misses the caches of the CPU.
    found: HashMap<u64, Range<usize>>,
}

impl Functions {
    fn read(mut lines: impl BufRead) -> io::Result<Self> {
        let mut functions = Self::default();
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            functions.add(&line);
            line.clear();
        }
        functions.starts.sort_unstable();
        functions.starts.shrink_to_fit();
        functions.names.shrink_to_fit();
        Ok(functions)
    }

    /// A line is `address type name [module]`; an address that is hidden from us reads as zero. There are more than a
    /// hundred thousand, so they are read byte by byte.
    fn add(&mut self, line: &[u8]) {
        let (address, rest) = hexadecimal(line);
        let [b' ', b't' | b'T' | b'w' | b'W', b' ', rest @ ..] = rest else { return };
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        let (Ok(name), Ok(offset)) = (str::from_utf8(&rest[..end]), u32::try_from(self.names.len())) else {
            return;
        };
        if address != 0 && !name.is_empty() {
            self.starts.push((address, offset));
            self.names.push_str(name);
            self.names.push('\n');
        }
    }

    fn name(&mut self, address: u64) -> Option<&str> {
        let place = match self.found.get(&address) {
            Some(place) => place.clone(),
            None => {
                let place = self.find(address)?;
                if self.found.len() >= FOUND_MAX {
                    self.found.clear();
                }
                self.found.insert(address, place.clone());
                place
            }
        };
        self.names.get(place)
    }

    /// Where the name of the function lies in `names`.
    fn find(&self, address: u64) -> Option<Range<usize>> {
        let index = self.starts.partition_point(|&(start, _)| start <= address).checked_sub(1)?;
        let (start, offset) = self.starts[index];
        if address - start > FUNCTION_BYTES_MAX {
            return None;
        }
        let begin = offset as usize;
        Some(begin..begin + self.names.get(begin..)?.find('\n')?)
    }

    fn ranges<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = Range<u64>> + 'a {
        // Compared in place: a search by address for each of some 100,000 functions takes seconds on a slow machine.
        let is_wanted = move |offset: u32| {
            let rest = self
                .names
                .as_bytes()
                .get(offset as usize..)
                .and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
            rest.is_some_and(|rest| rest.first() == Some(&b'\n'))
        };
        let named = self.starts.iter().enumerate().filter(move |(_, (_, offset))| is_wanted(*offset));
        named.filter_map(|(index, &(start, _))| {
            let next = self.starts[index..].iter().find(|(other, _)| *other > start);
            next.map(|&(end, _)| start..end)
        })
    }
}

/// The number that the text begins with, and what follows it; nothing follows one of more digits than an address has.
fn hexadecimal(text: &[u8]) -> (u64, &[u8]) {
    const DIGITS_MAX: usize = 16;
    let mut number = 0;
    for (index, byte) in text.iter().enumerate().take(DIGITS_MAX + 1) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return (number, &text[index..]),
        };
        number = number << 4 | u64::from(digit);
    }
    (0, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "0000000000001000 T first\n0000000000001080 T third\t[mod]\n0000000000001040 t second\n0000000000001050 d data\n";

    #[test]
    fn an_address_belongs_to_the_function_that_begins_before_it() {
        let mut functions = Functions::read(KALLSYMS.as_bytes()).unwrap();
        assert_eq!(functions.name(0x1000), Some("first"));
        assert_eq!(functions.name(0x107f), Some("second"));
        assert_eq!(functions.name(0x1080), Some("third"));
        assert_eq!(functions.name(0xfff), None);
        assert_eq!(functions.name(0x1080 + FUNCTION_BYTES_MAX + 1), None);
    }

    #[test]
    fn a_function_ends_where_the_next_one_begins() {
        let functions = Functions::read(KALLSYMS.as_bytes()).unwrap();
        assert_eq!(functions.ranges("second").next(), Some(0x1040..0x1080));
        assert_eq!(functions.ranges("absent").count(), 0);
    }

    #[test]
    fn a_line_that_is_broken_off_is_no_function() {
        for text in ["", "1000", "1000 ", "1000 T", "1000 T ", "1000 T \n", "T first\n", "10-0 T first\n"] {
            assert_eq!(Functions::read(text.as_bytes()).unwrap().starts, [], "{text:?}");
        }
        let mut functions = Functions::read("ffffffff81000000 T last".as_bytes()).unwrap();
        assert_eq!(functions.name(0xffff_ffff_8100_0010), Some("last"));
    }

    #[test]
    fn a_number_that_is_too_long_is_no_address() {
        assert_eq!(Functions::read("10000000000001000 T first\n".as_bytes()).unwrap().starts, []);
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let mut functions = Functions::read("0000000000000000 T first\n".as_bytes()).unwrap();
        assert_eq!(functions.name(0), None);
    }
}
