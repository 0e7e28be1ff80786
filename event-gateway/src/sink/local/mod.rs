//! The embedded store: every event in one SQLite file, with no server at all.
//!
//! One connection writes, in WAL mode, so that readers never wait for it and it never waits for them.

mod read;
mod retention;
mod tables;

pub use read::Reader;

use super::{Expired, Sink, SinkError};
use crate::keys::Keys;
use crate::spool::Document;
use anyhow::{Context, Result, anyhow};
use rusqlite::{Connection, ErrorCode, params};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The store's name within the state directory.
pub const FILE: &str = "events.db";
/// How long a statement waits for another process' lock.
const BUSY: Duration = Duration::from_secs(2);

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
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        // Set before the first table: freed pages can then be given back piece by piece.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        tables::refuse_newer(&connection)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A power cut may cost the last batches, never the file; a crash of this process costs nothing stored.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        tables::prepare(&mut connection)?;
        Ok(Self { connection, path: path.to_owned(), retention })
    }

    fn insert<'r>(&mut self, rows: impl IntoIterator<Item = Row<'r>>) -> rusqlite::Result<usize> {
        let transaction = self.connection.transaction()?;
        let mut stored = 0;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR IGNORE INTO events
                    (id, time_ns, kind, document, pid, process, container, container_name, pod, pod_uid)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?;
            for Row { id, time_ns, kind, json, keys } in rows {
                let Keys { pid, process, container, container_name, pod, pod_uid, .. } = keys;
                stored += insert.execute(params![
                    id,
                    time_ns,
                    kind,
                    json,
                    pid,
                    process,
                    container,
                    container_name,
                    pod,
                    pod_uid
                ])?;
            }
        }
        transaction.commit()?;
        Ok(stored)
    }

    /// Stores events from elsewhere, all or none of them; how many were not there yet.
    pub fn import<'r>(&mut self, rows: impl IntoIterator<Item = Row<'r>>) -> Result<usize> {
        self.insert(rows).with_context(|| format!("cannot write to the event store {}", self.path.display()))
    }
}

/// One event as the table has it.
#[derive(Debug, Clone, Copy)]
pub struct Row<'r> {
    /// `event.id`: what is there already is not stored again.
    pub id: &'r str,
    /// When it happened, nanoseconds since 1970.
    pub time_ns: i64,
    /// Kind of the event.
    pub kind: &'r str,
    /// The JSON document.
    pub json: &'r str,
    /// What it is looked up by.
    pub keys: &'r Keys,
}

impl<'r> From<&'r Document> for Row<'r> {
    fn from(it: &'r Document) -> Self {
        Self { id: &it.id, time_ns: it.time_ns, kind: it.kind, json: &it.json, keys: &it.keys }
    }
}

impl Sink for LocalSink {
    fn name(&self) -> &'static str {
        "local"
    }

    fn store(&mut self, batch: &[Document]) -> Result<(), SinkError> {
        self.insert(batch.iter().map(Row::from)).map(drop).map_err(|error| sink_error(error, &self.path))
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
