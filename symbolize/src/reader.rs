//! How long may the symbol reader remember? It never forgets a file by itself, so it is replaced when it holds too
//! much: names that were found stay with their processes, only what is new has to be read again.

use blazesym::Pid;
use blazesym::symbolize::cache::{self, Cache};
use blazesym::symbolize::evict::{self, Evict};
use blazesym::symbolize::{Builder, Symbolizer};
use std::fs;
use std::ops::Deref;
use std::time::{Duration, Instant};

/// Processes whose paths it may have seen.
const MAX_PROCESSES: usize = 1024;
/// Open files of this process; the usual limit is 1024.
const MAX_FILES: usize = 400;
/// Memory that came since it began: tables of debug information, and the parts of files that were looked at.
const MAX_BYTES: u64 = 16 << 20;
/// Age at which it goes in any case.
const MAX_AGE: Duration = Duration::from_secs(600);
/// A reader that is too large at once, for one huge program, must not be made again all the time.
const MIN_AGE: Duration = Duration::from_secs(10);

/// blazesym's reader with its age and its size.
pub struct Reader {
    symbolizer: Symbolizer,
    since: Instant,
    processes: usize,
    resident: u64,
}

impl Reader {
    /// Reads nothing yet.
    pub fn new(now: Instant) -> Self {
        // Names are demangled here, into a bounded buffer.
        let symbolizer = Builder::default().enable_demangling(false).build();
        Self { symbolizer, since: now, processes: 0, resident: resident_bytes() }
    }

    /// Keeps the memory map of a process, so that a batch in several parts reads it once.
    pub fn remember(&mut self, pid: Pid) -> Result<(), blazesym::Error> {
        self.processes += 1;
        let maps = cache::Process { cache_perf_map: false, ..cache::Process::new(pid) };
        self.symbolizer.cache(&Cache::Process(maps))
    }

    /// Forgets it: the next batch sees what was mapped since.
    pub fn forget(&mut self, pid: Pid) {
        if let Err(error) = self.symbolizer.evict(&Evict::Process(evict::Process::new(pid))) {
            tracing::debug!(%error, "a memory map stays");
        }
    }

    /// Begins anew when it holds too much.
    pub fn refresh(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if self.processes == 0 || age < MIN_AGE {
            return;
        }
        let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let bytes = resident_bytes().saturating_sub(self.resident);
        if age > MAX_AGE || self.processes > MAX_PROCESSES || files > MAX_FILES || bytes > MAX_BYTES {
            tracing::debug!(files, bytes, processes = self.processes, "the symbol reader begins anew");
            // The old one goes first, so that its memory does not count for the new one.
            self.symbolizer = Builder::default().build();
            kpulse_common::memory::trim();
            *self = Self::new(now);
        }
    }
}

impl Deref for Reader {
    type Target = Symbolizer;

    fn deref(&self) -> &Symbolizer {
        &self.symbolizer
    }
}

/// Resident memory of this process; 0 where it cannot be read, which only turns this bound off.
fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages: Option<u64> = pages.and_then(|text| text.split(' ').nth(1)?.parse().ok());
    // SAFETY: `sysconf` has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * u64::try_from(page).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_lives_until_it_is_old_and_was_used() {
        let start = Instant::now();
        let mut reader = Reader::new(start);
        reader.refresh(start + 2 * MAX_AGE);
        assert_eq!(reader.since, start, "nothing was read");
        reader.remember(Pid::from(std::process::id())).unwrap();
        reader.forget(Pid::from(std::process::id()));
        reader.refresh(start + MIN_AGE / 2);
        assert_eq!(reader.since, start, "too young");
        reader.refresh(start + 2 * MAX_AGE);
        assert_eq!((reader.since, reader.processes), (start + 2 * MAX_AGE, 0));
        assert!(resident_bytes() > 0);
    }
}
