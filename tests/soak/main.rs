//! More than a machine has on a usual day: containers that come and go by the thousand under an exporter that is scraped
//! meanwhile, crowds of threads and sockets, connections without a fault for long, and drops that nobody reads for seconds.
//!
//! Needs root. `make test` takes 1,000 containers, `make soak` 10,000: KPULSE_SOAK_CONTAINERS says how many.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod churn;
mod crowd;
mod gateway;
mod page;
mod quiet;
mod stopped;

use churn::{Churn, Scrapes};
use kpulse_tests::process::{Service, command, rss_kib};
use kpulse_tests::{binary, http, is_root, skip};
use page::Page;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// So many containers have series of their own, and more than that are alive at once.
const CONTAINER_MAX: usize = 40;
const CONTAINERS: u32 = 1_000;
/// For what is counted every half minute to be counted once more.
const SETTLE: Duration = Duration::from_secs(70);
/// What an answer of the cgroup tree may be old.
const ANSWER_AGE: Duration = Duration::from_secs(1);
/// What memory may grow by: names of containers that are gone are kept for five minutes, 16,384 at most.
const GROWTH_MAX_KIB: u64 = 24 << 10;
/// Cgroups of the machine that may come and go while a map at rest is looked at.
const ENTRIES_SLACK: usize = 8;

fn containers_wanted() -> u32 {
    let wanted = std::env::var("KPULSE_SOAK_CONTAINERS").ok();
    wanted.map_or(CONTAINERS, |text| text.parse().expect("KPULSE_SOAK_CONTAINERS is a number"))
}

/// The exporter, and what holds from each scrape to the next.
struct Watch {
    service: Service,
    address: String,
    last: Page,
    /// Containers that had series and have none any more.
    ended: BTreeSet<u32>,
    /// Families that had a series of the containers without series of their own.
    with_rest: BTreeSet<&'static str>,
    scrapes: u32,
    series_max: usize,
    rss_max_kib: u64,
}

impl Watch {
    fn start() -> Self {
        let mut exporter = command(binary("kpulse-exporter"));
        exporter.env("KPULSE_EXPORTER__WEB__LISTEN_ADDRESS", "127.0.0.1:0");
        exporter.env("KPULSE_EXPORTER__CONTAINER_MAX", CONTAINER_MAX.to_string());
        let service = Service::start(&mut exporter);
        let address = service.logged("message=listening", "address");
        service.line("message=ready");
        let last = Page::parse(&http::get(&address, "/metrics", "").body);
        Self {
            service,
            address,
            last,
            ended: BTreeSet::new(),
            with_rest: BTreeSet::new(),
            scrapes: 0,
            series_max: 0,
            rss_max_kib: 0,
        }
    }

    /// One scrape, held against the one before.
    fn scrape(&mut self, churn: &Churn) {
        let begin = Instant::now();
        let page = Page::parse(&http::get(&self.address, "/metrics", "").body);
        let failed: Vec<_> =
            page.of("kpulse_scrape_collector_success").filter(|(_, it)| *it != 1.0).collect();
        assert!(failed.is_empty(), "{failed:?}: {}", self.service.stderr());
        page.assert_not_behind(&self.last);
        self.assert_ends(&page, churn, begin);
        for family in churn::FAMILIES {
            let own = page.containers_of(family).len();
            assert!(own <= CONTAINER_MAX, "{family} has series of {own} containers");
            if page.has_rest(family) {
                self.with_rest.insert(family);
            }
        }
        self.scrapes += 1;
        self.series_max = self.series_max.max(page.len());
        self.rss_max_kib = self.rss_max_kib.max(rss_kib(self.service.pid()));
        self.last = page;
        churn.scraped(begin);
    }

