//! A closed window as it is kept: protobuf, compressed, with each name once and the stacks as one tree.
//!
//! Names and paths come from programs that nobody vouches for, and the bytes from a disk: what does not fit together is an
//! error, never a panic or an endless loop.

use crate::aggregate::{Detail, Gathering, Key, Window};
use crate::export::Numbered;
use anyhow::{Context, Result, ensure};
use kpulse_common::container::ContainerIdentity;
use kpulse_symbolize::object::Segment;
use kpulse_symbolize::process::{Executable, MAX_PARTS};
use kpulse_symbolize::unnamed::Part;
use prost::Message;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// More takes twice the time and spares a twentieth.
const LEVEL: i32 = 3;
/// A window that unpacks to more is not ours: one full of different stacks has a fourth.
const MAX_BYTES: u64 = 256 << 20;
/// What every error of the bytes comes down to.
const BROKEN: &str = "the window is damaged";

/// A closed window, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its place in the order of time; every window of this machine has another.
    pub number: u64,
    pub from: SystemTime,
    pub to: SystemTime,
    /// Samples in it.
    pub samples: u64,
    /// Different stacks in it.
    pub entries: u64,
    pub body: Vec<u8>,
}

/// The fields of the body.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Body {
        /// Every text once; the first is empty and stands for none.
        #[prost(string, repeated, tag = "1")]
        pub texts: Vec<String>,
        #[prost(message, repeated, tag = "2")]
        pub processes: Vec<Process>,
        #[prost(message, repeated, tag = "3")]
        pub containers: Vec<Container>,
        /// The tree of frames, which are counted from 1: how far back the caller stands; 0 for a root.
        #[prost(uint32, repeated, tag = "4")]
        pub callers: Vec<u32>,
        /// What each of them is called.
        #[prost(uint32, repeated, tag = "5")]
        pub functions: Vec<u32>,
        /// Entry by entry: process, thread's name, last frame (0 for no frame), samples.
        #[prost(uint32, repeated, tag = "6")]
        pub entry_processes: Vec<u32>,
        #[prost(uint32, repeated, tag = "7")]
        pub entry_threads: Vec<u32>,
        #[prost(uint32, repeated, tag = "8")]
        pub entry_leaves: Vec<u32>,
        #[prost(uint64, repeated, tag = "9")]
        pub entry_counts: Vec<u64>,
        #[prost(message, repeated, tag = "10")]
        pub lost: Vec<Loss>,
        #[prost(message, repeated, tag = "11")]
        pub parts: Vec<Part>,
    }

    #[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
    pub struct Process {
        #[prost(uint32, tag = "1")]
        pub pid: u32,
        #[prost(uint32, tag = "2")]
        pub name: u32,
        /// Its id, a text.
        #[prost(uint32, tag = "3")]
        pub container: u32,
        #[prost(uint32, tag = "4")]
        pub path: u32,
        #[prost(uint32, tag = "5")]
        pub build_id: u32,
        /// The parts of its files whose functions have no names.
        #[prost(uint32, repeated, tag = "6")]
        pub unnamed: Vec<u32>,
    }

    /// A part of a file with code.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
    pub struct Part {
        #[prost(uint32, tag = "1")]
        pub path: u32,
        #[prost(uint32, tag = "2")]
        pub build_id: u32,
        #[prost(uint64, tag = "3")]
        pub offset: u64,
        #[prost(uint64, tag = "4")]
        pub bytes: u64,
        #[prost(uint64, tag = "5")]
        pub address: u64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Container {
        #[prost(uint32, tag = "1")]
        pub id: u32,
        #[prost(uint32, tag = "2")]
        pub pod_uid: u32,
        #[prost(uint32, tag = "3")]
        pub namespace: u32,
        #[prost(uint32, tag = "4")]
        pub pod: u32,
        #[prost(uint32, tag = "5")]
        pub name: u32,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Loss {
        #[prost(uint32, tag = "1")]
        pub reason: u32,
        #[prost(uint64, tag = "2")]
        pub samples: u64,
    }
}

impl Packed {
    /// Packs a closed window.
    pub fn of(number: u64, window: &Window) -> Result<Self> {
        let plain = body(window).encode_to_vec();
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        let body = compressor.compress(&plain).context("a window cannot be compressed")?;
        let Window { from, to, stored, .. } = *window;
        Ok(Self { number, from, to, samples: stored, entries: window.len() as u64, body })
    }

    /// Adds what is wanted of it; when it is damaged, none or a part, and an error.
    pub fn gather(&self, gathering: &mut Gathering) -> Result<()> {
        let mut plain = Vec::new();
        zstd::stream::read::Decoder::new(&self.body[..])?
            .take(MAX_BYTES)
            .read_to_end(&mut plain)
            .context(BROKEN)?;
        let body = proto::Body::decode(&plain[..]).context(BROKEN)?;
        drop(plain);
        gathering.begin(self.from, self.to);
        Reading { body: &body, names: vec![None; body.texts.len()] }.gather(gathering)
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.body.capacity()
    }
}

#[derive(Default)]
struct Packing<'a> {
    texts: Numbered<&'a str>,
    processes: Numbered<proto::Process>,
    parts: Numbered<proto::Part>,
    frames: HashMap<(u32, u32), u32>,
    body: proto::Body,
}

