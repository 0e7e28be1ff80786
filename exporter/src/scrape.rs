//! One scrape: every collector that is wanted, how each fared, and what the exporter costs itself.

use crate::collectors::{self, OVERFLOW};
use crate::config::Config;
use crate::filter::Filter;
use crate::privileges;
use crate::turn::{HostTotals, Reading, Turns};
use kpulse_common::http::Request;
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;
use kpulse_common::self_metrics;
use kpulse_exporter_ebpf::{LoadOptions, Pauses, Probe, ProbeSet, ProbeState, ProbeStatus, Want, probes};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SUCCESS: MetricDef = MetricDef::gauge(
    "kpulse_scrape_collector_success",
    "Whether the collector succeeded.",
    &[Label::Named("collector")],
);
const DURATION: MetricDef = MetricDef::gauge(
    "kpulse_scrape_collector_duration_seconds",
    "How long the collector took in this scrape.",
    &[Label::Named("collector")],
);
const IDENTITY_HITS: MetricDef = MetricDef::counter(
    "kpulse_container_identity_hits_total",
    "Cgroups whose container was known when it was asked for.",
    &[],
);
const IDENTITY_MISSES: MetricDef = MetricDef::counter(
    "kpulse_container_identity_misses_total",
    "Cgroups that were not known when their container was asked for.",
    &[],
);

/// The families of this module.
pub const METRICS: &[MetricDef] = &[SUCCESS, DURATION, IDENTITY_HITS, IDENTITY_MISSES];

/// Of the time that the scraper waits, this part is for the collectors; the rest is for the way there and back.
const BUDGET: f64 = 0.9;
/// For a client that does not say how long it waits: Prometheus' own default.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the first reading after loading may take.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that can be scraped.
pub struct Scraper {
    paths: Paths,
    /// Whether the exporter's own process is left out.
    is_silent_on_itself: bool,
    turns: Arc<Turns>,
    /// `None` until the probes are loaded and were read once.
    loaded: Mutex<Option<Loaded>>,
    /// The last failure of each collector, so that one that stays is logged once.
    failures: Mutex<BTreeMap<&'static str, String>>,
}

/// How the probes were when they were loaded, and what changed since.
struct Loaded {
    status: Vec<ProbeStatus>,
    pauses: Pauses,
}

/// How the probes of a configuration are to be loaded.
pub fn load_options(config: &Config) -> LoadOptions {
    LoadOptions {
        thresholds: config.thresholds.clone(),
        want: Want::Metrics,
        disabled: config.disabled_probes(),
        container_max: config.container_max,
        governor: config.governor.clone(),
        paths: config.path.clone(),
        ..LoadOptions::default()
    }
}

