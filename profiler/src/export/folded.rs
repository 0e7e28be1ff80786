//! Folded stacks: one line a stack, `thread;root;…;leaf count`, as flame graph programs read them.
//!
//! Thread and function names come from programs that nobody vouches for. Whatever could end a frame, a line or a
//! terminal's patience is replaced, and a line stays below the 64 KiB at which line readers give up.

use crate::aggregate::Key;
use crate::names::UNKNOWN;
use anyhow::Context;
use kpulse_symbolize::cut;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Longest line without its count; readers with a 64 KiB buffer stop at a longer one.
const LINE_BYTES: usize = 60 * 1024;
/// Stands for the frames in the middle of a stack that is too long for a line.
const TRUNCATED: &str = "[truncated]";

/// Stacks as text, each once, with their counts; the order is that of the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Folded(BTreeMap<String, u64>);

impl Folded {
    /// Folds entries; those that read the same are counted together.
    pub fn of<'a>(entries: impl IntoIterator<Item = (&'a Key, u64)>) -> Self {
        let mut folded = Self::default();
        for (key, count) in entries {
            folded.add(&key.thread, key.stack.iter().map(AsRef::as_ref), count);
        }
        folded
    }

    /// Counts one stack, root first.
    pub fn add<'a>(&mut self, thread: &'a str, frames: impl IntoIterator<Item = &'a str>, count: u64) {
        let frames: Vec<String> = std::iter::once(thread).chain(frames).map(clean).collect();
        let entry = self.0.entry(joined(&frames)).or_default();
        *entry = entry.saturating_add(count);
    }

    /// All lines as one text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (stack, count) in &self.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{stack} {count}");
        }
        text
    }

    /// Reads lines back.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let mut folded = Self::default();
        for line in text.lines() {
            let parts = line.rsplit_once(' ').and_then(|(stack, count)| Some((stack, count.parse().ok()?)));
            let (stack, count): (&str, u64) =
                parts.with_context(|| format!("{line:?} is no folded stack"))?;
            let entry = folded.0.entry(stack.to_owned()).or_default();
            *entry = entry.saturating_add(count);
        }
        Ok(folded)
    }

    /// Lines with two counts, as flame graph programs compare them: that of `before`, scaled to as many samples, and this
    /// one.
    pub fn difference(&self, before: &Self) -> String {
        let sum = |folded: &Self| folded.0.values().sum::<u64>() as f64;
        let scale = sum(self) / sum(before).max(1.0);
        let stacks: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        let mut text = String::new();
        for stack in stacks {
            let [then, now] = [before, self].map(|folded| folded.0.get(stack).copied().unwrap_or(0));
            // Without a sample of its own a profile has nothing to be scaled to.
            let then = if scale > 0.0 { (then as f64 * scale) as u64 } else { then };
            let _ = writeln!(text, "{stack} {then} {now}");
        }
        text
    }
}

/// Joins frames; of a stack that is too long the root and the leaf stay.
fn joined(frames: &[String]) -> String {
    let whole: usize = frames.iter().map(|frame| frame.len() + 1).sum();
    if whole <= LINE_BYTES {
        return frames.join(";");
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
    kept.chain(frames[frames.len() - leaf..].iter().map(String::as_str)).collect::<Vec<_>>().join(";")
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