fn body(window: &Window) -> proto::Body {
    let mut packing = Packing::default();
    packing.text("");
    // Stacks that have much in common stand together, which is what compression lives by.
    let mut entries: Vec<(&Key, u64)> = window.entries().collect();
    entries.sort_unstable_by(|(one, _), (other, _)| {
        one.stack.cmp(&other.stack).then_with(|| (one.pid, &one.thread).cmp(&(other.pid, &other.thread)))
    });
    for (key, count) in entries {
        let program = window.programs.get(&(key.pid, key.process.clone()));
        let process = proto::Process {
            pid: key.pid,
            name: packing.text(&key.process),
            container: packing.text(key.container.as_deref().unwrap_or_default()),
            path: packing.text(program.map_or("", |program| &program.path)),
            build_id: packing
                .text(program.and_then(|program| program.build_id.as_deref()).unwrap_or_default()),
            unnamed: program.map_or_else(Vec::new, |program| packing.parts(&program.unnamed)),
        };
        let process = number(packing.processes.number(process));
        let (thread, leaf) = (packing.text(&key.thread), packing.leaf(&key.stack));
        let body = &mut packing.body;
        body.entry_processes.push(process);
        body.entry_threads.push(thread);
        body.entry_leaves.push(leaf);
        body.entry_counts.push(count);
    }
    for container in window.containers.values() {
        let ContainerIdentity { id, pod_uid, namespace, pod, container, .. } = &**container;
        let [pod_uid, namespace, pod, name] = [pod_uid, namespace, pod, container]
            .map(|text| packing.text(text.as_deref().unwrap_or_default()));
        let id = packing.text(id);
        packing.body.containers.push(proto::Container { id, pod_uid, namespace, pod, name });
    }
    for (reason, &samples) in &window.lost {
        let reason = packing.text(reason);
        packing.body.lost.push(proto::Loss { reason, samples });
    }
    packing.body.texts = packing.texts.values.into_iter().map(str::to_owned).collect();
    packing.body.processes = packing.processes.values;
    packing.body.parts = packing.parts.values;
    packing.body
}

impl<'a> Packing<'a> {
    fn text(&mut self, text: &'a str) -> u32 {
        number(self.texts.number(text))
    }

    fn parts(&mut self, parts: &'a [Arc<Part>]) -> Vec<u32> {
        let mut add = |part: &'a Part| {
            let (path, build_id) =
                (self.text(&part.path), self.text(part.build_id.as_deref().unwrap_or_default()));
            let Segment { offset, bytes, address } = part.code;
            number(self.parts.number(proto::Part { path, build_id, offset, bytes, address }))
        };
        parts.iter().map(|part| add(part)).collect()
    }

    /// The last frame of a stack in the tree, counted from 1.
    fn leaf(&mut self, stack: &'a [Arc<str>]) -> u32 {
        stack.iter().fold(0, |caller, name| {
            let name = self.text(name);
            let next = number(self.body.functions.len() + 1);
            *self.frames.entry((caller, name)).or_insert_with(|| {
                self.body.callers.push(if caller == 0 { 0 } else { next - caller });
                self.body.functions.push(name);
                next
            })
        })
    }
}

/// A window has far fewer of anything.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// A process whose samples are wanted: pid, name and container.
type Wanted = (u32, Arc<str>, Option<Arc<str>>);

/// A body with the names that were wanted so far.
struct Reading<'a> {
    body: &'a proto::Body,
    names: Vec<Option<Arc<str>>>,
}

