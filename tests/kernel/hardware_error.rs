//! Errors of hardware that the kernel's own injectors make up, or that are written to registers, against what they were
//! told to, in guests of the matrix: no machine in use can be given any.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::Mount;
use kpulse_tests::memory_controller::{MemoryController, Severity};
use kpulse_tests::root_port::RootPort;
use kpulse_tests::{load, skip, until};
use serde_json::json;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const NAME: &str = "hardware_error";

/// What the running kernel can tell of, by its own list of tracepoints.
fn has_tracepoint(name: &str) -> bool {
    let groups = fs::read_dir("/sys/kernel/tracing/events").expect("tracefs is mounted").flatten();
    groups.into_iter().any(|group| group.path().join(name).exists())
}

/// Returns from the test where nothing can be made up.
macro_rules! needs_guest_with {
    ($tracepoint:literal) => {
        needs_guest!("only guests of the kernel matrix are given errors of hardware");
        if !has_tracepoint($tracepoint) {
            skip(module_path!(), concat!("this kernel has no tracepoint ", $tracepoint));
            return;
        }
    };
}

/// The events of what happens meanwhile, as soon as there are so many.
fn told(number: usize, happen: impl FnOnce()) -> Vec<Fact> {
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    happen();
    let mut facts = Vec::new();
    until("event", || {
        events.drain(&mut |fact| facts.push(fact));
        (facts.len() >= number).then_some(())
    });
    assert_eq!(facts.len(), number, "{facts:?}");
    assert_sum_closes(set, &mut events, number);
    for fact in &facts {
        assert_eq!((fact.kind, fact.value_ns), (NAME, None));
    }
    facts
}

#[test]
fn every_tracepoint_that_the_kernel_has_is_attached() {
    needs_root!();
    let set = load(NAME, &wanting(Want::Events));
    let status = &set.status()[0];
    for hook in probe(NAME).hooks {
        let is_attached = status.hooks.iter().any(|attached| attached.hook == hook.name);
        assert_eq!(is_attached, has_tracepoint(hook.name), "{}: {:?}", hook.name, status.missing);
    }
}

#[test]
fn a_machine_check_is_an_event_with_its_registers() {
    needs_guest_with!("mce_record");
    let _debugfs = Mount::at(Path::new("debugfs"), Path::new("/sys/kernel/debug"), "debugfs", "");
    let injector = Path::new("/sys/kernel/debug/mce-inject");
    if !injector.exists() {
        skip(module_path!(), "there is no mce-inject");
        return;
    }
    // The last byte of what is written has to be the end of a line.
    let set = |file: &str, value: &str| {
        fs::write(injector.join(file), format!("{value}\n")).expect("root may inject");
    };
    let facts = told(2, || {
        for status in ["0x9c00000000010090", "0xbe00000000800400"] {
            set("flags", "sw");
            set("cpu", "1");
            set("status", status);
            set("addr", "0x1234000");
            set("misc", "0x8c");
            // Injects.
            set("bank", "4");
        }
    });
    let [corrected, fatal] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!((&corrected.body["type"], &corrected.body["severity"]), (&json!("mce"), &json!("corrected")));
    assert_eq!((&fatal.body["type"], &fatal.body["severity"]), (&json!("mce"), &json!("fatal")));
    let mce = &corrected.body["mce"];
    let expected = json!({
        "cpu": 1, "bank": 4, "status": "0x9c00000000010090", "error_code": 0x90, "model_error_code": 1,
        "address": "0x1234000", "misc": "0x8c", "overflow": false,
    });
    for (field, value) in expected.as_object().expect("it is an object") {
        assert_eq!(&mce[field], value, "{field} of {mce}");
    }
    assert_eq!(fatal.body["mce"]["status"], "0xbe00000000800400");
    assert_eq!((fatal.pid, fatal.cgroup, fatal.body.get("page")), (0, None, None));
}

