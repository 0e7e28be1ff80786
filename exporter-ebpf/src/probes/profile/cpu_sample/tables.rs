//! What the walk of user stacks reads: which process has which code where, and how to get from there to the caller.

use super::{abi, loaded, wait_for_every_cpu};
use crate::error::ProbeError;
use crate::loader::ProbeSet;
use crate::maps::{Maps, Table};

pub use abi::{hotspot as Hotspot, hotspot_heap as Heap};
pub use abi::{unwind_mapping as Mapping, unwind_page as Page, unwind_process as Process, unwind_row as Row};

/// How a row gives the CFA.
#[allow(missing_docs, reason = "the header says it")]
pub mod cfa {
    use super::abi;
    pub const NONE: u8 = abi::CFA_NONE as u8;
    pub const ROOT: u8 = abi::CFA_ROOT as u8;
    pub const UNEXPRESSED: u8 = abi::CFA_UNEXPRESSED as u8;
    pub const RSP: u8 = abi::CFA_RSP as u8;
    pub const RBP: u8 = abi::CFA_RBP as u8;
    pub const PLT: u8 = abi::CFA_PLT as u8;
    pub const SIGNAL: u8 = abi::CFA_SIGNAL as u8;
    pub const AT_RSP: u8 = abi::CFA_AT_RSP as u8;
    pub const AT_RBP: u8 = abi::CFA_AT_RBP as u8;
    pub const RAX: u8 = abi::CFA_RAX as u8;
    pub const R10: u8 = abi::CFA_R10 as u8;
    pub const R11: u8 = abi::CFA_R11 as u8;
    pub const OTHER_STACK: u8 = abi::CFA_OTHER_STACK as u8;
}

/// Where a row has the caller's rbp.
#[allow(missing_docs, reason = "the header says it")]
pub mod rbp {
    use super::abi;
    pub const KEPT: u8 = abi::RBP_KEPT as u8;
    pub const AT_CFA: u8 = abi::RBP_AT_CFA as u8;
    pub const AT_RBP: u8 = abi::RBP_AT_RBP as u8;
    pub const LOST: u8 = abi::RBP_LOST as u8;
}

/// What a frame is that is no mere address.
pub mod frame {
    use super::abi;
    /// Code that a JVM compiled, or made otherwise.
    pub const COMPILED: u64 = abi::FRAME_COMPILED as u64;
    /// An interpreted method of a JVM, by its address.
    pub const INTERPRETED: u64 = abi::FRAME_INTERPRETED;
    /// Of both, the address.
    pub const ADDRESS: u64 = (1 << abi::FRAME_ADDRESS_BITS) - 1;
    /// Of compiled code, the low bits of the compilation's number.
    pub fn compilation(frame: u64) -> u32 {
        (frame >> abi::FRAME_ADDRESS_BITS) as u32 & COMPILATION
    }
    /// Those bits.
    pub const COMPILATION: u32 = abi::FRAME_COMPILATION_MASK;
}

/// In `first_page` of a mapping: code that a JVM made.
pub const MAPPING_HOTSPOT: u32 = abi::MAPPING_HOTSPOT;

/// What the maps hold, and what one search finds.
pub mod limits {
    use super::abi;
    /// Rows of all files.
    pub const ROWS: u32 = abi::UNWIND_ROWS;
    /// Pages of all files.
    pub const PAGES: u32 = abi::UNWIND_PAGES;
    /// Mappings of all processes.
    pub const MAPPINGS: u32 = abi::UNWIND_MAPPINGS;
    /// Processes.
    pub const PROCESSES: u32 = abi::UNWIND_PROCESSES;
    /// JVMs.
    pub const HOTSPOTS: usize = abi::HOTSPOT_PROCESSES as usize;
    /// Heaps of code of one JVM.
    pub const HEAPS: usize = abi::HOTSPOT_HEAPS as usize;
    /// Rows of one page.
    pub const PAGE_ROWS: usize = (1 << abi::ROW_STEPS) - 1;
    /// Mappings of one process.
    pub const PROCESS_MAPPINGS: usize = (1 << abi::MAPPING_STEPS) - 1;
}

/// The maps that the walk reads, to be written while it runs: first what nothing refers to, then what refers to it.
pub struct UnwindTables {
    rows: Table<u32, Row>,
    pages: Table<u32, Page>,
    mappings: Table<u32, Mapping>,
    processes: Table<u32, Process>,
    hotspots: Table<u32, Hotspot>,
    wanted: Table<u32, u32>,
}

impl UnwindTables {
    /// Opens the maps of the loaded probe; `None` where its walk does not run. The set must live on.
    pub fn open(set: &ProbeSet) -> Result<Option<Self>, ProbeError> {
        let (loaded, attached) = loaded(set)?;
        if !loaded.status.missing.is_empty() || cfg!(not(target_arch = "x86_64")) {
            return Ok(None);
        }
        let maps = Maps(&attached.ebpf);
        Ok(Some(Self {
            rows: maps.table("rows")?,
            pages: maps.table("pages")?,
            mappings: maps.table("mappings")?,
            processes: maps.table("processes")?,
            hotspots: maps.table("hotspots")?,
            wanted: maps.table("wanted")?,
        }))
    }

    /// Processes that were sampled since the last call and whose tables are missing or old.
    pub fn wanted(&self) -> Result<Vec<u32>, ProbeError> {
        Ok(self.wanted.drain()?.into_iter().map(|(pid, _)| pid).collect())
    }

    /// Writes a file's rows and the pages that refer to them.
    pub fn set_file(
        &self,
        first_row: u32,
        rows: &[Row],
        first_page: u32,
        pages: &[Page],
    ) -> Result<(), ProbeError> {
        self.rows.set_all(first_row, rows)?;
        self.pages.set_all(first_page, pages)
    }

    /// Writes a process and its mappings, which begin at `process.first`.
    pub fn set_process(&self, pid: u32, process: &Process, mappings: &[Mapping]) -> Result<(), ProbeError> {
        self.mappings.set_all(process.first, mappings)?;
        self.processes.set(&pid, process)
    }

    /// Describes the JVM of a process, before its mappings lead there.
    pub fn set_hotspot(&self, pid: u32, hotspot: &Hotspot) -> Result<(), ProbeError> {
        self.hotspots.set(&pid, hotspot)
    }

    /// Forgets a process.
    pub fn remove_process(&self, pid: u32) -> Result<(), ProbeError> {
        self.processes.remove(&pid)?;
        self.hotspots.remove(&pid)
    }

    /// All processes.
    pub fn processes(&self) -> Result<Vec<(u32, Process)>, ProbeError> {
        self.processes.entries()
    }

    /// Returns once no CPU can still be reading what was removed before.
    pub fn wait(&self) -> Result<(), ProbeError> {
        wait_for_every_cpu().map_err(|source| ProbeError::Map { map: "processes".into(), source })
    }
}
