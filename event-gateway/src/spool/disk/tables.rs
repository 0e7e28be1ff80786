//! The spool's table.

use anyhow::{Result, bail};
use rusqlite::Connection;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Version of the table, in `PRAGMA user_version`.
const VERSION: i64 = 1;
/// How long a statement waits for another process' lock.
const BUSY: Duration = Duration::from_secs(2);

/// A place is never used twice, so that the reader's place stays true when chunks go.
const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS chunks (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        priority INTEGER NOT NULL,
        time_ms INTEGER NOT NULL,
        events INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX IF NOT EXISTS chunks_by_priority ON chunks (priority, seq);
    CREATE INDEX IF NOT EXISTS chunks_by_time ON chunks (time_ms, events, bytes);
";

/// Opens the file for this process alone.
pub(super) fn open(path: &Path) -> Result<Connection> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    // Two senders of one spool would send everything twice.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > VERSION {
        bail!("it was written by a newer version (table {version}, known {VERSION})");
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    // A full disk takes no write that changes nothing.
    if version != VERSION {
        connection.execute_batch(TABLE)?;
        connection.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(connection)
}
