//! Families that are read from files of containers' cgroups: which files, and which line becomes which series.

mod files;
mod keyed;
mod others;

use super::Host;
use super::roster::Place;
use super::text::pressure_micros;
use files::Files;
use keyed::Layout;
use kpulse_common::container::{ContainerCgroup, Hierarchy};
use kpulse_common::metric::{MetricDef, MetricKind, Samples, Series, Value};
use others::Others;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// No count of bytes and no time comes near: it is how v1 writes "no limit".
const NO_LIMIT: u64 = 1 << 62;

/// A file that every cgroup of a hierarchy has, or has with some kernels.
pub struct FileDef {
    /// Its name.
    pub name: &'static str,
    /// How it is written.
    pub form: Form,
    /// What is taken from it.
    pub slots: &'static [Slot],
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `KEY VALUE` lines.
    Keyed,
    /// The same, where the number of the first slot contains that of the second, which is taken out of it.
    KeyedNet,
    /// One number, or `max` where there is none.
    Single,
    /// Pressure stall information; the key is `some` or `full`.
    Pressure,
}

/// One number of a file, and the series that it becomes.
pub struct Slot {
    /// Where it stands in the file; empty for a file of one number.
    pub key: &'static str,
    /// The family, whose labels are the container's and at most one more.
    pub def: &'static MetricDef,
    /// The value of that label.
    pub label: Option<&'static str>,
    /// What divides the kernel's number into the family's unit.
    pub divisor: u64,
}

/// Reads some files of all containers of one hierarchy.
pub struct Source {
    hierarchy: Hierarchy,
    defs: &'static [FileDef],
    /// For each file.
    layouts: Vec<Layout>,
    slots: Vec<&'static Slot>,
    /// Of each slot, made once.
    labels: Vec<Option<Arc<str>>>,
    families: Vec<&'static MetricDef>,
    /// Of each slot, among `families`.
    family: Vec<usize>,
    files: Files,
    known: HashMap<u64, Known>,
    round: u64,
    others: Others,
    found: Vec<Option<u64>>,
}

/// What is remembered of a cgroup. Bound: the containers of one scrape.
struct Known {
    round: u64,
    /// The container that `labels` name.
    container: Arc<str>,
    /// Of each slot, with the container's; empty for a container without series of its own.
    labels: Vec<Arc<[Arc<str>]>>,
    /// The largest difference seen. The kernel may add to both numbers while it writes them, and a counter must not go
    /// back.
    net: u64,
}

impl Source {
    /// For these files of this hierarchy.
    pub fn new(hierarchy: Hierarchy, defs: &'static [FileDef]) -> Self {
        let slots: Vec<&'static Slot> = defs.iter().flat_map(|file| file.slots).collect();
        let mut families: Vec<&'static MetricDef> = Vec::new();
        let mut family = Vec::new();
        for slot in &slots {
            let known = families.iter().position(|def| def.name == slot.def.name);
            family.push(known.unwrap_or(families.len()));
            families.extend(known.is_none().then_some(slot.def));
        }
        Self {
            hierarchy,
            defs,
            layouts: defs.iter().map(|_| Layout::default()).collect(),
            labels: slots.iter().map(|slot| slot.label.map(Arc::from)).collect(),
            files: Files::new(defs.len()),
            known: HashMap::new(),
            round: 0,
            others: Others::new(slots.iter().map(|slot| slot.def.kind == MetricKind::Counter).collect()),
            found: vec![None; slots.len()],
            slots,
            families,
            family,
        }
    }

