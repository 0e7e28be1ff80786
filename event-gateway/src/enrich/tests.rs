use super::*;
use kpulse_common::clock::boot_ns;
use kpulse_common::container::{CgroupId, Hierarchy};
use kpulse_exporter_ebpf::life::{Change, Life, ProcessId};
use serde_json::json;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;

const ID: &str = "0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f405162738495a6b7c8d9eafb";
const POD: &str = "8dbc5577-d0e2-4706-8787-57d52c03ddf2";

/// What a real record of a drop says.
pub(crate) fn dropped() -> Value {
    let fixture = include_str!("../../../exporter-ebpf/src/probes/net/packet_drop/fixtures/packet_drop.json");
    serde_json::from_str(fixture).unwrap()
}

pub(crate) fn fact() -> Fact {
    Fact {
        probe: "packet_drop",
        kind: "packet_drop",
        boot_ns: boot_ns(),
        value_ns: Some(12),
        threshold_ns: Some(10),
        cpu: Some(1),
        pid: std::process::id(),
        tid: std::process::id() + 1,
        comm: "worker".to_owned(),
        cgroup: None,
        suppressed: 3,
        kernel_stack: vec!["kfree_skb".to_owned()],
        user_stack: None,
        body: dropped(),
    }
}

/// The document, which obeys the schema.
fn decode(document: &Document) -> Value {
    let schema = serde_json::from_str(include_str!("../../schema/event.schema.json")).unwrap();
    let event = serde_json::from_str(&document.json).unwrap();
    jsonschema::validate(&schema, &event).unwrap();
    event
}

impl Enrich {
    pub(crate) fn document(&mut self, fact: Fact) -> Document {
        self.draft(fact).encode(Vec::new())
    }
}

fn enrich() -> Enrich {
    Enrich::new(&Paths::default(), BTreeMap::from([("region".to_owned(), "eu-1".to_owned())]))
}

#[test]
fn names_process_host_and_measurement() {
    let document = enrich().document(fact());
    let event = decode(&document);
    assert_eq!(event["event"]["action"], "packet_drop");
    assert_eq!(event["event"]["duration"], 12);
    assert_eq!(event["event"]["id"], document.id);
    assert_eq!(event["process"]["pid"], std::process::id());
    assert_eq!(event["process"]["executable"], std::env::current_exe().unwrap().to_string_lossy().as_ref());
    assert_eq!(event["process"]["thread"], json!({"id": std::process::id() + 1, "name": "worker"}));
    assert_ne!(event["process"]["name"], "worker", "the process is not named by one of its other threads");
    assert_eq!(event["labels"], json!({"region": "eu-1"}));
    assert_eq!(event["kpulse"]["suppressed"], 3);
    assert_eq!(event["kpulse"]["stack"], json!({"kernel": ["kfree_skb"]}));
    assert_eq!(event["kpulse"]["packet_drop"], dropped());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(event["host"]["os"]["kernel"], kernel.trim());
    assert!(event.get("container").is_none() && event["kpulse"].get("cgroup").is_none());
}

#[test]
fn an_event_of_a_gone_process_is_sent_with_what_is_known() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let pid = child.id();
    let event = decode(&enrich().document(Fact { pid, tid: pid, ..fact() }));
    assert_eq!(
        event["process"],
        json!({"pid": pid, "name": "worker", "thread": {"id": pid, "name": "worker"}})
    );
    let event = decode(&enrich().document(Fact { pid: 0, tid: 0, ..fact() }));
    assert!(event.get("process").is_none());
}

