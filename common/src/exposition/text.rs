//! Prometheus' text format 0.0.4.
//!
//! `prometheus-client` writes OpenMetrics only, which this format's readers take for untyped counters and comments.

use super::{cumulative, sum_seconds};
use crate::metric::{Family, Histogram, MetricKind, Samples, Value};
use labels::Labels;
use number::{push_count, push_number};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

mod labels;
mod number;

/// How long the last text was: the next one is about as long, and grows without being copied.
static LAST_BYTES: AtomicUsize = AtomicUsize::new(16 << 10);

/// Writes all families.
pub fn encode(samples: &Samples) -> String {
    let last = LAST_BYTES.load(Ordering::Relaxed);
    let mut out = String::with_capacity(last + last / 16);
    let mut labels = Labels::default();
    for family in samples.families() {
        encode_family(family, &mut labels, &mut out);
    }
    LAST_BYTES.store(out.len(), Ordering::Relaxed);
    out
}

fn encode_family<'a>(family: &'a Family, labels: &mut Labels<'a>, out: &mut String) {
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
    for series in &family.series {
        let labels = labels.of(family.def.labels, series);
        match &series.value {
            Value::Count(count) => {
                begin(name, "", labels, out);
                push_count(*count, out);
            }
            Value::Number(number) => {
                begin(name, "", labels, out);
                push_number(*number, out);
            }
            Value::Histogram(histogram) => {
                encode_histogram(name, labels, histogram, out);
                continue;
            }
        }
        out.push('\n');
    }
}

fn encode_histogram(name: &str, labels: &str, histogram: &Histogram, out: &mut String) {
    for (bound, (_, count)) in bounds().iter().zip(cumulative(histogram)) {
        out.push_str(name);
        out.push_str("_bucket{");
        out.push_str(labels);
        if !labels.is_empty() {
            out.push(',');
        }
        out.push_str("le=\"");
        out.push_str(bound);
        out.push_str("\"} ");
        push_count(count, out);
        out.push('\n');
    }
    begin(name, "_sum", labels, out);
    push_number(sum_seconds(histogram), out);
    out.push('\n');
    begin(name, "_count", labels, out);
    push_count(histogram.count(), out);
    out.push('\n');
}

/// The values of `le`. They are labels, so their spelling matters: the same as in OpenMetrics, where whole numbers end
/// in `.0`, or a change of format would look like new series.
fn bounds() -> &'static [String] {
    static BOUNDS: OnceLock<Vec<String>> = OnceLock::new();
    BOUNDS.get_or_init(|| {
        let spell = |(bound, _): (f64, u64)| {
            let mut text = String::new();
            push_number(bound, &mut text);
            if bound.is_finite() && bound.fract() == 0.0 {
                text.push_str(".0");
            }
            text
        };
        cumulative(&Histogram::default()).map(spell).collect()
    })
}

/// A line as far as its value.
fn begin(name: &str, suffix: &str, labels: &str, out: &mut String) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() {
        out.push('{');
        out.push_str(labels);
        out.push('}');
    }
    out.push(' ');
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

#[cfg(test)]
mod tests;
