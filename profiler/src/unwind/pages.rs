//! Rules as the kernel's walk finds them: rows of eight bytes, in pages of 64 KiB of code.

use super::eh_frame::Rule;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{Page, Row, limits};

const PAGE_BITS: u32 = 16;
/// Pages of one file: a GiB of code.
const MAX_PAGES: u64 = 16_384;

/// The table of one file.
#[derive(Debug, Default)]
pub struct Pages {
    /// Address of the first page.
    pub base: u64,
    pub rows: Vec<Row>,
    /// The rows of each page, counted from the file's first.
    pub pages: Vec<Page>,
}

impl Pages {
    /// The table of rules in order of address; `None` when there are none, or more than a table holds.
    pub fn of(rules: &[(u64, Rule)]) -> Option<Self> {
        let (first, last) = (rules.first()?.0 >> PAGE_BITS, rules.last()?.0 >> PAGE_BITS);
        if last - first >= MAX_PAGES || rules.len() > limits::ROWS as usize {
            return None;
        }
        let mut table = Self { base: first << PAGE_BITS, ..Self::default() };
        let (mut rest, mut before) = (rules, Rule::NONE);
        for page in first..=last {
            let start = table.rows.len();
            let (here, later) =
                rest.split_at(rest.partition_point(|(address, _)| address >> PAGE_BITS == page));
            // What holds at the page's start began on an earlier one.
            let begins_late = here.first().is_none_or(|(address, _)| address.trailing_zeros() < PAGE_BITS);
            if begins_late && before != Rule::NONE {
                table.rows.push(row(0, before));
            }
            table.rows.extend(here.iter().map(|&(address, rule)| row(address as u16, rule)));
            let count = table.rows.len() - start;
            if count > limits::PAGE_ROWS {
                return None;
            }
            table.pages.push(Page { first: start as u32, count: count as u32 });
            before = here.last().map_or(before, |(_, rule)| *rule);
            rest = later;
        }
        Some(table)
    }

    /// The rule at an address, found as the kernel finds it.
    #[cfg(test)]
    pub fn rule(&self, address: u64) -> Option<Rule> {
        let page = self.pages.get((address.checked_sub(self.base)? >> PAGE_BITS) as usize)?;
        let rows = &self.rows[page.first as usize..][..page.count as usize];
        let after = rows.partition_point(|row| row.address <= address as u16);
        let row = rows.get(after.checked_sub(1)?)?;
        let Row { cfa, rbp, cfa_words, rbp_words, .. } = *row;
        Some(Rule { cfa, cfa_words, rbp, rbp_words })
    }
}

fn row(address: u16, rule: Rule) -> Row {
    let Rule { cfa, cfa_words, rbp, rbp_words } = rule;
    Row { address, cfa, rbp, cfa_words, rbp_words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpulse_exporter_ebpf::probes::profile::cpu_sample::{cfa, rbp};

    #[test]
    fn a_rule_holds_over_the_pages_that_it_spans() {
        let rule = |words| Rule { cfa: cfa::RSP, cfa_words: words, rbp: rbp::KEPT, rbp_words: 0 };
        let rules = [(0x1_0010, rule(1)), (0x1_0020, rule(2)), (0x4_0000, rule(3)), (0x4_0100, Rule::NONE)];
        let table = Pages::of(&rules).unwrap();
        let found = [0x1_0000, 0x1_0010, 0x1_ffff, 0x2_8000, 0x3_ffff, 0x4_0000, 0x4_0100, 0x5_0000]
            .map(|address| table.rule(address).map(|rule| rule.cfa_words));
        assert_eq!(found, [None, Some(1), Some(2), Some(2), Some(2), Some(3), Some(0), None]);
        assert_eq!((table.base, table.rows.len(), table.pages.len()), (0x1_0000, 6, 4));
    }
}
