//! Closed windows and their sums in one SQLite file, which outlives the process: bounded by age and by bytes, the oldest
//! going first.
//!
//! One connection, which has the file to itself. Who reads holds it for one window at a time.

use super::packed::{Packed, time};
use super::sums::Block;
use crate::export::nanoseconds;
use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OptionalExtension, Params, Row, Transaction, TransactionBehavior, params};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// The store's name within the state directory.
pub const FILE: &str = "profiles.db";
/// Version of the tables, in `PRAGMA user_version`.
const VERSION: i64 = 2;
/// How long it is waited for a profiler that is about to end.
const BUSY: Duration = Duration::from_secs(2);
/// Windows that one new window takes away at most, so that a smaller bound holds no transaction for long.
const GONE_MAX: usize = 64;
/// Free pages from which on they go back to the file system, and how many at once: 4 MiB.
const FREE_PAGES: i64 = 1024;
/// The write-ahead log, which counts towards the bound of bytes: what a checkpoint leaves of it.
const LOG_BYTES: u64 = 4 << 20;

/// The tables of version 1. A number is never used twice, so that what was sent stays known by it. The index has all that
/// [`measure`] needs.
const TABLES: &str = "
    CREATE TABLE windows (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        from_ns INTEGER NOT NULL,
        to_ns INTEGER NOT NULL,
        samples INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX windows_by_time ON windows (to_ns, from_ns, samples, entries, bytes);
";
/// How far each reader of the windows got, and where it took them.
const PLACES: &str = "
    CREATE TABLE places (reader TEXT PRIMARY KEY, target TEXT NOT NULL, next INTEGER NOT NULL) WITHOUT ROWID;
";
/// What version 1 knew of them.
const PLACES_OF_1: &str = "
    INSERT INTO places SELECT 'upload', url, next FROM uploads;
    DROP TABLE uploads;
";

/// Of how many windows, by their numbers, each sum was made. The index spares reading the bodies.
const SUMS: &str = "
    CREATE TABLE sums (
        first INTEGER NOT NULL,
        span INTEGER NOT NULL,
        windows INTEGER NOT NULL,
        from_ns INTEGER NOT NULL,
        to_ns INTEGER NOT NULL,
        samples INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE UNIQUE INDEX sums_by_number ON sums (first, span, windows, bytes);
";
/// A sum goes with the first of its windows: without that one it stands for nothing.
const FORGET_SUMS: &str =
    "DELETE FROM sums WHERE NOT EXISTS (SELECT 1 FROM windows WHERE windows.number <= sums.first)";

/// How long and how much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub max_age: Duration,
    pub max_bytes: u64,
}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub windows: u64,
    /// Of windows and sums, without what the file has beside them.
    pub bytes: u64,
    /// Different stacks, summed over the windows.
    pub entries: u64,
    /// The oldest window's number.
    pub first: u64,
    /// What the next window is to be called.
    pub next: u64,
}

/// Windows that went before their age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    pub windows: u64,
    pub samples: u64,
}

impl std::ops::AddAssign for Evicted {
    fn add_assign(&mut self, more: Self) {
        self.windows += more.windows;
        self.samples += more.samples;
    }
}

/// The file.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    held: Mutex<Held>,
    path: PathBuf,
    retention: Retention,
}

impl Store {
    /// Opens the store, making it where there is none, and takes it for this process alone.
    pub fn open(path: &Path, retention: Retention, now: SystemTime) -> Result<Self> {
        let opened = Self::try_open(path, retention, now);
        opened.with_context(|| format!("cannot open the history {}", path.display()))
    }

