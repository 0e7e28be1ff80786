//! The committed schemas are the generated ones, and real documents obey them.

use crate::dataset::Dataset;
use crate::enrich::Enrich;
use crate::enrich::tests::{dropped, fact};
use kpulse_common::container::{CgroupId, Hierarchy};
use kpulse_common::event::{Container, Host};
use kpulse_common::paths::Paths;
use kpulse_common::profile::{Function, Profile, Sampled, Stacks};
use kpulse_exporter_ebpf::Fact;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

const COMMITTED: &str = include_str!("../schema/event.schema.json");
const COMMITTED_PROFILE: &str = include_str!("../schema/profile.schema.json");

#[test]
fn the_committed_schema_is_the_generated_one() {
    let generated = serde_json::to_string_pretty(&crate::schema::whole()).unwrap() + "\n";
    assert!(
        COMMITTED == generated,
        "event-gateway/schema/event.schema.json is stale: write the output of \"kpulse-event-gateway schema\" there"
    );
}

#[test]
fn the_committed_schema_of_profiles_is_the_generated_one() {
    let generated = serde_json::to_string_pretty(&crate::schema::of(Dataset::Profiles)).unwrap() + "\n";
    assert!(
        COMMITTED_PROFILE == generated,
        "event-gateway/schema/profile.schema.json is stale: `make reference` writes it anew"
    );
}

proptest! {
    #[test]
    fn every_profile_obeys_its_schema_and_reads_back(
        texts in prop::array::uniform4(any::<String>()),
        numbers in any::<[u64; 4]>(),
        container in prop::option::of(any::<String>()),
        top in prop::collection::vec((any::<String>(), any::<u64>()), 0..4),
    ) {
        let validator = jsonschema::validator_for(&serde_json::from_str(COMMITTED_PROFILE).unwrap()).unwrap();
        let [folded, service, host, probe] = texts;
        let stacks = Stacks {
            period_ns: numbers[0],
            samples: numbers[1],
            samples_left_out: numbers[2],
            lost: top.iter().cloned().collect(),
            top: top.into_iter().map(|(function, samples)| Function { function, samples }).collect(),
            folded,
        };
        let host = Host { id: Some(host), ..Host::default() };
        let container = container.map(|id| Container { id, name: None, runtime: None, image: None });
        let window = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_nanos(numbers[3]));
        let profile = Profile::new(window, host, &service, container, Sampled::new(&probe, stacks));
        let value = serde_json::to_value(&profile).unwrap();
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        prop_assert!(errors.is_empty(), "{errors:?} in {value}");
        prop_assert_eq!(serde_json::from_value::<Profile>(value.clone()).unwrap(), profile);
        for required in ["@timestamp", "event", "host", "service", "kpulse"] {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(required);
            prop_assert!(!validator.is_valid(&without), "{required} is missing");
        }
        let mut wrong = value;
        wrong["kpulse"]["profile"]["samples"] = "many".into();
        prop_assert!(!validator.is_valid(&wrong));
    }
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let numbers = (
        any::<u64>(),
        any::<Option<u64>>(),
        any::<Option<u64>>(),
        any::<Option<u32>>(),
        any::<u32>(),
        any::<u32>(),
        any::<u64>(),
    );
    let texts = (any::<String>(), prop::collection::vec(any::<String>(), 0..4));
    let cgroup = prop::option::of((any::<u64>(), any::<bool>()));
    (numbers, texts, cgroup, any::<Option<u32>>()).prop_map(|(numbers, texts, cgroup, field)| Fact {
        probe: "packet_drop",
        kind: "packet_drop",
        boot_ns: numbers.0,
        value_ns: numbers.1,
        threshold_ns: numbers.2,
        cpu: numbers.3,
        pid: numbers.4,
        tid: numbers.5,
        suppressed: numbers.6,
        comm: texts.0,
        kernel_stack: texts.1,
        user_stack: None,
        cgroup: cgroup.map(|(id, is_v1)| CgroupId {
            id,
            hierarchy: if is_v1 { Hierarchy::V1("cpu") } else { Hierarchy::Unified },
        }),
        body: {
            let mut body = dropped();
            body["netns"] = field.into();
            body
        },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_document_obeys_the_schema_and_reads_back(fact in any_fact(), user in prop::collection::vec(any::<String>(), 0..4)) {
        let schema: Value = serde_json::from_str(COMMITTED).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let document = Enrich::new(&Paths::default(), BTreeMap::new()).draft(fact).encode(user);
        let value: Value = serde_json::from_str(&document.json).unwrap();
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        prop_assert!(errors.is_empty(), "{errors:?} in {}", document.json);
        prop_assert!(!document.json.contains("null"), "{}", document.json);
        let event: kpulse_common::event::Event = serde_json::from_str(&document.json).unwrap();
        prop_assert_eq!(serde_json::to_value(&event).unwrap(), value);
    }
}

/// The fixtures are what real records decode to.
#[test]
fn what_a_real_record_of_each_kind_says_obeys_the_schema() {
    let validator = jsonschema::validator_for(&serde_json::from_str(COMMITTED).unwrap()).unwrap();
    let mut enrich = Enrich::new(&Paths::default(), BTreeMap::new());
    let probes = std::path::Path::new("../exporter-ebpf/src/probes");
    for kind in crate::schema::all_kinds() {
        let name = format!("fixtures/{}.json", kind.name);
        let folders = probes.read_dir().unwrap().flatten().filter_map(|it| it.path().read_dir().ok());
        let files = folders.flatten().flatten().map(|it| it.path().join(&name));
        let file = files.chain([std::path::Path::new("src/watch").join(&name)]).find(|it| it.exists());
        let file = file.unwrap_or_else(|| panic!("no probe has {name}"));
        let body = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let document = enrich.document(Fact { kind: kind.name, body, ..fact() });
        let value = serde_json::from_str(&document.json).unwrap();
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?} in {value}", kind.name);
    }
}

#[test]
fn the_schema_refuses_what_no_event_may_be() {
    let schema: Value = serde_json::from_str(COMMITTED).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let fact = Fact {
        probe: "packet_drop",
        kind: "packet_drop",
        boot_ns: 1,
        value_ns: Some(1),
        threshold_ns: Some(1),
        cpu: Some(0),
        pid: 1,
        tid: 1,
        comm: "x".to_owned(),
        cgroup: None,
        suppressed: 0,
        kernel_stack: vec!["f".to_owned()],
        user_stack: None,
        body: dropped(),
    };
    let good: Value =
        serde_json::from_str(&Enrich::new(&Paths::default(), BTreeMap::new()).document(fact).json).unwrap();
    assert!(validator.is_valid(&good));
    let bad = |pointer: &str, value: Value| {
        let mut document = good.clone();
        *document.pointer_mut(pointer).unwrap() = value;
        assert!(!validator.is_valid(&document), "{pointer}");
    };
    bad("/@timestamp", Value::Null);
    bad("/process", Value::Null);
    bad("/process/pid", "1".into());
    bad("/kpulse/packet_drop", "text".into());
    bad("/kpulse/packet_drop/reason", 7.into());
    bad("/kpulse/packet_drop/source/port", (-1).into());
    bad("/kpulse/value_ns", (-1).into());
    bad("/kpulse/stack/kernel", serde_json::json!([1]));
    for required in ["@timestamp", "event", "host", "kpulse"] {
        let mut document = good.clone();
        document.as_object_mut().unwrap().remove(required);
        assert!(!validator.is_valid(&document), "{required} is missing");
    }
}
