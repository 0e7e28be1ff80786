//! What the event gateway gets: a JSON document for each service, with folded stacks.

use super::request::{Outgoing, Service, Source};
use crate::export::folded::clean;
use hyper::body::Bytes;
use kpulse_common::event::of_container;
use kpulse_common::profile::{
    CONTENT_TYPE, FOLDED_BYTES_MAX, Function, PATH, Profile, Sampled, Stacks, TOP_MAX,
};
use kpulse_exporter_ebpf::probes::profile::cpu_sample;
use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes of documents after which a request is long enough: with one more it is within what the gateway takes.
const REQUEST_BYTES: usize = 1 << 20;

/// As few requests as the gateway takes.
pub fn requests(services: &[Service], source: &Source<'_>) -> anyhow::Result<VecDeque<Outgoing>> {
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for service in services {
        if bodies.last().is_none_or(|body| body.len() >= REQUEST_BYTES) {
            bodies.push(Vec::new());
        }
        if let Some(body) = bodies.last_mut() {
            serde_json::to_writer(&mut *body, &document(service, source))?;
            body.push(b'\n');
        }
    }
    let outgoing = |body| Outgoing { path: PATH.into(), content_type: CONTENT_TYPE, body: Bytes::from(body) };
    Ok(bodies.into_iter().map(outgoing).collect())
}

fn document(service: &Service, source: &Source<'_>) -> Profile {
    let (folded, samples_left_out) = bounded(&service.profile(source).folded().text(), FOLDED_BYTES_MAX);
    let stacks = Stacks {
        period_ns: u64::try_from(source.period.as_nanos()).unwrap_or(u64::MAX),
        samples: service.selection.samples,
        samples_left_out,
        lost: source.window.lost.clone(),
        top: top(service),
        folded,
    };
    let known = service.container(source);
    let (container, orchestrator, kubernetes) = match known.as_ref().map(of_container) {
        Some((container, orchestrator, kubernetes)) => (Some(container), orchestrator, kubernetes),
        None => (None, None, None),
    };
    let window = (service.selection.from, service.selection.to);
    let name = service.labels.get("service_name").map_or("", String::as_str);
    let sampled = Sampled::new(cpu_sample::PROBE.name, stacks);
    let profile = Profile::new(window, source.host.clone(), name, container, sampled);
    Profile { orchestrator, kubernetes, ..profile }
}

/// The functions with most samples of their own.
fn top(service: &Service) -> Vec<Function> {
    let mut functions: HashMap<&Arc<str>, u64> = HashMap::new();
    for (key, samples) in &service.selection.entries {
        if let Some(leaf) = key.stack.last() {
            *functions.entry(leaf).or_default() += samples;
        }
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_unstable_by_key(|(function, samples)| (Reverse(*samples), *function));
    functions.truncate(TOP_MAX);
    let own = |(function, samples): (&Arc<str>, u64)| Function { function: clean(function), samples };
    functions.into_iter().map(own).collect()
}

/// The lines with most samples, as many as have room as JSON, and the samples of the others.
fn bounded(folded: &str, bytes_max: usize) -> (String, u64) {
    let samples = |line: &str| line.rsplit_once(' ').and_then(|(_, count)| count.parse().ok()).unwrap_or(0);
    let mut lines: Vec<(u64, &str)> = folded.lines().map(|line| (samples(line), line)).collect();
    lines.sort_by_key(|(samples, _)| Reverse(*samples));
    let (mut text, mut bytes, mut left_out) = (String::new(), 0, 0);
    for (samples, line) in lines {
        // A quote or a backslash takes two bytes there, and so does the end of the line; other such signs are in no name.
        let room = line.len() + line.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count() + 2;
        if bytes + room > bytes_max {
            left_out += samples;
        } else {
            bytes += room;
            text.push_str(line);
            text.push('\n');
        }
    }
    (text, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_stacks_that_were_seen_least_are_left_out_and_counted() {
        let folded = "t;a 1\nt;b \"x\" 50\nt;c 2\nt;d 7\n";
        assert_eq!(bounded(folded, 1 << 20), ("t;b \"x\" 50\nt;d 7\nt;c 2\nt;a 1\n".to_owned(), 0));
        assert_eq!(bounded(folded, 21), ("t;b \"x\" 50\nt;d 7\n".to_owned(), 3));
        assert_eq!(bounded(folded, 0), (String::new(), 60));
    }

    proptest! {
        #[test]
        fn what_is_kept_has_room_as_json_and_no_sample_is_forgotten(
            stacks in prop::collection::vec((r#"[a-zé"\\]{0,30}"#, 0u64..1_000), 0..50),
            bytes_max in 0usize..500,
        ) {
            let line = |(stack, samples): &(String, u64)| format!("t;{stack} {samples}\n");
            let (kept, left_out) = bounded(&stacks.iter().map(line).collect::<String>(), bytes_max);
            // The quotes around it are no part of it.
            prop_assert!(serde_json::to_string(&kept).unwrap().len() <= bytes_max + 2, "{kept}");
            let in_kept: u64 = kept.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
            prop_assert_eq!(in_kept + left_out, stacks.iter().map(|(_, samples)| samples).sum::<u64>());
        }
    }
}
