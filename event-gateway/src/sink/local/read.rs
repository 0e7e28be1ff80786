//! Which events does the store hold? Reading, beside a writer that goes on.

use super::tables;
use crate::query::{Process, Query};
use anyhow::{Context, Result, anyhow, bail};
use rusqlite::{Connection, ErrorCode, OpenFlags, types::Value};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Longest time for one answer: a text that is in no stack is looked for in every event of the time.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Steps of SQLite's machine between two looks at the clock, some 10 µs.
const STEPS: i32 = 10_000;

/// The reading end of the store.
#[derive(Debug)]
pub struct Reader(Connection);

/// A `WHERE` and what stands for its question marks.
struct Filter {
    conditions: Vec<String>,
    values: Vec<Value>,
}

impl Filter {
    fn of(query: &Query) -> Self {
        let mut filter = Self { conditions: Vec::new(), values: Vec::new() };
        if let Some(since) = query.since {
            filter.add("time_ns >= ?", [Value::Integer(nanoseconds(since))]);
        }
        if let Some(until) = query.until {
            filter.add("time_ns < ?", [Value::Integer(nanoseconds(until))]);
        }
        let text = |text: &str| Value::Text(text.to_owned());
        if let Some(kind) = &query.kind {
            filter.add("kind = ?", [text(kind)]);
        }
        if let Some(container) = &query.container {
            // Digits are ASCII, so everything that begins like this lies before the largest character behind it.
            filter.add(
                "(container BETWEEN ? AND ? OR container_name = ?)",
                [text(container), text(&format!("{container}\u{10ffff}")), text(container)],
            );
        }
        if let Some(pod) = &query.pod {
            filter.add("(pod = ? OR pod_uid = ?)", [text(pod), text(pod)]);
        }
        match &query.process {
            Some(Process::Pid(pid)) => filter.add("pid = ?", [Value::Integer((*pid).into())]),
            Some(Process::Name(name)) => filter.add("process = ?", [text(name)]),
            None => {}
        }
        if let Some(stack) = &query.stack {
            // As the document has it; a search in all of it is cheap, and only what has it is parsed.
            let json = serde_json::Value::from(stack.as_str()).to_string();
            let inner = text(&json[1..json.len() - 1]);
            filter.add(
                "instr(document, ?) > 0 AND instr(document -> '$.kpulse.stack', ?) > 0",
                [inner.clone(), inner],
            );
        }
        filter
    }

    fn add<const N: usize>(&mut self, condition: &str, values: [Value; N]) {
        self.conditions.push(condition.to_owned());
        self.values.extend(values);
    }

    fn sql(&self, what: &str, order: &str) -> String {
        let all = if self.conditions.is_empty() { "1".to_owned() } else { self.conditions.join(" AND ") };
        format!("SELECT {what} FROM events WHERE {all} ORDER BY {order} LIMIT ?")
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}

const NEWEST_FIRST: &str = "time_ns DESC, seq DESC";

impl Reader {
    /// Opens the store of a gateway that runs or ran.
    pub fn open(path: &Path) -> Result<Self> {
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => bail!(
                "no event store at {}; start one with \"kpulse-event-gateway run\", or set KPULSE_STATE_DIR to where it runs",
                path.display()
            ),
            Err(error) => {
                bail!("cannot look for the event store {}: {error}; run as its owner", path.display())
            }
        }
        let open = || -> Result<Connection> {
            let connection = Connection::open_with_flags(
                path,
                OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?;
            connection.busy_timeout(super::BUSY)?;
            // Nothing is read before the first statement: an unreadable file must fail here.
            tables::check(&connection)?;
            Ok(connection)
        };
        let connection = open().with_context(|| format!("cannot read the event store {}", path.display()))?;
        Ok(Self(connection))
    }

    /// The matching documents, newest first.
    pub fn newest(&self, query: &Query) -> Result<Vec<String>> {
        self.rows(&Filter::of(query), "document", NEWEST_FIRST, query.limit, |row| row.get(0))
    }

    /// The newest of the matching events, by what [`Self::document`] takes, in the order of time.
    pub fn find(&self, query: &Query) -> Result<Vec<i64>> {
        let mut found: Vec<i64> =
            self.rows(&Filter::of(query), "seq", NEWEST_FIRST, query.limit, |row| row.get(0))?;
        found.reverse();
        Ok(found)
    }

    /// One document; `None` when retention was faster.
    pub fn document(&self, seq: i64) -> Result<Option<String>> {
        let mut statement = self.0.prepare_cached("SELECT document FROM events WHERE seq = ?")?;
        let mut rows = statement.query([seq])?;
        Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
    }

    /// What the last event that came is called.
    pub fn last(&self) -> Result<i64> {
        Ok(self.0.query_row("SELECT COALESCE(MAX(seq), 0) FROM events", [], |row| row.get(0))?)
    }

    /// The matching events that came after `seq`, in the order they came, each with its name.
    pub fn after(&self, seq: i64, query: &Query) -> Result<Vec<(i64, String)>> {
        let mut filter = Filter::of(query);
        filter.add("seq > ?", [Value::Integer(seq)]);
        self.rows(&filter, "seq, document", "seq", query.limit, |row| Ok((row.get(0)?, row.get(1)?)))
    }

    fn rows<T>(
        &self,
        filter: &Filter,
        what: &str,
        order: &str,
        limit: usize,
        read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let begin = Instant::now();
        self.0.progress_handler(STEPS, Some(move || begin.elapsed() > ANSWER_MAX))?;
        let mut statement = self.0.prepare_cached(&filter.sql(what, order))?;
        let limit = Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX));
        let values = filter.values.iter().cloned().chain([limit]);
        let rows = statement.query_map(rusqlite::params_from_iter(values), |row| read(row));
        let rows: rusqlite::Result<Vec<T>> = rows.and_then(Iterator::collect);
        rows.map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => anyhow!(
                "the search was given up after {} s; ask for a shorter time, a kind or a container",
                ANSWER_MAX.as_secs()
            ),
            _ => error.into(),
        })
    }

    /// How SQLite would find what is asked for.
    #[cfg(test)]
    pub(super) fn plan(&self, query: &Query) -> String {
        let filter = Filter::of(query);
        let sql = format!("EXPLAIN QUERY PLAN {}", filter.sql("seq", NEWEST_FIRST));
        let mut statement = self.0.prepare(&sql).unwrap();
        let values = filter.values.iter().cloned().chain([Value::Integer(10)]);
        let rows =
            statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
        rows.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
    }
}
