//! Prometheus' text format 0.0.4.
//!
//! `prometheus-client` writes OpenMetrics only, which this format's readers take for untyped counters and comments.

use super::{cumulative, sum_seconds};
use crate::metric::{Family, Histogram, MetricKind, Samples, Series, Value};
use std::fmt::Write;

/// The bytes of one series, so that the text grows without being copied often.
const SERIES_BYTES: usize = 96;

/// Writes all families.
pub fn encode(samples: &Samples) -> String {
    let lines: usize = samples.families().iter().map(lines).sum();
    let mut out = String::with_capacity(lines * SERIES_BYTES);
    for family in samples.families() {
        encode_family(family, &mut out);
    }
    out
}

fn lines(family: &Family) -> usize {
    let each = if family.def.kind == MetricKind::Histogram { crate::metric::HISTOGRAM_SLOTS + 2 } else { 1 };
    2 + family.series.len() * each
}

fn encode_family(family: &Family, out: &mut String) {
    let name = family.def.name;
    let kind = match family.def.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    };
    out.push_str("# HELP ");
    out.push_str(name);
    out.push(' ');
    escape(family.def.help, false, out);
    out.push_str("\n# TYPE ");
    out.push_str(name);
    out.push(' ');
    out.push_str(kind);
    out.push('\n');
    let label_names: Vec<_> = family.def.label_names().collect();
    let mut labels = String::new();
    for series in &family.series {
        labels.clear();
        encode_labels(&label_names, series, &mut labels);
        match &series.value {
            Value::Count(count) => sample(name, "", &labels, *count, out),
            Value::Number(number) => sample(name, "", &labels, Number(*number), out),
            Value::Histogram(histogram) => encode_histogram(name, &labels, histogram, out),
        }
    }
}

/// `a="1",b="2"`, with no braces, since a histogram adds `le` to them.
fn encode_labels(names: &[&str], series: &Series, out: &mut String) {
    for (index, (name, value)) in names.iter().zip(&series.labels).enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        escape(value, true, out);
        out.push('"');
    }
}

fn encode_histogram(name: &str, labels: &str, histogram: &Histogram, out: &mut String) {
    let mut with_bound = String::with_capacity(labels.len() + 40);
    for (bound, count) in cumulative(histogram) {
        with_bound.clear();
        with_bound.push_str(labels);
        if !labels.is_empty() {
            with_bound.push(',');
        }
        push(&mut with_bound, format_args!("le=\"{}\"", Bound(bound)));
        sample(name, "_bucket", &with_bound, count, out);
    }
    sample(name, "_sum", labels, Number(sum_seconds(histogram)), out);
    sample(name, "_count", labels, histogram.count(), out);
}

fn sample(name: &str, suffix: &str, labels: &str, value: impl std::fmt::Display, out: &mut String) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() {
        out.push('{');
        out.push_str(labels);
        out.push('}');
    }
    push(out, format_args!(" {value}\n"));
}

fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a String takes everything");
}

/// Backslash and newline, and in label values the quote too.
fn escape(text: &str, quotes: bool, out: &mut String) {
    // Nearly every text is plain, and this is where most of the writer's time would go.
    if !text.bytes().any(|byte| matches!(byte, b'\\' | b'\n' | b'"')) {
        out.push_str(text);
        return;
    }
    for part in text.split_inclusive(['\\', '\n', '"']) {
        let special = part.chars().next_back().filter(|last| matches!(last, '\\' | '\n' | '"'));
        let plain = special.map_or(part, |special| &part[..part.len() - special.len_utf8()]);
        out.push_str(plain);
        match special {
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('"') if quotes => out.push_str("\\\""),
            Some(other) => out.push(other),
            None => {}
        }
    }
}

/// A value, in the shortest form that reads back as the same number.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(number) = *self;
        match number {
            _ if number == f64::INFINITY => out.write_str("+Inf"),
            _ if number == f64::NEG_INFINITY => out.write_str("-Inf"),
            _ if number == 0.0 || (1e-6..1e17).contains(&number.abs()) => write!(out, "{number}"),
            // NaN is written as "NaN" by both.
            _ => write!(out, "{number:e}"),
        }
    }
}

/// The value of `le`. It is a label, so its spelling matters: the same as in OpenMetrics, where whole numbers
/// end in `.0`, or a change of format would look like new series.
struct Bound(f64);

impl std::fmt::Display for Bound {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(bound) = *self;
        if bound.is_finite() && bound.fract() == 0.0 {
            write!(out, "{bound:.1}")
        } else {
            write!(out, "{}", Number(bound))
        }
    }
}

#[cfg(test)]
mod tests;
