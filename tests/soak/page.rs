//! What one scrape served, and what may never be different in a later one.

use super::churn::PREFIX;
use std::collections::{BTreeSet, HashMap};

/// Series by name and labels, as they are written.
#[derive(Clone)]
pub struct Page {
    values: HashMap<String, f64>,
    /// Families that only grow: counters, and the parts of histograms.
    growing: BTreeSet<String>,
    /// Numbers of the test's own containers that have series.
    pub containers: BTreeSet<u32>,
}

fn name(series: &str) -> &str {
    series.split('{').next().unwrap_or_default()
}

/// The number of the test's own container that a series is of.
fn container(series: &str) -> Option<u32> {
    let (_, rest) = series.split_once("container_id=\"")?;
    let id = rest.split('"').next().filter(|id| id.starts_with(PREFIX.as_str()))?;
    u32::from_str_radix(id.get(id.len() - 8..)?, 16).ok()
}

impl Page {
    pub fn parse(text: &str) -> Self {
        let (mut values, mut growing) = (HashMap::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                match kind.split_once(' ').unwrap() {
                    (family, "counter") => drop(growing.insert(family.to_owned())),
                    (family, "histogram") => {
                        growing.extend(["bucket", "sum", "count"].map(|part| format!("{family}_{part}")));
                    }
                    _ => {}
                }
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let value = value.parse().unwrap();
                assert_eq!(values.insert(series.to_owned(), value), None, "{series} is there twice");
            }
        }
        let containers = values.keys().filter_map(|series| container(series)).collect();
        Self { values, growing, containers }
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn value(&self, series: &str) -> Option<f64> {
        self.values.get(series).copied()
    }

    /// The series of a name.
    pub fn of(&self, wanted: &str) -> impl Iterator<Item = (&str, f64)> {
        self.values
            .iter()
            .filter(move |(series, _)| name(series) == wanted)
            .map(|(it, value)| (it.as_str(), *value))
    }

    /// The sum of the series that begin so.
    pub fn sum(&self, prefix: &str) -> f64 {
        self.values.iter().filter(|(series, _)| series.starts_with(prefix)).map(|(_, value)| value).sum()
    }

    /// The test's own containers that have series in a family.
    pub fn containers_of(&self, family: &str) -> BTreeSet<u32> {
        let of_family = self.values.keys().filter(|series| name(series).starts_with(family));
        of_family.filter_map(|series| container(series)).collect()
    }

    /// Whether a family has a series of the containers that share one.
    pub fn has_rest(&self, family: &str) -> bool {
        let is_rest = |series: &&String| series.contains("container=\"~other\"");
        self.values.keys().filter(is_rest).any(|series| name(series).starts_with(family))
    }

    /// The names of the series that a container has.
    pub fn families_of(&self, number: u32) -> BTreeSet<&str> {
        self.values
            .keys()
            .filter(|series| container(series) == Some(number))
            .map(|series| name(series))
            .collect()
    }

    /// Asserts that no counter is below what it was, and that none of the host or of `~other` is gone. Devices and
    /// containers of the machine come and go and are started again, and their series with them.
    pub fn assert_not_behind(&self, before: &Self) {
        let is_host =
            |series: &str| series.contains("container_id=\"\"") || !series.contains("container_id=");
        let growing = before.values.iter().filter(|(series, _)| before.growing.contains(name(series)));
        for (series, then) in growing.filter(|(series, _)| is_host(series) || container(series).is_some()) {
            match self.values.get(series) {
                Some(now) => assert!(now >= then, "{series} was {then} and is {now}"),
                None => {
                    let stays = series.contains("container_id=\"\"") || !series.contains('{');
                    assert!(!stays, "{series} was {then} and is gone");
                }
            }
        }
    }
}
