//! One scrape: every collector that is wanted, how each fared, and what the exporter costs itself.

use crate::collectors::{self, HostCollector};
use crate::config::Config;
use crate::filter::Filter;
use kpulse_common::container::Identities;
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;
use kpulse_common::self_metrics;
use kpulse_exporter_ebpf::{LoadOptions, ProbeSet, ProbeStatus, Want, probes};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

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

/// Everything that can be scraped.
pub struct Scraper {
    paths: Paths,
    host: Vec<&'static HostCollector>,
    /// Empty until the probes are loaded and were read once.
    loaded: OnceLock<Mutex<Loaded>>,
    /// The last failure of each collector, so that one that stays is logged once.
    failures: Mutex<BTreeMap<&'static str, String>>,
}

/// The attached probes and the names of their containers.
struct Loaded {
    probes: ProbeSet,
    identities: Identities,
}

/// How the probes of a configuration are to be loaded.
pub fn load_options(config: &Config) -> LoadOptions {
    LoadOptions {
        thresholds: config.thresholds.clone(),
        want: Want::Metrics,
        disabled: config.disabled_probes(),
        container_max: config.container_max,
        paths: config.path.clone(),
        ..LoadOptions::default()
    }
}

impl Scraper {
    /// A scraper whose probes are not loaded yet.
    pub fn new(config: &Config) -> Self {
        let is_enabled = |name: &str| config.collectors.get(name).copied().unwrap_or(false);
        Self {
            paths: config.path.clone(),
            host: collectors::ALL.iter().filter(|collector| is_enabled(collector.name)).collect(),
            loaded: OnceLock::new(),
            failures: Mutex::default(),
        }
    }

    /// Loads the probes and reads them once. Takes as long as the kernel's verifier does.
    pub fn load(&self, options: &LoadOptions) -> Vec<ProbeStatus> {
        let mut loaded =
            Loaded { probes: ProbeSet::load(probes::ALL, options), identities: Identities::new(&self.paths) };
        self.collect_probes(&mut loaded, &Filter::All, &mut Samples::default());
        let status = loaded.probes.status();
        // Loading runs once; a second outcome would be dropped, which detaches its probes.
        let _ = self.loaded.set(Mutex::new(loaded));
        status
    }

    /// Whether loading is over.
    pub fn is_ready(&self) -> bool {
        self.loaded.get().is_some()
    }

    /// The state of every probe; `None` while they load.
    pub fn status(&self) -> Option<Vec<ProbeStatus>> {
        self.loaded.get().map(|loaded| lock(loaded).probes.status())
    }

    /// Reads everything that the filter takes.
    pub fn scrape(&self, filter: &Filter) -> Samples {
        let mut out = Samples::default();
        for collector in self.host.iter().filter(|collector| filter.takes(collector.name)) {
            let collect = |out: &mut Samples| {
                (collector.collect)(&self.paths, out).map_err(|error| format!("{error:#}"))
            };
            self.observe(collector.name, &mut out, collect);
        }
        if let Some(loaded) = self.loaded.get() {
            let mut loaded = lock(loaded);
            self.collect_probes(&mut loaded, filter, &mut out);
            loaded.probes.self_metrics(&mut out);
            out.count(&IDENTITY_HITS, &[], loaded.identities.hits());
            out.count(&IDENTITY_MISSES, &[], loaded.identities.misses());
        }
        self_metrics::process(&self.paths, &mut out);
        self_metrics::build_info("kpulse-exporter", &mut out);
        out
    }

    fn collect_probes(&self, loaded: &mut Loaded, filter: &Filter, out: &mut Samples) {
        for name in loaded.probes.collectors().into_iter().filter(|name| filter.takes(name)) {
            let Loaded { probes, identities } = loaded;
            self.observe(name, out, |out| {
                probes.collect(name, identities, out).map_err(|error| error.to_string())
            });
        }
    }

    /// Runs one collector. What a failing one found is dropped: half a family would look like a whole one.
    fn observe(
        &self,
        name: &'static str,
        out: &mut Samples,
        collect: impl FnOnce(&mut Samples) -> Result<(), String>,
    ) {
        let start = Instant::now();
        let mut found = Samples::default();
        let result = collect(&mut found);
        let seconds = start.elapsed().as_secs_f64();
        if result.is_ok() {
            out.append(found);
        }
        out.count(&SUCCESS, &[name], u64::from(result.is_ok()));
        out.number(&DURATION, &[name], seconds);
        self.remember(name, result.err());
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

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_common::metric::Value;

    fn value(samples: &Samples, def: &MetricDef, collector: &str) -> Option<Value> {
        let family = samples.families().iter().find(|family| family.def.name == def.name)?;
        Some(family.series.iter().find(|series| &*series.labels[0] == collector)?.value.clone())
    }

    #[test]
    fn a_failing_collector_is_told_and_stops_no_other() {
        let mut config = Config::default();
        config.path.procfs = tempfile::tempdir().unwrap().path().to_owned();
        let scraper = Scraper::new(&config);
        let mut samples = scraper.scrape(&Filter::All);
        scraper.observe("fine", &mut samples, |_| Ok(()));
        assert_eq!(value(&samples, &SUCCESS, "load_average"), Some(Value::Count(0)));
        assert_eq!(value(&samples, &SUCCESS, "pressure"), Some(Value::Count(0)));
        assert_eq!(value(&samples, &SUCCESS, "fine"), Some(Value::Count(1)));
        assert!(!samples.families().iter().any(|family| family.def.name == "kpulse_load_average"));
    }

    #[test]
    fn drops_what_a_failing_collector_found_before_it_failed() {
        let scraper = Scraper::new(&Config::default());
        let mut samples = Samples::default();
        scraper.observe("half", &mut samples, |out| {
            out.count(&SUCCESS, &["partial"], 7);
            Err("broken".to_owned())
        });
        assert_eq!(value(&samples, &SUCCESS, "partial"), None);
        assert_eq!(value(&samples, &SUCCESS, "half"), Some(Value::Count(0)));
        assert!(value(&samples, &DURATION, "half").is_some());
    }

    #[test]
    fn runs_only_what_the_filter_takes() {
        let scraper = Scraper::new(&Config::default());
        let only = Filter::Only(["pressure".to_owned()].into());
        let samples = scraper.scrape(&only);
        assert!(value(&samples, &SUCCESS, "pressure").is_some());
        assert_eq!(value(&samples, &SUCCESS, "load_average"), None);
    }
}
