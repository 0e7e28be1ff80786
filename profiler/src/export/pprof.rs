//! A profile in pprof's format, `profile.proto`: gzipped protobuf.
//!
//! A function has one location, and no address where it has a name. One without a name has the address at which it begins
//! in its file, in a mapping as if the file were mapped where it was linked: a store that has the file's debug information
//! names it, and nobody learns where the process had it. The first mappings are the programs that ran, the last one is the
//! kernel with its frames.

use super::{Profile, kernel_name, nanoseconds};
use crate::names::Numbered;
use flate2::Compression;
use flate2::write::GzEncoder;
use kpulse_symbolize::is_hostile;
use kpulse_symbolize::object::Segment;
use kpulse_symbolize::unnamed::Part;
use prost::Message;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

/// The fields that are used, with the numbers of `profile.proto`.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub sample: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        pub mapping: Vec<Mapping>,
        #[prost(message, repeated, tag = "4")]
        pub location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub string_table: Vec<String>,
        #[prost(int64, tag = "9")]
        pub time_nanos: i64,
        #[prost(int64, tag = "10")]
        pub duration_nanos: i64,
        #[prost(message, optional, tag = "11")]
        pub period_type: Option<ValueType>,
        #[prost(int64, tag = "12")]
        pub period: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ValueType {
        #[prost(int64, tag = "1")]
        pub r#type: i64,
        #[prost(int64, tag = "2")]
        pub unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        #[prost(uint64, repeated, tag = "1")]
        pub location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub label: Vec<Label>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Label {
        #[prost(int64, tag = "1")]
        pub key: i64,
        #[prost(int64, tag = "2")]
        pub str: i64,
        #[prost(int64, tag = "3")]
        pub num: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Mapping {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(uint64, tag = "2")]
        pub memory_start: u64,
        #[prost(uint64, tag = "3")]
        pub memory_limit: u64,
        #[prost(uint64, tag = "4")]
        pub file_offset: u64,
        #[prost(int64, tag = "5")]
        pub filename: i64,
        #[prost(int64, tag = "6")]
        pub build_id: i64,
        #[prost(bool, tag = "7")]
        pub has_functions: bool,
        #[prost(bool, tag = "10")]
        pub has_inline_frames: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(uint64, tag = "2")]
        pub mapping_id: u64,
        #[prost(uint64, tag = "3")]
        pub address: u64,
        #[prost(message, repeated, tag = "4")]
        pub line: Vec<Line>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Line {
        #[prost(uint64, tag = "1")]
        pub function_id: u64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Function {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "2")]
        pub name: i64,
        #[prost(int64, tag = "3")]
        pub system_name: i64,
    }
}

/// The kernel has one mapping, by the name that perf gives it.
const KERNEL: &str = "[kernel.kallsyms]";

/// Until it is known how many mappings there are.
const IN_KERNEL: u64 = u64::MAX;
/// Of the kernel as of most hardware.
const PAGE: u64 = 4095;

