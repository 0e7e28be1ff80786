use super::request::push;
use super::*;
use crate::aggregate::{Containers, Key, Losses};
use crate::config::UploadForm;
use crate::history::{Bounds, Named};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use kpulse_common::container::ContainerIdentity;
use kpulse_common::profile::{Function, Profile, Stacks};
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, mpsc};
use std::time::{Instant, SystemTime};

/// What a store was sent: the first line, the content type and the body; in place of the type, who sent it.
type Received = (String, String, Vec<u8>);

/// A store that answers with these statuses in turn, and then 200.
fn store(statuses: &'static [u16]) -> (String, mpsc::Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut statuses = statuses.iter();
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            let header = |name: &str| {
                let found = lines.iter().find_map(|line| line.strip_prefix(name));
                found.unwrap_or_default().trim().to_owned()
            };
            let mut body = vec![0; header("content-length:").parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let status = statuses.next().unwrap_or(&200);
            let answer = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            let first = lines.first().cloned().unwrap_or_default();
            let kind = [header("authorization:"), header("content-type:")].concat();
            if sender.send((first, kind, body)).is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

/// A history of closed windows; in each a container's process and one outside of containers ran.
fn history(windows: u32, max_age: Duration) -> Shared {
    let window = Duration::from_secs(10);
    let shared = Shared::new(Bounds { window, window_entries: 99, max_age, max_bytes: 1 << 20 });
    let start = Instant::now();
    for number in 1..=windows {
        close(&shared, start, number);
    }
    shared
}

fn close(shared: &Shared, start: Instant, number: u32) {
    let identity = ContainerIdentity {
        id: "4f5e6d7c8b9a0f1e".into(),
        runtime: None,
        pod_uid: None,
        namespace: None,
        pod: Some("web-0".into()),
        container: Some("web,1".into()),
    };
    let containers = Containers::from([(Arc::from("4f5e6d7c8b9a0f1e"), Arc::new(identity))]);
    let mut state = shared.lock();
    let mut key = |pid: u32, process: &str, container: Option<&str>| {
        let stack = state.history.stack(&[Arc::from("main"), Arc::from("hot")]);
        let container = container.map(Arc::from);
        Key { pid, process: process.into(), thread: "worker".into(), container, stack }
    };
    let entries = vec![(key(7, "nginx", Some("4f5e6d7c8b9a0f1e")), 7), (key(8, "cron d", None), 3)];
    let lost = vec![("map_full", 2)];
    let named = Named { entries, containers, taken: 12, lost, ..Named::default() };
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + 11 * u64::from(number));
    state.history.absorb(named, start + number * Duration::from_secs(11), wall);
    drop(state);
    shared.pack();
}

/// Runs an uploader until so many windows have come to an end.
fn upload(shared: &Shared, url: &str, form: UploadForm, windows: u64) -> Losses {
    let config = Upload { url: url.into(), form, timeout: Duration::from_secs(5), ..Upload::default() };
    upload_as(shared, &config, windows)
}

fn upload_as(shared: &Shared, config: &Upload, windows: u64) -> Losses {
    let period = Duration::from_nanos(1_000_000_000 / 99);
    let uploader = Uploader::new(config, period, &Paths::default(), shared).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (stop, stopped) = watch::channel(());
        let task = tokio::spawn(uploader.run(stopped));
        let ended = || {
            let totals = shared.lock().totals.uploads.clone();
            [SENT, REFUSED, LOST].iter().filter_map(|outcome| totals.get(outcome)).sum::<u64>()
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while ended() < windows && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        drop(stop);
        task.await.unwrap();
    });
    shared.lock().totals.uploads.clone()
}

fn inflated(bytes: &[u8]) -> Vec<u8> {
    let mut inflated = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut inflated).unwrap();
    inflated
}

#[test]
fn pyroscope_gets_a_request_for_each_service_with_its_labels() {
    let (url, received) = store(&[]);
    assert_eq!(upload(&history(1, 60 * BEAT), &url, UploadForm::Pyroscope, 1), Losses::from([(SENT, 1)]));
    let requests: Vec<Received> = received.try_iter().collect();
    assert_eq!(requests.len(), 2);
    let (line, kind, body) = &requests[0];
    let name = "web_1.cpu%7Bcontainer%3Dweb_1%2Ccontainer_id%3D4f5e6d7c8b9a0f1e%2Cpod%3Dweb-0%7D";
    let parameters = "format=groups&sampleRate=99&spyName=kpulse&units=samples&aggregationType=sum";
    assert!(line.starts_with(&format!("POST /ingest?name={name}&from=")), "{line}");
    assert!(line.ends_with(&format!("&until=1700000011&{parameters} HTTP/1.1")), "{line}");
    assert_eq!((kind.as_str(), body.as_slice()), ("text/plain", &b"worker;main;hot 7\n"[..]));
    assert!(requests[1].0.starts_with("POST /ingest?name=cron%20d.cpu%7B%7D&"), "{}", requests[1].0);
}

