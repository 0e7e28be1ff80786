//! A closed window as it is kept, or a sum of some: protobuf, compressed, with each name once and the stacks as one tree.
//!
//! Names and paths come from programs that nobody vouches for, and the bytes from a disk: what does not fit together is an
//! error, never a panic or an endless loop.

use crate::aggregate::{Detail, Entry, Frame, Gathering, Process, Sum, Wanted};
use crate::names::{Numbered, number};
use anyhow::{Context, Result, ensure};
use kpulse_common::container::ContainerIdentity;
use kpulse_symbolize::object::Segment;
use kpulse_symbolize::process::{Executable, MAX_PARTS};
use kpulse_symbolize::unnamed::Part;
use prost::Message;
use std::collections::HashMap;
use std::io::Read;
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// More takes twice the time and spares a twentieth.
const LEVEL: i32 = 3;
/// A window that unpacks to more is not ours: one full of different stacks has a fourth.
const MAX_BYTES: u64 = 256 << 20;
/// What every error of the bytes comes down to.
const BROKEN: &str = "the window is damaged";

/// A closed window, or a sum of some, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its place in the order of time; every window of this machine has another. Of a sum that of its first.
    pub number: u64,
    pub from: SystemTime,
    pub to: SystemTime,
    /// Samples in it.
    pub samples: u64,
    /// Different stacks in it.
    pub entries: u64,
    pub body: Vec<u8>,
}

/// The fields of the body: two messages, one behind the other, with tags of their own.
mod proto {
    /// What ran how often.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Body {
        /// Every text once; the first is empty and stands for none.
        #[prost(string, repeated, tag = "1")]
        pub texts: Vec<String>,
        #[prost(message, repeated, tag = "2")]
        pub processes: Vec<Process>,
        #[prost(message, repeated, tag = "3")]
        pub containers: Vec<Container>,
        /// Entry by entry: process, samples.
        #[prost(uint32, repeated, tag = "6")]
        pub entry_processes: Vec<u32>,
        #[prost(uint64, repeated, tag = "9")]
        pub entry_counts: Vec<u64>,
        #[prost(message, repeated, tag = "10")]
        pub lost: Vec<Loss>,
        #[prost(message, repeated, tag = "11")]
        pub parts: Vec<Part>,
    }

    /// Where: what targets do without.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Stacks {
        /// The tree of frames, which are counted from 1: how far back the caller stands; 0 for a root.
        #[prost(uint32, repeated, tag = "4")]
        pub callers: Vec<u32>,
        /// What each of them is called.
        #[prost(uint32, repeated, tag = "5")]
        pub functions: Vec<u32>,
        /// Entry by entry: thread's name, last frame (0 for no frame).
        #[prost(uint32, repeated, tag = "7")]
        pub entry_threads: Vec<u32>,
        #[prost(uint32, repeated, tag = "8")]
        pub entry_leaves: Vec<u32>,
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
    /// Packs what a window, or some of them, come to.
    pub fn of(number: u64, sum: &Sum) -> Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        let body = compressor.compress(&plain(sum)).context("a window cannot be compressed")?;
        let entries = sum.entries.len() as u64;
        Ok(Self { number, from: sum.from, to: sum.to, samples: sum.samples(), entries, body })
    }

    /// Adds what is wanted of it: all of that, or an error and nothing that counts.
    pub fn gather(&self, gathering: &mut Gathering) -> Result<()> {
        let mut plain = Vec::new();
        zstd::stream::read::Decoder::new(&self.body[..])?
            .take(MAX_BYTES)
            .read_to_end(&mut plain)
            .context(BROKEN)?;
        gathering
            .add(self.from, self.to, |wanted, sum| Reading::of(&plain, wanted.detail)?.gather(wanted, sum))
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.body.capacity()
    }
}

/// The body, not compressed.
fn plain(sum: &Sum) -> Vec<u8> {
    let mut packing = Packing::default();
    packing.text("");
    for process in &sum.processes.values {
        let process = packing.process(sum, *process);
        packing.body.processes.push(process);
    }
    let leaves = packing.frames(sum);
    let place = |entry: &Entry| {
        let (process, thread) = (sum.processes.values[entry.process as usize], entry.thread);
        (leaves[entry.leaf as usize], process.pid, &sum.texts.values[thread as usize])
    };
    let mut entries: Vec<(&Entry, u64)> = sum.entries.iter().map(|(entry, count)| (entry, *count)).collect();
    entries.sort_unstable_by(|(one, _), (other, _)| place(one).cmp(&place(other)));
    for (entry, count) in entries {
        packing.body.entry_processes.push(entry.process);
        packing.body.entry_counts.push(count);
        let thread = packing.text(&sum.texts.values[entry.thread as usize]);
        packing.stacks.entry_threads.push(thread);
        packing.stacks.entry_leaves.push(leaves[entry.leaf as usize]);
    }
    for container in sum.containers.values() {
        let ContainerIdentity { id, pod_uid, namespace, pod, container, .. } = &**container;
        let [pod_uid, namespace, pod, name] = [pod_uid, namespace, pod, container]
            .map(|text| packing.text(text.as_deref().unwrap_or_default()));
        let id = packing.text(id);
        packing.body.containers.push(proto::Container { id, pod_uid, namespace, pod, name });
    }
    for (reason, &samples) in &sum.lost {
        let reason = packing.text(reason);
        packing.body.lost.push(proto::Loss { reason, samples });
    }
    packing.body.texts = packing.texts.values.into_iter().map(str::to_owned).collect();
    packing.body.parts = packing.parts.values;
    let mut plain = packing.body.encode_to_vec();
    plain.extend(packing.stacks.encode_to_vec());
    plain
}

