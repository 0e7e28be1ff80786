//! How does code get back to its caller? `.eh_frame`, evaluated into the rules that a row can hold.
//!
//! The bytes come from files that any container can write: they are bounded, and no bytes make this panic.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameOffset, EndianSlice, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindSection, UnwindTableRow, X86_64,
};
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{cfa, limits, rbp};

/// A common entry's instructions run again for each of its functions. Real ones have 20 to 40 bytes.
const MAX_COMMON_BYTES: usize = 256;
/// Smaller gaps between functions are padding, where no code runs.
const PADDING_BYTES: u64 = 16;

/// `DW_OP_breg7 (rsp)` and `DW_OP_breg6 (rbp)`.
const OF_RSP: u8 = 0x77;
const OF_RBP: u8 = 0x76;
const DEREF: u8 = 0x06;
const LITERAL_0: u8 = 0x30;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// From where the caller's frame can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    pub cfa: u8,
    pub cfa_words: u16,
    pub rbp: u8,
    pub rbp_words: i16,
}

impl Rule {
    pub const NONE: Self = Self::plain(cfa::NONE);
    pub const UNEXPRESSED: Self = Self::plain(cfa::UNEXPRESSED);

    pub const fn plain(cfa: u8) -> Self {
        Self { cfa, cfa_words: 0, rbp: rbp::KEPT, rbp_words: 0 }
    }
}

/// The section with its address, and those that its entries may refer to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Section<'a> {
    pub bytes: &'a [u8],
    pub address: u64,
    pub text: u64,
    pub got: u64,
}

/// The rules of all functions, each from its address to the next one's, in order of address; none where there are more
/// than the kernel's table holds.
pub fn rules(section: Section<'_>) -> Vec<(u64, Rule)> {
    let frames = EhFrame::new(section.bytes, LittleEndian);
    let bases =
        BaseAddresses::default().set_eh_frame(section.address).set_text(section.text).set_got(section.got);
    let mut rules = Vec::new();
    let (mut context, mut end) = (UnwindContext::new(), None);
    for (start, offset) in functions(&frames, &bases) {
        let Ok(function) = frames.fde_from_offset(&bases, offset, EhFrame::cie_from_offset) else { continue };
        if end.is_some_and(|end| start >= end && start - end >= PADDING_BYTES) {
            add(&mut rules, end.unwrap_or(start), Rule::NONE);
        }
        let Ok(mut table) = function.rows(&frames, &bases, &mut context) else { continue };
        while let Ok(Some(row)) = table.next_row() {
            if rules.len() >= limits::ROWS as usize {
                return Vec::new();
            }
            add(&mut rules, row.start_address(), rule(row, &frames, function.is_signal_trampoline()));
        }
        end = Some(function.end_address());
    }
    if let Some(end) = end {
        add(&mut rules, end, Rule::NONE);
    }
    rules
}

/// Where the functions begin, in order of address, and their entries.
fn functions(frames: &EhFrame<Slice<'_>>, bases: &BaseAddresses) -> Vec<(u64, EhFrameOffset)> {
    let mut functions = Vec::new();
    let mut entries = frames.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(function) = entry else { continue };
        let Ok(function) = function.parse(EhFrame::cie_from_offset) else { continue };
        let start = function.initial_address();
        let is_usable = function.cie().entry_len() <= MAX_COMMON_BYTES
            && function.len() > 0
            && start.checked_add(function.len()).is_some();
        if is_usable {
            functions.push((start, EhFrameOffset(function.offset())));
        }
    }
    functions.sort_unstable_by_key(|(start, offset)| (*start, offset.0));
    functions
}

/// Of rules at one address the last holds; neighbours that say the same are one.
pub fn add(rules: &mut Vec<(u64, Rule)>, address: u64, rule: Rule) {
    rules.pop_if(|(last, _)| *last == address);
    // A function that begins inside of another, which no compiler makes, does not bring the order into disorder.
    if rules.last().is_none_or(|(last, before)| *last < address && *before != rule) {
        rules.push((address, rule));
    }
}

