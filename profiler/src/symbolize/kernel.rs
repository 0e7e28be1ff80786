//! Which kernel function is at this address? `/proc/kallsyms`, which has modules and BPF programs too.

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Kernel as KernelSource, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use kpulse_symbolize::{Nameless, Resolved, Unknown};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Addresses whose names are kept; a busy kernel shows a few thousand.
const MAX_ADDRESSES: usize = 32_768;
/// How often a module may have come or gone without being noticed.
const MODULES_PERIOD: Duration = Duration::from_secs(30);

const NO_NAME: Nameless = Nameless { why: Unknown::Kernel, file: None };

/// Names of kernel addresses. They stay here: an address never leaves the process.
pub struct Kernel {
    symbolizer: Option<Symbolizer>,
    names: HashMap<u64, Resolved>,
    modules: PathBuf,
    loaded: Vec<u8>,
    checked: Option<Instant>,
}

impl Kernel {
    /// Reads nothing yet: the first batch does.
    pub fn new(procfs: &std::path::Path) -> Self {
        let modules = procfs.join("modules");
        Self { symbolizer: None, names: HashMap::new(), modules, loaded: Vec::new(), checked: None }
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
            self.symbolizer = None;
        }
    }

    /// Finds the names of addresses that have none yet.
    pub fn resolve(
        &mut self,
        addresses: impl Iterator<Item = u64>,
        mut name: impl FnMut(&str) -> std::sync::Arc<str>,
    ) {
        if self.names.len() > MAX_ADDRESSES {
            self.names.clear();
        }
        let mut missing: Vec<u64> = addresses.filter(|address| !self.names.contains_key(address)).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return;
        }
        let source =
            KernelSource { vmlinux: MaybeDefault::None, debug_syms: false, ..KernelSource::default() };
        let symbolizer = self.symbolizer.get_or_insert_with(|| {
            Symbolizer::builder().enable_code_info(false).enable_inlined_fns(false).build()
        });
        match symbolizer.symbolize(&Source::Kernel(source), Input::AbsAddr(&missing)) {
            Ok(symbols) => {
                for (address, symbol) in missing.into_iter().zip(symbols) {
                    let resolved = match symbol {
                        Symbolized::Sym(symbol) => Ok([name(&symbol.name)].into()),
                        Symbolized::Unknown(_) => Err(NO_NAME),
                    };
                    self.names.insert(address, resolved);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no kernel names");
                self.names.extend(missing.into_iter().map(|address| (address, Err(NO_NAME))));
            }
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
    use std::sync::Arc;

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
        let mut kernel = Kernel::new(std::path::Path::new("/proc"));
        kernel.resolve([address + 4].into_iter(), |name| Arc::from(name));
        assert_eq!(kernel.name(address + 4).as_ref().unwrap()[..], [Arc::from("schedule")]);
    }
}
