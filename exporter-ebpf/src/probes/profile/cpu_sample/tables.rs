//! What the walk of user stacks reads: which process has which code where, and how to get from there to the caller.

use super::{abi, loaded, wait_for_every_cpu};
use crate::error::ProbeError;
use crate::loader::ProbeSet;
use crate::maps::{Maps, Table};

pub use abi::{unwind_mapping as Mapping, unwind_page as Page, unwind_process as Process, unwind_row as Row};

/// How a row gives the CFA.
pub mod cfa {
    pub use super::abi::{
        CFA_AT_RBP as AT_RBP, CFA_AT_RSP as AT_RSP, CFA_NONE as NONE, CFA_PLT as PLT, CFA_R10 as R10,
        CFA_R11 as R11, CFA_RAX as RAX, CFA_RBP as RBP, CFA_ROOT as ROOT, CFA_RSP as RSP,
        CFA_SIGNAL as SIGNAL, CFA_UNEXPRESSED as UNEXPRESSED,
    };
}

/// Where a row has the caller's rbp.
pub mod rbp {
    pub use super::abi::{RBP_AT_CFA as AT_CFA, RBP_AT_RBP as AT_RBP, RBP_KEPT as KEPT, RBP_LOST as LOST};
}

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

    /// Forgets a process.
    pub fn remove_process(&self, pid: u32) -> Result<(), ProbeError> {
        self.processes.remove(&pid)
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
