//! How does a scrape look on the wire, and which form did the client ask for?

pub mod openmetrics;
pub mod protobuf;
pub mod text;

mod accept;
mod registry;

pub use accept::{Format, negotiate};

use crate::metric::{Histogram, histogram_bound};

/// The cumulative buckets of a histogram: the `le` label and how many durations were that long or shorter.
fn cumulative(histogram: &Histogram) -> impl Iterator<Item = (f64, u64)> + '_ {
    histogram.slots.iter().enumerate().scan(0u64, |seen, (index, slot)| {
        *seen = seen.saturating_add(*slot);
        Some((histogram_bound(index).unwrap_or(f64::INFINITY), *seen))
    })
}

/// The sum of a histogram in seconds.
fn sum_seconds(histogram: &Histogram) -> f64 {
    histogram.sum_ns as f64 / 1e9
}
