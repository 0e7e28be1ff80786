//! Where do events and profiles wait for Kafka? In one SQLite file, bounded by bytes and by age, which outlives the process.
//!
//! What [`DiskSpool::append`] has taken is on the disk: the write-ahead log is synced with every batch, so neither the
//! end of the process nor of the machine loses it. Events are kept in chunks, each with a checksum, since one row for
//! each event would cost more than the event.

mod record;
mod reserve;
mod tables;

pub use record::{Rank, Record};

use super::{Document, losses};
use crate::dataset::Dataset;
use crate::sink::{Expired, Sink, SinkError};
use anyhow::{Context, Result, ensure};
use record::{decode, encode};
use reserve::Reserve;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The spool's name within the state directory.
pub const FILE: &str = "spool.db";
/// Why what was in the spool never reaches Kafka.
pub const LOSSES: [&str; 4] = ["spool_age", "spool_size", "spool_corrupt", "kafka_refused"];
/// A lasting loss is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Free pages that go back to the file system at once while events come, some megabytes.
const SHRINK_PAGES: u32 = 1024;
/// Bytes of events in one chunk: also what the reader has in memory at once.
const CHUNK_BYTES: usize = 1 << 20;

/// How much waits for Kafka, and how long: the `output.spool` block of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Older events are dropped.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Over this the oldest events of the lowest priority are dropped.
    pub max_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(24 * 3600), max_bytes: 1 << 30 }
    }
}

/// Events, or profiles, that were taken together.
#[derive(Debug)]
pub struct Chunk {
    /// Its place in the order of arrival.
    pub seq: i64,
    /// When it was taken.
    pub taken_at: SystemTime,
    /// Which way they go.
    pub dataset: Dataset,
    /// How many there are.
    pub events: u64,
    checksum: u32,
    body: Vec<u8>,
}

impl Chunk {
    /// The records; an error when the disk gave back other bytes than it got.
    pub fn records(&self) -> Result<Vec<Record<'_>>> {
        ensure!(crc32fast::hash(&self.body) == self.checksum, "its checksum is wrong");
        decode(&self.body)
    }
}

/// What the spool holds and what it had to drop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Events and profiles that wait.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest of them was taken.
    pub oldest: Option<SystemTime>,
    /// Events that will never be sent, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Profiles that will never be sent, by reason.
    pub dropped_profiles: BTreeMap<&'static str, u64>,
}

/// Records that will never be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// One of [`LOSSES`].
    pub reason: &'static str,
    /// What they are.
    pub dataset: Dataset,
    /// How many.
    pub records: u64,
}

impl Loss {
    /// Of a chunk, as the table tells of it.
    fn of(reason: &'static str, priority: i8, records: u64) -> Self {
        let dataset = if priority == Rank::Profile.number() { Dataset::Profiles } else { Dataset::Events };
        Self { reason, dataset, records }
    }
}

/// The spool; its clones are the same one.
#[derive(Debug, Clone)]
pub struct DiskSpool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connection: Mutex<Connection>,
    state: Mutex<State>,
    path: PathBuf,
    bounds: Bounds,
    reserve: Reserve,
    said_at: Mutex<Option<Instant>>,
}

impl DiskSpool {
    /// Opens the spool, making it where there is none.
    pub fn open(path: &Path, bounds: Bounds) -> Result<Self> {
        let opened = Self::try_open(path, bounds);
        opened.with_context(|| {
            format!(
                "cannot open the spool {}; set KPULSE_STATE_DIR to a directory that can be written to",
                path.display()
            )
        })
    }

    fn try_open(path: &Path, bounds: Bounds) -> Result<Self> {
        let directory = path.parent().context("it has no directory")?;
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        let reserve = Reserve::beside(path);
        let connection = with_room(&reserve, || tables::open(path))?;
        let spool = Self(Arc::new(Inner {
            connection: Mutex::new(connection),
            state: Mutex::default(),
            path: path.to_owned(),
            bounds,
            reserve,
            said_at: Mutex::default(),
        }));
        spool.measure(&spool.connection())?;
        spool.hold_reserve();
        Ok(spool)
    }

    /// What it holds.
    pub fn state(&self) -> State {
        self.state_mut().clone()
    }

    /// How much it may hold.
    pub fn bounds(&self) -> &Bounds {
        &self.0.bounds
    }

