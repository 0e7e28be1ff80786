//! Which files' rows and which processes' mappings are in the kernel? Made when a process is sampled, and dropped
//! when it is gone or room is needed.
//!
//! Rows belong to the content that they were made of, so that containers of one image share them, and no container can
//! give another a wrong table.

use super::code::{self, Code, FileId};
use super::eh_frame::{self, Rule, Section};
use super::elf::{Elf, Segment};
use super::go;
use super::hotspot::{self, Found, Jvm, Missing};
use super::pages::Pages;
use super::ranges::Ranges;
use crate::aggregate::Losses;
use crate::deadline::{Bounded, Stuck};
use anyhow::Context;
use kpulse_common::clock::monotonic_ns;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{Mapping, Page, Process, UnwindTables, limits};
use kpulse_symbolize::process::{Identity, Processes};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Files that are remembered, with a table or without.
const MAX_FILES: usize = 4096;
/// A process that asks again has mapped something since, or its stack leads nowhere; the second is no reason to read
/// its mappings all the time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// A JVM fills its tables within milliseconds as a rule; a starved one is looked at less and less often, yet so that most
/// of what it runs is walked.
const LEAST_WAIT: Duration = Duration::from_millis(50);
const WAIT_PART: u32 = 4;
const MAX_AWAITED: Duration = Duration::from_secs(30);

/// A process that was not sampled for so long is gone, or can be read again.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// A hash with a secret key, of the section with its address and of Go's rules.
type Content = u64;

struct File {
    code: Vec<Segment>,
    content: Option<Content>,
}

struct Table {
    base: u64,
    rows: Range<u32>,
    pages: Range<u32>,
    users: usize,
}

struct Known {
    identity: Identity,
    codes: Vec<Code>,
    mappings: Range<u32>,
    contents: HashSet<Content>,
    read: Instant,
    pause: Duration,
    awaited: Option<Awaited>,
    has_jvm: bool,
}

/// A JVM that has not begun.
#[derive(Clone, Copy)]
struct Awaited {
    since: Instant,
    next: Instant,
}

impl Awaited {
    /// When to look again; `None` where it is no use.
    fn after(since: Instant, now: Instant) -> Option<Self> {
        let waited = now - since;
        let next = now + (waited / WAIT_PART).max(LEAST_WAIT);
        (waited < MAX_AWAITED).then_some(Self { since, next })
    }
}

/// What is in the kernel's maps.
pub struct Tables {
    maps: UnwindTables,
    source: Processes,
    rows: Ranges,
    pages: Ranges,
    mappings: Ranges,
    files: HashMap<FileId, Rc<File>>,
    tables: HashMap<Content, Table>,
    processes: HashMap<u32, Known>,
    jvms: usize,
    /// Mappings that a walk which began before may still read.
    retired: Vec<Range<u32>>,
    hasher: RandomState,
    refused: Losses,
    reads: Bounded,
    stuck: Stuck,
}

/// How much there is.
#[derive(Debug, Clone, Default)]
pub struct Size {
    pub files: usize,
    pub rows: u32,
    pub processes: usize,
    /// What was left out, by reason.
    pub refused: Losses,
}

impl Tables {
    /// Nothing is known yet.
    pub fn new(maps: UnwindTables, source: Processes, stuck: Stuck) -> Self {
        Self {
            maps,
            source,
            rows: Ranges::new(limits::ROWS),
            pages: Ranges::new(limits::PAGES),
            mappings: Ranges::new(limits::MAPPINGS),
            files: HashMap::new(),
            tables: HashMap::new(),
            processes: HashMap::new(),
            jvms: 0,
            retired: Vec::new(),
            hasher: RandomState::new(),
            refused: Losses::new(),
            reads: Bounded::default(),
            stuck,
        }
    }

    /// Processes that were sampled and are not known as they are.
    pub fn wanted(&self) -> anyhow::Result<Vec<u32>> {
        Ok(self.maps.wanted()?)
    }

    /// How much there is.
    pub fn size(&self) -> Size {
        Size {
            files: self.tables.len(),
            rows: limits::ROWS - self.rows.left(),
            processes: self.processes.len(),
            refused: self.refused.clone(),
        }
    }

