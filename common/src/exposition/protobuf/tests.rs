use super::*;
use crate::metric::{HISTOGRAM_SLOTS, Histogram, Label, MetricDef, histogram_bound};
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as model;
use proptest::prelude::*;

const COUNTER: MetricDef =
    MetricDef::counter("test_things_total", "Things with a \"quote\".", &[Label::Named("kind")]);
const GAUGE: MetricDef = MetricDef::gauge("test_level", "A level.", &[]);
const LATENCY: MetricDef = MetricDef::histogram("test_latency_seconds", "A latency.", &[Label::Container]);

/// A reader of the wire format, written from the message definition and not from the writer: fields in order.
struct Reader<'a>(&'a [u8]);

enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().unwrap();
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        panic!("a varint has at most ten bytes");
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::try_from(self.varint()).unwrap();
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let key = self.varint();
        let field = match key & 7 {
            0 => Field::Varint(self.varint()),
            1 => {
                let (bytes, rest) = self.0.split_at(8);
                self.0 = rest;
                Field::Fixed64(u64::from_le_bytes(bytes.try_into().unwrap()))
            }
            2 => Field::Bytes(self.bytes()),
            other => panic!("wire type {other}"),
        };
        Some((key >> 3, field))
    }
}

/// Every field of a message with this number.
fn all<'a>(message: &'a [u8], number: u64) -> Vec<Field<'a>> {
    Reader(message).filter(|(found, _)| *found == number).map(|(_, field)| field).collect()
}

fn messages(message: &[u8], number: u64) -> Vec<&[u8]> {
    let bytes =
        |field| if let Field::Bytes(bytes) = field { bytes } else { panic!("field {number} is a number") };
    all(message, number).into_iter().map(bytes).collect()
}

fn number(message: &[u8], number: u64) -> u64 {
    match all(message, number).first() {
        Some(Field::Varint(value) | Field::Fixed64(value)) => *value,
        None => 0,
        Some(Field::Bytes(_)) => panic!("field {number} is bytes"),
    }
}

fn double(message: &[u8], field: u64) -> f64 {
    f64::from_bits(number(message, field))
}

fn text(message: &[u8], field: u64) -> String {
    messages(message, field)
        .first()
        .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        .unwrap_or_default()
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn packed(message: &[u8], field: u64) -> Vec<i64> {
    let mut values = Vec::new();
    for bytes in messages(message, field) {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            values.push(zigzag(reader.varint()));
        }
    }
    values
}

fn families(samples: Samples) -> Vec<Vec<u8>> {
    let wire = encode_owned(samples).unwrap();
    let mut reader = Reader(&wire);
    let mut families = Vec::new();
    while !reader.0.is_empty() {
        families.push(reader.bytes().to_vec());
    }
    families
}

/// The only histogram of these samples, as a message.
fn histogram_message(histogram: Histogram) -> Vec<u8> {
    let mut samples = Samples::default();
    samples.histogram(&LATENCY, &["ns", "pod", "c", "id"], histogram);
    let families = families(samples);
    assert_eq!(families.len(), 1);
    let metrics = messages(&families[0], 4);
    messages(metrics[0], 7)[0].to_vec()
}

/// Lower bound, upper bound and count of every native bucket, from spans and deltas.
fn native(histogram: &[u8]) -> Vec<(f64, f64, i64)> {
    assert_eq!(zigzag(number(histogram, 5)), 0, "schema");
    let (mut bucket, mut count, mut found) = (0, 0, Vec::new());
    let mut deltas = packed(histogram, 13).into_iter();
    for span in messages(histogram, 12) {
        bucket += zigzag(number(span, 1));
        for _ in 0..number(span, 2) {
            count += deltas.next().unwrap();
            let exponent = i32::try_from(bucket).unwrap();
            found.push((2f64.powi(exponent - 1), 2f64.powi(exponent), count));
            bucket += 1;
        }
    }
    assert!(deltas.next().is_none(), "each delta belongs to a span");
    found
}

proptest! {
    #[test]
    fn a_native_histogram_has_exactly_the_slots(
        slots in prop::collection::vec(prop_oneof![3 => Just(0u64), 2 => 0u64..1 << 40], HISTOGRAM_SLOTS),
        sum_ns in 0u64..1 << 50,
    ) {
        let histogram = Histogram { slots: slots.try_into().unwrap(), sum_ns };
        let message = histogram_message(histogram.clone());
        prop_assert_eq!(number(&message, 1), histogram.count());
        prop_assert_eq!(double(&message, 2), sum_ns as f64 / 1e9);
        prop_assert_eq!(double(&message, 6), histogram_bound(0).unwrap());
        prop_assert_eq!(number(&message, 7), histogram.slots[0]);
        let bound = |index: usize| histogram_bound(index).unwrap_or(2f64.powi(6));
        let counted = (1..HISTOGRAM_SLOTS).filter(|&index| histogram.slots[index] > 0);
        let expected: Vec<_> =
            counted.map(|index| (bound(index - 1), bound(index), histogram.slots[index] as i64)).collect();
        prop_assert_eq!(native(&message), expected);
    }

    #[test]
    fn the_classic_buckets_are_there_too(slots in prop::collection::vec(0u64..1000, HISTOGRAM_SLOTS)) {
        let histogram = Histogram { slots: slots.try_into().unwrap(), sum_ns: 0 };
        let message = histogram_message(histogram.clone());
        let buckets = messages(&message, 3);
        prop_assert_eq!(buckets.len(), HISTOGRAM_SLOTS);
        let mut below = 0;
        for (index, bucket) in buckets.iter().enumerate() {
            below += histogram.slots[index];
            prop_assert_eq!(number(bucket, 1), below);
            prop_assert_eq!(double(bucket, 2), histogram_bound(index).unwrap_or(f64::INFINITY));
        }
    }

    #[test]
    fn labels_need_no_escapes(kind in "(?s)[\"\\\\\n{}=, é#]{0,8}|.{0,6}", count: u32) {
        let mut samples = Samples::default();
        samples.count(&COUNTER, &[&kind], count.into());
        samples.number(&GAUGE, &[], 0.5);
        let families = families(samples);
        prop_assert_eq!(text(&families[0], 1), "test_things_total");
        prop_assert_eq!(text(&families[0], 2), "Things with a \"quote\".");
        let metric = messages(&families[0], 4)[0];
        let label = messages(metric, 1)[0];
        prop_assert_eq!((text(label, 1), text(label, 2)), ("kind".to_owned(), kind));
        prop_assert_eq!(double(messages(metric, 3)[0], 1), f64::from(count));
        prop_assert_eq!(number(&families[1], 3), model::MetricType::Gauge as u64);
    }
}

#[test]
fn an_empty_histogram_is_still_a_native_one() {
    let message = histogram_message(Histogram::default());
    assert!(native(&message).is_empty());
    // A threshold above zero is how a server knows it from a classic one.
    assert!(double(&message, 6) > 0.0);
}

#[test]
fn nothing_measured_is_nothing_sent() {
    assert!(encode_owned(Samples::default()).unwrap().is_empty());
}