    /// Takes all of these or none; what has to give way to them is dropped and counted.
    pub fn append(&self, records: &[Record<'_>]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection();
        let written = self.write(&mut connection, records);
        let measured = self.measure(&connection);
        written.with_context(|| self.write_error())?;
        measured
    }

    fn write(&self, connection: &mut Connection, records: &[Record<'_>]) -> Result<()> {
        let now = milliseconds(SystemTime::now());
        let transaction = connection.transaction()?;
        // Chunks of one priority each, so that the lower ones can go first.
        for rank in Rank::ALL {
            let of_priority = records.iter().filter(|record| record.rank == rank);
            for (body, events) in encode(of_priority, CHUNK_BYTES) {
                transaction
                    .prepare_cached(
                        "INSERT INTO chunks (priority, time_ms, events, bytes, checksum, body) VALUES (?, ?, ?, ?, ?, ?)",
                    )?
                    .execute(params![rank.number(), now, events, body.len(), crc32fast::hash(&body), body])?;
            }
        }
        let dropped = self.keep_bounds(&transaction, now)?;
        transaction.commit()?;
        self.count_dropped(dropped);
        Ok(())
    }

    /// Drops what is too old and, of what is too much, the oldest of the lowest priority.
    fn keep_bounds(&self, connection: &Connection, now: i64) -> Result<Vec<Loss>> {
        let age = i64::try_from(self.0.bounds.max_age.as_millis()).unwrap_or(i64::MAX);
        let old = now.saturating_sub(age);
        let mut lost = {
            let sums = "SELECT priority, SUM(events) FROM chunks WHERE time_ms < ? GROUP BY priority";
            let mut select = connection.prepare_cached(sums)?;
            let by_age =
                select.query_map([old], |row| Ok(Loss::of("spool_age", row.get(0)?, row.get(1)?)))?;
            by_age.collect::<Result<Vec<_>, _>>()?
        };
        if !lost.is_empty() {
            connection.execute("DELETE FROM chunks WHERE time_ms < ?", [old])?;
        }
        let mut bytes: u64 =
            connection.query_row("SELECT COALESCE(SUM(bytes), 0) FROM chunks", [], |row| row.get(0))?;
        while bytes > self.0.bounds.max_bytes {
            let lowest =
                "DELETE FROM chunks WHERE seq = (SELECT seq FROM chunks ORDER BY priority, seq LIMIT 1)
                RETURNING priority, events, bytes";
            let (by_size, freed): (_, u64) = connection.query_row(lowest, [], |row| {
                Ok((Loss::of("spool_size", row.get(0)?, row.get(1)?), row.get(2)?))
            })?;
            lost.push(by_size);
            bytes -= freed;
        }
        Ok(lost)
    }

    /// The first chunk of a dataset behind this place.
    pub fn after(&self, dataset: Dataset, seq: i64) -> Result<Option<Chunk>> {
        let connection = self.connection();
        let mut select = connection.prepare_cached(match dataset {
            Dataset::Events => {
                "SELECT seq, time_ms, events, checksum, body FROM chunks WHERE seq > ?1 AND priority > ?2
                ORDER BY seq LIMIT 1"
            }
            Dataset::Profiles => {
                "SELECT seq, time_ms, events, checksum, body FROM chunks WHERE seq > ?1 AND priority = ?2
                ORDER BY seq LIMIT 1"
            }
        })?;
        let chunk = select.query_row((seq, Rank::Profile.number()), |row| {
            Ok(Chunk {
                seq: row.get(0)?,
                taken_at: SystemTime::UNIX_EPOCH + Duration::from_millis(row.get(1)?),
                dataset,
                events: row.get(2)?,
                checksum: row.get(3)?,
                body: row.get(4)?,
            })
        });
        select_error(chunk.optional(), &self.0.path)
    }

    /// Forgets chunks: they are where they should be, or `lost` says why they never will be.
    pub fn remove(&self, chunks: &[i64], lost: Option<&'static str>) -> Result<()> {
        let mut connection = self.connection();
        let removed = with_room(&self.0.reserve, || Ok(remove(&mut connection, chunks)?));
        let removed = removed.with_context(|| self.write_error())?;
        if let Some(reason) = lost {
            self.count_dropped(
                removed.into_iter().map(|(priority, records)| Loss::of(reason, priority, records)),
            );
        }
        self.measure(&connection)?;
        if self.state_mut().events == 0 {
            self.hold_reserve();
        }
        Ok(())
    }

    fn hold_reserve(&self) {
        if let Err(error) = self.0.reserve.hold() {
            tracing::debug!("the disk has no room in reserve for the spool: {error}");
        }
    }

    /// Counts what will never be sent, and says so once in a while.
    pub fn count_dropped(&self, lost: impl IntoIterator<Item = Loss>) {
        let mut state = self.state_mut();
        let mut is_any = false;
        for Loss { reason, dataset, records } in lost.into_iter().filter(|loss| loss.records > 0) {
            is_any = true;
            match dataset {
                Dataset::Events => {
                    *state.dropped.entry(reason).or_default() += records;
                    losses::note(reason, records);
                }
                Dataset::Profiles => *state.dropped_profiles.entry(reason).or_default() += records,
            }
        }
        if !is_any {
            return;
        }
        let mut said_at = self.0.said_at.lock().unwrap_or_else(PoisonError::into_inner);
        if said_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *said_at = Some(Instant::now());
            let State { dropped, dropped_profiles, .. } = &*state;
            tracing::error!(
                ?dropped,
                ?dropped_profiles,
                "events or profiles that were to go to Kafka are lost; output.spool bounds what waits"
            );
        }
    }

    /// Drops what is too old, and gives free pages back to the file system, some at a time.
    pub fn shrink(&self) -> Result<()> {
        let mut connection = self.connection();
        let now = milliseconds(SystemTime::now());
        let transaction = connection.transaction()?;
        let dropped = self.keep_bounds(&transaction, now)?;
        transaction.commit()?;
        self.count_dropped(dropped);
        // Each row that is asked for is a page.
        connection.pragma(None, "incremental_vacuum", SHRINK_PAGES, |_| Ok(()))?;
        self.measure(&connection)
    }

    /// Gives all free pages back. What waits is copied, so there should be nothing.
    pub fn vacuum(&self) -> Result<()> {
        self.connection().execute_batch("VACUUM").with_context(|| self.write_error())
    }

    fn measure(&self, connection: &Connection) -> Result<()> {
        let sums = "SELECT COALESCE(SUM(events), 0), COALESCE(SUM(bytes), 0), MIN(time_ms) FROM chunks";
        let measured = connection
            .prepare_cached(sums)?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Option<u64>>(2)?)))?;
        let mut state = self.state_mut();
        (state.events, state.bytes) = (measured.0, measured.1);
        state.oldest = measured.2.map(|time_ms| SystemTime::UNIX_EPOCH + Duration::from_millis(time_ms));
        Ok(())
    }

    fn write_error(&self) -> String {
        format!("cannot write to the spool {}", self.0.path.display())
    }

    /// A transaction that panics is rolled back, so a poisoned lock is still good; so are counts.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does it again with the room in reserve when the disk has no other.