#[test]
fn an_error_of_pci_express_is_an_event_with_its_device() {
    needs_guest_with!("aer_event");
    let port = match RootPort::find() {
        Ok(port) => port,
        Err(why) => return skip(module_path!(), why),
    };
    let facts = told(1, || port.inject(0, 1 << 6).expect("root may inject"));
    assert_eq!((facts[0].pid, facts[0].cgroup), (0, None));
    let pcie = json!({"device": port.name(), "status": "0x40", "errors": ["BadTLP"]});
    assert_eq!(facts[0].body, json!({"type": "pcie", "severity": "corrected", "pcie": pcie}));

    // A poisoned packet, whose header is kept.
    let facts = told(1, || port.inject(1 << 12, 0).expect("root may inject"));
    let header = "4a000001 00000002 00000003 00000004";
    let pcie = json!({"device": port.name(), "status": "0x1000", "errors": ["TLP"], "tlp_header": header});
    assert_eq!(facts[0].body, json!({"type": "pcie", "severity": "uncorrected", "pcie": pcie}));
}

#[test]
fn an_error_of_a_memory_controller_is_an_event_with_its_place() {
    needs_guest_with!("mc_event");
    let controller = match MemoryController::set_up() {
        Ok(controller) => controller,
        Err(why) => return skip(module_path!(), why),
    };
    // In the second row of 256 MiB.
    let err = |severity| controller.err(severity, 0x1234_5680, 1, 0x5a).expect("root may write to registers");
    let facts = told(1, || err(Severity::Corrected));
    assert_eq!((facts[0].pid, facts[0].cgroup), (0, None));
    let memory = json!({
        "controller": 0, "label": "mc#0csrow#1channel#1", "message": "i3000 CE", "count": 1, "top_layer": 1,
        "middle_layer": 1, "address": "0x12345680", "grain_bytes": 128, "syndrome": "0x5a",
    });
    assert_eq!(facts[0].body, json!({"type": "memory", "severity": "corrected", "memory": memory}));

    // One that could not be corrected may be of either channel.
    let facts = told(1, || err(Severity::Uncorrected));
    let memory = json!({
        "controller": 0, "label": "mc#0csrow#1channel#0 or mc#0csrow#1channel#1", "message": "i3000 UE", "count": 1,
        "top_layer": 1, "address": "0x12345680", "grain_bytes": 128, "syndrome": "0x0",
    });
    assert_eq!(facts[0].body, json!({"type": "memory", "severity": "uncorrected", "memory": memory}));
}

/// A page of this process's own, and the number of its frame.
fn page() -> io::Result<(*mut libc::c_void, u64)> {
    const BYTES: usize = 4096;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping touches no memory that is in use.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut entry = [0; 8];
    let at = (page as u64 / BYTES as u64) * entry.len() as u64;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at)?;
    Ok((page, u64::from_ne_bytes(entry) & ((1 << 55) - 1)))
}

#[test]
fn a_broken_page_is_an_event_with_what_became_of_it() {
    needs_guest_with!("memory_failure_event");
    let container = Cgroup::container("cpu", 0xe5).expect("a cgroup can be made");
    let note = std::env::temp_dir().join(format!("kpulse-pfn-{}", std::process::id()));
    let facts = told(1, || {
        // The kernel may kill who has the page.
        load::in_child(Some(&container), || {
            let (page, pfn) = page()?;
            fs::write(&note, pfn.to_string())?;
            // SAFETY: the page is this function's own, and nothing touches it again.
            match unsafe { libc::madvise(page, 1, libc::MADV_HWPOISON) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    });
    let pfn: u64 = fs::read_to_string(&note).expect("the child came so far").parse().expect("it is a number");
    fs::remove_file(&note).expect("it is this test's own");
    let fact = &facts[0];
    assert_eq!(fact.cgroup, Some(container.cgroup_id()));
    assert_ne!(fact.pid, 0);
    let page = json!({"pfn": pfn, "kind": "dirty_lru", "result": "recovered"});
    assert_eq!(fact.body, json!({"type": "page", "severity": "uncorrected", "page": page}));
}
