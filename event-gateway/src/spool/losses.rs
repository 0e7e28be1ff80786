//! What this process has lost on the way to its sink, by reason: noted where it is lost, told as an event by a watch.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Events, by reason, since the start. Bound: the reasons, of which the code has a handful.
static LOST: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Notes that events will never reach the sink.
pub fn note(reason: &'static str, events: u64) {
    *lost().entry(reason).or_default() += events;
}

/// All so far.
pub fn totals() -> BTreeMap<&'static str, u64> {
    lost().clone()
}

/// A number is whole at any time, so a poisoned lock is still good.
fn lost() -> MutexGuard<'static, BTreeMap<&'static str, u64>> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner)
}