    /// A container's series are told for the last time by the first scrape that can know of its end, and stay away.
    fn assert_ends(&mut self, page: &Page, churn: &Churn, begin: Instant) {
        for number in &page.containers {
            assert!(!self.ended.contains(number), "container {number} is back");
            let Some(removed) = churn.removed(*number) else { continue };
            let told = churn.scrapes_since(removed + ANSWER_AGE, begin);
            assert!(
                told == 0,
                "container {number}, gone {:?} ago, was told {told} times: {:?}",
                removed.elapsed(),
                page.families_of(*number)
            );
        }
        self.ended.extend(self.last.containers.difference(&page.containers));
    }
}

#[test]
fn no_counter_goes_back_while_containers_come_and_go() {
    if !is_root() {
        return skip("no_counter_goes_back_while_containers_come_and_go", "needs root");
    }
    let wanted = containers_wanted();
    let mut watch = Watch::start();
    let at_rest = watch.last.clone();
    let churn = Churn::new(Scrapes::default());
    let begin = Instant::now();
    let full_kib = std::thread::scope(|scope| {
        let end = churn.end_with_this();
        let makers = churn.start(scope, wanted);
        let mut full_kib = 0;
        while !makers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            watch.scrape(&churn);
            // From when there are more containers than have series of their own.
            if full_kib == 0 && watch.last.containers.len() >= CONTAINER_MAX {
                full_kib = rss_kib(watch.service.pid());
            }
        }
        drop(end);
        makers.into_iter().for_each(|maker| maker.join().unwrap());
        full_kib
    });
    let took = begin.elapsed();

    assert_eq!(watch.with_rest, churn::FAMILIES.into(), "more than {CONTAINER_MAX} share a series");
    assert!(watch.last.sum("kpulse_series_overflow_total") > 0.0);
    assert!(watch.last.sum("kpulse_runqueue_latency_unmeasured_total{reason=\"table_full\"}") > 0.0);

    // A map whose size follows the number of containers has some entries for each, and at rest no more than for each
    // cgroup that is there, and for what found no room.
    let crowded = |page: &Page| -> Vec<(String, f64, f64)> {
        let room = (churn::cgroups_alive() + 1 + ENTRIES_SLACK) as f64;
        let by_container = page.of("kpulse_map_capacity").filter_map(|(series, capacity)| {
            let for_each = capacity / (CONTAINER_MAX + 1) as f64;
            (for_each.fract() == 0.0).then(|| (series.replace("_capacity", "_entries"), for_each * room))
        });
        let entries = by_container.map(|(map, bound)| (page.value(&map).unwrap(), map, bound));
        entries.filter(|(have, _, bound)| have > bound).map(|(have, map, bound)| (map, have, bound)).collect()
    };
    let begin = Instant::now();
    loop {
        watch.scrape(&churn);
        let left = crowded(&watch.last);
        if watch.last.containers.is_empty() && left.is_empty() && begin.elapsed() > SETTLE / 2 {
            break;
        }
        assert!(begin.elapsed() < SETTLE, "still there: {:?}, {left:?}", watch.last.containers);
        std::thread::sleep(ANSWER_AGE / 4);
    }
    let accounts = "{probe=\"runqueue_latency\",map=\"accounts\"}";
    assert_eq!(watch.last.sum(&format!("kpulse_map_capacity{accounts}")), (CONTAINER_MAX + 1) as f64);
    println!(
        "{wanted} containers in {took:?}: {} scrapes, {} containers met, {} series at most, {} at rest before and {} after, \
         {full_kib} KiB when all had series, {} KiB at most",
        watch.scrapes,
        watch.ended.len(),
        watch.series_max,
        at_rest.len(),
        watch.last.len(),
        watch.rss_max_kib,
    );
    assert!(watch.ended.len() >= CONTAINER_MAX, "{} containers were met", watch.ended.len());
    assert!(watch.rss_max_kib < full_kib + GROWTH_MAX_KIB, "{} KiB after {full_kib} KiB", watch.rss_max_kib);
    assert_eq!(watch.service.stop(), Some(0), "{}", watch.service.stderr());
}
