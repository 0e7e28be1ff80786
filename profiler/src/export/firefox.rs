//! A profile for the Firefox Profiler, in its processed format. Samples are counted, not timed: they lie one behind the
//! other on each thread's track, as long as their CPU time.

use super::{Profile, kernel_name};
use fxprof_processed_profile as fx;
use std::collections::HashMap;

/// The whole profile.
pub fn document(profile: &Profile<'_>) -> fx::Profile {
    let interval = fx::SamplingInterval::from_nanos(profile.period.as_nanos() as u64);
    let mut out = fx::Profile::new("kpulse-profiler", profile.selection.from.into(), interval);
    out.set_os_name("Linux");
    out.set_symbolicated(true);
    let user = out.add_category("User", fx::CategoryColor::Yellow);
    let kernel = out.add_category("Kernel", fx::CategoryColor::Orange);
    let start = fx::Timestamp::from_nanos_since_reference(0);
    let (mut processes, mut threads) = (HashMap::new(), HashMap::new());
    for (key, count) in profile.sorted() {
        let process = *processes
            .entry((key.pid, &key.process))
            .or_insert_with(|| out.add_process(&key.process, key.pid, start));
        // Threads are told apart by their names alone, and the format wants a number for each.
        let number = threads.len() as u32 + 1;
        let (thread, spent) = threads.entry((key.pid, &key.process, &key.thread)).or_insert_with(|| {
            let thread = out.add_thread(process, number, start, false);
            out.set_thread_name(thread, &key.thread);
            (thread, 0)
        });
        let frames: Vec<fx::FrameInfo> = key
            .stack
            .iter()
            .map(|frame| {
                let name = kernel_name(frame);
                fx::FrameInfo {
                    frame: fx::Frame::Label(out.intern_string(name.unwrap_or(frame))),
                    category_pair: if name.is_some() { kernel } else { user }.into(),
                    flags: fx::FrameFlags::empty(),
                }
            })
            .collect();
        let stack = out.intern_stack_frames(*thread, frames.into_iter());
        let at = fx::Timestamp::from_nanos_since_reference(*spent);
        let time = count * profile.period.as_nanos() as u64;
        out.add_sample(
            *thread,
            at,
            stack,
            fx::CpuDelta::from_nanos(time),
            i32::try_from(count).unwrap_or(i32::MAX),
        );
        *spent += time;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{check, selection};
    use serde_json::Value;

    /// Follows the tables of the format from a sample to the names of its frames.
    fn frames(profile: &Value, thread: &Value, sample: usize) -> Vec<String> {
        let cell = |table: &str, column: &str, row: u64| thread[table][column][row as usize].clone();
        let mut stack = thread["samples"]["stack"][sample].as_u64();
        let mut names = Vec::new();
        while let Some(row) = stack {
            let frame = cell("stackTable", "frame", row).as_u64().unwrap();
            let function = cell("frameTable", "func", frame).as_u64().unwrap();
            let name = cell("funcTable", "name", function).as_u64().unwrap() as usize;
            let strings = [&profile["shared"]["stringArray"], &thread["stringArray"]];
            names.push(strings.iter().find_map(|strings| strings[name].as_str()).unwrap().to_owned());
            stack = cell("stackTable", "prefix", row).as_u64();
        }
        names.reverse();
        names
    }

    #[test]
    fn threads_keep_their_stacks_and_times() {
        let selection = selection();
        check(&selection, |profile| {
            let read = serde_json::to_value(document(profile)).unwrap();
            assert!(read["meta"]["preprocessedProfileVersion"].is_u64(), "{}", read["meta"]);
            let threads = read["threads"].as_array().unwrap();
            let mut seen: Vec<_> = threads
                .iter()
                .map(|thread| {
                    let weight = thread["samples"]["weight"][0].as_i64();
                    (
                        thread["processName"].as_str(),
                        thread["name"].as_str(),
                        frames(&read, thread, 0),
                        weight,
                    )
                })
                .collect();
            seen.sort_by_key(|(.., weight)| std::cmp::Reverse(*weight));
            let stack = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            assert_eq!(
                seen,
                [
                    (Some("burn"), Some("worker"), stack(&["main", "hot \"a\"", "read"]), Some(7)),
                    (Some("burn"), Some("main"), stack(&["main", "hot \"a\""]), Some(2)),
                    (Some("kthread"), Some("other"), stack(&[]), Some(1)),
                ]
            );
        });
    }
}
