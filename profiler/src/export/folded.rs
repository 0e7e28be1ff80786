//! Folded stacks: one line a stack, `thread;root;…;leaf count`, as flame graph programs read them.
//!
//! Thread and function names come from programs that nobody vouches for. Whatever could end a frame, a line or a
//! terminal's patience is replaced, and a line stays below the 64 KiB at which line readers give up.

use crate::aggregate::Key;
use crate::names::UNKNOWN;
use anyhow::Context;
use kpulse_symbolize::cut;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fmt::Write;
use std::io;

/// Longest line without its count; readers with a 64 KiB buffer stop at a longer one.
const LINE_BYTES: usize = 60 * 1024;
/// A blank, the largest count, and the end of the line.
const COUNT_BYTES: usize = 22;
/// Stands for the frames in the middle of a stack that is too long for a line.
const TRUNCATED: &str = "[truncated]";

/// Stacks as text, each once, with their counts; the order is that of the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Folded {
    stacks: BTreeMap<String, u64>,
    /// Of all lines, with the longest count that there is.
    bytes: usize,
    /// Lines without the middle of their stack.
    truncated: u64,
}

impl Folded {
    /// Folds entries; those that read the same are counted together.
    pub fn of<'a>(entries: impl IntoIterator<Item = (&'a Key, u64)>) -> Self {
        let mut folded = Self::default();
        for (key, count) in entries {
            folded.add(&key.thread, key.stack.iter().map(AsRef::as_ref), count);
        }
        folded
    }

    /// Folds the entries with most samples, as many as have room; says how many samples the others have.
    pub fn within<'a>(entries: impl IntoIterator<Item = (&'a Key, u64)>, bytes_max: usize) -> (Self, u64) {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_unstable_by_key(|(_, count)| Reverse(*count));
        let (mut folded, mut left_out) = (Self::default(), 0);
        for (key, count) in entries {
            let (stack, is_whole) = line(&key.thread, key.stack.iter().map(AsRef::as_ref));
            if folded.stacks.contains_key(&stack) || folded.bytes + line_bytes(&stack) <= bytes_max {
                folded.count(stack, is_whole, count);
            } else {
                left_out += count;
            }
        }
        (folded, left_out)
    }

    /// Counts one stack, root first.
    pub fn add<'a>(&mut self, thread: &'a str, frames: impl IntoIterator<Item = &'a str>, count: u64) {
        let (stack, is_whole) = line(thread, frames);
        self.count(stack, is_whole, count);
    }

    fn count(&mut self, stack: String, is_whole: bool, count: u64) {
        let bytes = line_bytes(&stack);
        match self.stacks.entry(stack) {
            Entry::Occupied(mut known) => {
                let sum = known.get().saturating_add(count);
                known.insert(sum);
            }
            Entry::Vacant(new) => {
                new.insert(count);
                self.bytes += bytes;
                self.truncated += u64::from(!is_whole);
            }
        }
    }

    /// Bytes of all lines at most.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lines that were too long, and lack the middle of their stack.
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// Samples of all stacks.
    pub fn samples(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// All lines as one text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (stack, count) in &self.stacks {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{stack} {count}");
        }
        text
    }

    /// All lines, one after the other.
    pub fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        self.stacks.iter().try_for_each(|(stack, count)| writeln!(to, "{stack} {count}"))
    }

    /// Reads lines back.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let mut folded = Self::default();
        for line in text.lines() {
            let parts = line.rsplit_once(' ').and_then(|(stack, count)| Some((stack, count.parse().ok()?)));
            let (stack, count): (&str, u64) =
                parts.with_context(|| format!("{line:?} is no folded stack"))?;
            folded.count(stack.to_owned(), true, count);
        }
        Ok(folded)
    }

    /// Lines with two counts, as flame graph programs compare them: that of `before`, scaled to as many samples, and this
    /// one.
    pub fn difference(&self, before: &Self) -> String {
        let sum = |folded: &Self| folded.stacks.values().sum::<u64>() as f64;
        let scale = sum(self) / sum(before).max(1.0);
        let stacks: BTreeSet<&String> = self.stacks.keys().chain(before.stacks.keys()).collect();
        let mut text = String::new();
        for stack in stacks {
            let [then, now] = [before, self].map(|folded| folded.stacks.get(stack).copied().unwrap_or(0));
            // Without a sample of its own a profile has nothing to be scaled to.
            let then = if scale > 0.0 { (then as f64 * scale) as u64 } else { then };
            let _ = writeln!(text, "{stack} {then} {now}");
        }
        text
    }
}

