//! Samples as a registry of `prometheus-client`, which writes OpenMetrics and protobuf.

use super::sum_seconds;
use crate::metric::{
    FIRST_EXPONENT, Family, HISTOGRAM_SLOTS, Histogram, MetricKind, Samples, Series, Value, histogram_bound,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NativeHistogram,
    NativeHistogramBuckets, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

/// The schema of native histograms whose buckets end at powers of two, as our slots do.
const POWERS_OF_TWO: i32 = 0;

/// How the format wants the HELP text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Help {
    /// Backslash, newline and quote escaped.
    Escaped,
    /// As it is.
    Verbatim,
}

/// A registry that tells these samples, once.
pub(super) fn registry(samples: Samples, help: Help) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { samples, help }));
    registry
}

#[derive(Debug)]
struct Scrape {
    samples: Samples,
    help: Help,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.samples.families().iter().try_for_each(|family| encode_family(family, self.help, &mut encoder))
    }
}

fn encode_family(family: &Family, help: Help, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let def = &family.def;
    // OpenMetrics names a counter's family without the suffix that its sample has; the encoders add it.
    let (name, kind) = match def.kind {
        MetricKind::Counter => (def.name.strip_suffix("_total").unwrap_or(def.name), MetricType::Counter),
        MetricKind::Gauge => (def.name, MetricType::Gauge),
        MetricKind::Histogram => (def.name, MetricType::Histogram),
    };
    let help = match help {
        Help::Escaped => escape_help(def.help),
        Help::Verbatim => def.help.to_owned(),
    };
    let mut metric = encoder.encode_descriptor(name, &help, None, kind)?;
    let names: Vec<_> = def.label_names().collect();
    for series in &family.series {
        let labels = Labels { names: &names, values: &series.labels };
        if names.is_empty() {
            encode_value(def.kind, series, &mut metric)?;
        } else {
            encode_value(def.kind, series, &mut metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_value(kind: MetricKind, series: &Series, metric: &mut MetricEncoder) -> fmt::Result {
    let no_exemplar: Option<&Exemplar<NoLabelSet, f64>> = None;
    match (kind, &series.value) {
        (MetricKind::Counter, Value::Count(count)) => metric.encode_counter(count, no_exemplar),
        (MetricKind::Counter, Value::Number(number)) => metric.encode_counter(number, no_exemplar),
        (_, Value::Count(count)) => metric.encode_gauge(count),
        (_, Value::Number(number)) => metric.encode_gauge(number),
        (_, Value::Histogram(histogram)) => encode_histogram(histogram, metric),
    }
}

/// Classic buckets, and native ones for the format that has them.
fn encode_histogram(histogram: &Histogram, metric: &mut MetricEncoder) -> fmt::Result {
    let bounds = (0..).map(|index| histogram_bound(index).unwrap_or(f64::INFINITY));
    let classic: Vec<_> = bounds.zip(histogram.slots).collect();
    let (sum, count) = (sum_seconds(histogram), histogram.count());
    let (spans, deltas) = native_buckets(&histogram.slots);
    let native = NativeHistogram {
        schema: POWERS_OF_TWO,
        // The first slot holds everything up to its bound, nothing included: that is what the zero bucket is.
        zero_threshold: histogram_bound(0).unwrap_or_default(),
        zero_count: histogram.slots[0],
        negative: NativeHistogramBuckets { spans: &[], deltas: &[] },
        positive: NativeHistogramBuckets { spans: &spans, deltas: &deltas },
        created: None,
    };
    metric.encode_histogram_with_native::<NoLabelSet>(sum, count, &classic, None, native)
}

/// Runs of slots that counted something, as (distance from the run before, length), and each slot's difference from
/// the slot before it in the runs.
///
/// Bucket `i` of schema 0 holds (2^(i-1), 2^i], so slot `s` is bucket `s + FIRST_EXPONENT`. The last slot has no upper
/// bound, which a native histogram cannot say; it becomes the bucket above the last bound.
fn native_buckets(slots: &[u64; HISTOGRAM_SLOTS]) -> (Vec<(i32, u32)>, Vec<i64>) {
    let (mut spans, mut deltas): (Vec<(i32, u32)>, Vec<i64>) = (Vec::new(), Vec::new());
    let (mut next_bucket, mut before) = (0, 0i64);
    for (bucket, &count) in (FIRST_EXPONENT..).zip(slots).skip(1).filter(|(_, count)| **count > 0) {
        match spans.last_mut() {
            Some((_, length)) if bucket == next_bucket => *length += 1,
            _ => spans.push((bucket - next_bucket, 1)),
        }
        next_bucket = bucket + 1;
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        deltas.push(count - before);
        before = count;
    }
    (spans, deltas)
}

fn escape_help(help: &str) -> String {
    help.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[derive(Debug)]
struct Labels<'a> {
    names: &'a [&'static str],
    values: &'a [Arc<str>],
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        for (name, value) in self.names.iter().zip(self.values) {
            (*name, value.as_ref()).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