#[test]
fn a_container_is_named_by_its_cgroup() {
    let root = tempfile::tempdir().unwrap();
    let mount = root.path().join("cgroup");
    let directory = mount.join(format!("kubepods/burstable/pod{POD}/{ID}"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::create_dir(root.path().join("self")).unwrap();
    let mountinfo = format!("34 25 0:29 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
    std::fs::write(root.path().join("self/mountinfo"), mountinfo).unwrap();
    let paths = Paths { procfs: root.path().into(), cgroupfs: mount, ..Paths::default() };
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&directory).unwrap());
    let cgroup = Some(CgroupId { hierarchy: Hierarchy::Unified, id });
    let mut enrich = Enrich::new(&paths, BTreeMap::new());
    let document = enrich.document(Fact { cgroup, ..fact() });
    let event = decode(&document);
    assert_eq!(document.keys.container.as_deref(), Some(ID));
    assert_eq!(event["container"], json!({"id": ID}));
    assert_eq!(event["orchestrator"], json!({"type": "kubernetes"}));
    assert_eq!(event["kubernetes"], json!({"pod": {"uid": POD}}));
    let path = format!("/kubepods/burstable/pod{POD}/{ID}");
    assert_eq!(event["kpulse"]["cgroup"], json!({"id": id, "hierarchy": "unified", "path": path}));
    assert!(event.get("labels").is_none());
}

#[test]
fn a_body_that_is_no_object_is_kept() {
    assert_eq!(Value::Object(body(json!(7))), json!({"value": 7}));
    assert_eq!(Value::Object(body(Value::Null)), json!({}));
    assert_eq!(Value::Object(body(json!({"a": null, "b": {"c": 1, "d": null}}))), json!({"b": {"c": 1}}));
}

/// A container that is there for its process only, in the hierarchy of the records and in another.
#[test]
fn a_container_that_came_and_went_unseen_is_named_by_what_the_records_told() {
    struct Told(Vec<Life>);
    impl Lives for Told {
        fn drain(&mut self, each: &mut dyn FnMut(Life)) {
            self.0.drain(..).for_each(each);
        }
        fn hierarchy(&self) -> Hierarchy {
            Hierarchy::Unified
        }
        fn losses(&self) -> Vec<(&'static str, u64)> {
            Vec::new()
        }
    }
    let begin = boot_ns();
    let process = ProcessId { pid: u32::MAX, start_ns: begin };
    let life = |change| Life {
        process,
        boot_ns: begin + 1,
        name: "job".to_owned(),
        cgroup_id: Some(u64::MAX),
        change,
    };
    let path = format!("/kubepods/pod{POD}/{ID}");
    let command_line = Some("job --once".to_owned());
    let told = vec![
        life(Change::Cgroup { path: path.clone(), is_whole: true }),
        life(Change::Exec { executable: Some("/bin/job".to_owned()), command_line }),
        Life { boot_ns: begin + 3, ..life(Change::Exit { forked_from: None }) },
    ];
    let mut enrich = enrich().with_lives(Some(Box::new(Told(told))));
    let known = CgroupId { hierarchy: Hierarchy::Unified, id: u64::MAX };
    let elsewhere = CgroupId { hierarchy: Hierarchy::V1("memory"), id: 7 };
    for (cgroup, has_path) in [(Some(known), true), (Some(elsewhere), false), (None, false)] {
        let event = decode(&enrich.document(Fact { pid: u32::MAX, boot_ns: begin + 2, cgroup, ..fact() }));
        assert_eq!(event["container"]["id"], ID, "{event}");
        assert_eq!(event["kubernetes"]["pod"]["uid"], POD);
        assert_eq!(event["process"]["name"], "job");
        assert_eq!(event["process"]["executable"], "/bin/job");
        assert_eq!(event["process"]["command_line"], "job --once");
        assert_eq!(event.pointer("/kpulse/cgroup/path").is_some(), has_path, "{event}");
    }
}

#[test]
fn a_device_that_failed_has_its_users_and_one_elsewhere_has_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    let told = |device: &str, netns: u64| {
        let body = json!({"device": device, "queue": 0, "netns": netns});
        let fact = Fact { probe: "tx_timeout", kind: "tx_timeout", value_ns: None, body, ..fact() };
        decode(&enrich().document(fact))["kpulse"]["tx_timeout"]["affected"].clone()
    };
    let affected = told("lo", own);
    assert!(affected["connections"].as_u64() >= Some(2), "both ends of one: {affected}");
    drop(connection);
    assert_eq!([told("lo", own + 1), told("gone", own)], [Value::Null, Value::Null]);
}