    /// Reads what a process has mapped, and puts it where the walk finds it.
    pub fn learn(&mut self, pid: u32, now: Instant) -> anyhow::Result<()> {
        let Some(running) = self.source.process(pid) else { return Ok(()) };
        let known = self.processes.get(&pid).filter(|known| known.identity == running.identity);
        let pause = known.map_or(FIRST_PAUSE, |known| known.pause);
        if known.is_some_and(|known| now - known.read < known.pause) || self.stuck.has(&self.source, pid) {
            return Ok(());
        }
        self.read_process(pid, running.identity, pause, now)
    }

    /// Looks again for the JVMs that had not begun.
    pub fn await_jvms(&mut self, now: Instant) -> anyhow::Result<()> {
        let is_due = |known: &Known| known.awaited.is_some_and(|awaited| awaited.next <= now);
        let due: Vec<_> =
            self.processes.iter().filter(|(_, known)| is_due(known)).map(|(pid, _)| *pid).collect();
        for pid in due {
            let Some(known) = self.processes.get_mut(&pid) else { continue };
            let (identity, pause, awaited) = (known.identity, known.pause, known.awaited.take());
            let (source, codes) = (self.source.clone(), std::mem::take(&mut known.codes));
            let found = self.reads.run(move || (hotspot::find(&source, pid, &codes), codes));
            match found {
                None => self.give_up(pid)?,
                Some((Found::Missing(Missing::NotYet), codes)) => {
                    known.awaited = awaited.and_then(|awaited| Awaited::after(awaited.since, now));
                    known.codes = codes;
                }
                // It has to be read anew, since nothing is known of its mappings.
                Some(_) => self.read_process(pid, identity, pause, now)?,
            }
        }
        Ok(())
    }

    fn read_process(
        &mut self,
        pid: u32,
        identity: Identity,
        pause: Duration,
        now: Instant,
    ) -> anyhow::Result<()> {
        let mut codes = code::mapped(&self.source, pid);
        // Between the two it may have started another program, whose mappings these would be.
        if self.source.process(pid).is_none_or(|again| again.identity != identity) {
            return Ok(());
        }
        if let Some(known) = self.processes.get_mut(&pid).filter(|known| known.identity == identity)
            && known.codes == codes
        {
            (known.read, known.pause) = (now, (pause * 2).min(LAST_PAUSE));
            return Ok(());
        }
        if codes.len() > limits::PROCESS_MAPPINGS {
            self.refuse("process_mappings");
            codes.truncate(limits::PROCESS_MAPPINGS);
        }
        self.enter(pid, identity, codes, now)
    }