    /// Adds the series of every container. A container that vanishes meanwhile has those that were read before.
    pub fn collect(&mut self, host: &mut Host, out: &mut Samples) {
        let Some(mount) = host.identities.hierarchies().mount(self.hierarchy).map(Path::to_owned) else {
            return;
        };
        let containers = host.containers(self.hierarchy);
        let room =
            |index| self.family.iter().filter(|family| **family == index).count() * (containers.len() + 1);
        let mut series: Vec<Vec<Series>> =
            (0..self.families.len()).map(|index| Vec::with_capacity(room(index))).collect();
        self.round += 1;
        self.files.begin();
        self.others.begin();
        for (container, place) in containers.iter().filter(|(_, place)| *place != Place::Nowhere) {
            let is_own = *place == Place::Own;
            self.read(&mount, container, is_own);
            if is_own {
                self.tell(&self.known[&container.cgroup.id].labels, &self.found, &mut series);
            } else {
                self.others.add(container.cgroup.id, &self.found);
            }
        }
        self.files.end();
        self.known.retain(|_, known| known.round == self.round);
        let totals = self.others.end();
        let other = labels_of(&self.labels, &["".into(), "".into(), "~other".into(), "".into()]);
        self.tell(&other, &totals, &mut series);
        for (def, series) in self.families.iter().zip(series) {
            out.extend(def, series);
        }
    }

    /// Reads the files of one container into `found`.
    fn read(&mut self, mount: &Path, container: &ContainerCgroup, is_own: bool) {
        let (id, name) = (container.cgroup.id, &container.labels[3]);
        let labels = || if is_own { labels_of(&self.labels, &container.labels) } else { Vec::new() };
        let known = self.known.entry(id).or_insert_with(|| Known {
            round: 0,
            container: Arc::clone(name),
            labels: labels(),
            net: 0,
        });
        if !Arc::ptr_eq(&known.container, name) {
            (known.container, known.labels) = (Arc::clone(name), labels());
        }
        known.round = self.round;
        self.found.fill(None);
        let mut files = self.files.of(id, is_own);
        let mut rest = &mut self.found[..];
        for (index, (def, layout)) in self.defs.iter().zip(&mut self.layouts).enumerate() {
            let (slots, others) = rest.split_at_mut(def.slots.len());
            rest = others;
            let path = || mount.join(container.path.trim_start_matches('/')).join(def.name);
            let Some(text) = files.read(index, path) else { continue };
            def.parse(text, layout, slots);
            if def.form == Form::KeyedNet {
                slots[0] = slots[0].map(|net| net.max(known.net));
                known.net = slots[0].unwrap_or(known.net);
            }
        }
    }

    /// Adds the values that were found to the series of their families.
    fn tell(&self, labels: &[Arc<[Arc<str>]>], values: &[Option<u64>], series: &mut [Vec<Series>]) {
        for (index, (slot, value)) in self.slots.iter().zip(values).enumerate() {
            let Some(value) = *value else { continue };
            let value = match slot.divisor {
                1 => Value::Count(value),
                divisor => Value::Number(value as f64 / divisor as f64),
            };
            series[self.family[index]].push(Series { labels: Arc::clone(&labels[index]), value });
        }
    }
}

/// The labels of each slot of a container.
fn labels_of(slots: &[Option<Arc<str>>], container: &[Arc<str>; 4]) -> Vec<Arc<[Arc<str>]>> {
    slots.iter().map(|label| container.iter().chain(label).cloned().collect()).collect()
}

impl FileDef {
    /// Takes what it knows out of a file's text; what is not there stays `None`.
    fn parse(&self, text: &str, layout: &mut Layout, found: &mut [Option<u64>]) {
        match self.form {
            Form::Single => found[0] = text.trim_ascii().parse().ok(),
            Form::Pressure => {
                for (slot, found) in self.slots.iter().zip(&mut *found) {
                    *found = pressure_micros(text, slot.key);
                }
            }
            Form::Keyed | Form::KeyedNet => layout.parse(text, |slot| self.slots[slot].key, found),
        }
        if let (Form::KeyedNet, [all, part, ..]) = (self.form, &mut *found) {
            *all = all.zip(*part).map(|(all, part)| all.saturating_sub(part));
        }
        for found in found {
            *found = found.filter(|value| *value < NO_LIMIT);
        }
    }
}

#[cfg(test)]
mod tests;