/// What a line takes, whatever its count.
fn line_bytes(stack: &str) -> usize {
    stack.len() + COUNT_BYTES
}

/// A line without its count, and whether all frames are in it: of a stack that is too long the root and the leaf stay.
fn line<'a>(thread: &'a str, frames: impl IntoIterator<Item = &'a str>) -> (String, bool) {
    let frames: Vec<String> = std::iter::once(thread).chain(frames).map(clean).collect();
    let whole: usize = frames.iter().map(|frame| frame.len() + 1).sum();
    if whole <= LINE_BYTES {
        return (frames.join(";"), true);
    }
    let fitting = |frames: &mut dyn Iterator<Item = &String>| {
        let mut bytes = 0;
        frames
            .take_while(|frame| {
                bytes += frame.len() + 1;
                bytes <= LINE_BYTES / 2 - TRUNCATED.len()
            })
            .count()
    };
    let root = fitting(&mut frames.iter());
    let leaf = fitting(&mut frames.iter().rev()).min(frames.len() - root);
    let kept = frames[..root].iter().map(String::as_str).chain([TRUNCATED]);
    let kept = kept.chain(frames[frames.len() - leaf..].iter().map(String::as_str));
    (kept.collect::<Vec<_>>().join(";"), false)
}

/// A frame that any reader takes for one frame.
pub fn clean(name: &str) -> String {
    let mut clean: String =
        cut(name).trim().chars().map(|letter| if is_hostile(letter) { '_' } else { letter }).collect();
    // Readers take a number after a blank for a count, and a line that begins with `# ` for a comment.
    while let Some(blank) = clean.rfind(' ')
        && clean[blank + 1..].starts_with(|first: char| first.is_ascii_digit() || ".+-".contains(first))
    {
        clean.replace_range(blank..=blank, "_");
    }
    if clean.starts_with('#') {
        clean.replace_range(..1, "_");
    }
    if clean.is_empty() { UNKNOWN.into() } else { clean }
}

