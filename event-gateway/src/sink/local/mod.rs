//! The embedded store: every event in one SQLite file, with no server at all.
//!
//! One connection writes, in WAL mode, so that readers never wait for it and it never waits for them.

mod read;
mod retention;

pub use read::{Query, Reader};

use super::{Expired, Sink, SinkError};
use crate::spool::Document;
use anyhow::{Context, Result, anyhow, bail};
use rusqlite::{Connection, ErrorCode, params};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The store's name within the state directory.
pub const FILE: &str = "events.db";
/// Version of the tables, in `PRAGMA user_version`.
const VERSION: i64 = 1;
/// How long a statement waits for another process' lock.
const BUSY: Duration = Duration::from_secs(2);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS events (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        time_ns INTEGER NOT NULL,
        kind TEXT NOT NULL,
        pid INTEGER,
        container TEXT,
        document TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS events_by_time ON events (time_ns);
    CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind, time_ns);
    PRAGMA user_version = 1;
";

/// How long and how much the store keeps: the `output.local` block of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Older events are removed: a week answers "what was it last weekend?".
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// The oldest events are removed when the file is larger.
    pub max_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(7 * 24 * 3600), max_bytes: 1 << 30 }
    }
}

/// The writing end of the store.
#[derive(Debug)]
pub struct LocalSink {
    connection: Connection,
    path: PathBuf,
    retention: Retention,
}

impl LocalSink {
    /// Opens the store, making it where there is none, and proves that it can be written to.
    pub fn open(path: &Path, retention: Retention) -> Result<Self> {
        let is_new = !path.exists();
        let opened = Self::try_open(path, retention);
        if opened.is_err() && is_new {
            // Only the empty file that a failed start made itself.
            for file in files(path) {
                let _ = std::fs::remove_file(file);
            }
        }
        opened.with_context(|| {
            format!(
                "cannot open the event store {}; set KPULSE_STATE_DIR to a directory that can be written to",
                path.display()
            )
        })
    }

    fn try_open(path: &Path, retention: Retention) -> Result<Self> {
        let directory = path.parent().context("it has no directory")?;
        // Command lines and addresses are nobody else's business.
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        std::fs::OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        // Set before the first table: freed pages can then be given back piece by piece.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > VERSION {
            bail!("it was written by a newer version (tables {version}, known {VERSION})");
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A power cut may cost the last batches, never the file; a crash of this process costs nothing stored.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT;"))?;
        Ok(Self { connection, path: path.to_owned(), retention })
    }

    fn insert(&mut self, batch: &[Document]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR IGNORE INTO events (id, time_ns, kind, pid, container, document) VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            for it in batch {
                insert.execute(params![it.id, it.time_ns, it.kind, it.pid, it.container, it.json])?;
            }
        }
        transaction.commit()
    }
}

impl Sink for LocalSink {
    fn name(&self) -> &'static str {
        "local"
    }

    fn store(&mut self, batch: &[Document]) -> Result<(), SinkError> {
        self.insert(batch).map_err(|error| sink_error(error, &self.path))
    }

    fn maintain(&mut self) -> Result<Expired, SinkError> {
        let now = std::time::SystemTime::now();
        retention::apply(&mut self.connection, &self.retention, now)
            .map_err(|error| sink_error(error, &self.path))
    }

    fn bytes(&self) -> Option<u64> {
        let sizes = files(&self.path).into_iter().filter_map(|file| std::fs::metadata(file).ok());
        Some(sizes.map(|file| file.len()).sum())
    }
}

/// The file and what SQLite keeps beside it.
fn files(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    })
}

fn sink_error(error: rusqlite::Error, path: &Path) -> SinkError {
    let is_refused = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::TooBig | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
    );
    let error = anyhow!(error).context(format!("cannot write to the event store {}", path.display()));
    if is_refused { SinkError::Refused(error) } else { SinkError::Unavailable(error) }
}

#[cfg(test)]
mod tests;