    /// What was known before is walked by until all is read: that takes long on a busy machine.
    fn enter(&mut self, pid: u32, identity: Identity, codes: Vec<Code>, now: Instant) -> anyhow::Result<()> {
        let is_full = self.processes.len() >= limits::PROCESSES as usize;
        if is_full || (self.mappings.left() as usize) < codes.len() {
            self.evict()?;
        }
        let source = self.source.clone();
        let looked = self.reads.run(move || {
            let ways = source.files(pid);
            let files: Vec<_> = codes.iter().map(|code| code::identify(&source, pid, ways, code)).collect();
            (hotspot::find(&source, pid, &codes), files, codes)
        });
        let Some((found, files, codes)) = looked else { return self.give_up(pid) };
        let mut contents = HashSet::new();
        let (jvm, awaited) = self.jvm(pid, found, now);
        let mut mappings: Vec<Mapping> =
            jvm.iter().flat_map(|jvm| hotspot::mappings(&jvm.layout.kernel)).collect();
        let heaps = mappings.len();
        for (code, file) in codes.iter().zip(files) {
            // What a JVM has made by now is a part of where it makes it.
            if mappings[..heaps].iter().any(|heap| code.start < heap.end && heap.start < code.end) {
                continue;
            }
            let mut mapping =
                Mapping { start: code.start, end: code.end, bias: code.start, first_page: 0, page_count: 0 };
            let table = match file {
                Some((id, path)) => self.table_of(pid, id, &path, code)?,
                None => None,
            };
            if self.stuck.has(&self.source, pid) {
                self.release(&contents);
                return self.give_up(pid);
            }
            if let Some((content, bias)) = table
                && let Some(table) = self.tables.get_mut(&content)
            {
                mapping.bias = bias.wrapping_add(table.base);
                mapping.first_page = table.pages.start;
                mapping.page_count = table.pages.end - table.pages.start;
                // At once: the next file must not take its room.
                table.users += usize::from(contents.insert(content));
            }
            mappings.push(mapping);
        }
        mappings.sort_unstable_by_key(|mapping| mapping.start);
        mappings.truncate(limits::PROCESS_MAPPINGS);
        let Some(range) = self.mappings.take(mappings.len()) else {
            self.refuse("mappings_full");
            self.release(&contents);
            return self.forget(pid);
        };
        let process = Process {
            start_code: identity.code,
            start_stack: identity.stack,
            used_ns: monotonic_ns(),
            first: range.start,
            count: range.end - range.start,
        };
        let described = jvm.as_ref().map_or(Ok(()), |jvm| self.maps.set_hotspot(pid, &jvm.layout.kernel));
        let outcome = described.and_then(|()| self.maps.set_process(pid, &process, &mappings));
        let (pause, has_jvm) = (FIRST_PAUSE, jvm.is_some());
        let known = Known { identity, codes, mappings: range, contents, read: now, pause, awaited, has_jvm };
        self.jvms += usize::from(has_jvm);
        if let Some(before) = self.processes.insert(pid, known) {
            self.retire(before);
        }
        outcome
            .or_else(|error| self.forget(pid).and(Err(error.into())))
            .context("cannot tell the kernel of a process")
    }

    /// The JVM of a process, or when to look for it again.
    fn jvm(&mut self, pid: u32, found: Found, now: Instant) -> (Option<Box<Jvm>>, Option<Awaited>) {
        let has_room =
            self.jvms < limits::HOTSPOTS || self.processes.get(&pid).is_some_and(|known| known.has_jvm);
        match found {
            Found::Ready(_) if !has_room => self.refuse("jvms_full"),
            Found::Ready(jvm) => return (Some(jvm), None),
            Found::Missing(Missing::NotYet) => return (None, Awaited::after(now, now)),
            Found::Missing(Missing::Unknown) => self.refuse("jvm_unknown"),
            Found::Nothing => {}
        }
        (None, None)
    }

    /// The table of a file's content, and what to subtract from addresses in memory to have the file's.
    fn table_of(
        &mut self,
        pid: u32,
        id: FileId,
        path: &Path,
        code: &Code,
    ) -> anyhow::Result<Option<(Content, u64)>> {
        let known = self.files.get(&id).cloned();
        let is_there = |file: &File| file.content.is_none_or(|content| self.tables.contains_key(&content));
        let file = match known.filter(|file| is_there(file)) {
            Some(file) => file,
            None => {
                let Some(file) = self.read(pid, id, path, code)? else { return Ok(None) };
                let file = Rc::new(file);
                if self.files.len() >= MAX_FILES {
                    self.files.clear();
                }
                self.files.insert(id, file.clone());
                file
            }
        };
        Ok(file.content.zip(Elf::bias(&file.code, code.start, code.offset)))
    }

    /// A file with its table; `None` where it does not come.
    fn read(&mut self, pid: u32, id: FileId, path: &Path, code: &Code) -> anyhow::Result<Option<File>> {
        let (path, code) = (path.to_owned(), code.clone());
        let read = self.reads.run(move || {
            let opened = code::open(&id, &path, &code).ok()?;
            Some((Elf::read(&opened)?, go::rules(&opened)))
        });
        let Some(read) = read else {
            self.stuck.note(&self.source, pid);
            return Ok(None);
        };
        let Some((elf, go)) = read else {
            self.refuse("file_unreadable");
            return Ok(Some(File { code: Vec::new(), content: None }));
        };
        if elf.is_too_large {
            self.refuse("file_unusable");
        }
        if elf.eh_frame.is_empty() && go.is_empty() {
            return Ok(Some(File { code: elf.code, content: None }));
        }
        let content = self.hasher.hash_one((&elf.eh_frame, elf.eh_frame_address, &go));
        let is_there = self.tables.contains_key(&content) || self.load(content, &elf, &go)?;
        Ok(Some(File { code: elf.code, content: is_there.then_some(content) }))
    }

