//! Which events does the store hold? Reading, beside a writer that goes on.

use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OpenFlags, types::Value};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What to look for. An absent condition matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Not older than this.
    pub since: Option<SystemTime>,
    /// Kind of the event.
    pub kind: Option<String>,
    /// The container id, or the beginning of it.
    pub container: Option<String>,
    /// The process.
    pub pid: Option<u32>,
    /// The newest this many.
    pub limit: usize,
}

/// The reading end of the store.
#[derive(Debug)]
pub struct Reader(Connection);

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
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open_with_flags(
                path,
                OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )?;
            connection.busy_timeout(Duration::from_secs(2))?;
            // Nothing is read before the first statement: an unreadable file must fail here.
            connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_| Ok(()))?;
            Ok(connection)
        };
        let connection = open().with_context(|| format!("cannot read the event store {}", path.display()))?;
        Ok(Self(connection))
    }

    /// The matching documents, newest first.
    pub fn newest(&self, query: &Query) -> Result<Vec<String>> {
        let mut conditions = Vec::new();
        let mut values = Vec::new();
        let mut add = |condition: &'static str, value: Value| {
            conditions.push(condition);
            values.push(value);
        };
        if let Some(since) = query.since {
            let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            add("time_ns >= ?", Value::Integer(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)));
        }
        if let Some(kind) = &query.kind {
            add("kind = ?", Value::Text(kind.clone()));
        }
        if let Some(container) = &query.container {
            add("instr(container, ?) = 1", Value::Text(container.clone()));
        }
        if let Some(pid) = query.pid {
            add("pid = ?", Value::Integer(pid.into()));
        }
        let filter = if conditions.is_empty() { "1".to_owned() } else { conditions.join(" AND ") };
        values.push(Value::Integer(i64::try_from(query.limit).unwrap_or(i64::MAX)));
        let sql =
            format!("SELECT document FROM events WHERE {filter} ORDER BY time_ns DESC, seq DESC LIMIT ?");
        let mut statement = self.0.prepare(&sql)?;
        let rows = statement.query_map(rusqlite::params_from_iter(values), |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
