//! OpenMetrics 1.0, through `prometheus-client`.

use super::sum_seconds;
use crate::metric::{Family, MetricKind, Samples, Series, Value, histogram_bound};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::encoding::{EncodeLabel, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

/// Writes all families, with `# EOF` at the end.
///
/// # Errors
/// When a value cannot be written; the formatter gives no reason.
pub fn encode(samples: &Samples) -> Result<String, fmt::Error> {
    encode_owned(samples.clone())
}

/// As [`encode`], without the copy that a registry needs.
///
/// # Errors
/// As [`encode`].
pub fn encode_owned(samples: Samples) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(samples)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

#[derive(Debug)]
struct Scrape(Samples);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.0.families().iter().try_for_each(|family| encode_family(family, &mut encoder))
    }
}

fn encode_family(family: &Family, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let def = &family.def;
    // OpenMetrics names a counter's family without the suffix that its sample has.
    let (name, kind) = match def.kind {
        MetricKind::Counter => (def.name.strip_suffix("_total").unwrap_or(def.name), MetricType::Counter),
        MetricKind::Gauge => (def.name, MetricType::Gauge),
        MetricKind::Histogram => (def.name, MetricType::Histogram),
    };
    let mut metric = encoder.encode_descriptor(name, &escape_help(def.help), None, kind)?;
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
        (_, Value::Histogram(histogram)) => {
            let bounds = (0..).map(|index| histogram_bound(index).unwrap_or(f64::INFINITY));
            let buckets: Vec<_> = bounds.zip(histogram.slots).collect();
            metric.encode_histogram::<NoLabelSet>(sum_seconds(histogram), histogram.count(), &buckets, None)
        }
    }
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
