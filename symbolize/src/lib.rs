//! What are the functions at these addresses of a running program called?
//!
//! Everything that is read here was written by somebody else, in a container perhaps: files that shrink, lie about
//! their size or hold no text. Names are cut, caches and readers are bounded, and no file is followed out of the
//! process that maps it.
#![warn(missing_docs)]

mod demangle;
mod elf;
pub mod go;
pub mod native;
pub mod object;
pub mod process;
mod reader;
mod truncation;
pub mod unnamed;

pub use native::Native;
pub use process::Processes;
pub use truncation::survive;

use std::sync::Arc;

/// Longest name kept; template instances reach many kilobytes and differ long before that.
pub const NAME_BYTES: usize = 1024;

/// Why an address has no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// The process ended, or began another program, before its memory map was read.
    ProcessGone,
    /// Too many new processes at once.
    Budget,
    /// Something of the process did not come when it was read.
    Stuck,
    /// The address lies in no mapping: the stack was not one, or the library is gone.
    Unmapped,
    /// Code without a file, such as a JIT's.
    Anonymous,
    /// Code of a JIT that was replaced before it was named.
    Unloaded,
    /// The file has no symbol there.
    NoSymbol,
    /// The file could not be read.
    Unreadable,
    /// The kernel shows no name.
    Kernel,
}

impl Unknown {
    /// The reason as a label.
    pub fn label(self) -> &'static str {
        match self {
            Self::ProcessGone => "process_gone",
            Self::Budget => "process_budget",
            Self::Stuck => "stuck",
            Self::Unmapped => "unmapped",
            Self::Anonymous => "anonymous",
            Self::Unloaded => "unloaded",
            Self::NoSymbol => "no_symbol",
            Self::Unreadable => "unreadable",
            Self::Kernel => "kernel",
        }
    }
}

/// An address without a name: why, and what stands for it where more is known than nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameless {
    /// Why it has none.
    pub why: Unknown,
    /// The file that has no symbol there, without its folder; with the function's address where that is known.
    pub file: Option<Arc<str>>,
}

impl From<Unknown> for Nameless {
    fn from(why: Unknown) -> Self {
        Self { why, file: None }
    }
}

/// The frames at one address, outermost first, or why there are none.
pub type Resolved = Result<Box<[Arc<str>]>, Nameless>;

/// Where to look: the leaf is what was about to run, the others are where a call returns to, and the call is
/// the instruction before.
pub fn instructions(stack: &[u64]) -> impl Iterator<Item = u64> + '_ {
    stack.iter().enumerate().map(|(depth, address)| address.saturating_sub(u64::from(depth > 0)))
}

/// Cuts a name to [`NAME_BYTES`], at a character.
pub fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Characters that end a line, steer a terminal, turn the direction of text, or are not allowed in XML.
pub fn is_hostile(letter: char) -> bool {
    letter.is_control()
        || (letter.is_whitespace() && letter != ' ')
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{061c}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let name = format!("a{}", "é".repeat(NAME_BYTES));
        assert_eq!(cut(&name).len(), NAME_BYTES - 1);
        assert_eq!(cut("short"), "short");
    }
}
