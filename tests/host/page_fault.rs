//! Page faults of containers against what the kernel counts for the process that has them.

use crate::{Exporter, while_child_holds};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::{is_root, skip, until};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;

const PAGE: usize = 4096;
const FRESH_PAGES: usize = 16 << 10;
const FILE_PAGES: usize = 2 << 10;

/// Faults of a process, minor and major, by its own account.
fn of_process(pid: u32) -> Option<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(7);
    let mut next = |skipped| fields.nth(skipped)?.parse().ok();
    Some((next(0)?, next(1)?))
}

/// A mapping of pages that nothing has touched, or of a file's; `None` when the kernel refuses.
fn map(length: usize, file: Option<&File>) -> Option<*mut u8> {
    let (kind, descriptor) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: a new mapping at an address of the kernel's choice; it stays until the process ends.
    let memory = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, kind, descriptor, 0)
    };
    // Neither huge pages nor read-ahead: one fault for each page.
    let advice = if file.is_some() { libc::MADV_RANDOM } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: the range was just mapped; a kernel without huge pages refuses the advice, which changes nothing.
    (memory != libc::MAP_FAILED).then(|| unsafe {
        libc::madvise(memory, length, advice);
        memory.cast()
    })
}

fn touch(memory: *mut u8, pages: usize) {
    for page in 0..pages {
        // SAFETY: the mapping has that many pages.
        unsafe { memory.add(page * PAGE).write_volatile(1) };
    }
}

/// A file on a disk whose pages are not in memory; it is gone with the value.
fn cold_file() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("kpulse-faults-{}", std::process::id()));
    let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(&vec![1; FILE_PAGES * PAGE])?;
    file.sync_all()?;
    // SAFETY: only advice about a descriptor that is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(file)
}

#[test]
fn a_container_has_the_page_faults_of_its_process() {
    if !is_root() {
        return skip("a_container_has_the_page_faults", "only root can make cgroups");
    }
    let cgroup = Cgroup::container("memory", 0x48_0020).ok();
    let Some(cgroup) = cgroup.filter(|cgroup| cgroup.path().join("memory.stat").exists()) else {
        return skip("a_container_has_the_page_faults", "the memory controller cannot be used here");
    };
    let id = Cgroup::id(0x48_0020);
    let exporter = Exporter::start(&["memory"]);
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done");
    let work = || {
        touch(map(FRESH_PAGES * PAGE, None).expect("memory"), FRESH_PAGES);
        let file = cold_file().expect("a file");
        touch(map(FILE_PAGES * PAGE, Some(&file)).expect("a mapping"), FILE_PAGES);
        File::create(&done).expect("a file");
    };
    while_child_holds(&cgroup, work, |pid| {
        until("end of the work", || done.exists().then_some(()));
        let touched = of_process(pid).expect("the process holds what it touched");
        assert!(touched.0 + touched.1 >= (FRESH_PAGES + FILE_PAGES) as f64, "{touched:?}");
        // The kernel folds a cgroup's counts every two seconds.
        let major = until("faults of the container", || {
            let page = exporter.scrape();
            let kind = |kind| page.find("kpulse_page_faults_total", &[("kind", kind), ("container_id", &id)]);
            let (minor, major) = (kind("minor")?, kind("major")?);
            let now = of_process(pid)?;
            // Faults before the child entered the cgroup are its parent's.
            let is_minor = minor <= now.0 && minor >= touched.0 * 0.97 - 128.0;
            let is_major = major <= now.1 && major >= touched.1 * 0.97 - 1.0;
            (is_minor && is_major).then_some(major)
        });
        // A kernel that keeps files in large folios has one fault for several pages.
        if major < FILE_PAGES as f64 / 64.0 {
            skip("a_container_has_the_page_faults", "temporary files are in memory here: no major faults");
        }
    });
}
