//! The metric model: what a family is, and the samples of one scrape.
//!
//! A probe or a `/proc` collector declares its families as constants and fills a [`Samples`] once a scrape;
//! `exposition` turns that into the wire formats. Neither side knows the other.

use std::sync::Arc;

/// Number of finite histogram bounds; bound `i` is `2^(i + FIRST_EXPONENT)` seconds.
pub const HISTOGRAM_BOUNDS: usize = 26;
/// Slots of a histogram: one for each bound, and one for everything above the last.
pub const HISTOGRAM_SLOTS: usize = HISTOGRAM_BOUNDS + 1;
/// Exponent of the first bound: 2^-20 s, about 0.95 µs. The last is 2^5 s.
pub const FIRST_EXPONENT: i32 = -20;

/// Upper bound of slot `index` in seconds, inclusive as Prometheus' `le`; `None` for the last slot.
pub fn histogram_bound(index: usize) -> Option<f64> {
    let exponent = FIRST_EXPONENT + i32::try_from(index).ok()?;
    (index < HISTOGRAM_BOUNDS).then(|| 2f64.powi(exponent))
}

/// What a family's values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// A count that only grows while the process lives.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Durations, counted in slots of powers of two seconds.
    Histogram,
}

/// A label of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// The four container labels, equal to kubelet's: `namespace`, `pod`, `container`, `container_id`.
    Container,
    /// One label of this name. Its values must be bounded: never a pid, an address or a path.
    Named(&'static str),
}

/// The names that [`Label::Container`] stands for, in order.
pub const CONTAINER_LABELS: [&str; 4] = ["namespace", "pod", "container", "container_id"];

/// The declaration of one metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricDef {
    /// Full name as Prometheus sees it, with prefix, unit and, for a counter, `_total`.
    pub name: &'static str,
    /// One sentence, the HELP text.
    pub help: &'static str,
    /// What the values mean.
    pub kind: MetricKind,
    /// Labels in the order in which a series gives their values.
    pub labels: &'static [Label],
}

impl MetricDef {
    /// A counter; its name ends in `_total`.
    pub const fn counter(name: &'static str, help: &'static str, labels: &'static [Label]) -> Self {
        Self { name, help, kind: MetricKind::Counter, labels }
    }

    /// A gauge.
    pub const fn gauge(name: &'static str, help: &'static str, labels: &'static [Label]) -> Self {
        Self { name, help, kind: MetricKind::Gauge, labels }
    }

    /// A histogram of durations; its name ends in `_seconds`.
    pub const fn histogram(name: &'static str, help: &'static str, labels: &'static [Label]) -> Self {
        Self { name, help, kind: MetricKind::Histogram, labels }
    }

    /// Label names, with [`Label::Container`] spelled out.
    pub fn label_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.labels
            .iter()
            .flat_map(|label| match label {
                Label::Container => CONTAINER_LABELS.as_slice(),
                Label::Named(name) => std::slice::from_ref(name),
            })
            .copied()
    }
}

/// Durations counted in slots, not cumulative; the sum is exact, not estimated from the slots.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// How many durations fell into each slot.
    pub slots: [u64; HISTOGRAM_SLOTS],
    /// Sum of all durations in nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Adds another histogram to this one.
    pub fn add(&mut self, other: &Self) {
        for (slot, more) in self.slots.iter_mut().zip(other.slots) {
            *slot = slot.wrapping_add(more);
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }

    /// The bound in seconds under which a share of `quantile` (0..=1) falls; `None` when empty, or above the last bound.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (quantile * count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let index = self.slots.iter().position(|slot| {
            seen += slot;
            seen >= rank
        })?;
        histogram_bound(index)
    }
}

/// The value of one series.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole count.
    Count(u64),
    /// A measured quantity.
    Number(f64),
    /// Durations.
    Histogram(Box<Histogram>),
}

/// One series: label values in the order of [`MetricDef::label_names`], and the value.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Values of the labels; as many as the family has label names. Shared, since most series live from scrape to scrape.
    pub labels: Arc<[Arc<str>]>,
    /// The value.
    pub value: Value,
}

/// A family with its series.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// The declaration.
    pub def: MetricDef,
    /// The series; a label set appears once.
    pub series: Vec<Series>,
}

/// Everything that one scrape found. A family without series is left out: absent is not zero.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Samples {
    families: Vec<Family>,
}

impl Samples {
    /// Adds one series to a family.
    ///
    /// # Panics
    /// In debug builds, when the number of label values is not the number of label names.
    pub fn push(&mut self, def: &MetricDef, labels: impl Into<Arc<[Arc<str>]>>, value: Value) {
        self.extend(def, [Series { labels: labels.into(), value }]);
    }

    /// Adds series to a family.
    ///
    /// # Panics
    /// As [`Self::push`].
    pub fn extend(&mut self, def: &MetricDef, series: impl IntoIterator<Item = Series>) {
        let mut series = series.into_iter().inspect(|series| {
            debug_assert_eq!(series.labels.len(), def.label_names().count(), "label values of {}", def.name);
        });
        // Series of one family arrive together, so the last family is nearly always the right one.
        if let Some(family) = self.families.iter_mut().rev().find(|family| family.def.name == def.name) {
            family.series.extend(series);
        } else if let Some(first) = series.next() {
            let series = std::iter::once(first).chain(series).collect();
            self.families.push(Family { def: *def, series });
        }
    }

    /// Adds a whole count.
    pub fn count(&mut self, def: &MetricDef, labels: &[&str], value: u64) {
        self.push(def, values(labels), Value::Count(value));
    }

    /// Adds a measured quantity.
    pub fn number(&mut self, def: &MetricDef, labels: &[&str], value: f64) {
        self.push(def, values(labels), Value::Number(value));
    }

    /// Adds a histogram.
    pub fn histogram(&mut self, def: &MetricDef, labels: &[&str], value: Histogram) {
        self.push(def, values(labels), Value::Histogram(Box::new(value)));
    }

    /// The families in the order in which they were first filled.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// Moves the families of `other` behind these.
    pub fn append(&mut self, other: Self) {
        for mut family in other.families {
            match self.families.iter_mut().find(|known| known.def.name == family.def.name) {
                Some(known) => known.series.append(&mut family.series),
                None => self.families.push(family),
            }
        }
    }
}

fn values(labels: &[&str]) -> Arc<[Arc<str>]> {
    labels.iter().map(|&label| label.into()).collect()
}