#[test]
fn pyroscopes_push_gets_pprof_with_labels() {
    let (url, received) = store(&[]);
    upload(&history(1, 60 * BEAT), &url, UploadForm::PyroscopePush, 1);
    let (line, kind, body) = received.try_iter().next().unwrap();
    assert_eq!(
        (line.as_str(), kind.as_str()),
        ("POST /push.v1.PusherService/Push HTTP/1.1", "application/proto")
    );
    let request = push::PushRequest::decode(&body[..]).unwrap();
    let labels = |series: &push::RawProfileSeries| -> Vec<(String, String)> {
        series.labels.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect()
    };
    let expected = [("__name__", "process_cpu"), ("service_name", "cron d")];
    assert_eq!(labels(&request.series[1]), expected.map(|(name, value)| (name.into(), value.into())));
    assert!(labels(&request.series[0]).contains(&("pod".into(), "web-0".into())));
    let profile = inflated(&request.series[0].samples[0].raw_profile);
    assert!(profile.windows(3).any(|part| part == b"hot"));
}

#[test]
fn parca_gets_pprof_in_json() {
    let (url, received) = store(&[]);
    upload(&history(1, 60 * BEAT), &url, UploadForm::Parca, 1);
    let (line, kind, body) = received.try_iter().next().unwrap();
    assert_eq!((line.as_str(), kind.as_str()), ("POST /profiles/writeraw HTTP/1.1", "application/json"));
    let request: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let series = request["series"].as_array().unwrap();
    assert_eq!(
        series[1]["labels"]["labels"][1],
        serde_json::json!({ "name": "service_name", "value": "cron d" })
    );
    let profile = BASE64_STANDARD.decode(series[0]["samples"][0]["rawProfile"].as_str().unwrap()).unwrap();
    assert!(inflated(&profile).windows(3).any(|part| part == b"hot"));
}

/// Read by the types that OpenTelemetry publishes.
#[test]
fn an_otlp_receiver_gets_resources_stacks_and_counts() {
    let (url, received) = store(&[]);
    upload(&history(1, 60 * BEAT), &url, UploadForm::Otlp, 1);
    let (line, kind, body) = received.try_iter().next().unwrap();
    assert_eq!(
        (line.as_str(), kind.as_str()),
        ("POST /v1development/profiles HTTP/1.1", "application/x-protobuf")
    );
    let request = ExportProfilesServiceRequest::decode(&body[..]).unwrap();
    let tables = request.dictionary.unwrap();
    let text = |index: i32| tables.string_table[index as usize].as_str();
    let is_nothing = tables.mapping_table[0] == Default::default()
        && tables.location_table[0] == Default::default()
        && tables.function_table[0] == Default::default()
        && tables.link_table[0] == Default::default()
        && tables.attribute_table[0] == Default::default()
        && tables.stack_table[0] == Default::default();
    assert!(is_nothing && text(0).is_empty(), "every table begins with nothing");
    let resource = &request.resource_profiles[0];
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    let value = |key: &str| attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value;
    assert_eq!(value("service.name"), Some(Value::StringValue("web,1".into())));
    assert_eq!(value("k8s.pod.name"), Some(Value::StringValue("web-0".into())));
    let profile = &resource.scope_profiles[0].profiles[0];
    let kind = profile.sample_type.unwrap();
    assert_eq!((text(kind.type_strindex), text(kind.unit_strindex)), ("samples", "count"));
    assert_eq!((profile.period, profile.samples[0].values[0]), (10_101_010, 7));
    let stack = &tables.stack_table[profile.samples[0].stack_index as usize];
    let name = |location: &i32| {
        let function = tables.location_table[*location as usize].lines[0].function_index;
        text(tables.function_table[function as usize].name_strindex)
    };
    assert_eq!(stack.location_indices.iter().map(name).collect::<Vec<_>>(), ["hot", "main"], "leaf first");
    let attribute = |index: &i32| {
        let attribute = &tables.attribute_table[*index as usize];
        (text(attribute.key_strindex), attribute.value.clone().and_then(|value| value.value))
    };
    let attributes: Vec<_> = profile.samples[0].attribute_indices.iter().map(attribute).collect();
    assert!(attributes.contains(&("process.pid", Some(Value::IntValue(7)))), "{attributes:?}");
}

