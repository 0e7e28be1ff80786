//! `kpulse-event-gateway events`: what is in the store, as a table or as JSON.

use crate::api::since;
use crate::row::{HEADINGS, cells};
use crate::sink::local::{FILE, Query, Reader};
use anyhow::Result;
use kpulse_common::cli::{Usage, state_dir};
use std::io::{self, Write};

/// Flags of `events`.
#[derive(clap::Args, Debug)]
pub struct EventsFlags {
    /// From when on: a time span before now, or a time.
    #[arg(long, default_value = "5m", value_name = "SPAN|TIME")]
    since: String,
    /// Only events of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// At most this many, the newest.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    limit: usize,
    /// Only events of this container; the beginning of its id is enough.
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Only events of this process.
    #[arg(long)]
    pid: Option<u32>,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How to print events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// One line an event.
    Table,
    /// One JSON array, one event a line.
    Json,
}

/// Prints the matching events in the order of time.
pub fn run(flags: EventsFlags) -> Result<()> {
    let query = Query {
        since: Some(since::parse(&flags.since).map_err(|why| Usage(format!("--{why}")))?),
        kind: flags.kind,
        container: flags.container,
        pid: flags.pid,
        limit: flags.limit,
    };
    let mut documents = Reader::open(&state_dir().join(FILE))?.newest(&query)?;
    documents.reverse();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = match flags.output {
        Output::Table => table(&documents, &mut out),
        Output::Json => json(&documents, &mut out),
    };
    match printed.and_then(|()| out.flush()) {
        // "| head" has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn json(documents: &[String], out: &mut impl Write) -> io::Result<()> {
    if documents.is_empty() {
        return writeln!(out, "[]");
    }
    writeln!(out, "[\n{}\n]", documents.join(",\n"))
}

fn table(documents: &[String], out: &mut impl Write) -> io::Result<()> {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(documents.iter().map(|document| cells(document)));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for [cells @ .., last] in &rows {
        for (cell, width) in cells.iter().zip(widths) {
            write!(out, "{cell:width$}  ")?;
        }
        writeln!(out, "{last}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_the_json_is_one_array() {
        let documents =
            [r#"{"event":{"action":"packet_drop"}}"#, r#"{"event":{"action":"x"}}"#].map(str::to_owned);
        let mut out = Vec::new();
        table(&documents, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "TIME  KIND         VALUE  PROCESS  CONTAINER  DETAIL\n\
             -     packet_drop  -      -        -          -\n\
             -     x            -      -        -          -\n"
        );
        for documents in [&documents[..], &[]] {
            let mut out = Vec::new();
            json(documents, &mut out).unwrap();
            let parsed: Vec<serde_json::Value> = serde_json::from_slice(&out).unwrap();
            assert_eq!(parsed.len(), documents.len());
        }
    }
}
