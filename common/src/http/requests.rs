//! How many requests were answered with which status, over all servers of this process.

use crate::metric::{Label, MetricDef, Samples};
use std::sync::atomic::{AtomicU64, Ordering};

/// The family that [`count_requests`] fills.
pub const REQUESTS: MetricDef = MetricDef::counter(
    "kpulse_http_requests_total",
    "HTTP requests that this process answered, by status code.",
    &[Label::Named("code")],
);

const FIRST: u16 = 100;
const STATUSES: usize = 500;

/// Counts of 100 to 599. One for the process: what is asked for at one port tells of all of them.
static ANSWERED: [AtomicU64; STATUSES] = [const { AtomicU64::new(0) }; STATUSES];

pub(super) fn count(status: hyper::StatusCode) {
    let index = usize::from(status.as_u16().saturating_sub(FIRST));
    if let Some(counter) = ANSWERED.get(index) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// `kpulse_http_requests_total`: 200, 500 and 503 from the start, so that their rates are known; others once they
/// were given.
pub fn count_requests(out: &mut Samples) {
    for (code, counter) in (FIRST..).zip(&ANSWERED) {
        let count = counter.load(Ordering::Relaxed);
        if count > 0 || matches!(code, 200 | 500 | 503) {
            out.count(&REQUESTS, &[&code.to_string()], count);
        }
    }
}
