//! Why a block request failed, in words that do not depend on the kernel.

/// Name of what `block_rq_complete` tells: a negative errno up to 5.15, a `BLK_STS_*` since.
///
/// Statuses above 12 have been renumbered between releases, and no type of the kernel names them.
pub fn name(status: i64) -> &'static str {
    const BLOCK_STATUS: [&str; 12] = [
        "not_supported",
        "timeout",
        "no_space",
        "transport",
        "target",
        "reservation_conflict",
        "medium",
        "protection",
        "resource",
        "io",
        "requeue",
        "again",
    ];
    match usize::try_from(status) {
        Ok(status) => status.checked_sub(1).and_then(|index| BLOCK_STATUS.get(index)).unwrap_or(&"other"),
        Err(_) => errno(status),
    }
}

/// As the kernel's own table `blk_errors` turns statuses into errno.
fn errno(status: i64) -> &'static str {
    match i32::try_from(-status).unwrap_or(0) {
        libc::EOPNOTSUPP => "not_supported",
        libc::ETIMEDOUT => "timeout",
        libc::ENOSPC => "no_space",
        libc::ENOLINK => "transport",
        libc::EREMOTEIO => "target",
        libc::EBADE => "reservation_conflict",
        libc::ENODATA => "medium",
        libc::EILSEQ => "protection",
        libc::ENOMEM => "resource",
        libc::EIO => "io",
        libc::EREMCHG => "requeue",
        libc::EAGAIN => "again",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn both_forms_have_the_same_name() {
        for (block_status, errno) in
            [(1, libc::EOPNOTSUPP), (2, libc::ETIMEDOUT), (7, libc::ENODATA), (10, libc::EIO)]
        {
            assert_eq!(name(block_status), name(-i64::from(errno)));
        }
    }

    #[test]
    fn what_has_no_lasting_number_has_no_name() {
        assert_eq!([name(13), name(255), name(-1), name(i64::MIN + 1)], ["other"; 4]);
    }
}
