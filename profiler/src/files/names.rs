//! What is a file called? Names come from programs and containers that nobody vouches for: here they are one part of a
//! path, of bounded length, and different ones stay different.

use kpulse_common::clock::rfc3339_seconds;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::SystemTime;

/// Behind the start of a file's period.
const ENDING: &str = ".folded";
/// All but what needs no quotes in a shell; `%` and [`CUT`] have a meaning here.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'+').remove(b'@');
/// Longest name of a program or a container; with what follows it, it is shorter than any file system's 255 bytes.
const NAME_BYTES: usize = 128;
/// Between the begin of a name that is too long and what tells it from others that begin alike.
const CUT: char = '~';

/// The file of a period that began then, such as `20261121T100000Z.folded`.
pub fn file(from: SystemTime) -> String {
    format!("{}{ENDING}", rfc3339_seconds(from).replace(['-', ':'], ""))
}

/// When the period of such a file began; `None` for a file of somebody else.
pub fn begin(file: &str) -> Option<SystemTime> {
    let start = file.strip_suffix(ENDING)?.strip_suffix('Z')?;
    let (day, time) = start.split_once('T')?;
    let is_number =
        |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(day, 8) || !is_number(time, 6) {
        return None;
    }
    let text =
        format!("{}-{}-{}T{}:{}:{}Z", &day[..4], &day[4..6], &day[6..], &time[..2], &time[2..4], &time[4..]);
    humantime::parse_rfc3339(&text).ok()
}

/// The name under which a file is written until it is whole; readers pass over hidden files.
pub fn unfinished(file: &str) -> String {
    format!(".{file}.part")
}

/// Whether a file was never finished.
pub fn is_unfinished(file: &str) -> bool {
    file.strip_prefix('.')
        .and_then(|file| file.strip_suffix(".part"))
        .is_some_and(|file| begin(file).is_some())
}

/// A name as one part of a path.
pub fn folder(name: &str) -> String {
    let mut folder = utf8_percent_encode(name, ENCODED).to_string();
    // Neither hidden nor an option of whoever is given the name.
    if let Some(first @ ('.' | '-')) = folder.chars().next() {
        folder.replace_range(..1, if first == '.' { "%2E" } else { "%2D" });
    }
    if folder.is_empty() {
        // No name reads like that: a `%` is never alone.
        folder.push('%');
    }
    if folder.len() > NAME_BYTES {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let mark = format!("{CUT}{:016x}", hasher.finish());
        let end = NAME_BYTES - mark.len();
        // Not within the three characters of an encoded byte.
        let end = folder[..end].rfind('%').filter(|percent| percent + 3 > end).unwrap_or(end);
        folder.truncate(end);
        folder.push_str(&mark);
    }
    folder
}

/// A process's folder.
pub fn process(name: &str, pid: u32) -> String {
    format!("{}-{pid}", folder(name))
}

/// Whether a folder may be one of these.
pub fn is_folder(name: &str) -> bool {
    let is_usual = |letter: char| letter.is_ascii_alphanumeric() || "-._+@%~".contains(letter);
    !name.is_empty() && !name.starts_with(['.', '-']) && name.chars().all(is_usual)
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn files_are_called_by_their_start_and_sort_by_it() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(file(at(1_763_719_200) + Duration::from_millis(999)), "20251121T100000Z.folded");
        assert!(file(at(999_999_999)) < file(at(1_000_000_000)));
        assert_eq!(begin(&file(at(1_763_719_200))), Some(at(1_763_719_200)));
        assert!(is_unfinished(&unfinished(&file(at(1)))));
        for other in [
            "",
            ".folded",
            "Z.folded",
            "20251121T100000Z.folded.gz",
            "20251121T10000Z.folded",
            "notes.folded",
        ] {
            assert_eq!(begin(other), None, "{other}");
            assert!(!is_unfinished(&unfinished(other)), "{other}");
        }
        assert_eq!(begin("2025é121T100000Z.folded"), None);
        assert_eq!(begin("20251399T100000Z.folded"), None, "no such day");
    }

    #[test]
    fn hostile_names_are_one_part_of_a_path() {
        for (name, expected) in [
            ("nginx", "nginx-7"),
            ("g++", "g++-7"),
            ("..", "%2E.-7"),
            (".", "%2E-7"),
            ("-rf", "%2Drf-7"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd-7"),
            ("kworker/0:1", "kworker%2F0%3A1-7"),
            ("a\0b\n\u{1b}", "a%00b%0A%1B-7"),
            ("a%2Fb", "a%252Fb-7"),
            ("", "%-7"),
        ] {
            assert_eq!(process(name, 7), expected);
        }
        let long = |last: &str| folder(&format!("{}{last}", "é".repeat(200)));
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() <= NAME_BYTES && long("a").starts_with("%C3%A9%C3"));
        assert!(!folder(&"x".repeat(NAME_BYTES)).contains(CUT));
    }

    proptest! {
        #[test]
        fn any_name_is_safe_and_different_ones_stay_apart(names in prop::collection::hash_set(any::<String>(), 0..20)) {
            let folders: HashSet<String> = names.iter().map(|name| folder(name)).collect();
            prop_assert_eq!(folders.len(), names.len());
            for name in &names {
                let folder = folder(name);
                prop_assert!(is_folder(&folder) && folder.len() <= NAME_BYTES && folder != "..", "{folder}");
                if !folder.contains(CUT) && !name.is_empty() {
                    prop_assert_eq!(percent_decode_str(&folder).decode_utf8().unwrap(), name.as_str());
                }
            }
        }
    }
}
