#![doc = include_str!("README.md")]

use crate::error::ProbeError;
use crate::features::Feature;
use crate::hook::{Hook, tp_btf};
use crate::life::{Change, Life, LifeDef, ProcessId, RingFull};
use crate::maps::{Maps, Table};
use crate::probe::{Priority, Probe};
use crate::probes::{abi, bpf_object};
use crate::record::{comm, view};

abi!("process_life");

/// See the module's documentation.
pub const PROBE: Probe = Probe {
    name: "process_life",
    object: bpf_object!("process_life"),
    needs: &[Feature::RingBuffer],
    hooks: &[
        Hook::any("sched_process_exec", &[tp_btf("sched_process_exec", "sched_process_exec")]),
        Hook::any("sched_process_exit", &[tp_btf("sched_process_exit", "sched_process_exit")]),
    ],
    controller: "cpu",
    lives: Some(&LifeDef { ring: "lives", decode, ring_full }),
    priority: Priority::Essential,
    ..Probe::EMPTY
};

fn ring_full(maps: &Maps) -> Result<RingFull, ProbeError> {
    let losses: Table<u32, abi::process_life_value> = maps.table("losses")?;
    Ok(Box::new(move || losses.get(&0).ok().flatten().map_or(0, |loss| loss.ring_full)))
}

fn decode(bytes: &[u8]) -> Result<Life, ProbeError> {
    let head: abi::process_life_head =
        view(bytes.get(..size_of::<abi::process_life_head>()).unwrap_or(bytes))?;
    let change = match head.kind {
        abi::LIFE_EXEC => exec(bytes)?,
        abi::LIFE_EXIT => exit(&view(bytes)?),
        abi::LIFE_CGROUP => cgroup(&view(bytes)?),
        other => return Err(ProbeError::Layout(format!("a record has the unknown kind {other}"))),
    };
    Ok(Life {
        process: ProcessId { pid: head.tgid, start_ns: head.start_ns },
        boot_ns: head.boot_ns,
        name: comm(&head.comm),
        cgroup_id: (head.cgroup_id != 0).then_some(head.cgroup_id),
        change,
    })
}

/// The one record whose length varies.
fn exec(bytes: &[u8]) -> Result<Change, ProbeError> {
    let (front, text) = bytes.split_at(bytes.len().min(size_of::<abi::process_life_exec>()));
    let exec: abi::process_life_exec = view(front)?;
    let [file, arguments] = [exec.file_bytes, exec.argument_bytes].map(|bytes| bytes as usize);
    if file.checked_add(arguments) != Some(text.len()) {
        let (have, want) = (text.len(), [file, arguments]);
        return Err(ProbeError::Layout(format!("a record has {have} bytes of text and tells of {want:?}")));
    }
    let (file, arguments) = text.split_at(file);
    Ok(Change::Exec { executable: present(comm(file)), command_line: present(joined(arguments)) })
}

fn exit(record: &abi::process_life_exit) -> Change {
    let parent = ProcessId { pid: record.parent_tgid, start_ns: record.parent_start_ns };
    Change::Exit { forked_from: (parent.pid != 0).then_some(parent) }
}

/// The names, innermost first, as a path. Whole is what reaches the root, whose name is empty, with no name cut off.
fn cgroup(record: &abi::process_life_cgroup) -> Change {
    let named = record.names.iter().take_while(|name| name[0] != 0);
    let mut names: Vec<String> = named.map(|name| comm(name)).collect();
    let is_cut = names.iter().any(|name| name.len() + 1 >= abi::CGROUP_NAME_BYTES as usize);
    let is_whole = names.len() < record.names.len() && !is_cut;
    names.reverse();
    Change::Cgroup { path: format!("/{}", names.join("/")), is_whole }
}

/// Arguments as one line, as `/proc/PID/cmdline` is shown.
fn joined(arguments: &[u8]) -> String {
    let end = arguments.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    String::from_utf8_lossy(&arguments[..end]).replace('\0', " ")
}

fn present(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::bytes;
    use proptest::prelude::*;

    const EXEC: &str = include_str!("fixtures/exec.hex");
    const EXIT: &str = include_str!("fixtures/exit.hex");
    const CGROUP: &str = include_str!("fixtures/cgroup.hex");

    #[test]
    fn real_records_decode() {
        let [exec, exit, cgroup] = [EXEC, EXIT, CGROUP].map(|hex| decode(&bytes(hex)).unwrap());
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            exec.change,
            Change::Exec { executable: text("/bin/sh"), command_line: text("/bin/sh -c (:) & wait; exit 3") }
        );
        assert_eq!(exec.name, "sh");
        assert_eq!(exit.change, Change::Exit { forked_from: Some(exec.process) });
        assert!(exit.process.start_ns > exec.process.start_ns && exit.boot_ns >= exit.process.start_ns);
        let id = format!("{:064x}", 0x11fe);
        assert_eq!(cgroup.change, Change::Cgroup { path: format!("/docker/{id}"), is_whole: true });
        assert_eq!(cgroup.cgroup_id, exec.cgroup_id);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut noise in prop::collection::vec(any::<u8>(), 0..900), kind in 0u8..5) {
            if let Some(first) = noise.first_mut() {
                *first = kind;
                noise.iter_mut().take(4).skip(1).for_each(|byte| *byte = 0);
            }
            let _ = decode(&noise);
        }

        #[test]
        fn a_record_of_another_size_is_an_error(cut in 1usize..40) {
            for hex in [EXEC, EXIT, CGROUP] {
                let whole = bytes(hex);
                prop_assert!(decode(&whole[..whole.len() - cut]).is_err());
                prop_assert!(decode(&[whole, vec![0; cut]].concat()).is_err());
            }
        }
    }
}
