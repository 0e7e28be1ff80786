//! Keeping the resident set small with glibc's allocator.

/// One arena for all threads, where only one at a time works: the default of eight for each core keeps pages of every
/// thread that ever allocated.
pub fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before any thread exists; mallopt only sets a parameter.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
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
