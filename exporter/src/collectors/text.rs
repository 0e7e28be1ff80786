//! Reading small kernel files with one buffer, and the shapes that many of them have.

use anyhow::Context;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most bytes of one file; `/proc/stat` of a machine with thousands of interrupts has half of it.
const FILE_MAX: u64 = 1 << 20;

/// A buffer that is reused from file to file.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
}

impl Text {
    /// The whole file.
    pub fn read(&mut self, path: &Path) -> anyhow::Result<&str> {
        let told = || format!("cannot read {}", path.display());
        self.bytes.clear();
        let file = File::open(path).with_context(told)?;
        file.take(FILE_MAX).read_to_end(&mut self.bytes).with_context(told)?;
        std::str::from_utf8(&self.bytes).with_context(|| format!("{} is no text", path.display()))
    }
}

/// `KEY VALUE` of each line whose key has a `place`, with that place; what has another shape is left out.
pub fn keyed<'a, P>(
    text: &'a str,
    place: impl Fn(&str) -> Option<P> + 'a,
) -> impl Iterator<Item = (P, u64)> + 'a {
    text.split('\n').filter_map(move |line| {
        let (key, value) = line.split_once(' ')?;
        // Of dozens of lines a few are wanted: only theirs are read as numbers.
        let place = place(key)?;
        Some((place, value.trim_ascii().parse().ok()?))
    })
}

/// The total in microseconds of the line `some …` or `full …` of a pressure file.
pub fn pressure_micros(text: &str, kind: &str) -> Option<u64> {
    let line = text.split('\n').find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    // It is the last field in every kernel so far, and the others are many.
    match line.rsplit_once('=') {
        Some((before, total)) if before.ends_with(" total") => total.parse().ok(),
        _ => line.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_totals_of_both_lines() {
        let text = "some avg10=0.00 avg60=0.12 avg300=0.05 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=42\n";
        assert_eq!((pressure_micros(text, "some"), pressure_micros(text, "full")), (Some(123_456), Some(42)));
        assert_eq!(pressure_micros("some avg10=0.00", "some"), None);
    }

    #[test]
    fn leaves_out_lines_of_another_shape() {
        let text = "a 1\nb\n\nc -2\nd 3 4\ne 18446744073709551615\nf 18446744073709551616\ng 7\nh 8";
        let place = |key: &str| (key != "h").then(|| key.to_owned());
        let found: Vec<_> = keyed(text, place).map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(found, ["a=1", "e=18446744073709551615", "g=7"]);
    }

    #[test]
    fn a_file_that_is_no_text_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"user \xff\xfe").unwrap();
        let mut text = Text::default();
        let error = text.read(file.path()).unwrap_err().to_string();
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
        std::fs::write(file.path(), "user 1\n").unwrap();
        assert_eq!(text.read(file.path()).unwrap(), "user 1\n", "the buffer is clean again");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            let _ = (keyed(&text, |_| Some(())).count(), pressure_micros(&text, "some"));
        }
    }
}
