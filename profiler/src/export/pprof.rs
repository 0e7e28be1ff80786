//! A profile in pprof's format, `profile.proto`: gzipped protobuf.
//!
//! A function has one location: addresses stay in the process that looked them up, and with them which mapping a user
//! frame is of. The mappings are the programs that ran, and the kernel with its frames.

use super::{Numbered, Profile, kernel_name, nanoseconds};
use flate2::Compression;
use flate2::write::GzEncoder;
use kpulse_symbolize::is_hostile;
use prost::Message;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Write;

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

fn message(profile: &Profile<'_>) -> proto::Profile {
    let mut strings = Strings::default();
    // The format wants it first.
    strings.number("");
    let mut value =
        |kind, unit| proto::ValueType { r#type: strings.number(kind), unit: strings.number(unit) };
    let (counts, times) = (value("samples", "count"), value("cpu", "nanoseconds"));
    let period = profile.period.as_nanos() as i64;
    let (mut frames, mut sample) = (Numbered::default(), Vec::new());
    for (key, count) in profile.sorted() {
        // A thread's own name stands for the stack that could not be read.
        let stack = if key.stack.is_empty() { std::slice::from_ref(&key.thread) } else { &key.stack[..] };
        let location_id = stack.iter().rev().map(|frame| frames.number(&**frame) as u64 + 1).collect();
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
    let mut mappings = mappings(profile);
    mappings.push((KERNEL, None));
    let kernel = mappings.len() as u64;
    let mapping = mappings
        .into_iter()
        .zip(1..)
        .map(|((filename, build_id), id)| {
            let [filename, build_id] =
                [filename, build_id.unwrap_or_default()].map(|text| strings.number(text));
            proto::Mapping { id, filename, build_id, has_functions: true, has_inline_frames: true }
        })
        .collect();
    let (mut location, mut function) = (Vec::new(), Vec::new());
    for (number, frame) in frames.values.iter().enumerate() {
        let id = number as u64 + 1;
        let in_kernel = kernel_name(frame);
        let name = strings.number(in_kernel.unwrap_or(frame));
        function.push(proto::Function { id, name, system_name: name });
        let mapping_id = if in_kernel.is_some() { kernel } else { 0 };
        location.push(proto::Location { id, mapping_id, line: vec![proto::Line { function_id: id }] });
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

/// The programs with their build ids, that with the most samples first: readers take it for the main one.
fn mappings<'a>(profile: &Profile<'a>) -> Vec<(&'a str, Option<&'a str>)> {
    let mut samples = HashMap::new();
    for (key, count) in &profile.selection.entries {
        if let Some(program) = profile.selection.programs.get(&(key.pid, key.process.clone())) {
            *samples.entry((program.path.as_str(), program.build_id.as_deref())).or_insert(0) += count;
        }
    }
    let mut mappings: Vec<_> = samples.into_iter().collect();
    mappings.sort_unstable_by_key(|(executable, count)| (Reverse(*count), *executable));
    mappings.into_iter().map(|(executable, _)| executable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{check, selection};
    use flate2::read::GzDecoder;
    use std::io::Read;

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
}
