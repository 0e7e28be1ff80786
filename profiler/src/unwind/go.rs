//! How does Go code get back to its caller? By the distance to the return address that `gopclntab` has for every
//! instruction, prologues and frameless leaves included.

use super::eh_frame::{Rule, add};
use super::elf::ReadAt;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{cfa, limits, rbp};
use kpulse_symbolize::go::{Function, Table};

/// Where the frame pointer lies below the CFA.
const RBP_WORDS: i16 = -2;
/// The stack that the frame pointer leads to.
const OTHER_STACK: Rule =
    Rule { cfa: cfa::OTHER_STACK, cfa_words: 2, rbp: rbp::AT_CFA, rbp_words: RBP_WORDS };
/// Without a frame of their own before Go 1.21: the frame pointer is their caller's, which is left out so.
const SWITCHES: [&str; 2] = ["runtime.systemstack", "runtime.asmcgocall"];

/// The rules of a Go program's functions in order of address, the last one of none; none for another file, or where there
/// are more than the kernel's table holds.
pub fn rules<R: ReadAt>(file: R) -> Vec<(u64, Rule)> {
    let Some(mut table) = Table::read(file) else { return Vec::new() };
    let (mut rules, mut end, mut steps) = (Vec::new(), 0, 0);
    for number in 0..table.functions() {
        let Some(function) = table.function(number) else { continue };
        end = function.range.end;
        if function.is_top {
            add(&mut rules, function.range.start, Rule::plain(cfa::ROOT));
            continue;
        }
        let start = rules.len();
        let is_whole = table.distances(&function, |address, distance| {
            steps += 1;
            add(&mut rules, address, rule(&function, distance));
            steps <= 2 * limits::ROWS
        });
        if rules.len() > limits::ROWS as usize || steps > 2 * limits::ROWS {
            return Vec::new();
        }
        let has_frame = rules[start..].iter().any(|(_, rule)| rule.cfa == cfa::OTHER_STACK);
        if !is_whole {
            rules.truncate(start);
            add(&mut rules, function.range.start, Rule::NONE);
        } else if function.switches_stacks && !has_frame {
            let names = table.names(function.range.start, false).unwrap_or_default();
            let has_caller = names.last().is_some_and(|name| SWITCHES.contains(&name.as_str()));
            rules.truncate(start);
            let rule = if has_caller { OTHER_STACK } else { Rule::plain(cfa::ROOT) };
            add(&mut rules, function.range.start, rule);
        }
    }
    if !rules.is_empty() {
        add(&mut rules, end, Rule::NONE);
    }
    rules
}

fn rule(function: &Function, distance: i32) -> Rule {
    let words = (distance % 8 == 0).then(|| u16::try_from(distance / 8 + 1).ok()).flatten();
    match words {
        Some(1) => Rule { cfa_words: 1, ..Rule::plain(cfa::RSP) },
        // It came from the stack that its frame pointer leads to.
        Some(_) if function.switches_stacks => OTHER_STACK,
        Some(cfa_words) => Rule { cfa: cfa::RSP, cfa_words, rbp: rbp::AT_CFA, rbp_words: RBP_WORDS },
        None => Rule::UNEXPRESSED,
    }
}

/// The rules of a file that has Go code and other code: Go's where Go's code is.
pub fn merged(others: Vec<(u64, Rule)>, go: &[(u64, Rule)]) -> Vec<(u64, Rule)> {
    let (Some(&(start, _)), Some(&(end, _))) = (go.first(), go.last()) else { return others };
    let before = others.partition_point(|(address, _)| *address < start);
    let behind = others.partition_point(|(address, _)| *address < end);
    [&others[..before], go, &others[behind..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_rules_hold_where_gos_code_is() {
        let rule = |words| Rule { cfa_words: words, ..Rule::plain(cfa::RSP) };
        let others = vec![(10, rule(1)), (20, rule(2)), (30, rule(3)), (40, Rule::NONE)];
        let go = vec![(15, rule(8)), (25, rule(9)), (30, Rule::NONE)];
        let all = merged(others.clone(), &go);
        let at = |address: u64| all[all.partition_point(|(start, _)| *start <= address) - 1].1.cfa_words;
        assert!(all.is_sorted_by_key(|(address, _)| *address));
        assert_eq!([10, 15, 24, 29, 30, 39, 40].map(at), [1, 8, 8, 9, 3, 3, 0]);
        assert_eq!(merged(others.clone(), &[]), others);
    }
}