fn rule(row: &UnwindTableRow<usize>, frames: &EhFrame<Slice<'_>>, is_signal: bool) -> Rule {
    let expression = |expression: &gimli::UnwindExpression<usize>| {
        expression.get(frames).map_or(&[][..], |expression| expression.0.slice())
    };
    let return_address = row.register(X86_64::RA);
    if is_signal {
        // The kernel's frame, whose layout is fixed: the address of the stack pointer is 160 bytes above.
        let CfaRule::Expression(cfa) = row.cfa() else { return Rule::UNEXPRESSED };
        let is_kernels = expression(cfa) == [OF_RSP, 0xa0, 0x01, DEREF];
        return if is_kernels { Rule::plain(cfa::SIGNAL) } else { Rule::UNEXPRESSED };
    }
    match return_address {
        Some(RegisterRule::Offset(-8)) => {}
        None | Some(RegisterRule::Undefined) => return Rule::plain(cfa::ROOT),
        _ => return Rule::UNEXPRESSED,
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => of_register(*register, *offset),
        CfaRule::Expression(cfa) => of_expression(expression(cfa)),
    };
    let Some((cfa, cfa_words)) = cfa else { return Rule::UNEXPRESSED };
    let (rbp, rbp_words) = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue) => (rbp::KEPT, Some(0)),
        Some(RegisterRule::Offset(offset)) => (rbp::AT_CFA, words(offset)),
        Some(RegisterRule::Expression(place)) => match expression(&place) {
            [OF_RBP, offset @ ..] => (rbp::AT_RBP, whole_sleb(offset).and_then(words)),
            _ => (rbp::LOST, Some(0)),
        },
        Some(_) => (rbp::LOST, Some(0)),
    };
    rbp_words.map_or(Rule::UNEXPRESSED, |rbp_words| Rule { cfa, cfa_words, rbp, rbp_words })
}

fn of_register(register: Register, offset: i64) -> Option<(u8, u16)> {
    let kind = match register {
        X86_64::RSP => cfa::RSP,
        X86_64::RBP => cfa::RBP,
        X86_64::RAX => cfa::RAX,
        X86_64::R10 => cfa::R10,
        X86_64::R11 => cfa::R11,
        _ => return None,
    };
    Some((kind, unsigned_words(offset)?))
}

/// The few expressions that linkers, compilers and hand-written code use.
fn of_expression(expression: &[u8]) -> Option<(u8, u16)> {
    match expression {
        // Entries of the procedure linkage table: rsp + 8 + ((rip & 15) >= N) << 3.
        [OF_RSP, 8, 0x80, 0, 0x3f, 0x1a, literal @ LITERAL_0..=0x3f, 0x2a, 0x33, 0x24, 0x22] => {
            Some((cfa::PLT, u16::from(literal - LITERAL_0)))
        }
        [OF_RSP, offset @ .., DEREF, 0x23, 8] => {
            Some((cfa::AT_RSP, whole_sleb(offset).and_then(unsigned_words)?))
        }
        // A realigned stack.
        [OF_RBP, offset @ .., DEREF] => {
            Some((cfa::AT_RBP, whole_sleb(offset).and_then(words)?.cast_unsigned()))
        }
        _ => None,
    }
}

fn words(offset: i64) -> Option<i16> {
    (offset % 8 == 0).then(|| i16::try_from(offset / 8).ok())?
}

fn unsigned_words(offset: i64) -> Option<u16> {
    (offset % 8 == 0).then(|| u16::try_from(offset / 8).ok())?
}

/// Bytes that are one signed LEB128 number and nothing else.
fn whole_sleb(bytes: &[u8]) -> Option<i64> {
    let (last, first) = bytes.split_last()?;
    if bytes.len() > 5 || last & 0x80 != 0 || first.iter().any(|byte| byte & 0x80 == 0) {
        return None;
    }
    let value = bytes.iter().rev().fold(0, |value, byte| value << 7 | i64::from(byte & 0x7f));
    let bits = 7 * bytes.len();
    Some(if last & 0x40 != 0 { value - (1 << bits) } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_numbers_are_read_whole_or_not_at_all() {
        assert_eq!(whole_sleb(&[0x78]), Some(-8));
        assert_eq!(whole_sleb(&[0xa0, 0x01]), Some(160));
        assert_eq!(whole_sleb(&[0xf8, 0x7e]), Some(-136));
        for bad in [&[][..], &[0x80], &[8, 8], &[0xff; 6]] {
            assert_eq!(whole_sleb(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn expressions_of_real_files_are_known() {
        let plt = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
        assert_eq!(of_expression(&plt), Some((cfa::PLT, 11)));
        assert_eq!(of_expression(&[0x76, 0x78, 6]), Some((cfa::AT_RBP, (-1i16).cast_unsigned())));
        assert_eq!(of_expression(&[0x77, 0xc0, 0, 6, 0x23, 8]), Some((cfa::AT_RSP, 8)));
        assert_eq!(of_expression(&[0x77, 8]), None);
    }

    #[test]
    fn the_last_rule_of_an_address_holds_and_repeats_are_one() {
        let call = Rule { cfa_words: 2, ..Rule::plain(cfa::RSP) };
        let mut rules = Vec::new();
        for (address, rule) in
            [(0, call), (8, call), (10, Rule::NONE), (10, call), (20, Rule::NONE), (4, call)]
        {
            add(&mut rules, address, rule);
        }
        assert_eq!(rules, [(0, call), (20, Rule::NONE)]);
    }
}
