//! A machine short of free memory, by what it gives back at once: clean pages of a file.

use crate::{is_guest, load};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

/// Reading stops then, whatever was reached.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Free memory above the kernel's reserve that a guest has for its disk's pages, of which there are 64 MiB.
const GUEST_FREE_KIB: u64 = 32 << 10;
const STEP: usize = 1 << 20;
/// Of as many pages that are held one is released.
const RELEASED_OF: usize = 16;

/// Reads files until free memory has run out and `is_enough`; whether that was reached.
///
/// On a machine whose temporary files are on a disk, it reads a file without blocks: clean pages, no I/O. In a guest,
/// whose temporary files are memory, a child holds most of the memory and reads the guest's disk.
pub fn page_cache(mut is_enough: impl FnMut() -> bool) -> io::Result<bool> {
    let begin = Instant::now();
    if is_guest() {
        let (_, went_well) = load::in_child(None, || {
            let mut held = Vec::new();
            let reserve = fs::read_to_string("/proc/sys/vm/min_free_kbytes")?.trim().parse::<u64>();
            // kswapd is woken at 5/4 of the reserve.
            let enough = reserve.map_err(io::Error::other)? * 3 / 2 + GUEST_FREE_KIB;
            // What is released below is free again.
            while meminfo("MemFree:")? + (held.len() * STEP / RELEASED_OF / 1024) as u64 > enough {
                held.push(std::hint::black_box(vec![1u8; STEP]));
            }
            // The disk's pages then lie between those that are held: no large block is left free.
            held.iter().try_for_each(|block| release_some_pages(block))?;
            read_until(Path::new("/dev/vda"), begin, &mut is_enough)
                .and_then(|reached| if reached { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) })
        });
        return Ok(went_well);
    }
    let path = std::env::temp_dir().join(format!("kpulse-sparse-{}", std::process::id()));
    File::create(&path)?.set_len(meminfo("MemTotal:")? * 1024)?;
    let reached = read_until(&path, begin, &mut is_enough);
    fs::remove_file(&path)?;
    reached
}

fn release_some_pages(block: &[u8]) -> io::Result<()> {
    const PAGE: usize = 4096;
    let first = block.as_ptr().align_offset(PAGE);
    for page in (first..block.len() - PAGE).step_by(RELEASED_OF * PAGE) {
        // SAFETY: the page lies in memory of ours that nobody reads again; it comes back zeroed.
        let outcome =
            unsafe { libc::madvise(block[page..].as_ptr().cast_mut().cast(), PAGE, libc::MADV_DONTNEED) };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn read_until(path: &Path, begin: Instant, is_enough: &mut dyn FnMut() -> bool) -> io::Result<bool> {
    let mut buffer = vec![0; STEP];
    while begin.elapsed() < TIME_MAX {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {
            if is_enough() {
                return Ok(true);
            }
            if begin.elapsed() >= TIME_MAX {
                return Ok(false);
            }
        }
    }
    Ok(false)
}

/// A line of `/proc/meminfo`, in KiB.
pub fn meminfo(key: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok());
    line.ok_or_else(|| io::Error::other("meminfo has another shape"))
}

/// The sum of the lines of `/proc/vmstat` that have one of these names.
pub fn vmstat(names: &[&str]) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(name, _)| names.contains(name)).filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}