    fn try_open(path: &Path, retention: Retention, now: SystemTime) -> Result<Self> {
        let directory = path.parent().context("it has no directory")?;
        // Names of functions and programs are nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        // Before SQLite locks the file: the kernel unlocks it when any descriptor of this process is closed.
        drop(file);
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        // Set before the first table: freed pages can then be given back piece by piece.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > VERSION {
            bail!("it was written by a newer version (tables {version}, known {VERSION})");
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A power cut may cost the last windows, never the file; the end of this process costs nothing stored.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        connection.pragma_update(None, "cache_size", -512)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // A full disk takes no write that changes nothing.
        if version < 1 {
            transaction.execute_batch(TABLES)?;
        }
        if version < 2 {
            transaction.execute_batch(PLACES)?;
            transaction.execute_batch(SUMS)?;
            if version == 1 {
                transaction.execute_batch(PLACES_OF_1)?;
            }
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        let old = nanoseconds(now.checked_sub(retention.max_age).unwrap_or(SystemTime::UNIX_EPOCH));
        let is_old: bool =
            transaction.query_row("SELECT EXISTS (SELECT 1 FROM windows WHERE to_ns < ?)", [old], |row| {
                row.get(0)
            })?;
        if is_old {
            transaction.execute("DELETE FROM windows WHERE to_ns < ?", [old])?;
            transaction.execute(FORGET_SUMS, [])?;
        }
        let held = measure(&transaction)?;
        transaction.commit()?;
        Ok(Self {
            connection: Mutex::new(connection),
            held: Mutex::new(held),
            path: path.to_owned(),
            retention,
        })
    }

    /// What it holds.
    pub fn held(&self) -> Held {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a window; says what had to give way to it.
    pub fn append(&self, window: &Packed, now: SystemTime) -> Result<Evicted> {
        let Packed { number, from, to, samples, entries, body } = window;
        self.write(now, |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO windows (number, from_ns, to_ns, samples, entries, bytes, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![number, nanoseconds(*from), nanoseconds(*to), samples, entries, body.len(), body])
        })
    }

    /// Keeps the sum of a block, which has so many windows; says what had to give way to it.
    pub fn append_sum(&self, block: Block, windows: u64, sum: &Packed, now: SystemTime) -> Result<Evicted> {
        let Block { span, first } = block;
        let Packed { from, to, samples, entries, body, .. } = sum;
        let (from, to) = (nanoseconds(*from), nanoseconds(*to));
        self.write(now, |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO sums (first, span, windows, from_ns, to_ns, samples, entries, bytes, body) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![first, span, windows, from, to, samples, entries, body.len(), body])
        })
    }

    fn write(
        &self,
        now: SystemTime,
        insert: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<usize>,
    ) -> Result<Evicted> {
        let mut connection = self.connection();
        let written = self.try_write(&mut connection, now, insert);
        let (evicted, held) =
            written.with_context(|| format!("cannot write to the history {}", self.path.display()))?;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(evicted)
    }

    fn try_write(
        &self,
        connection: &mut Connection,
        now: SystemTime,
        insert: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<usize>,
    ) -> Result<(Evicted, Held)> {
        let transaction = connection.transaction()?;
        insert(&transaction)?;
        let old = now.checked_sub(self.retention.max_age).unwrap_or(SystemTime::UNIX_EPOCH);
        transaction.prepare_cached("DELETE FROM windows WHERE to_ns < ?")?.execute([nanoseconds(old)])?;
        transaction.prepare_cached(FORGET_SUMS)?.execute([])?;
        let mut evicted = Evicted::default();
        for _ in 0..GONE_MAX {
            if used(&transaction)? + LOG_BYTES <= self.retention.max_bytes {
                break;
            }
            // The newest stays: a bound too small for one window is none.
            let mut oldest = transaction.prepare_cached(
                "DELETE FROM windows WHERE number = (SELECT MIN(number) FROM windows) \
                 AND number < (SELECT MAX(number) FROM windows) RETURNING samples",
            )?;
            let Some(samples) = oldest.query_row([], |row| row.get::<_, u64>(0)).optional()? else {
                break;
            };
            transaction.prepare_cached(FORGET_SUMS)?.execute([])?;
            evicted += Evicted { windows: 1, samples };
        }
        let held = measure(&transaction)?;
        transaction.commit()?;
        let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free > FREE_PAGES {
            // Each row that is asked for is a page.
            connection.pragma(None, "incremental_vacuum", FREE_PAGES, |_| Ok(()))?;
        }
        Ok((evicted, held))
    }

    /// Numbers of the windows that reach into a stretch, ascending.
    pub fn numbers(&self, since: SystemTime, until: Option<SystemTime>) -> Result<Vec<u64>> {
        let connection = self.connection();
        let numbers = || {
            let mut select = connection.prepare_cached(
                "SELECT number FROM windows INDEXED BY windows_by_time WHERE to_ns > ? AND from_ns < ?",
            )?;
            let until = until.map_or(i64::MAX, nanoseconds);
            select.query_map(params![nanoseconds(since), until], |row| row.get(0))?.collect()
        };
        let mut numbers: Vec<u64> = self.read(numbers())?;
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Numbers of the windows of a block, ascending.
    pub fn numbers_of(&self, block: Block) -> Result<Vec<u64>> {
        let connection = self.connection();
        let numbers = || {
            let mut select = connection.prepare_cached(
                "SELECT number FROM windows WHERE number >= ? AND number < ? ORDER BY number",
            )?;
            select.query_map([block.first, block.end()], |row| row.get(0))?.collect()
        };
        self.read(numbers())
    }

    /// The sums, each with the number of windows that it was made of.
    pub fn sums(&self) -> Result<HashMap<Block, u64>> {
        let connection = self.connection();
        let sums = || {
            let mut select = connection.prepare_cached("SELECT first, span, windows FROM sums")?;
            let block = |row: &Row<'_>| Ok((Block { first: row.get(0)?, span: row.get(1)? }, row.get(2)?));
            select.query_map([], block)?.collect()
        };
        self.read(sums())
    }

    /// The sum of a block; `None` when it has gone.
    pub fn sum(&self, block: Block) -> Result<Option<Packed>> {
        self.first(
            "SELECT first, from_ns, to_ns, samples, entries, body FROM sums WHERE first = ? AND span = ?",
            [block.first, block.span],
        )
    }

    /// A window; `None` when it has gone.
    pub fn window(&self, number: u64) -> Result<Option<Packed>> {
        self.first(
            "SELECT number, from_ns, to_ns, samples, entries, body FROM windows WHERE number = ?",
            [number],
        )
    }

    /// The first window with this number or a later one.
    pub fn window_from(&self, number: u64) -> Result<Option<Packed>> {
        self.first(
            "SELECT number, from_ns, to_ns, samples, entries, body FROM windows WHERE number >= ? ORDER BY number LIMIT 1",
            [number],
        )
    }

    fn first(&self, select: &str, of: impl Params) -> Result<Option<Packed>> {
        let connection = self.connection();
        let found =
            connection.prepare_cached(select).and_then(|mut select| select.query_row(of, packed).optional());
        self.read(found)
    }

    /// Which window is next for a reader; `None` when it last took them elsewhere, or never.
    pub fn place(&self, reader: &str, target: &str) -> Result<Option<u64>> {
        let connection = self.connection();
        let select = "SELECT next FROM places WHERE reader = ? AND target = ?";
        self.read(connection.query_row(select, [reader, target], |row| row.get(0)).optional())
    }

    /// Notes it.
    pub fn set_place(&self, reader: &str, target: &str, next: u64) -> Result<()> {
        let connection = self.connection();
        let replace = "INSERT OR REPLACE INTO places (reader, target, next) VALUES (?, ?, ?)";
        let written = connection
            .prepare_cached(replace)
            .and_then(|mut replace| replace.execute(params![reader, target, next]));
        written.map(drop).with_context(|| format!("cannot write to the history {}", self.path.display()))
    }

    #[cfg(test)]
    pub fn execute(&self, sql: &str) {
        self.connection().execute_batch(sql).unwrap();
    }

    fn read<T>(&self, result: rusqlite::Result<T>) -> Result<T> {
        result.with_context(|| format!("cannot read the history {}", self.path.display()))
    }

    /// A transaction that panics is rolled back, so a poisoned lock is still good.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn packed(row: &Row<'_>) -> rusqlite::Result<Packed> {
    Ok(Packed {
        number: row.get(0)?,
        from: time(row.get(1)?),
        to: time(row.get(2)?),
        samples: row.get(3)?,
        entries: row.get(4)?,
        body: row.get(5)?,
    })
}

/// Bytes of the pages in use.
fn used(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let pragma = |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    Ok((pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?)
}

fn measure(transaction: &Transaction<'_>) -> rusqlite::Result<Held> {
    let all = "SELECT COUNT(*), COALESCE(SUM(bytes), 0) + (SELECT COALESCE(SUM(bytes), 0) FROM sums), \
               COALESCE(SUM(entries), 0) FROM windows INDEXED BY windows_by_time";
    let (windows, bytes, entries) =
        transaction.prepare_cached(all)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let last: Option<u64> = transaction
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'windows'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let next = last.map_or(0, |last| last + 1);
    let first: Option<u64> =
        transaction.prepare_cached("SELECT MIN(number) FROM windows")?.query_row([], |row| row.get(0))?;
    Ok(Held { windows, bytes, entries, first: first.unwrap_or(next), next })
}
