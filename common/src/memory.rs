//! Keeping the resident set small with glibc's allocator.

/// A piece of this size, as the text of a large answer, goes back to the kernel as soon as it is free. Left to itself the
/// allocator raises this to the largest it has seen, and the small pieces that come behind one keep its pages.
#[cfg(target_env = "gnu")]
const GIVEN_BACK_BYTES: libc::c_int = 1 << 20;
/// What may stay free for the next answer: less would have the kernel clear the same pages each time.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 4 << 20;

/// One arena for all threads, since few of them allocate at a time, and nothing large in it: the default of eight for each
/// core keeps pages of every thread that ever allocated.
pub fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before any thread exists; mallopt only sets a parameter.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Gives back what is free: left to itself, the allocator keeps nearly all of many small pieces.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions and is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}