impl Reading<'_> {
    fn gather(mut self, gathering: &mut Gathering) -> Result<()> {
        let body = self.body;
        for loss in &body.lost {
            gathering.lose(self.text(loss.reason)?, loss.samples);
        }
        let mut containers = HashMap::new();
        for container in &body.containers {
            containers.insert(container.id, Arc::new(self.container(container)?));
        }
        let mut processes = Vec::with_capacity(body.processes.len());
        for process in &body.processes {
            processes.push(self.process(process, &containers, gathering)?);
        }
        let entries = body.entry_counts.len();
        let columns = [&body.entry_processes, &body.entry_threads, &body.entry_leaves];
        ensure!(columns.iter().all(|column| column.len() == entries), BROKEN);
        let mut frames = Vec::new();
        for (index, &count) in body.entry_counts.iter().enumerate() {
            let [process, thread, leaf] = columns.map(|column| column[index]);
            let Some((pid, process, container)) = processes.get(process as usize).context(BROKEN)? else {
                continue;
            };
            let (process, container) = (process.clone(), container.clone());
            frames.clear();
            let thread = match gathering.detail() {
                Detail::Stacks => {
                    self.frames(leaf, &mut frames, gathering)?;
                    self.name(thread, gathering)?
                }
                Detail::Targets => gathering.name(""),
            };
            let stack = gathering.stack(&frames);
            gathering.count(Key { pid: *pid, process, thread, container, stack }, count);
        }
        Ok(())
    }

    /// What a process is to the entries; `None` when it is not wanted.
    fn process(
        &mut self,
        process: &proto::Process,
        containers: &HashMap<u32, Arc<ContainerIdentity>>,
        gathering: &mut Gathering,
    ) -> Result<Option<Wanted>> {
        let proto::Process { pid, name, container, path, build_id, ref unnamed } = *process;
        if !gathering.wants(pid, self.optional(container)?) {
            return Ok(None);
        }
        let name = self.name(name, gathering)?;
        let program = match self.optional(path)? {
            Some(path) => {
                let build_id = self.optional(build_id)?.map(str::to_owned);
                let unnamed: Result<_> =
                    unnamed.iter().take(MAX_PARTS).map(|index| self.part(*index)).collect();
                Some(Arc::new(Executable { path: path.to_owned(), build_id, unnamed: unnamed? }))
            }
            None => None,
        };
        gathering.describe(pid, &name, program.as_ref(), containers.get(&container));
        let container = if container == 0 { None } else { Some(self.name(container, gathering)?) };
        Ok(Some((pid, name, container)))
    }

    fn part(&self, index: u32) -> Result<Arc<Part>> {
        let part = self.body.parts.get(index as usize).context(BROKEN)?;
        let proto::Part { path, build_id, offset, bytes, address } = *part;
        let (path, build_id) = (self.text(path)?.to_owned(), self.optional(build_id)?.map(str::to_owned));
        Ok(Arc::new(Part { path, build_id, code: Segment { offset, bytes, address } }))
    }

    fn container(&self, container: &proto::Container) -> Result<ContainerIdentity> {
        let proto::Container { id, pod_uid, namespace, pod, name } = *container;
        let optional = |index| Ok::<_, anyhow::Error>(self.optional(index)?.map(str::to_owned));
        Ok(ContainerIdentity {
            id: self.text(id)?.to_owned(),
            runtime: None,
            pod_uid: optional(pod_uid)?,
            namespace: optional(namespace)?,
            pod: optional(pod)?,
            container: optional(name)?,
        })
    }

    /// The frames from the root to this one.
    fn frames(&mut self, leaf: u32, frames: &mut Vec<Arc<str>>, gathering: &mut Gathering) -> Result<()> {
        let mut frame = leaf;
        while frame != 0 {
            let index = frame as usize - 1;
            let function = *self.body.functions.get(index).context(BROKEN)?;
            frames.push(self.name(function, gathering)?);
            // Each step leads back, so the walk ends.
            frame = match *self.body.callers.get(index).context(BROKEN)? {
                0 => 0,
                back => frame.checked_sub(back).filter(|caller| *caller > 0).context(BROKEN)?,
            };
        }
        frames.reverse();
        Ok(())
    }

    /// The answer's copy of a text.
    fn name(&mut self, index: u32, gathering: &mut Gathering) -> Result<Arc<str>> {
        let text = self.text(index)?;
        let known = self.names.get_mut(index as usize).context(BROKEN)?;
        Ok(known.get_or_insert_with(|| gathering.name(text)).clone())
    }
}

impl<'a> Reading<'a> {
    fn text(&self, index: u32) -> Result<&'a str> {
        self.body.texts.get(index as usize).map(String::as_str).context(BROKEN)
    }

    fn optional(&self, index: u32) -> Result<Option<&'a str>> {
        if index == 0 { Ok(None) } else { self.text(index).map(Some) }
    }
}