#[derive(Default)]
struct Packing<'a> {
    texts: Numbered<&'a str>,
    parts: Numbered<proto::Part>,
    body: proto::Body,
    stacks: proto::Stacks,
}

impl<'a> Packing<'a> {
    fn text(&mut self, text: &'a str) -> u32 {
        number(self.texts.number(text))
    }

    fn process(&mut self, sum: &'a Sum, process: Process) -> proto::Process {
        let Process { pid, name, container } = process;
        let [name, container] = [name, container].map(|text| &sum.texts.values[text as usize]);
        let program = sum.programs.get(&(pid, name.clone()));
        proto::Process {
            pid,
            name: self.text(name),
            container: self.text(container),
            path: self.text(program.map_or("", |program| &program.path)),
            build_id: self.text(program.and_then(|program| program.build_id.as_deref()).unwrap_or_default()),
            unnamed: program.map_or_else(Vec::new, |program| self.parts(&program.unnamed)),
        }
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

    /// Puts the tree down so that stacks which have much in common stand together, which is what compression lives by; says
    /// by which number each frame goes here.
    fn frames(&mut self, sum: &'a Sum) -> Vec<u32> {
        let frames = &sum.frames.values;
        let mut by_caller: Vec<(u32, &Arc<str>, u32)> = (1..)
            .zip(frames)
            .map(|(frame, Frame { caller, name })| (*caller, &sum.texts.values[*name as usize], frame))
            .collect();
        by_caller.sort_unstable();
        let called_by = |caller: u32| {
            let begin = by_caller.partition_point(|(other, ..)| *other < caller);
            by_caller[begin..].iter().take_while(move |(other, ..)| *other == caller)
        };
        let mut numbers = vec![0; frames.len() + 1];
        let mut open = vec![called_by(0)];
        while let Some(called) = open.last_mut() {
            let Some(&(caller, name, frame)) = called.next() else {
                open.pop();
                continue;
            };
            let name = self.text(name);
            self.stacks.functions.push(name);
            let next = number(self.stacks.functions.len());
            self.stacks.callers.push(if caller == 0 { 0 } else { next - numbers[caller as usize] });
            numbers[frame as usize] = next;
            open.push(called_by(frame));
        }
        numbers
    }
}

/// A body, with the numbers of its texts and frames in the sum as far as they were wanted.
struct Reading {
    body: proto::Body,
    stacks: proto::Stacks,
    texts: Vec<Option<u32>>,
    frames: Vec<Option<u32>>,
}

impl Reading {
    fn of(plain: &[u8], detail: Detail) -> Result<Self> {
        let body = proto::Body::decode(plain).context(BROKEN)?;
        let stacks = match detail {
            Detail::Stacks => proto::Stacks::decode(plain).context(BROKEN)?,
            Detail::Targets => proto::Stacks::default(),
        };
        let (texts, frames) = (vec![None; body.texts.len()], vec![None; stacks.functions.len()]);
        Ok(Self { body, stacks, texts, frames })
    }

    fn gather(mut self, wanted: &Wanted, sum: &mut Sum) -> Result<()> {
        let mut containers = HashMap::new();
        for container in &self.body.containers {
            containers.insert(container.id, Arc::new(self.container(container)?));
        }
        let mut processes = Vec::with_capacity(self.body.processes.len());
        for process in take(&mut self.body.processes) {
            processes.push(self.process(&process, &containers, wanted, sum)?);
        }
        let counts = take(&mut self.body.entry_counts);
        ensure!(self.body.entry_processes.len() == counts.len(), BROKEN);
        if wanted.detail == Detail::Stacks {
            let columns = [&self.stacks.entry_threads, &self.stacks.entry_leaves];
            ensure!(columns.iter().all(|column| column.len() == counts.len()), BROKEN);
        }
        let mut entries = Vec::with_capacity(counts.len());
        for (index, count) in counts.into_iter().enumerate() {
            let process = self.body.entry_processes[index];
            let Some(process) = *processes.get(process as usize).context(BROKEN)? else { continue };
            let (thread, leaf) = match wanted.detail {
                Detail::Targets => (0, 0),
                Detail::Stacks => {
                    let leaf = self.frame(self.stacks.entry_leaves[index], sum)?;
                    (self.number(self.stacks.entry_threads[index], sum)?, leaf)
                }
            };
            entries.push((Entry { process, thread, leaf }, count));
        }
        let losses: Result<Vec<_>> =
            self.body.lost.iter().map(|loss| Ok((self.text(loss.reason)?, loss.samples))).collect();
        losses?.into_iter().for_each(|(reason, samples)| sum.lose(reason, samples));
        entries.into_iter().for_each(|(entry, count)| sum.count(entry, count));
        Ok(())
    }