#[test]
fn the_gateway_gets_a_document_for_each_service() {
    let (url, received) = store(&[503]);
    let outcomes = upload(&history(1, 60 * BEAT), &url, UploadForm::Gateway, 1);
    assert_eq!(outcomes, Losses::from([(SENT, 1), (RETRIED, 1)]));
    let requests: Vec<Received> = received.try_iter().collect();
    assert_eq!(requests[0], requests[1], "what is sent again is the same");
    let (line, kind, body) = &requests[0];
    assert_eq!((line.as_str(), kind.as_str()), ("POST /api/v1/profiles HTTP/1.1", "application/x-ndjson"));
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let documents: Vec<Profile> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    let [web, cron] = documents.as_slice() else { panic!("{documents:?}") };
    assert_eq!((&*web.service.name, &*web.timestamp), ("web,1", "2023-11-14T22:13:31.000000000Z"));
    assert_eq!(web.container.as_ref().unwrap().id, "4f5e6d7c8b9a0f1e");
    let pod = web.kubernetes.as_ref().unwrap().pod.as_ref().unwrap();
    assert_eq!(pod.name.as_deref(), Some("web-0"));
    assert_eq!(web.host, host::read(&Paths::default()));
    let Stacks { period_ns, samples, samples_left_out, lost, top, folded } = &web.kpulse.profile;
    assert_eq!((*period_ns, *samples, *samples_left_out), (10_101_010, 7, 0));
    assert_eq!(*lost, [("map_full".to_owned(), 2)].into());
    assert_eq!(*top, [Function { function: "hot".to_owned(), samples: 7 }]);
    assert_eq!(folded, "worker;main;hot 7\n");
    assert_eq!((&*cron.service.name, &cron.container), ("cron d", &None));
    assert_ne!(web.event.id, cron.event.id);
}

#[test]
fn a_window_is_sent_again_until_it_is_taken_and_what_is_refused_is_not() {
    let (url, received) = store(&[503, 429, 200, 400]);
    let outcomes = upload(&history(3, 600 * BEAT), &url, UploadForm::PyroscopePush, 3);
    assert_eq!(outcomes, Losses::from([(SENT, 2), (REFUSED, 1), (RETRIED, 2)]));
    let bodies: Vec<Vec<u8>> = received.try_iter().map(|(.., body)| body).collect();
    assert_eq!(bodies.len(), 5);
    assert!(bodies[0] == bodies[1] && bodies[1] == bodies[2], "the same window three times");
    assert!(bodies[2] != bodies[3], "and then the next");
}

#[test]
fn a_store_is_told_who_sends() {
    let (url, received) = store(&[]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "token").unwrap();
    let config = Upload { url, bearer_token_file: file.path().into(), ..Upload::default() };
    assert_eq!(upload_as(&history(1, 60 * BEAT), &config, 1), Losses::from([(SENT, 1)]));
    assert_eq!(received.try_iter().next().unwrap().1, "Bearer tokenapplication/proto");
}

/// The history is the queue: while nobody answers, it goes on, and what it had to drop is counted.
#[test]
fn a_store_that_never_answers_costs_windows_and_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shared = history(3, Duration::from_secs(25));
    let later = shared.clone();
    let start = Instant::now() + Duration::from_secs(60);
    let clock = std::thread::spawn(move || {
        // An attempt ended without an answer; meanwhile windows close, and the first ones go.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !later.lock().totals.uploads.contains_key(RETRIED) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        (1..=6).for_each(|number| close(&later, start, number));
    });
    let config = Upload { url, timeout: Duration::from_millis(100), ..Upload::default() };
    let outcomes = upload_as(&shared, &config, 1);
    clock.join().unwrap();
    assert!(outcomes[LOST] >= 1 && outcomes[RETRIED] >= 1 && !outcomes.contains_key(SENT), "{outcomes:?}");
    assert!(shared.lock().history.windows() <= 5);
}

#[test]
fn what_left_the_history_before_the_store_was_there_is_counted() {
    // Five windows were closed, of which the age leaves three.
    let (url, _received) = store(&[]);
    let shared = history(5, Duration::from_secs(25));
    assert_eq!(upload(&shared, &url, UploadForm::Parca, 5), Losses::from([(SENT, 3), (LOST, 2)]));
}

#[test]
fn an_address_that_cannot_be_one_is_refused_at_once() {
    let shared = history(1, 60 * BEAT);
    let new = |url: &str| {
        let config = Upload { url: url.into(), ..Upload::default() };
        Uploader::new(&config, BEAT, &Paths::default(), &shared).map(|uploader| uploader.is_some())
    };
    assert!(!new("").unwrap() && new("http://[::1]:4040").unwrap());
    for bad in ["localhost:4040", "ftp://x", "http://", "/path"] {
        assert!(new(bad).is_err(), "{bad}");
    }
}
