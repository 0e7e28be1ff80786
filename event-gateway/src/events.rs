//! `kpulse-event-gateway events`: what is in the store, as a table or as JSON.

use crate::query::Query;
use crate::row::{HEADINGS, cells};
use crate::sink::local::{FILE, Reader};
use anyhow::Result;
use kpulse_common::cli::{Usage, state_dir};
use std::io::{self, Write};
use std::time::Duration;

/// Most events of one answer: their numbers take 8 MB.
const LIMIT_MAX: usize = 1_000_000;
/// Events that are read and printed at once.
const BATCH: usize = 1_000;
/// Time between two looks for new events.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

/// Flags of `events`.
#[derive(clap::Args, Debug)]
pub struct EventsFlags {
    /// From when on: a time span before now, or a time.
    #[arg(long, default_value = "5m", value_name = "SPAN|TIME")]
    since: String,
    /// Until when: likewise.
    #[arg(long, value_name = "SPAN|TIME", conflicts_with = "follow")]
    until: Option<String>,
    /// Only events of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Only events of this container: its id, the beginning of it, or its name.
    #[arg(long, value_name = "ID|NAME")]
    container: Option<String>,
    /// Only events of this pod: its name or its uid.
    #[arg(long, value_name = "NAME|UID")]
    pod: Option<String>,
    /// Only events of this process: its pid or its name.
    #[arg(long, value_name = "PID|NAME")]
    process: Option<String>,
    /// Only events with this text in a stack.
    #[arg(long, value_name = "TEXT")]
    stack: Option<String>,
    /// At most this many, the newest.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    limit: usize,
    /// Go on with those that come, until interrupted.
    #[arg(long)]
    follow: bool,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How to print events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// One line an event.
    Table,
    /// One document a line (NDJSON), as `import` reads it.
    Json,
}

impl EventsFlags {
    fn query(&self) -> Result<Query, Usage> {
        if !(1..=LIMIT_MAX).contains(&self.limit) {
            return Err(Usage(format!("--limit must be from 1 to {LIMIT_MAX}: {}", self.limit)));
        }
        let mut query = Query { limit: self.limit, ..Query::default() };
        let given = [
            ("since", Some(&self.since)),
            ("until", self.until.as_ref()),
            ("kind", self.kind.as_ref()),
            ("container", self.container.as_ref()),
            ("pod", self.pod.as_ref()),
            ("process", self.process.as_ref()),
            ("stack", self.stack.as_ref()),
        ];
        for (name, value) in given {
            if let Some(outcome) = value.and_then(|value| query.set(name, value)) {
                outcome.map_err(|why| Usage(format!("--{why}")))?;
            }
        }
        Ok(query)
    }
}

/// Prints the matching events in the order of time, then those that come when it is to follow.
pub fn run(flags: &EventsFlags) -> Result<()> {
    let query = flags.query()?;
    let reader = Reader::open(&state_dir().join(FILE))?;
    let mut printer =
        Printer { output: flags.output, widths: None, out: io::BufWriter::new(io::stdout().lock()) };
    match print(&reader, query, flags.follow, &mut printer) {
        // "| head" has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn print(reader: &Reader, mut query: Query, follow: bool, printer: &mut Printer<impl Write>) -> Result<()> {
    // Before the first look: what comes meanwhile has a larger number, and is seen by either.
    let mut last = reader.last()?;
    let found = reader.find(&query)?;
    for batch in found.chunks(BATCH) {
        let before_last = batch.iter().filter(|&&seq| !follow || seq <= last);
        let documents = before_last.filter_map(|&seq| reader.document(seq).transpose());
        printer.print(&documents.collect::<Result<Vec<_>>>()?)?;
    }
    if found.is_empty() {
        printer.print(&[])?;
    }
    if !follow {
        return Ok(());
    }
    query.limit = BATCH;
    loop {
        let came = reader.after(last, &query)?;
        last = came.last().map_or(last, |(seq, _)| *seq);
        printer.print(&came.iter().map(|(_, document)| document.clone()).collect::<Vec<_>>())?;
        if came.len() < BATCH {
            std::thread::sleep(FOLLOW_INTERVAL);
        }
    }
}

/// Writes documents as they come.
struct Printer<W> {
    output: Output,
    /// Of the columns so far; `None` before the headings.
    widths: Option<[usize; 6]>,
    out: W,
}

impl<W: Write> Printer<W> {
    fn print(&mut self, documents: &[String]) -> io::Result<()> {
        match self.output {
            Output::Json => documents.iter().try_for_each(|document| writeln!(self.out, "{document}"))?,
            Output::Table => self.table(documents)?,
        }
        self.out.flush()
    }

    /// Columns only grow wider, so that each batch is aligned.
    fn table(&mut self, documents: &[String]) -> io::Result<()> {
        let mut rows: Vec<[String; 6]> = documents.iter().map(|document| cells(document)).collect();
        if self.widths.is_none() {
            rows.insert(0, HEADINGS.map(str::to_owned));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let before = self.widths.unwrap_or_default();
        let widths = std::array::from_fn(|column| width(column).max(before[column]));
        self.widths = Some(widths);
        for [cells @ .., last] in &rows {
            for (cell, width) in cells.iter().zip(widths) {
                write!(self.out, "{cell:width$}  ")?;
            }
            writeln!(self.out, "{last}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_the_json_is_one_document_a_line() {
        let documents =
            [r#"{"event":{"action":"packet_drop"}}"#, r#"{"event":{"action":"x"}}"#].map(str::to_owned);
        let mut printer = Printer { output: Output::Table, widths: None, out: Vec::new() };
        printer.print(&documents[..1]).unwrap();
        printer.print(&documents[1..]).unwrap();
        assert_eq!(
            String::from_utf8(printer.out).unwrap(),
            "TIME  KIND         VALUE  PROCESS  CONTAINER  DETAIL\n\
             -     packet_drop  -      -        -          -\n\
             -     x            -      -        -          -\n"
        );
        let mut printer = Printer { output: Output::Json, widths: None, out: Vec::new() };
        printer.print(&documents).unwrap();
        assert_eq!(String::from_utf8(printer.out).unwrap(), documents.join("\n") + "\n");
    }
}