impl Scraper {
    /// A scraper whose probes are not loaded yet.
    pub fn new(config: &Config) -> Self {
        let is_enabled = |name: &str| config.collectors.get(name).copied().unwrap_or(false);
        let enabled = collectors::ALL.iter().filter(|collector| is_enabled(collector.name));
        let collectors = enabled.map(|it| (it.name, (it.make)(&config.path))).collect();
        Self {
            paths: config.path.clone(),
            is_silent_on_itself: config.web.disable_exporter_metrics,
            turns: Turns::new(&config.path, config.container_max, collectors),
            loaded: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Loads the probes and reads them once. Takes as long as the kernel's verifier does. Gives back those that failed
    /// for a cause that may pass.
    pub fn load(&self, options: &LoadOptions) -> Vec<&'static Probe> {
        let mut probes = ProbeSet::load(probes::ALL, options);
        let (status, to_retry) = (probes.status(), probes.to_retry());
        let pauses = probes.pauses();
        probes.watch_cost(|| {
            if let Err(error) = privileges::keep_only(privileges::WATCH_COST) {
                tracing::warn!(%error, "the capabilities that counting runs does not need are kept");
            }
        });
        self.turns.add_probes(probes);
        self.collect(&Filter::All, Instant::now() + FIRST_TIMEOUT, &mut Samples::default());
        *lock(&self.loaded) = Some(Loaded { status, pauses });
        to_retry
    }

    /// Loads probes that failed once more, and gives back those that may still be loaded later. The others are read
    /// meanwhile, and count on.
    pub fn load_again(&self, failed: &[&'static Probe], options: &LoadOptions) -> Vec<&'static Probe> {
        let probes = ProbeSet::load(failed, options);
        let (found, to_retry) = (probes.status(), probes.to_retry());
        self.turns.adopt_probes(probes);
        for probe in found.iter().filter(|probe| probe.state == ProbeState::Active) {
            tracing::info!(probe = probe.name, "probe is active after another attempt");
        }
        let mut loaded = lock(&self.loaded);
        for old in loaded.iter_mut().flat_map(|loaded| &mut loaded.status) {
            if let Some(new) = found.iter().find(|new| new.name == old.name) {
                *old = new.clone();
            }
        }
        to_retry
    }

    /// Whether loading is over.
    pub fn is_ready(&self) -> bool {
        lock(&self.loaded).is_some()
    }

    /// The state of every probe; `None` while they load.
    pub fn status(&self) -> Option<Vec<ProbeStatus>> {
        let loaded = lock(&self.loaded);
        let Loaded { status, pauses } = loaded.as_ref()?;
        let mut status = status.clone();
        pauses.apply(&mut status);
        Some(status)
    }

    /// Reads everything that the filter takes, in the time that the client waits.
    pub fn answer(&self, request: &Request, filter: &Filter) -> Samples {
        let budget = request.scrape_timeout().unwrap_or(TIMEOUT).mul_f64(BUDGET);
        self.scrape(filter, request.received + budget)
    }

    fn scrape(&self, filter: &Filter, deadline: Instant) -> Samples {
        let mut out = Samples::default();
        self.collect(filter, deadline, &mut out);
        if !self.is_silent_on_itself {
            self_metrics::process(&self.paths, &mut out);
        }
        self_metrics::build_info("kpulse-exporter", &mut out);
        out
    }

    fn collect(&self, filter: &Filter, deadline: Instant, out: &mut Samples) {
        let outcome = self.turns.scrape(|name| filter.takes(name), deadline);
        let mut fared = Samples::default();
        for Reading { name, found, took } in outcome.readings {
            fared.count(&SUCCESS, &[name], u64::from(found.is_ok()));
            fared.number(&DURATION, &[name], took.as_secs_f64());
            // What a failing collector found is dropped: half a family would look like a whole one.
            let failure = found.map(|found| out.append(found)).err();
            self.remember(name, failure);
        }
        out.append(fared);
        out.append(outcome.about);
    }

    fn remember(&self, name: &'static str, failure: Option<String>) {
        let mut failures = lock(&self.failures);
        match failure {
            Some(why) if failures.get(name) != Some(&why) => {
                tracing::warn!(collector = name, %why, "collector failed");
                failures.insert(name, why);
            }
            Some(_) => {}
            None => {
                if failures.remove(name).is_some() {
                    tracing::info!(collector = name, "collector works again");
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A scrape that panicked leaves nothing half-written that the next one would read.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the collectors' shared host tells of itself.
pub fn shared_metrics(totals: HostTotals, out: &mut Samples) {
    out.count(&IDENTITY_HITS, &[], totals.hits);
    out.count(&IDENTITY_MISSES, &[], totals.misses);
    out.count(&OVERFLOW, &[], totals.overflow);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::metric::Value;

    fn value(samples: &Samples, def: &MetricDef, collector: &str) -> Option<Value> {
        let family = samples.families().iter().find(|family| family.def.name == def.name)?;
        Some(family.series.iter().find(|series| &*series.labels[0] == collector)?.value.clone())
    }

    fn scrape(scraper: &Scraper, filter: &Filter) -> Samples {
        scraper.scrape(filter, Instant::now() + Duration::from_secs(30))
    }

    #[test]
    fn a_failing_collector_is_told_and_stops_no_other() {
        let mut config = Config::default();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("loadavg"), "0.5 0.5 0.5 1/2 3\n").unwrap();
        config.path.procfs = folder.path().to_owned();
        let samples = scrape(&Scraper::new(&config), &Filter::All);
        assert_eq!(value(&samples, &SUCCESS, "load_average"), Some(Value::Count(1)));
        assert_eq!(value(&samples, &SUCCESS, "pressure"), Some(Value::Count(0)));
        let has = |name: &str| samples.families().iter().any(|family| family.def.name == name);
        assert!(has("kpulse_load_average") && !has("kpulse_host_pressure_waiting_seconds_total"));
        assert!(has(IDENTITY_MISSES.name) && has(OVERFLOW.name));
    }

    #[test]
    fn runs_only_what_the_filter_takes() {
        let scraper = Scraper::new(&Config::default());
        let only = Filter::Only(["pressure".to_owned()].into());
        let samples = scrape(&scraper, &only);
        assert!(value(&samples, &SUCCESS, "pressure").is_some());
        assert_eq!(value(&samples, &SUCCESS, "load_average"), None);
    }
}