    /// The number of a process in the sum; `None` when it is not wanted.
    fn process(
        &mut self,
        process: &proto::Process,
        containers: &HashMap<u32, Arc<ContainerIdentity>>,
        wanted: &Wanted,
        sum: &mut Sum,
    ) -> Result<Option<u32>> {
        let proto::Process { pid, name, container, path, build_id, ref unnamed } = *process;
        if !wanted.scope.matches(pid, self.optional(container)?) {
            return Ok(None);
        }
        let name = self.number(name, sum)?;
        if let Some(identity) = containers.get(&container) {
            sum.note_container(identity);
        }
        if wanted.detail == Detail::Stacks
            && let Some(path) = self.optional(path)?
        {
            let build_id = self.optional(build_id)?.map(str::to_owned);
            let unnamed: Result<_> = unnamed.iter().take(MAX_PARTS).map(|index| self.part(*index)).collect();
            let program = Executable { path: path.to_owned(), build_id, unnamed: unnamed? };
            sum.note_program(pid, name, &Arc::new(program));
        }
        let container = self.number(container, sum)?;
        Ok(Some(sum.process(Process { pid, name, container })))
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

    /// The sum's number of a frame: up to a caller that is known, and down again.
    fn frame(&mut self, frame: u32, sum: &mut Sum) -> Result<u32> {
        let (mut at, mut new, mut caller) = (frame, Vec::new(), 0);
        while at != 0 {
            let index = at as usize - 1;
            if let Some(known) = *self.frames.get(index).context(BROKEN)? {
                caller = known;
                break;
            }
            new.push(index);
            // Each step leads back, so the walk ends.
            at = match *self.stacks.callers.get(index).context(BROKEN)? {
                0 => 0,
                back => at.checked_sub(back).filter(|caller| *caller > 0).context(BROKEN)?,
            };
        }
        for index in new.into_iter().rev() {
            let name = self.number(self.stacks.functions[index], sum)?;
            caller = sum.frame(Frame { caller, name });
            self.frames[index] = Some(caller);
        }
        Ok(caller)
    }

    /// The sum's number of a text.
    fn number(&mut self, index: u32, sum: &mut Sum) -> Result<u32> {
        let known = self.texts.get_mut(index as usize).context(BROKEN)?;
        Ok(*known.get_or_insert_with(|| sum.text(&self.body.texts[index as usize])))
    }

    fn text(&self, index: u32) -> Result<&str> {
        self.body.texts.get(index as usize).map(String::as_str).context(BROKEN)
    }

    fn optional(&self, index: u32) -> Result<Option<&str>> {
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
    use crate::aggregate::{Containers, Key, Programs, Scope, Selection, Window};
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

    pub fn assert_same(one: &Selection, other: &Selection) {
        assert_eq!((one.from, one.to, one.samples), (other.from, other.to, other.samples));
        assert_eq!((&one.lost, &one.entries), (&other.lost, &other.entries));
        assert_eq!((&one.programs, &one.containers), (&other.programs, &other.containers));
    }

    #[test]
    fn a_window_comes_back_as_it_was_for_every_scope() {
        let window = window(UNIX_EPOCH + Duration::from_secs(1_700_000_000), "hot");
        let packed = Packed::of(5, &Sum::of(&window)).unwrap();
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
        let packed = Packed::of(0, &Sum::of(&window(UNIX_EPOCH, "hot"))).unwrap();
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
                entry_processes,
                entry_counts: counts,
                ..proto::Body::default()
            };
            let stacks = proto::Stacks { callers, functions, entry_threads, entry_leaves };
            let plain = [body.encode_to_vec(), stacks.encode_to_vec()].concat();
            let body = zstd::bulk::compress(&plain, LEVEL).unwrap();
            let (from, to) = (UNIX_EPOCH, UNIX_EPOCH);
            let packed = Packed { number: 0, from, to, samples: 0, entries: 0, body };
            // An error or an answer.
            let _ = packed.gather(&mut Gathering::new(&Scope::Host, Detail::Stacks, 100));
        }
    }
}
