//! How does a HotSpot JVM lay out its code? From the tables that libjvm exports, read from the process's memory: nothing
//! runs in the JVM, and no flag is needed.
//!
//! All of it is memory of a process that may be hostile: every read can fail, every count has a bound.

mod layout;
pub mod memory;
mod structs;

use super::code::{self, Code};
use super::elf::Elf;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{Hotspot, MAPPING_HOTSPOT, Mapping};
use kpulse_symbolize::object;
use kpulse_symbolize::process::Processes;
#[cfg(test)]
pub use layout::Place;
pub use layout::{Layout, Metadata};
use std::collections::HashMap;
use std::fs::File;
pub use structs::Missing;
use structs::{PREFIX, Structs};

/// A JVM of a process; its memory is that of the program that ran when it was found, and of no other.
pub struct Jvm {
    pub memory: File,
    pub layout: Layout,
}

/// What a process has.
pub enum Found {
    /// No JVM.
    Nothing,
    /// One that this cannot read, or not yet.
    Missing(Missing),
    Ready(Box<Jvm>),
}

/// Looks for a JVM among the code of a process.
pub fn find(source: &Processes, pid: u32, codes: &[Code]) -> Found {
    let ends_with =
        |name: &str| codes.iter().find(|code| code.path.trim_end_matches(" (deleted)").ends_with(name));
    let Some(library) = ends_with("/libjvm.so") else {
        let is_other = codes.iter().any(|code| code.path.contains("/libj9vm"));
        return if is_other { Found::Missing(Missing::Unknown) } else { Found::Nothing };
    };
    let Some((memory, exports)) = exports(source, pid, library) else {
        return Found::Missing(Missing::Unknown);
    };
    let layout = Structs::read(&memory, &exports).and_then(|structs| Layout::read(&memory, &structs));
    match layout {
        Ok(layout) => Found::Ready(Box::new(Jvm { memory, layout })),
        Err(missing) => Found::Missing(missing),
    }
}

/// The process's memory, and where the library's symbols are in it.
fn exports(source: &Processes, pid: u32, library: &Code) -> Option<(File, HashMap<String, u64>)> {
    let memory = File::open(source.folder(pid).join("mem")).ok()?;
    let (id, path) = code::identify(source, pid, source.files(pid), library)?;
    let file = code::open(&id, &path, library).ok()?;
    let bias = Elf::bias(&Elf::code(&file)?, library.start, library.offset)?;
    let mut exports = object::exports(&file, PREFIX)?;
    exports.values_mut().for_each(|address| *address = address.wrapping_add(bias));
    Some((memory, exports))
}

/// The heaps as mappings that the walk finds, in order of address.
pub fn mappings(hotspot: &Hotspot) -> impl Iterator<Item = Mapping> + '_ {
    let used = hotspot.heaps.iter().filter(|heap| heap.low < heap.high);
    used.map(|heap| Mapping {
        start: heap.low,
        end: heap.high,
        bias: heap.low,
        first_page: MAPPING_HOTSPOT,
        page_count: 0,
    })
}
