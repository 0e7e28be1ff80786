//! OTLP profiles, `v1development`: a resource for each service, and one dictionary for all.

use super::request::Service;
use crate::export::nanoseconds;
use crate::names::Numbered;
use prost::Message;
use proto::*;
use std::time::Duration;

/// The fields that are used, with the numbers of `profiles.proto`, `resource.proto` and `common.proto`.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ExportRequest {
        #[prost(message, repeated, tag = "1")]
        pub resource_profiles: Vec<ResourceProfiles>,
        #[prost(message, optional, tag = "2")]
        pub dictionary: Option<Dictionary>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Dictionary {
        #[prost(message, repeated, tag = "1")]
        pub mapping_table: Vec<Nothing>,
        #[prost(message, repeated, tag = "2")]
        pub location_table: Vec<Location>,
        #[prost(message, repeated, tag = "3")]
        pub function_table: Vec<Function>,
        #[prost(message, repeated, tag = "4")]
        pub link_table: Vec<Nothing>,
        #[prost(string, repeated, tag = "5")]
        pub string_table: Vec<String>,
        #[prost(message, repeated, tag = "6")]
        pub attribute_table: Vec<Attribute>,
        #[prost(message, repeated, tag = "7")]
        pub stack_table: Vec<Stack>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        #[prost(message, repeated, tag = "3")]
        pub lines: Vec<Line>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Line {
        #[prost(int32, tag = "1")]
        pub function_index: i32,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Function {
        #[prost(int32, tag = "1")]
        pub name_strindex: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Attribute {
        #[prost(int32, tag = "1")]
        pub key_strindex: i32,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Stack {
        #[prost(int32, repeated, tag = "1")]
        pub location_indices: Vec<i32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ResourceProfiles {
        #[prost(message, optional, tag = "1")]
        pub resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub scope_profiles: Vec<ScopeProfiles>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct KeyValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
    }

    /// One of several kinds, of which two are used.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct AnyValue {
        #[prost(string, optional, tag = "1")]
        pub string_value: Option<String>,
        #[prost(int64, optional, tag = "3")]
        pub int_value: Option<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ScopeProfiles {
        #[prost(message, optional, tag = "1")]
        pub scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        pub profiles: Vec<Profile>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Scope {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub version: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, optional, tag = "1")]
        pub sample_type: Option<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub samples: Vec<Sample>,
        #[prost(fixed64, tag = "3")]
        pub time_unix_nano: u64,
        #[prost(uint64, tag = "4")]
        pub duration_nano: u64,
        #[prost(message, optional, tag = "5")]
        pub period_type: Option<ValueType>,
        #[prost(int64, tag = "6")]
        pub period: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ValueType {
        #[prost(int32, tag = "1")]
        pub type_strindex: i32,
        #[prost(int32, tag = "2")]
        pub unit_strindex: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        #[prost(int32, tag = "1")]
        pub stack_index: i32,
        #[prost(int32, repeated, tag = "2")]
        pub attribute_indices: Vec<i32>,
        #[prost(int64, repeated, tag = "4")]
        pub values: Vec<i64>,
    }
}

/// The tables, each of which begins with an entry that stands for nothing.
struct Tables {
    strings: Numbered<String>,
    functions: Numbered<String>,
    stacks: Numbered<Vec<i32>>,
    attributes: Numbered<(&'static str, Text)>,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Text {
    Word(String),
    Number(i64),
}

impl Text {
    fn value(self) -> AnyValue {
        match self {
            Self::Word(word) => AnyValue { string_value: Some(word), int_value: None },
            Self::Number(number) => AnyValue { string_value: None, int_value: Some(number) },
        }
    }
}

impl Tables {
    fn new() -> Self {
        let (mut strings, mut functions) = (Numbered::default(), Numbered::default());
        let (mut stacks, mut attributes) = (Numbered::default(), Numbered::default());
        strings.number(String::new());
        functions.number(String::new());
        stacks.number(Vec::new());
        attributes.number(("", Text::Word(String::new())));
        Self { strings, functions, stacks, attributes }
    }

    fn string(&mut self, text: &str) -> i32 {
        self.strings.number(text.to_owned()) as i32
    }

    fn finish(mut self) -> Dictionary {
        let functions = std::mem::take(&mut self.functions.values);
        let function_table =
            functions.iter().map(|name| Function { name_strindex: self.string(name) }).collect();
        let location = |index: usize| {
            let lines = if index == 0 { Vec::new() } else { vec![Line { function_index: index as i32 }] };
            Location { lines }
        };
        let attributes = std::mem::take(&mut self.attributes.values);
        let attribute = |(key, value): (&str, Text)| {
            let value = if key.is_empty() { None } else { Some(value.value()) };
            Attribute { key_strindex: self.string(key), value }
        };
        let attribute_table = attributes.into_iter().map(attribute).collect();
        Dictionary {
            mapping_table: vec![Nothing {}],
            location_table: (0..functions.len()).map(location).collect(),
            function_table,
            link_table: vec![Nothing {}],
            attribute_table,
            stack_table: self
                .stacks
                .values
                .into_iter()
                .map(|location_indices| Stack { location_indices })
                .collect(),
            string_table: self.strings.values,
        }
    }
}

/// The request of all services.
pub fn encode(services: &[Service], period: Duration) -> Vec<u8> {
    let mut tables = Tables::new();
    let cpu = ValueType { type_strindex: tables.string("cpu"), unit_strindex: tables.string("nanoseconds") };
    let samples =
        ValueType { type_strindex: tables.string("samples"), unit_strindex: tables.string("count") };
    let resource_profiles = services
        .iter()
        .map(|service| {
            let [from, to] =
                [service.selection.from, service.selection.to].map(|at| nanoseconds(at).unsigned_abs());
            let profile = Profile {
                sample_type: Some(samples),
                samples: samples_of(service, &mut tables),
                time_unix_nano: from,
                duration_nano: to.saturating_sub(from),
                period_type: Some(cpu),
                period: period.as_nanos() as i64,
            };
            let (name, version) = ("kpulse-profiler".into(), env!("CARGO_PKG_VERSION").into());
            let scope_profiles =
                vec![ScopeProfiles { scope: Some(Scope { name, version }), profiles: vec![profile] }];
            ResourceProfiles { resource: Some(resource(service)), scope_profiles }
        })
        .collect();
    ExportRequest { resource_profiles, dictionary: Some(tables.finish()) }.encode_to_vec()
}

fn samples_of(service: &Service, tables: &mut Tables) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (key, count) in &service.selection.entries {
        let locations = key.stack.iter().rev().map(|frame| tables.functions.number(frame.to_string()) as i32);
        let stack = locations.collect();
        let attributes = [
            ("process.executable.name", Text::Word(key.process.to_string())),
            ("thread.name", Text::Word(key.thread.to_string())),
            ("process.pid", Text::Number(key.pid.into())),
        ];
        samples.push(Sample {
            stack_index: tables.stacks.number(stack) as i32,
            attribute_indices: attributes.map(|attribute| tables.attributes.number(attribute) as i32).into(),
            values: vec![i64::try_from(*count).unwrap_or(i64::MAX)],
        });
    }
    samples
}

/// The labels by the names that OpenTelemetry gives them.
fn resource(service: &Service) -> Resource {
    let attribute = |(name, value): (&&str, &String)| {
        let key = match *name {
            "service_name" => "service.name",
            "container_id" => "container.id",
            "container" => "k8s.container.name",
            "pod" => "k8s.pod.name",
            "namespace" => "k8s.namespace.name",
            other => other,
        };
        KeyValue { key: key.into(), value: Some(Text::Word(value.clone()).value()) }
    };
    Resource { attributes: service.labels.iter().map(attribute).collect() }
}
