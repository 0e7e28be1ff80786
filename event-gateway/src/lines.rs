//! Events of a file, one JSON document a line, as `events -o json` prints them.

use anyhow::{Context, Result, anyhow};
use kpulse_common::event::Event;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::SystemTime;

/// Longest line, with its end: an event with both stacks has some 10 KB.
const LINE_MAX: u64 = 1 << 20;

/// Opens a file; `-` is stdin.
pub fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path);
    let file = file.with_context(|| format!("cannot read the events of {}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

/// An event as it was written, and taken apart.
#[derive(Debug)]
pub struct Line {
    pub event: Event,
    pub time: SystemTime,
    pub json: String,
}

/// The events of a file up to the first line that is none, which is named.
pub struct Lines<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Self { input, number: 0 }
    }

    fn line(&mut self) -> Result<Option<Line>> {
        loop {
            self.number += 1;
            match read_line(&mut self.input)? {
                None => return Ok(None),
                Some(line) if line.is_empty() => {}
                Some(line) => return parse(line).map(Some),
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.line().transpose()?;
        Some(line.with_context(|| format!("line {}", self.number)))
    }
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

fn parse(json: String) -> Result<Line> {
    let event: Event = serde_json::from_str(&json)
        .map_err(|error| anyhow!("it is not an event as \"events -o json\" prints them: {error}"))?;
    let time = humantime::parse_rfc3339(&event.timestamp)
        .map_err(|_| anyhow!("its @timestamp is not a time in UTC: {:?}", event.timestamp))?;
    if event.event.id.is_empty() || event.event.action.is_empty() {
        return Err(anyhow!("its event.id or its event.action is empty"));
    }
    Ok(Line { event, time, json })
}