    /// Makes a table and writes it; whether there was room.
    fn load(&mut self, content: Content, elf: &Elf, go: &[(u64, Rule)]) -> anyhow::Result<bool> {
        let section = Section {
            bytes: &elf.eh_frame,
            address: elf.eh_frame_address,
            text: elf.text_address,
            got: elf.got_address,
        };
        let Some(table) = Pages::of(&go::merged(eh_frame::rules(section), go)) else {
            self.refuse("file_unusable");
            return Ok(false);
        };
        if self.rows.left() as usize <= table.rows.len() || self.pages.left() as usize <= table.pages.len() {
            self.evict()?;
        }
        let Some(rows) = self.rows.take(table.rows.len()) else {
            self.refuse("rows_full");
            return Ok(false);
        };
        let Some(pages) = self.pages.take(table.pages.len()) else {
            self.rows.give(rows);
            self.refuse("rows_full");
            return Ok(false);
        };
        let placed: Vec<Page> = table
            .pages
            .iter()
            .map(|page| Page { first: rows.start + page.first, count: page.count })
            .collect();
        let outcome = self.maps.set_file(rows.start, &table.rows, pages.start, &placed);
        self.tables.insert(content, Table { base: table.base, rows, pages, users: 0 });
        outcome.context("cannot write rows")?;
        Ok(true)
    }

    /// Forgets processes that were not sampled for long.
    pub fn sweep(&mut self) -> anyhow::Result<()> {
        let before = monotonic_ns().saturating_sub(MAX_IDLE.as_nanos() as u64);
        let old: Vec<u32> = self
            .maps
            .processes()?
            .into_iter()
            .filter(|(_, process)| process.used_ns < before)
            .map(|(pid, _)| pid)
            .collect();
        old.into_iter().try_for_each(|pid| self.forget(pid))?;
        self.reclaim()
    }

    /// Makes room: of the processes that quarter goes that was sampled longest ago, and so do rows that none uses.
    fn evict(&mut self) -> anyhow::Result<()> {
        let mut by_use: Vec<(u64, u32)> =
            self.maps.processes()?.into_iter().map(|(pid, process)| (process.used_ns, pid)).collect();
        by_use.sort_unstable();
        by_use.truncate(by_use.len().div_ceil(4));
        by_use.into_iter().try_for_each(|(_, pid)| self.forget(pid))?;
        self.reclaim()?;
        let unused = self.tables.extract_if(|_, table| table.users == 0);
        for (_, table) in unused {
            self.rows.give(table.rows);
            self.pages.give(table.pages);
        }
        Ok(())
    }

    /// Leaves out a process of which something does not come.
    fn give_up(&mut self, pid: u32) -> anyhow::Result<()> {
        if !self.stuck.has(&self.source, pid) {
            self.stuck.note(&self.source, pid);
        }
        self.refuse("stuck");
        self.forget(pid)
    }

    fn forget(&mut self, pid: u32) -> anyhow::Result<()> {
        self.maps.remove_process(pid)?;
        if let Some(known) = self.processes.remove(&pid) {
            self.retire(known);
        }
        Ok(())
    }

    fn retire(&mut self, known: Known) {
        self.retired.push(known.mappings);
        self.jvms -= usize::from(known.has_jvm);
        self.release(&known.contents);
    }

    fn release(&mut self, contents: &HashSet<Content>) {
        for content in contents {
            if let Some(table) = self.tables.get_mut(content) {
                table.users -= 1;
            }
        }
    }

    /// Waits for walks that began before, and takes back what only they could still read.
    fn reclaim(&mut self) -> anyhow::Result<()> {
        self.maps.wait()?;
        self.retired.drain(..).for_each(|range| self.mappings.give(range));
        Ok(())
    }

    fn refuse(&mut self, why: &'static str) {
        *self.refused.entry(why).or_default() += 1;
    }
}