/// Characters that end a frame or a line, steer a terminal, or turn the direction of text.
fn is_hostile(letter: char) -> bool {
    letter == ';' || kpulse_symbolize::is_hostile(letter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As flame graph programs read a line: the count after the last blank, frames between semicolons.
    fn parse(line: &str) -> Option<(Vec<&str>, u64)> {
        let (stack, count) = line.rsplit_once(' ')?;
        Some((stack.split(';').collect(), count.parse().ok()?))
    }

    #[test]
    fn names_of_a_hostile_program_stay_one_frame_each() {
        let mut folded = Folded::default();
        folded.add("# a\nb", ["x;y 1\n", "\u{1b}[2Jclear", "operator new 12", "", "\u{202e}evil"], 3);
        assert_eq!(folded.text(), "_ a_b;x_y_1;_[2Jclear;operator new_12;[unknown];_evil 3\n");
    }

    #[test]
    fn stacks_that_read_the_same_are_one_line() {
        let mut folded = Folded::default();
        folded.add("t", ["a;b"], 1);
        folded.add("t", ["a\nb"], 2);
        folded.add("t", ["a"], 5);
        assert_eq!(folded.text(), "t;a 5\nt;a_b 3\n");
    }

    #[test]
    fn a_stack_too_long_for_a_line_keeps_root_and_leaf() {
        let names: Vec<String> = (0..200).map(|depth| format!("{depth}-{}", "x".repeat(900))).collect();
        let mut folded = Folded::default();
        folded.add("t", names.iter().map(String::as_str), 1);
        let text = folded.text();
        let line = text.trim_end_matches('\n');
        assert!(line.len() < 64 * 1024, "{} bytes", line.len());
        let (frames, _) = parse(line).unwrap();
        assert_eq!((frames[0], frames[frames.len() - 1]), ("t", names[199].as_str()));
        assert_eq!(frames.iter().filter(|frame| **frame == TRUNCATED).count(), 1);
        assert_eq!((folded.truncated(), folded.samples()), (1, 1));
    }

    #[test]
    fn what_has_no_room_is_what_was_seen_least() {
        let selection = crate::export::tests::selection();
        let entries = || selection.entries.iter().map(|(key, count)| (key, *count));
        let (whole, left_out) = Folded::within(entries(), usize::MAX);
        assert_eq!((whole.samples(), left_out), (10, 0));
        assert_eq!(whole, Folded::of(entries()));
        let (most, left_out) = Folded::within(entries(), 60);
        assert_eq!((most.text().as_str(), left_out), ("worker;main;hot \"a\";read_[k] 7\n", 3));
        assert!(most.text().len() <= most.bytes() && most.bytes() <= 60, "{}", most.bytes());
        let mut written = Vec::new();
        whole.write(&mut written).unwrap();
        assert_eq!(written, whole.text().into_bytes());
    }

    #[test]
    fn inferno_compares_two_profiles_as_this_does() {
        let (mut before, mut after) = (Folded::default(), Folded::default());
        before.add("t", ["operator new 12", "<script>"], 30);
        before.add("t", ["gone"], 10);
        after.add("t", ["operator new 12", "<script>"], 10);
        after.add("t", ["come;d"], 10);
        let mut lines = Vec::new();
        let options = inferno::differential::Options { normalize: true, ..Default::default() };
        let [one, other] = [&before, &after].map(Folded::text);
        inferno::differential::from_readers(options, one.as_bytes(), other.as_bytes(), &mut lines).unwrap();
        let text = String::from_utf8(lines).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(after.difference(&before).lines().collect::<Vec<_>>(), lines);
        assert_eq!(lines, ["t;come_d 0 10", "t;gone 5 0", "t;operator new_12;<script> 15 10"]);
        assert_eq!(Folded::read(&one).unwrap(), before);
        assert!(Folded::read("no count").is_err());
    }

    proptest! {
        #[test]
        fn lines_round_trip_whatever_the_names(
            stacks in prop::collection::vec((any::<String>(), prop::collection::vec(any::<String>(), 0..8), 1u64..1 << 40), 0..12)
        ) {
            let mut folded = Folded::default();
            for (thread, frames, count) in &stacks {
                folded.add(thread, frames.iter().map(String::as_str), *count);
            }
            let mut again = Folded::default();
            let text = folded.text();
            for line in text.lines() {
                prop_assert!(line.len() < 64 * 1024);
                prop_assert!(!line.chars().any(char::is_control));
                let (frames, count) = parse(line).expect("a line of frames and a count");
                again.add(frames[0], frames[1..].iter().copied(), count);
            }
            prop_assert_eq!(&folded, &again);
            let total: u64 = stacks.iter().map(|stack| stack.2).sum();
            prop_assert_eq!(text.lines().filter_map(parse).map(|line| line.1).sum::<u64>(), total);
            for (thread, frames, _) in &stacks {
                let depth = frames.len() + 1;
                let mut one = Folded::default();
                one.add(thread, frames.iter().map(String::as_str), 1);
                prop_assert_eq!(parse(one.text().trim_end_matches('\n')).expect("parses").0.len(), depth);
            }
        }
    }
}