/// Since 1970, as the store has it.
pub fn time(nanoseconds_since: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds_since).unwrap_or(0))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::aggregate::{Containers, Programs, Scope, Selection};
    use proptest::prelude::*;

    /// A window of two processes, one in a container, with some losses.
    pub fn window(from: SystemTime, leaf: &str) -> Window {
        let mut window = Window::new(from, 100);
        window.to = from + Duration::from_secs(10);
        let id: Arc<str> = Arc::from("4f5e6d7c8b9a0f1e");
        for (pid, process, container, frames, count) in [
            (7, "burn", Some(&id), &["main", "outer", leaf][..], 7),
            (7, "burn", Some(&id), &["main", "outer"], 2),
            (8, "cron d", None, &["main", leaf], 4),
            (9, "kworker", None, &[], 1),
        ] {
            let stack: Vec<Arc<str>> = frames.iter().map(|frame| Arc::from(*frame)).collect();
            let (process, thread) = (Arc::from(process), Arc::from("worker"));
            window
                .add(Key { pid, process, thread, container: container.cloned(), stack: stack.into() }, count);
        }
        window.taken = 17;
        window.lost.insert("table_full", 3);
        let (path, build_id) = ("/bin/burn".to_owned(), Some("c0ffee".to_owned()));
        let code = Segment { offset: 0x1000, bytes: 0x1800, address: 0x401000 };
        let part = Part { path: "/usr/lib/libx.so".into(), build_id: None, code };
        let executable = Executable { path, build_id, unnamed: vec![Arc::new(part)] };
        let identity = ContainerIdentity {
            id: id.to_string(),
            runtime: None,
            pod_uid: None,
            namespace: Some("shop".into()),
            pod: Some("web-0".into()),
            container: None,
        };
        let programs = Programs::from([((7, Arc::from("burn")), Arc::new(executable))]);
        window.note(programs, Containers::from([(id, Arc::new(identity))]));
        window
    }

    fn unpacked(packed: &Packed, scope: &Scope) -> Selection {
        let mut gathering = Gathering::new(scope, Detail::Stacks, 100);
        packed.gather(&mut gathering).unwrap();
        gathering.finish().unwrap()
    }

    fn assert_same(one: &Selection, other: &Selection) {
        assert_eq!((one.from, one.to, one.samples), (other.from, other.to, other.samples));
        assert_eq!((&one.lost, &one.entries), (&other.lost, &other.entries));
        assert_eq!((&one.programs, &one.containers), (&other.programs, &other.containers));
    }

    #[test]
    fn a_window_comes_back_as_it_was_for_every_scope() {
        let window = window(UNIX_EPOCH + Duration::from_secs(1_700_000_000), "hot");
        let packed = Packed::of(5, &window).unwrap();
        assert_eq!((packed.number, packed.samples, packed.entries), (5, 14, 4));
        let container = Scope::Container("4f5e6d7c8b9a".into());
        for (scope, samples) in
            [(Scope::Host, 14), (Scope::Process(7), 9), (container, 9), (Scope::Process(5), 0)]
        {
            let found = unpacked(&packed, &scope);
            assert_same(&found, &Selection::gather([&window], &scope).unwrap());
            assert_eq!(found.samples, samples);
        }
        let mut targets = Gathering::new(&Scope::Host, Detail::Targets, 100);
        packed.gather(&mut targets).unwrap();
        assert_eq!(targets.finish().unwrap().entries.len(), 3);
    }

    #[test]
    fn a_byte_that_changed_is_noticed() {
        let packed = Packed::of(0, &window(UNIX_EPOCH, "hot")).unwrap();
        for index in 0..packed.body.len() {
            let mut damaged = packed.clone();
            damaged.body[index] ^= 0x10;
            let mut gathering = Gathering::new(&Scope::Host, Detail::Stacks, 100);
            assert!(
                damaged.gather(&mut gathering).is_err() || {
                    // A bit of the header that means nothing.
                    let found = gathering.finish().unwrap();
                    found.samples == 14
                }
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_the_body_says_reading_ends(
            columns in prop::collection::vec(prop::collection::vec(0u32..6, 0..6), 5),
            counts in prop::collection::vec(0u64..1000, 0..6),
            process in 0u32..6,
        ) {
            let unnamed = vec![process];
            let process =
                proto::Process { pid: 1, name: process, container: process, path: process, build_id: 9, unnamed };
            let [callers, functions, entry_processes, entry_threads, entry_leaves] =
                columns.try_into().expect("five");
            let body = proto::Body {
                texts: vec![String::new(), "a".into(), "b".into()],
                processes: vec![process; 2],
                callers,
                functions,
                entry_processes,
                entry_threads,
                entry_leaves,
                entry_counts: counts,
                ..proto::Body::default()
            };
            let body = zstd::bulk::compress(&body.encode_to_vec(), LEVEL).unwrap();
            let (from, to) = (UNIX_EPOCH, UNIX_EPOCH);
            let packed = Packed { number: 0, from, to, samples: 0, entries: 0, body };
            // An error or an answer.
            let _ = packed.gather(&mut Gathering::new(&Scope::Host, Detail::Stacks, 100));
        }
    }
}
