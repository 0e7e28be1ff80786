use super::*;
use crate::exposition::openmetrics;
use crate::metric::{Label, MetricDef, histogram_bound};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A sample as the wire has it.
#[derive(Debug, Clone, PartialEq)]
struct Parsed {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A reader of both text formats, written from their grammars and not from the writer.
#[derive(Debug, Default)]
struct Page {
    types: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
    samples: Vec<Parsed>,
}

fn parse(text: &str) -> Page {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line ends");
    let mut page = Page::default();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(page.types.insert(name.into(), kind.into()).is_none(), "one TYPE for {name}");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(page.helps.insert(name.into(), help.into()).is_none(), "one HELP for {name}");
        } else {
            page.samples.push(parse_sample(line));
        }
    }
    page
}

fn parse_sample(line: &str) -> Parsed {
    let name_end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, tail) = rest.split_once("=\"").unwrap();
            let (value, tail) = parse_quoted(tail);
            assert!(labels.insert(label.to_owned(), value).is_none(), "label {label} once");
            rest = tail.strip_prefix(',').unwrap_or(tail);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap();
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        value => value.parse().unwrap(),
    };
    Parsed { name: name.into(), labels, value }
}

/// The value up to its closing quote, and what follows the quote.
fn parse_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => value.push(match characters.next().unwrap().1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                other => panic!("\\{other} is no escape"),
            }),
            other => value.push(other),
        }
    }
    panic!("no closing quote in {text:?}");
}

const COUNTER: MetricDef =
    MetricDef::counter("test_things_total", "Things \\ with\na \"quote\".", &[Label::Named("kind")]);
const GAUGE: MetricDef = MetricDef::gauge("test_level", "A level.", &[]);
const LATENCY: MetricDef =
    MetricDef::histogram("test_latency_seconds", "A latency.", &[Label::Named("device"), Label::Container]);

fn histogram() -> impl Strategy<Value = Histogram> {
    (prop::collection::vec(0u64..1_000_000, crate::metric::HISTOGRAM_SLOTS), any::<u32>())
        .prop_map(|(slots, sum)| Histogram { slots: slots.try_into().unwrap(), sum_ns: sum.into() })
}

/// Label values as containers and devices may have them: anything, and often what needs an escape.
fn label() -> impl Strategy<Value = String> {
    prop_oneof!["[\"\\\\\n{}=, é#]{0,8}", "\\PC{0,12}", "(?s).{0,6}"]
}

fn one(page: &Page, name: &str) -> Parsed {
    let mut found = page.samples.iter().filter(|sample| sample.name == name);
    let sample = found.next().unwrap().clone();
    assert!(found.next().is_none(), "{name} once");
    sample
}

proptest! {
    #[test]
    fn reads_back_what_was_written(kind in label(), count: u64, level: f64) {
        let mut samples = Samples::default();
        samples.count(&COUNTER, &[&kind], count);
        samples.number(&GAUGE, &[], level);
        let page = parse(&encode(&samples));
        let counter = one(&page, "test_things_total");
        prop_assert_eq!(&counter.labels["kind"], &kind);
        prop_assert_eq!(counter.value, count as f64);
        let read = one(&page, "test_level").value;
        prop_assert!(read == level || (read.is_nan() && level.is_nan()), "{} became {}", level, read);
        prop_assert_eq!(&page.types["test_things_total"], "counter");
        prop_assert_eq!(&page.types["test_level"], "gauge");
        prop_assert_eq!(&page.helps["test_things_total"], "Things \\\\ with\\na \"quote\".");
    }

    #[test]
    fn a_histogram_is_cumulative_and_keeps_its_count_and_sum(histogram in histogram(), device in label()) {
        let mut samples = Samples::default();
        samples.histogram(&LATENCY, &[&device, "ns", "pod", "c", "id"], histogram.clone());
        let page = parse(&encode(&samples));
        let buckets: Vec<_> =
            page.samples.iter().filter(|sample| sample.name == "test_latency_seconds_bucket").collect();
        prop_assert_eq!(buckets.len(), histogram.slots.len());
        let mut below = 0;
        for (index, bucket) in buckets.iter().enumerate() {
            below += histogram.slots[index];
            prop_assert_eq!(bucket.value, below as f64);
            let bound: f64 = bucket.labels["le"].parse().unwrap();
            prop_assert_eq!(bound, histogram_bound(index).unwrap_or(f64::INFINITY));
            prop_assert_eq!(&bucket.labels["device"], &device);
            prop_assert_eq!(&bucket.labels["container_id"], "id");
        }
        prop_assert_eq!(&buckets.last().unwrap().labels["le"], "+Inf");
        prop_assert_eq!(one(&page, "test_latency_seconds_count").value, histogram.count() as f64);
        prop_assert_eq!(one(&page, "test_latency_seconds_sum").value, histogram.sum_ns as f64 / 1e9);
    }

    #[test]
    fn both_formats_tell_the_same_samples(histogram in histogram(), text in label(), count: u64, level in -1e9..1e9) {
        let mut samples = Samples::default();
        samples.count(&COUNTER, &[&text], count);
        samples.number(&GAUGE, &[], level);
        samples.histogram(&LATENCY, &[&text, "", "", "", ""], histogram);
        let key = |sample: &Parsed| (sample.name.clone(), sample.labels.clone());
        let sorted = |text: &str| {
            let mut found = parse(text).samples;
            found.sort_by_key(key);
            found
        };
        let open = openmetrics::encode(&samples).unwrap();
        prop_assert!(open.ends_with("\n# EOF\n"));
        // Labels are compared as text, so `le` is spelt alike too.
        prop_assert_eq!(sorted(&encode(&samples)), sorted(&open));
        prop_assert_eq!(&parse(&open).types["test_things"], "counter");
    }
}

#[test]
fn nothing_measured_is_an_empty_page() {
    assert_eq!(encode(&Samples::default()), "");
    assert_eq!(openmetrics::encode(&Samples::default()).unwrap(), "# EOF\n");
}

#[test]
fn writes_special_numbers_as_prometheus_reads_them() {
    for (number, text) in [
        (f64::INFINITY, "+Inf"),
        (f64::NEG_INFINITY, "-Inf"),
        (f64::NAN, "NaN"),
        (0.0, "0"),
        (0.21, "0.21"),
        (1e21, "1e21"),
        (1_790_000_000.5, "1790000000.5"),
        (2f64.powi(-20), "9.5367431640625e-7"),
    ] {
        let mut written = String::new();
        push_number(number, &mut written);
        assert_eq!(written, text);
    }
}