fn with_room<T>(reserve: &Reserve, mut write: impl FnMut() -> Result<T>) -> Result<T> {
    let done = write();
    let is_full = |error: &anyhow::Error| {
        let code = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
        code == Some(rusqlite::ErrorCode::DiskFull)
    };
    if done.as_ref().is_err_and(is_full) && reserve.release() { write() } else { done }
}

/// The priority of each of these chunks that was there, and how many records went with it.
fn remove(connection: &mut Connection, chunks: &[i64]) -> rusqlite::Result<Vec<(i8, u64)>> {
    let transaction = connection.transaction()?;
    let mut removed = Vec::with_capacity(chunks.len());
    for seq in chunks {
        let mut delete =
            transaction.prepare_cached("DELETE FROM chunks WHERE seq = ? RETURNING priority, events")?;
        removed.extend(delete.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?))).optional()?);
    }
    transaction.commit()?;
    Ok(removed)
}

fn select_error<T>(result: rusqlite::Result<T>, path: &Path) -> Result<T> {
    result.with_context(|| format!("cannot read the spool {}", path.display()))
}

fn milliseconds(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// For the pipeline the spool is what takes the events.
impl Sink for DiskSpool {
    fn name(&self) -> &'static str {
        "spool"
    }

    fn store(&mut self, batch: &[Document]) -> Result<(), SinkError> {
        let records: Vec<_> = batch.iter().map(Record::from).collect();
        self.append(&records).map_err(SinkError::Unavailable)
    }

    fn maintain(&mut self) -> Result<Expired, SinkError> {
        self.shrink().map_err(SinkError::Unavailable)?;
        // They were not delivered, so they are losses, which `dropped` counts.
        Ok(Expired::default())
    }

    fn bytes(&self) -> Option<u64> {
        Some(self.state_mut().bytes)
    }
}

#[cfg(test)]
mod tests;
