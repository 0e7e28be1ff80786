//! The tables of the store, and how those of an older version become them.

use anyhow::{Result, bail};
use rusqlite::Connection;

/// Version of the tables, in `PRAGMA user_version`.
pub(super) const VERSION: i64 = 2;

/// Names, pods and uids that an event may be looked for by; version 1 had none of these columns.
const NEW_COLUMNS: [(&str, &str); 4] = [
    ("process", "COALESCE(document ->> '$.process.name', document ->> '$.process.thread.name')"),
    ("container_name", "document ->> '$.container.name'"),
    ("pod", "document ->> '$.kubernetes.pod.name'"),
    ("pod_uid", "document ->> '$.kubernetes.pod.uid'"),
];

const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS events (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        time_ns INTEGER NOT NULL,
        kind TEXT NOT NULL,
        pid INTEGER,
        container TEXT,
        document TEXT NOT NULL,
        process TEXT,
        container_name TEXT,
        pod TEXT,
        pod_uid TEXT
    );
";

/// Every condition of a query but the text has its index; most events have no pod and no container.
const INDEXES: &str = "
    CREATE INDEX IF NOT EXISTS events_by_time ON events (time_ns);
    CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind, time_ns);
    CREATE INDEX IF NOT EXISTS events_by_pid ON events (pid, time_ns) WHERE pid IS NOT NULL;
    CREATE INDEX IF NOT EXISTS events_by_process ON events (process, time_ns) WHERE process IS NOT NULL;
    CREATE INDEX IF NOT EXISTS events_by_container ON events (container, time_ns) WHERE container IS NOT NULL;
    CREATE INDEX IF NOT EXISTS events_by_container_name ON events (container_name, time_ns)
        WHERE container_name IS NOT NULL;
    CREATE INDEX IF NOT EXISTS events_by_pod ON events (pod, time_ns) WHERE pod IS NOT NULL;
    CREATE INDEX IF NOT EXISTS events_by_pod_uid ON events (pod_uid, time_ns) WHERE pod_uid IS NOT NULL;
";

/// An error for a store that only a newer version can write to.
pub(super) fn refuse_newer(connection: &Connection) -> Result<()> {
    match version(connection)? {
        newer if newer > VERSION => {
            bail!("it was written by a newer version (tables {newer}, known {VERSION})")
        }
        _ => Ok(()),
    }
}

/// Makes the tables, or brings them to this version, whole or not at all.
pub(super) fn prepare(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    match version(&transaction)? {
        0 => transaction.execute_batch(TABLE)?,
        1 => {
            for (column, from) in NEW_COLUMNS {
                transaction.execute_batch(&format!("ALTER TABLE events ADD COLUMN {column} TEXT;"))?;
                transaction.execute(&format!("UPDATE events SET {column} = {from}"), [])?;
            }
        }
        _ => refuse_newer(&transaction)?,
    }
    transaction.execute_batch(INDEXES)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

/// Refuses to read what this version does not know.
pub(super) fn check(connection: &Connection) -> Result<()> {
    refuse_newer(connection)?;
    if version(connection)? < VERSION {
        bail!(
            "an older version wrote it; start \"kpulse-event-gateway run\" once, which brings it up to date"
        );
    }
    Ok(())
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}
