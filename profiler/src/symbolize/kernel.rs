//! Which kernel function is at this address? `/proc/kallsyms`, which has modules and BPF programs too.

use kpulse_common::paths::Paths;
use kpulse_exporter_ebpf::symbols::KernelSymbols;
use kpulse_symbolize::{Nameless, Resolved, Unknown};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses whose names are kept; a busy kernel shows a few thousand.
const MAX_ADDRESSES: usize = 32_768;
/// How often a module may have come or gone without being noticed.
const MODULES_PERIOD: Duration = Duration::from_secs(30);

const NO_NAME: Nameless = Nameless { why: Unknown::Kernel, file: None };

/// Names of kernel addresses. They stay here: an address never leaves the process.
pub struct Kernel {
    symbols: KernelSymbols,
    names: HashMap<u64, Resolved>,
    modules: PathBuf,
    loaded: Vec<u8>,
    checked: Option<Instant>,
}

impl Kernel {
    /// Reads nothing yet: the first batch does.
    pub fn new(paths: &Paths) -> Self {
        let (symbols, modules) = (KernelSymbols::new(paths), paths.procfs.join("modules"));
        Self { symbols, names: HashMap::new(), modules, loaded: Vec::new(), checked: None }
    }

    /// Forgets every name when a module was loaded or removed, since its addresses may belong to another one.
    pub fn refresh(&mut self, now: Instant) {
        if self.checked.is_some_and(|then| now.duration_since(then) < MODULES_PERIOD) {
            return;
        }
        self.checked = Some(now);
        // A kernel without modules has no such file, and nothing to notice.
        let loaded = fs::read(&self.modules).map(|text| names_and_addresses(&text)).unwrap_or_default();
        if loaded != self.loaded {
            self.loaded = loaded;
            self.names.clear();
            self.symbols.forget();
        }
    }

    /// Finds the names of addresses that have none yet.
    pub fn resolve(&mut self, addresses: impl Iterator<Item = u64>, mut name: impl FnMut(&str) -> Arc<str>) {
        if self.names.len() > MAX_ADDRESSES {
            self.names.clear();
        }
        for address in addresses {
            let symbols = &mut self.symbols;
            self.names.entry(address).or_insert_with(|| match symbols.name(address) {
                Some(found) => Ok([name(found)].into()),
                None => Err(NO_NAME),
            });
        }
    }

    /// The name of an address that was resolved.
    pub fn name(&self, address: u64) -> &Resolved {
        self.names.get(&address).unwrap_or(&Err(NO_NAME))
    }
}

/// The fields of `/proc/modules` that change when code moves; the use counts change all the time.
fn names_and_addresses(modules: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in modules.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        kept.extend_from_slice(fields.next().unwrap_or_default());
        kept.extend_from_slice(fields.nth(4).unwrap_or_default());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_count_is_no_new_module() {
        let before = b"xfs 1 2 - Live 0xffff0000\next4 9 0 - Live 0xffff1000\n";
        let used = b"xfs 1 3 - Live 0xffff0000\next4 9 0 - Live 0xffff1000\n";
        let moved = b"xfs 1 2 - Live 0xffff2000\next4 9 0 - Live 0xffff1000\n";
        assert_eq!(names_and_addresses(before), names_and_addresses(used));
        assert_ne!(names_and_addresses(before), names_and_addresses(moved));
    }

    #[test]
    fn names_a_function_of_this_kernel_without_its_offset() {
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let address = symbols.lines().find_map(|line| {
            let (address, rest) = line.split_once(' ')?;
            (rest == "T schedule").then(|| u64::from_str_radix(address, 16).ok()).flatten()
        });
        let Some(address) = address.filter(|address| *address != 0) else {
            println!("skipped: /proc/kallsyms shows no addresses; run as root");
            return;
        };
        let mut kernel = Kernel::new(&Paths::default());
        let names = |kernel: &mut Kernel, address| {
            kernel.resolve([address].into_iter(), |name| Arc::from(name));
            kernel.name(address).as_ref().map(|names| names.to_vec()).ok()
        };
        assert_eq!(names(&mut kernel, address + 4), Some(vec![Arc::from("schedule")]));
        assert_eq!(names(&mut kernel, 4), None, "no function is there");
    }

    #[test]
    fn a_module_that_came_is_noticed_and_names_are_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        let paths = Paths { procfs: folder.path().to_path_buf(), ..Paths::default() };
        write("kallsyms", "ffffffff00001000 t before\t[one]\n");
        write("modules", "one 1 0 - Live 0xffffffff00001000\n");
        let mut kernel = Kernel::new(&paths);
        let mut now = Instant::now();
        let mut named = |after: Duration| {
            now += after;
            kernel.refresh(now);
            kernel.resolve([0xffff_ffff_0000_1004].into_iter(), |name| Arc::from(name));
            kernel.name(0xffff_ffff_0000_1004).as_ref().unwrap()[0].to_string()
        };
        assert_eq!(named(Duration::ZERO), "before");
        write("kallsyms", "ffffffff00001000 t after\t[two]\n");
        assert_eq!(named(2 * MODULES_PERIOD), "before", "no module came or went");
        write("modules", "two 1 0 - Live 0xffffffff00001000\n");
        assert_eq!(named(2 * MODULES_PERIOD), "after");
    }
}
