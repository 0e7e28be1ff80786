//! `KEY VALUE` files, of which a few lines of dozens are wanted.
//!
//! The kernel writes the same lines for every cgroup, nearly: where the keys stood in one file is where they are looked
//! for in the next, and only a file of another shape is searched.

use crate::collectors::text::keyed;

/// The lines of the file that was searched last; empty where it had a line that is no `KEY VALUE`.
#[derive(Debug, Default)]
pub struct Layout {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    /// With the space behind it.
    key: Box<str>,
    slot: Option<usize>,
}

impl Layout {
    /// Fills `found` with the values of `keys`, which are as many; a key that is not there has none.
    pub fn parse<'k>(&mut self, text: &str, keys: impl Fn(usize) -> &'k str, found: &mut [Option<u64>]) {
        if self.parse_known(text, found) {
            return;
        }
        found.fill(None);
        let place = |key: &str| (0..found.len()).find(|slot| keys(*slot) == key);
        for (slot, value) in keyed(text, place).collect::<Vec<_>>() {
            found[slot] = Some(value);
        }
        let line = |line: &str| {
            let (key, _) = line.split_once(' ')?;
            let slot = (0..found.len()).find(|slot| keys(*slot) == key);
            Some(Line { key: format!("{key} ").into(), slot })
        };
        let whole = text.strip_suffix('\n').unwrap_or_default();
        self.lines = whole.split('\n').map(line).collect::<Option<_>>().unwrap_or_default();
    }

    /// `false` when the text has other lines, or a value that is no number.
    fn parse_known(&self, text: &str, found: &mut [Option<u64>]) -> bool {
        let (mut lines, mut start) = (self.lines.iter(), 0);
        for end in memchr::memchr_iter(b'\n', text.as_bytes()) {
            let Some(line) = lines.next() else { return false };
            let Some(value) = text[start..end].strip_prefix(&*line.key) else { return false };
            if let Some(slot) = line.slot {
                let Ok(value) = value.parse() else { return false };
                found[slot] = Some(value);
            }
            start = end + 1;
        }
        lines.next().is_none() && start == text.len() && start > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYS: [&str; 3] = ["user", "system", "nr"];

    fn parse(layout: &mut Layout, text: &str) -> [Option<u64>; 3] {
        let mut found = [None; 3];
        layout.parse(text, |slot| KEYS[slot], &mut found);
        found
    }

    #[test]
    fn a_file_of_another_shape_is_searched() {
        let mut layout = Layout::default();
        for (text, found) in [
            ("a 1\nuser 2\nsystem 3\n", [Some(2), Some(3), None]),
            ("a 1\nuser 20\nsystem 30\n", [Some(20), Some(30), None]),
            ("a 1\nuser 20\nsystem 30\nnr 4\n", [Some(20), Some(30), Some(4)]),
            ("system 1\nuser 2\na 9\nnr 4\n", [Some(2), Some(1), Some(4)]),
            ("system 1\nuser -2\na 9\nnr 4\n", [None, Some(1), Some(4)]),
            ("system 1\nuser_x 2\na 9\nnr 4\n", [None, Some(1), Some(4)]),
            ("system 1\nuser 2\na 9\nnr 4", [Some(2), Some(1), Some(4)]),
            ("", [None; 3]),
        ] {
            assert_eq!(parse(&mut layout, text), found, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_read_before_changes_nothing(
            texts in prop::collection::vec("((user|system|nr|a|b c)[ \t]?[0-9x]{0,3}\n?){0,5}", 0..6)
        ) {
            let mut layout = Layout::default();
            for text in texts {
                prop_assert_eq!(parse(&mut layout, &text), parse(&mut Layout::default(), &text), "{:?}", text);
            }
        }
    }
}
