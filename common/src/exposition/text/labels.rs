//! Labels as text, written once for each container of a scrape instead of once for each series.

use super::escape;
use crate::metric::{CONTAINER_LABELS, Label, Series};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Where the values of a container's labels are in memory: two containers' values are in two places for as long as the
/// samples are borrowed.
type Addresses = [usize; 4];

/// Mixes addresses, which nobody chooses to collide.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for address in bytes.chunks(size_of::<u64>()) {
            let word = address.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            // 2^64 divided by the golden ratio spreads what differs in few bits.
            self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Writes labels, and keeps those of containers while the samples of one scrape live.
#[derive(Default)]
pub(super) struct Labels<'a> {
    /// Where `texts` holds the labels of a container. Bound: the series of one scrape.
    known: HashMap<Addresses, Range<usize>, BuildHasherDefault<AddressHasher>>,
    texts: String,
    /// The container of the series before, which is often that of the next one.
    last: (Addresses, Range<usize>),
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
        let addresses = values.map(|value| value.as_ptr().addr());
        if self.last.0 == addresses {
            return self.last.1.clone();
        }
        let range = match self.known.entry(addresses) {
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
        };
        self.last = (addresses, range.clone());
        range
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
