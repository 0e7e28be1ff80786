//! What did the programmer call this function? Rust and C++ names, demangled into a bounded buffer.
//!
//! The name comes from a file that anybody may have written, and a mangled C++ name of a few hundred bytes can
//! expand to gigabytes through its back references, so the output stops at the longest name that is kept.

use crate::NAME_BYTES;
use cpp_demangle::DemangleOptions;
use std::borrow::Cow;
use std::fmt::{self, Write};

struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = NAME_BYTES - self.0.len();
        if part.len() <= room {
            self.0.push_str(part);
            return Ok(());
        }
        let end = (0..=room).rev().find(|end| part.is_char_boundary(*end)).unwrap_or(0);
        self.0.push_str(&part[..end]);
        Err(fmt::Error)
    }
}

/// The name as in the source, or the name as it is.
pub fn demangle(name: &str) -> Cow<'_, str> {
    let mut out = Bounded(String::new());
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // An error says that the buffer is full: what is in it is the name, cut.
        let _ = write!(out, "{rust:#}");
    } else if name.starts_with("_Z") {
        let Ok(symbol) = cpp_demangle::Symbol::new(name) else { return name.into() };
        let cut = symbol.structured_demangle(&mut out, &DemangleOptions::default()).is_err();
        if cut && out.0.len() < NAME_BYTES / 2 {
            return name.into();
        }
    }
    if out.0.is_empty() { name.into() } else { out.0.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rust_and_cpp_names_read_as_in_the_source() {
        assert_eq!(
            demangle("_ZN4core3fmt5Write9write_str17h0123456789abcdefE"),
            "core::fmt::Write::write_str"
        );
        assert_eq!(demangle("_ZN3foo3barEi"), "foo::bar(int)");
        assert_eq!(demangle("plain_c"), "plain_c");
    }

    #[test]
    fn a_name_that_doubles_itself_stays_bounded() {
        let doubling: String =
            (0..36).map(|index| char::from_digit(index, 36).unwrap_or('0').to_ascii_uppercase()).collect();
        let pairs: String = doubling.chars().map(|id| format!("4pairIS{id}_S{id}_E")).collect();
        let name = format!("_Z1fN1aE{pairs}");
        assert!(demangle(&name).len() <= NAME_BYTES.max(name.len()));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_grows_without_bound(tail in "[0-9A-Za-z_]{0,200}") {
            for prefix in ["_Z", "_R", "_ZN", ""] {
                let name = format!("{prefix}{tail}");
                prop_assert!(demangle(&name).len() <= NAME_BYTES.max(name.len()));
            }
        }
    }
}
