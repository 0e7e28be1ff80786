//! `kpulse-event-gateway import`: events of a file into the local store, one JSON document a line.

use crate::keys::Keys;
use crate::sink::local::{FILE, LocalSink, Retention, Row};
use anyhow::{Context, Result, anyhow};
use kpulse_common::cli::state_dir;
use kpulse_common::event::Event;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Longest line, with its end: an event with both stacks has some 10 KB.
const LINE_MAX: u64 = 1 << 20;
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
    let input: Box<dyn Read> = if flags.file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(&flags.file);
        Box::new(file.with_context(|| format!("cannot read the events of {}", flags.file.display()))?)
    };
    let mut store = LocalSink::open(&state_dir().join(FILE), Retention::default())?;
    let mut outcome = Outcome::default();
    let imported = import(BufReader::new(input), &mut store, &mut outcome);
    let Outcome { stored, known } = outcome;
    writeln!(io::stdout(), "{stored} events stored, {known} were there already").or_else(|error| {
        // A closed stdout does not change what was stored.
        if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
    })?;
    imported.with_context(|| format!("{} was imported up to a line that cannot be", flags.file.display()))
}

fn import(mut input: impl BufRead, store: &mut LocalSink, outcome: &mut Outcome) -> Result<()> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for number in 1_u64.. {
        let line = match read_line(&mut input).and_then(|line| line.map(|line| parse(&line)).transpose()) {
            Ok(Some(Some(event))) => event,
            // An empty line.
            Ok(Some(None)) => continue,
            Ok(None) => break,
            Err(error) => {
                store_batch(&mut batch, store, outcome)?;
                return Err(error.context(format!("line {number}")));
            }
        };
        bytes += line.json.len();
        batch.push(line);
        if batch.len() >= BATCH_MAX || bytes >= BATCH_BYTES_MAX {
            store_batch(&mut batch, store, outcome)?;
            bytes = 0;
        }
    }
    store_batch(&mut batch, store, outcome)
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

/// The next line without its end; `None` behind the last one.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    input.take(LINE_MAX).read_until(b'\n', &mut line).context("it cannot be read")?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 == LINE_MAX && line.last() != Some(&b'\n') {
        return Err(anyhow!("it is longer than {LINE_MAX} bytes, which no event is"));
    }
    let line = String::from_utf8(line).map_err(|_| anyhow!("it is not UTF-8"))?;
    Ok(Some(line.trim().to_owned()))
}

/// An event with what it is looked up by; `None` of an empty line.
fn parse(line: &str) -> Result<Option<Imported>> {
    if line.is_empty() {
        return Ok(None);
    }
    let event: Event = serde_json::from_str(line)
        .map_err(|error| anyhow!("it is not an event as \"events -o json\" prints them: {error}"))?;
    let time = humantime::parse_rfc3339(&event.timestamp)
        .map_err(|_| anyhow!("its @timestamp is not a time in UTC: {:?}", event.timestamp))?;
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    if event.event.id.is_empty() || event.event.action.is_empty() {
        return Err(anyhow!("its event.id or its event.action is empty"));
    }
    Ok(Some(Imported {
        time_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
        keys: Keys::of(&event),
        id: event.event.id,
        kind: event.event.action,
        json: line.to_owned(),
    }))
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
