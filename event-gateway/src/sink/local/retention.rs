//! Which events does the store let go? Those older than the longest age, then the oldest while it is too large.

use super::{Expired, Retention};
use rusqlite::{Connection, params};
use std::time::{Duration, SystemTime};

/// Events removed by one transaction, so that none holds the lock for long.
const STEP: u64 = 1_000;
/// Transactions of one call; the rest waits for the next.
const STEPS_MAX: usize = 20;

pub(super) fn apply(
    connection: &mut Connection,
    keep: &Retention,
    now: SystemTime,
) -> rusqlite::Result<Expired> {
    let mut expired = Expired::default();
    let oldest =
        now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).saturating_sub(keep.max_age);
    let oldest_ns = i64::try_from(oldest.as_nanos()).unwrap_or(i64::MAX);
    for _ in 0..STEPS_MAX {
        let removed = connection.execute(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE time_ns < ? ORDER BY time_ns LIMIT ?)",
            params![oldest_ns, STEP as i64],
        )?;
        expired.by_age += removed as u64;
        if (removed as u64) < STEP {
            break;
        }
    }
    for _ in 0..STEPS_MAX {
        let Some(count) = surplus(connection, keep.max_bytes)? else { break };
        let removed = connection.execute(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events ORDER BY time_ns LIMIT ?)",
            params![count.clamp(1, STEP) as i64],
        )?;
        expired.by_size += removed as u64;
        if removed == 0 {
            break;
        }
    }
    if expired != Expired::default() {
        give_back(connection)?;
    }
    Ok(expired)
}

/// How many events to remove, judged by the average size of one; `None` when the store is small enough.
fn surplus(connection: &Connection, max_bytes: u64) -> rusqlite::Result<Option<u64>> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let used_pages = pragma("page_count")? - pragma("freelist_count")?;
    let used = u64::try_from(used_pages * pragma("page_size")?).unwrap_or(0);
    if used <= max_bytes {
        return Ok(None);
    }
    // The span of seq stands for the count, which would be a scan; after removals by age it only overestimates.
    let span: i64 =
        connection
            .query_row("SELECT COALESCE(MAX(seq) - MIN(seq) + 1, 0) FROM events", [], |row| row.get(0))?;
    let events = u64::try_from(span).unwrap_or(0).max(1);
    Ok(Some(((used - max_bytes) / (used / events).max(1)).max(1)))
}

/// Returns freed pages to the file system; without it the file never shrinks.
fn give_back(connection: &Connection) -> rusqlite::Result<()> {
    let mut vacuum = connection.prepare("PRAGMA incremental_vacuum(4096)")?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