/// What a location is of.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place<'a> {
    Named(&'a str),
    Unnamed(&'a Part, u64),
}

/// The files that ran, and which of their code has addresses.
struct Mappings<'a>(Vec<(&'a str, Option<&'a str>, Option<Segment>)>);

impl<'a> Mappings<'a> {
    /// The programs, that with the most samples first: readers take it for the main one.
    fn of_programs(profile: &Profile<'a>) -> Self {
        let mut samples = HashMap::new();
        for (key, count) in &profile.selection.entries {
            if let Some(program) = profile.selection.programs.get(&(key.pid, key.process.clone())) {
                *samples.entry((program.path.as_str(), program.build_id.as_deref())).or_insert(0) += count;
            }
        }
        let mut programs: Vec<_> = samples.into_iter().collect();
        programs.sort_unstable_by_key(|(executable, count)| (Reverse(*count), *executable));
        Self(programs.into_iter().map(|((path, build_id), _)| (path, build_id, None)).collect())
    }

    /// The number of the mapping of a part, which a program's own is until it has addresses.
    fn number(&mut self, part: &'a Part) -> u64 {
        let (path, build_id) = (part.path.as_str(), part.build_id.as_deref());
        let fits = |(known, build, code): &(&str, Option<&str>, Option<Segment>)| {
            (*known, *build) == (path, build_id) && code.is_none_or(|code| code == part.code)
        };
        let index = self.0.iter().position(fits).unwrap_or_else(|| {
            self.0.push((path, build_id, None));
            self.0.len() - 1
        });
        self.0[index].2 = Some(part.code);
        index as u64 + 1
    }

    /// All of them, and the kernel's.
    fn finish(self, strings: &mut Strings) -> Vec<proto::Mapping> {
        let mapping = |((filename, build_id, code), id): ((&str, Option<&str>, Option<Segment>), u64)| {
            let [filename, build_id] =
                [filename, build_id.unwrap_or_default()].map(|text| strings.number(text));
            let has_functions = code.is_none();
            let code = code.unwrap_or(Segment { offset: 0, bytes: 0, address: 0 });
            proto::Mapping {
                id,
                memory_start: code.address & !PAGE,
                memory_limit: code.address.saturating_add(code.bytes).saturating_add(PAGE) & !PAGE,
                file_offset: code.offset & !PAGE,
                filename,
                build_id,
                has_functions,
                has_inline_frames: has_functions,
            }
        };
        self.0.into_iter().chain([(KERNEL, None, None)]).zip(1..).map(mapping).collect()
    }
}

#[derive(Default)]
struct Strings(Numbered<String>);

impl Strings {
    /// The number of a text, without what would steer the terminal that shows it.
    fn number(&mut self, text: &str) -> i64 {
        let clean = |letter| if is_hostile(letter) { '_' } else { letter };
        self.0.number(text.chars().map(clean).collect()) as i64
    }
}

/// The whole profile.
pub fn encode(profile: &Profile<'_>) -> anyhow::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&message(profile).encode_to_vec())?;
    Ok(gzip.finish()?)
}

fn message<'a>(profile: &Profile<'a>) -> proto::Profile {
    let mut strings = Strings::default();
    // The format wants it first.
    strings.number("");
    let mut value =
        |kind, unit| proto::ValueType { r#type: strings.number(kind), unit: strings.number(unit) };
    let (counts, times) = (value("samples", "count"), value("cpu", "nanoseconds"));
    let period = profile.period.as_nanos() as i64;
    let (mut places, mut sample) = (<Numbered<_>>::default(), Vec::new());
    for (key, count) in profile.sorted() {
        // A thread's own name stands for the stack that could not be read.
        let stack = if key.stack.is_empty() { std::slice::from_ref(&key.thread) } else { &key.stack[..] };
        let program = profile.selection.programs.get(&(key.pid, key.process.clone()));
        let place = |frame: &'a Arc<str>| {
            let unnamed = program.and_then(|program| program.unnamed_function(frame));
            unnamed.map_or(Place::Named(frame), |(part, address)| Place::Unnamed(part, address))
        };
        let location_id = stack.iter().rev().map(|frame| places.number(place(frame)) as u64 + 1).collect();
        let mut texts = vec![("process", &key.process), ("thread", &key.thread)];
        texts.extend(key.container.as_ref().map(|id| ("container", id)));
        let mut label: Vec<proto::Label> = texts
            .into_iter()
            .map(|(name, text)| proto::Label { key: strings.number(name), str: strings.number(text), num: 0 })
            .collect();
        label.push(proto::Label { key: strings.number("pid"), str: 0, num: key.pid.into() });
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        sample.push(proto::Sample { location_id, value: vec![count, count.saturating_mul(period)], label });
    }
    let mut mappings = Mappings::of_programs(profile);
    let (mut location, mut function) = (Vec::new(), Vec::new());
    for (place, id) in places.values.iter().zip(1..) {
        let (mapping_id, address, line) = match place {
            Place::Named(frame) => {
                let in_kernel = kernel_name(frame);
                let name = strings.number(in_kernel.unwrap_or(frame));
                let function_id = function.len() as u64 + 1;
                function.push(proto::Function { id: function_id, name, system_name: name });
                let mapping_id = if in_kernel.is_some() { IN_KERNEL } else { 0 };
                (mapping_id, 0, vec![proto::Line { function_id }])
            }
            Place::Unnamed(part, begin) => (mappings.number(part), *begin, Vec::new()),
        };
        location.push(proto::Location { id, mapping_id, address, line });
    }
    let mapping = mappings.finish(&mut strings);
    for location in location.iter_mut().filter(|location| location.mapping_id == IN_KERNEL) {
        location.mapping_id = mapping.len() as u64;
    }
    proto::Profile {
        sample_type: vec![counts, times],
        sample,
        mapping,
        location,
        function,
        string_table: strings.0.values,
        time_nanos: nanoseconds(profile.selection.from),
        duration_nanos: nanoseconds(profile.selection.to) - nanoseconds(profile.selection.from),
        period_type: Some(times),
        period,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Containers, Key, Scope, Selection, Window};
    use crate::export::tests::{check, programs, selection};
    use flate2::read::GzDecoder;
    use std::io::Read;
    use std::time::SystemTime;

    #[test]
    fn a_profile_keeps_stacks_counts_and_times() {
        let selection = selection();
        check(&selection, |profile| {
            let mut bytes = Vec::new();
            GzDecoder::new(&encode(profile).unwrap()[..]).read_to_end(&mut bytes).unwrap();
            let read = proto::Profile::decode(&bytes[..]).unwrap();
            let text = |number: i64| read.string_table[number as usize].as_str();
            let name = |id: &u64| {
                text(read.function[read.location[*id as usize - 1].line[0].function_id as usize - 1].name)
            };
            let stacks: Vec<(Vec<&str>, i64)> = read
                .sample
                .iter()
                .map(|sample| (sample.location_id.iter().map(name).collect(), sample.value[0]))
                .collect();
            assert_eq!(
                stacks,
                [(vec!["read", "hot \"a\"", "main"], 7), (vec!["hot \"a\"", "main"], 2), (vec!["other"], 1)]
            );
            assert_eq!(read.sample[0].value[1], 7 * read.period);
            assert_eq!((read.period, read.duration_nanos, text(0)), (10_101_010, 10_000_000_000, ""));
            let labels: Vec<_> =
                read.sample[0].label.iter().map(|label| (text(label.key), text(label.str))).collect();
            let expected =
                [("process", "burn"), ("thread", "worker"), ("container", "4f5e6d7c8b9a"), ("pid", "")];
            assert_eq!((labels, read.sample[0].label[3].num), (expected.to_vec(), 7));
            let kernel: Vec<bool> = read.location.iter().map(|location| location.mapping_id == 2).collect();
            assert_eq!(kernel, [true, false, false, false]);
            let main = (text(read.mapping[0].filename), text(read.mapping[0].build_id));
            assert_eq!((main, text(read.mapping[1].filename)), (("/bin/burn", "c0ffee"), KERNEL));
        });
    }

    #[test]
    fn what_has_no_name_has_its_address_in_its_file() {
        let mut window = Window::new(SystemTime::UNIX_EPOCH, 9);
        let frames = ["main", "[libx.so+0x401020]", "[burn+0x401010]", "[burn+0x900000]", "[libx.so]"];
        for (pid, process) in [(7, "burn"), (8, "other")] {
            let stack: Vec<Arc<str>> = frames.iter().map(|frame| Arc::from(*frame)).collect();
            let (process, thread) = (Arc::from(process), Arc::from("t"));
            window.add(Key { pid, process, thread, container: None, stack: stack.into() }, 1);
        }
        window.note(programs(), Containers::new());
        let selection = Selection::gather([&window], &Scope::Host).unwrap();
        check(&selection, |profile| {
            let read = message(profile);
            let text = |number: i64| read.string_table[number as usize].as_str();
            let locations = |sample: usize| {
                let location = |id: &u64| {
                    let location = &read.location[*id as usize - 1];
                    let name = location.line.first().map(|line| read.function[line.function_id as usize - 1]);
                    let name = name.map_or("", |function| text(function.name));
                    (location.mapping_id, location.address, name)
                };
                read.sample[sample].location_id.iter().rev().map(location).collect::<Vec<_>>()
            };
            let (program, library) = ((1, 0x40_1010, ""), (2, 0x40_1020, ""));
            let [outside, whole_file] = ["[burn+0x900000]", "[libx.so]"].map(|name| (0, 0, name));
            assert_eq!(locations(0), [(0, 0, "main"), library, program, outside, whole_file]);
            // Nothing is known of the other process's files.
            assert_eq!(locations(1), frames.map(|name| (0, 0, name)));
            let mapping = |mapping: &proto::Mapping| {
                let place = [mapping.memory_start, mapping.memory_limit, mapping.file_offset];
                (text(mapping.filename).to_owned(), place, mapping.has_functions)
            };
            let code = [0x40_1000, 0x40_3000, 0x1000];
            let expected =
                [("/bin/burn", code, false), ("/usr/lib/libx.so", code, false), (KERNEL, [0; 3], true)];
            let expected = expected.map(|(file, place, has)| (file.to_owned(), place, has));
            assert_eq!(read.mapping.iter().map(mapping).collect::<Vec<_>>(), expected);
        });
    }
}
