//! Families that are read from files of containers' cgroups: which files, and which line becomes which series.

mod files;
mod others;

use super::Host;
use super::roster::Place;
use super::text::{keyed, pressure_micros};
use files::Files;
use kpulse_common::container::{ContainerCgroup, Hierarchy};
use kpulse_common::metric::{MetricDef, MetricKind, Samples, Value};
use others::Others;
use std::collections::HashMap;
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
    /// The slots' labels, made once.
    labels: Vec<Option<Arc<str>>>,
    files: Files,
    others: Others,
    found: Vec<Option<u64>>,
    net: Net,
}

/// The largest differences seen, by cgroup. The kernel may add to both numbers while it writes them, and a counter must
/// not go back. Bound: the containers of one scrape.
#[derive(Default)]
struct Net {
    largest: HashMap<u64, (u64, u64)>,
    round: u64,
}

impl Net {
    fn at_least_before(&mut self, cgroup: u64, net: u64) -> u64 {
        let (largest, round) = self.largest.entry(cgroup).or_default();
        (*largest, *round) = (net.max(*largest), self.round);
        *largest
    }

    /// Ends a scrape: containers that it did not meet are gone.
    fn end(&mut self) {
        self.largest.retain(|_, (_, round)| *round == self.round);
        self.round += 1;
    }
}

impl Source {
    /// For these files of this hierarchy.
    pub fn new(hierarchy: Hierarchy, defs: &'static [FileDef]) -> Self {
        let slots: Vec<&Slot> = defs.iter().flat_map(|file| file.slots).collect();
        Self {
            hierarchy,
            defs,
            labels: slots.iter().map(|slot| slot.label.map(Arc::from)).collect(),
            files: Files::new(defs.len()),
            others: Others::new(slots.iter().map(|slot| slot.def.kind == MetricKind::Counter).collect()),
            found: vec![None; slots.len()],
            net: Net::default(),
        }
    }

    /// Adds the series of every container. A container that vanishes meanwhile has those that were read before.
    pub fn collect(&mut self, host: &mut Host, out: &mut Samples) {
        let Some(mount) = host.identities.hierarchies().mount(self.hierarchy).map(std::path::Path::to_owned)
        else {
            return;
        };
        self.files.begin();
        self.others.begin();
        for (container, place) in host.containers(self.hierarchy) {
            if place == Place::Nowhere {
                continue;
            }
            self.read(&mount, &container, place);
            match place {
                Place::Own => self.push(&container.labels, |found, index| found[index], out),
                _ => self.others.add(container.cgroup.id, &self.found),
            }
        }
        self.files.end();
        self.net.end();
        let totals = self.others.end();
        let other: [Arc<str>; 4] = ["".into(), "".into(), "~other".into(), "".into()];
        self.push(&other, |_, index| totals[index], out);
    }

    /// Reads the files of one container into `found`.
    fn read(&mut self, mount: &std::path::Path, container: &ContainerCgroup, place: Place) {
        self.found.fill(None);
        let mut first = 0;
        for (index, def) in self.defs.iter().enumerate() {
            let slots = &mut self.found[first..first + def.slots.len()];
            first += def.slots.len();
            let path = || mount.join(container.path.trim_start_matches('/')).join(def.name);
            let is_kept = place == Place::Own;
            if let Some(text) = self.files.read(container.cgroup.id, index, is_kept, path) {
                def.parse(text, slots);
                if def.form == Form::KeyedNet {
                    slots[0] = slots[0].map(|net| self.net.at_least_before(container.cgroup.id, net));
                }
            }
        }
    }

    fn push(
        &self,
        container: &[Arc<str>; 4],
        value: impl Fn(&[Option<u64>], usize) -> Option<u64>,
        out: &mut Samples,
    ) {
        let slots = self.defs.iter().flat_map(|file| file.slots);
        for (index, slot) in slots.enumerate() {
            let Some(value) = value(&self.found, index) else { continue };
            let mut labels = Vec::with_capacity(container.len() + 1);
            labels.extend(container.iter().cloned());
            labels.extend(self.labels[index].clone());
            let value = match slot.divisor {
                1 => Value::Count(value),
                divisor => Value::Number(value as f64 / divisor as f64),
            };
            out.push(slot.def, labels, value);
        }
    }
}

impl FileDef {
    /// Takes what it knows out of a file's text; what is not there stays `None`.
    fn parse(&self, text: &str, found: &mut [Option<u64>]) {
        match self.form {
            Form::Single => found[0] = text.trim_ascii().parse().ok(),
            Form::Pressure => {
                for (slot, found) in self.slots.iter().zip(&mut *found) {
                    *found = pressure_micros(text, slot.key);
                }
            }
            Form::Keyed | Form::KeyedNet => {
                let place = |key: &str| self.slots.iter().position(|slot| slot.key == key);
                for (index, value) in keyed(text, place) {
                    found[index] = Some(value);
                }
            }
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
