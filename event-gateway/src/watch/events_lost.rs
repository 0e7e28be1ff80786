//! Did events give way on their way to the sink? The gateway's own counts, so that whoever reads events and no metrics sees
//! that some are missing.
//!
//! The event goes the same way as those that were lost, so it is told once a minute at most.

use super::{Finding, Watch, Watcher};
use crate::policies::Rules;
use crate::schema::Kind;
use crate::spool::losses;
use anyhow::Result;
use kpulse_common::event::schema_of;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time between a look that found something and the next: what is lost meanwhile is in one event.
const PAUSE: Duration = Duration::from_secs(60);

pub const WATCH: Watch = Watch {
    kind: Kind {
        name: "events_lost",
        help: "Events gave way on their way to the sink, since there was no room for them or they were too old.",
        body: schema_of::<Body>,
    },
    hook: "spool",
    hook_kind: "gateway",
    make: |_, _| Ok(Box::new(EventsLost { told: BTreeMap::new(), next: Instant::now() })),
};

/// Fields of the event beyond the common ones.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Body {
    /// Why, as `kpulse_disk_spool_lost_total` and `kpulse_records_lost_total` have it.
    reason: &'static str,
    /// How many since the last such event.
    events: u64,
}

struct EventsLost {
    told: BTreeMap<&'static str, u64>,
    next: Instant,
}

impl EventsLost {
    /// What was lost since it was told last.
    fn untold(&mut self, totals: BTreeMap<&'static str, u64>) -> Vec<Body> {
        let since = |(&reason, total): (&&'static str, &u64)| {
            let events = total - self.told.get(reason).copied().unwrap_or(0);
            (events > 0).then_some(Body { reason, events })
        };
        let bodies = totals.iter().filter_map(since).collect();
        self.told = totals;
        bodies
    }
}

impl Watcher for EventsLost {
    fn next(&self) -> Instant {
        self.next
    }

    fn look(&mut self, rules: &Rules, now: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()> {
        let untold = self.untold(losses::totals());
        self.next = now + if untold.is_empty() { INTERVAL } else { PAUSE };
        for body in untold {
            tell(Finding::new(&rules.machine.rate_limit, &body)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lost_event_is_told_once_with_its_reason() {
        let mut watch = EventsLost { told: BTreeMap::new(), next: Instant::now() };
        assert_eq!(watch.untold(BTreeMap::new()), []);
        let told = watch.untold([("spool_age", 2), ("spool_size", 7)].into());
        let expected: serde_json::Value =
            serde_json::from_str(include_str!("fixtures/events_lost.json")).unwrap();
        assert_eq!(serde_json::to_value(&told[1]).unwrap(), expected);
        assert_eq!((told.len(), told[0].events), (2, 2));
        assert_eq!(
            watch.untold([("spool_age", 2), ("spool_size", 8)].into()),
            [Body { reason: "spool_size", events: 1 }]
        );
        assert_eq!(watch.untold([("spool_age", 2), ("spool_size", 8)].into()), []);
    }
}
