//! Labels as text, written once for each container of a scrape instead of once for each series.

use super::escape;
use crate::metric::{CONTAINER_LABELS, Label, Series};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Writes labels, and keeps those of containers while the samples of one scrape live.
#[derive(Default)]
pub(super) struct Labels<'a> {
    /// Where `texts` holds the labels of a container, by where the values are in memory: two containers' values are in
    /// two places for as long as the samples are borrowed. Bound: the series of one scrape.
    known: HashMap<[usize; 4], Range<usize>>,
    texts: String,
    line: String,
    samples: PhantomData<&'a Series>,
}

impl<'a> Labels<'a> {
    /// `a="1",b="2"`, with no braces, since a histogram adds `le` to them.
    pub(super) fn of(&mut self, names: &[Label], series: &'a Series) -> &str {
        let mut values = &series.labels[..];
        if let ([Label::Container], [a, b, c, d]) = (names, values) {
            let range = self.container([a, b, c, d]);
            return &self.texts[range];
        }
        self.line.clear();
        for name in names {
            match (name, values) {
                (Label::Container, [a, b, c, d, rest @ ..]) => {
                    let range = self.container([a, b, c, d]);
                    separate(&mut self.line);
                    self.line.push_str(&self.texts[range]);
                    values = rest;
                }
                (Label::Named(name), [value, rest @ ..]) => {
                    separate(&mut self.line);
                    push_label(name, value, &mut self.line);
                    values = rest;
                }
                // A series with too few values has no more labels.
                _ => break,
            }
        }
        &self.line
    }

    fn container(&mut self, values: [&'a Arc<str>; 4]) -> Range<usize> {
        match self.known.entry(values.map(|value| value.as_ptr().addr())) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(unknown) => {
                let start = self.texts.len();
                for (name, value) in CONTAINER_LABELS.into_iter().zip(values) {
                    if name != CONTAINER_LABELS[0] {
                        self.texts.push(',');
                    }
                    push_label(name, value, &mut self.texts);
                }
                unknown.insert(start..self.texts.len()).clone()
            }
        }
    }
}

fn separate(line: &mut String) {
    if !line.is_empty() {
        line.push(',');
    }
}

fn push_label(name: &str, value: &str, out: &mut String) {
    out.push_str(name);
    out.push_str("=\"");
    escape(value, true, out);
    out.push('"');
}
