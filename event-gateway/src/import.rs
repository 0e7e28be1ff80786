//! `kpulse-event-gateway import`: events of a file into the local store, one JSON document a line.

use crate::keys::Keys;
use crate::lines::{self, Line, Lines};
use crate::sink::local::{FILE, LocalSink, Retention, Row};
use anyhow::{Context, Result};
use kpulse_common::cli::state_dir;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Events stored at once. With [`BATCH_BYTES_MAX`] the bound of the memory that is used.
const BATCH_MAX: usize = 1_000;
/// Bytes of documents stored at once.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// Flags of `import`.
#[derive(clap::Args, Debug)]
pub struct ImportFlags {
    /// File with one document a line, as `events -o json` prints them; `-` reads from stdin.
    file: PathBuf,
}

/// An event that waits to be stored.
struct Imported {
    id: String,
    time_ns: i64,
    kind: String,
    keys: Keys,
    json: String,
}

/// What became of the lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    stored: usize,
    known: usize,
}

/// Imports; what comes before a line that is no event is stored.
pub fn run(flags: &ImportFlags) -> Result<()> {
    let input = lines::open(&flags.file)?;
    let mut store = LocalSink::open(&state_dir().join(FILE), Retention::default())?;
    let mut outcome = Outcome::default();
    let imported = import(input, &mut store, &mut outcome);
    let Outcome { stored, known } = outcome;
    writeln!(io::stdout(), "{stored} events stored, {known} were there already").or_else(|error| {
        // A closed stdout does not change what was stored.
        if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
    })?;
    imported.with_context(|| format!("{} was imported up to a line that cannot be", flags.file.display()))
}

fn import(input: impl BufRead, store: &mut LocalSink, outcome: &mut Outcome) -> Result<()> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut lines = Lines::new(input);
    let broken = loop {
        let line: Imported = match lines.next() {
            Some(Ok(line)) => line.into(),
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        };
        bytes += line.json.len();
        batch.push(line);
        if batch.len() >= BATCH_MAX || bytes >= BATCH_BYTES_MAX {
            store_batch(&mut batch, store, outcome)?;
            bytes = 0;
        }
    };
    store_batch(&mut batch, store, outcome)?;
    broken
}

fn store_batch(batch: &mut Vec<Imported>, store: &mut LocalSink, outcome: &mut Outcome) -> Result<()> {
    let rows = batch.iter().map(|it| Row {
        id: &it.id,
        time_ns: it.time_ns,
        kind: &it.kind,
        json: &it.json,
        keys: &it.keys,
    });
    let stored = store.import(rows)?;
    outcome.stored += stored;
    outcome.known += batch.len() - stored;
    batch.clear();
    Ok(())
}

impl From<Line> for Imported {
    fn from(Line { event, time, json }: Line) -> Self {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            time_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
            keys: Keys::of(&event),
            id: event.event.id,
            kind: event.event.action,
            json,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;
    use crate::sink::local::Reader;

    fn line(id: &str, second: u32) -> String {
        let event = serde_json::json!({
            "@timestamp": format!("2026-11-21T10:00:{second:02}.000000001Z"),
            "ecs": {"version": "8.17"},
            "event": {"id": id, "kind": "event", "module": "kpulse", "dataset": "kpulse.events", "action": "packet_drop"},
            "host": {},
            "kpulse": {"schema": 1, "probe": "packet_drop", "cpu": 0, "suppressed": 0, "packet_drop": {}},
        });
        event.to_string()
    }

    fn imported(text: &str) -> (Vec<String>, Outcome, Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let mut store = LocalSink::open(&path, Retention::default()).unwrap();
        let mut outcome = Outcome::default();
        let result = import(text.as_bytes(), &mut store, &mut outcome);
        let all = Query { limit: usize::MAX, ..Query::default() };
        let mut documents = Reader::open(&path).unwrap().newest(&all).unwrap();
        documents.reverse();
        (documents, outcome, result)
    }

    #[test]
    fn what_was_exported_comes_back_once_in_the_order_of_time() {
        let (first, second) = (line("b", 1), line("a", 2));
        let (documents, outcome, result) = imported(&format!("{second}\n\n{first}\r\n{second}"));
        result.unwrap();
        assert_eq!(documents, [first, second]);
        assert_eq!(outcome, Outcome { stored: 2, known: 1 });
    }

    #[test]
    fn a_bad_line_is_named_and_costs_nothing_before_it() {
        let good = line("a", 1);
        let long = format!("\"{}\"", "x".repeat(2 << 20));
        let late = line("b", 2).replace("2026-11-21T", "yesterday ");
        let nameless = line("", 2);
        for (bad, word) in [
            ("{", "EOF"),
            ("[]", "is not an event"),
            ("{\"a\":null}", "missing field"),
            (&*long, "longer than"),
            (&*late, "@timestamp"),
            (&*nameless, "event.id"),
        ] {
            let (documents, outcome, result) = imported(&format!("{good}\n\n{bad}\n{}", line("c", 3)));
            let error = format!("{:#}", result.unwrap_err());
            assert!(error.starts_with("line 3: ") && error.contains(word), "{error}");
            assert_eq!((documents.len(), outcome.stored), (1, 1), "{error}");
        }
    }
}
