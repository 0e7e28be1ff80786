//! One Kafka and one Elasticsearch for all tests of this program, a topic and a data stream for each.

use kpulse_tests::process::{Ended, Service, command, gateway, run};
use kpulse_tests::services::{Kind, Server};
use kpulse_tests::{binary, within};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// What one step may take on a busy machine: the start of a service, or the longest wait between two tries.
pub const LONG: Duration = Duration::from_secs(120);

const PARTITIONS: i32 = 3;

/// Both services; a test has them for itself.
pub struct Pair {
    pub kafka: Server,
    pub elasticsearch: Server,
}

/// The pair, or why there is none here.
pub fn pair() -> Result<MutexGuard<'static, Pair>, String> {
    static PAIR: OnceLock<Result<Mutex<Pair>, String>> = OnceLock::new();
    let pair = PAIR.get_or_init(|| {
        for kind in [Kind::Kafka, Kind::Elasticsearch] {
            kind.install()?;
        }
        let folder = folder();
        let kafka = {
            let folder = folder.join("kafka");
            std::thread::spawn(move || Server::start(Kind::Kafka, &folder, &[]))
        };
        let elasticsearch = Server::start(Kind::Elasticsearch, &folder.join("elasticsearch"), &[]);
        let kafka = kafka.join().map_err(|_| "Kafka did not start".to_owned())?;
        Ok(Mutex::new(Pair { kafka, elasticsearch }))
    });
    // A test that failed has left its own topic behind, and the next one starts what it stopped.
    let mut pair = pair.as_ref().map_err(String::clone)?.lock().unwrap_or_else(PoisonError::into_inner);
    let Pair { kafka, elasticsearch } = &mut *pair;
    for server in [kafka, elasticsearch] {
        if server.pid().is_none() {
            server.resume();
        }
    }
    Ok(pair)
}

/// A folder of this process, which removes those of processes that are gone.
pub fn folder() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("services");
    for entry in all.read_dir().into_iter().flatten().flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    all.join(std::process::id().to_string())
}

/// Events on their way from a file to a data stream.
pub struct Way {
    pub name: String,
    pub state: tempfile::TempDir,
    pub access: Access,
}

/// How both services are reached.
#[derive(Clone, Default)]
pub struct Access {
    pub brokers: String,
    pub url: String,
    /// librdkafka's settings.
    pub properties: Vec<(&'static str, String)>,
    /// Variables of the gateway's `elasticsearch` block.
    pub elasticsearch: Vec<(&'static str, String)>,
    /// What curl needs besides.
    pub curl: Vec<String>,
}

impl Access {
    /// To services that ask for nothing.
    pub fn open(kafka: &Server, search: &Server) -> Self {
        let (brokers, url) = (kafka.address(), format!("http://{}", search.address()));
        Self { brokers, url, ..Self::default() }
    }

    /// Makes a command of the gateway use it.
    pub fn apply(&self, command: &mut Command) {
        command.env("KPULSE_GATEWAY__KAFKA__BROKERS", &self.brokers);
        command.env("KPULSE_GATEWAY__ELASTICSEARCH__URL", &self.url);
        for (name, value) in &self.properties {
            let name = name.replace('.', "_").to_uppercase();
            command.env(format!("KPULSE_GATEWAY__KAFKA__PROPERTIES__{name}"), value);
        }
        for (name, value) in &self.elasticsearch {
            command.env(format!("KPULSE_GATEWAY__ELASTICSEARCH__{name}"), value);
        }
    }
}

impl Way {
    /// Topics and templates of their own in these services.
    pub fn new(name: &str, kafka: &Server, search: &Server) -> Self {
        Self::with(name, Access::open(kafka, search))
    }

    /// The same in services that may ask who comes.
    pub fn with(name: &str, access: Access) -> Self {
        let way = Self { name: name.to_owned(), state: tempfile::tempdir().unwrap(), access };
        let ended = run(&mut way.command("setup"));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        way
    }

    pub fn data_stream(&self) -> String {
        format!("logs-kpulse.events-{}", self.name)
    }

    pub fn command(&self, subcommand: &str) -> Command {
        self.command_with(&self.access, subcommand)
    }

    /// The same with another access to the services, as far as that says one.
    pub fn command_with(&self, access: &Access, subcommand: &str) -> Command {
        let mut command = gateway(binary("kpulse-event-gateway"), self.state.path(), subcommand);
        for (key, value) in [
            ("KAFKA__TOPIC", self.name.as_str()),
            ("KAFKA__DEAD_LETTER_TOPIC", &format!("{}-dead", self.name)),
            ("KAFKA__PROFILES_TOPIC", &format!("{}-profiles", self.name)),
            ("KAFKA__CAMERA_TOPIC", &format!("{}-camera", self.name)),
            ("KAFKA__GROUP", &self.name),
            ("KAFKA__PARTITIONS", &PARTITIONS.to_string()),
            ("KAFKA__PROPERTIES__SESSION_TIMEOUT_MS", "6000"),
            ("KAFKA__PROPERTIES__HEARTBEAT_INTERVAL_MS", "500"),
            ("ELASTICSEARCH__DATA_STREAM", &self.data_stream()),
        ] {
            command.env(format!("KPULSE_GATEWAY__{key}"), value);
        }
        access.apply(&mut command);
        command
    }

    /// A member of the group that has started.
    pub fn index(&self) -> Service {
        let service = Service::start(&mut self.command("index"));
        service.line("message=ready");
        service
    }

    /// A file with this many events.
    pub fn events(&self, count: usize) -> PathBuf {
        self.file(0..count, event)
    }

    /// A file with the events of these numbers.
    pub fn file(&self, numbers: Range<usize>, event: impl Fn(usize) -> Value) -> PathBuf {
        let path = self.state.path().join("events.ndjson");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
        for number in numbers {
            writeln!(file, "{}", event(number)).unwrap();
        }
        file.flush().unwrap();
        path
    }

    pub fn forward(&self, file: &Path) -> Command {
        let mut command = self.command("forward");
        command.arg("--input").arg(file);
        command
    }

    /// Sends a file; what the command said.
    pub fn send(&self, file: &Path) -> Ended {
        let mut service = self.forward(file);
        let output = service.stdin(Stdio::null()).output().unwrap();
        output.into()
    }

    /// Puts a record into the topic as it is.
    pub fn put(&self, payload: Option<&str>) {
        self.put_with(&[], payload);
    }

    /// The same with these headers.
    pub fn put_with(&self, headers: &[(&str, &str)], payload: Option<&str>) {
        let producer: BaseProducer = self.client().create().unwrap();
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(&self.name).key("k");
        record.payload = payload;
        record.headers = Some(headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        }));
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(LONG).unwrap();
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.access.brokers).set("group.id", "none");
        client.set("message.max.bytes", "8388608");
        for (name, value) in &self.access.properties {
            client.set(*name, value);
        }
        client
    }

    /// Who can be asked how many records the topic holds.
    pub fn watch(&self) -> impl Fn() -> usize + use<> {
        let (consumer, topic): (BaseConsumer, _) = (self.client().create().unwrap(), self.name.clone());
        move || {
            // A broker that has just started does not lead its partitions yet.
            let ask = |partition| consumer.fetch_watermarks(&topic, partition, LONG).ok();
            let end = |partition| within(LONG, "the end of a partition", || ask(partition)).1;
            usize::try_from((0..PARTITIONS).map(end).sum::<i64>()).unwrap()
        }
    }

    /// The dead letters so far, each with its headers.
    pub fn dead_letters(&self) -> Vec<BTreeMap<String, String>> {
        let topic = format!("{}-dead", self.name);
        let consumer: BaseConsumer = self.client().create().unwrap();
        let mut start = TopicPartitionList::new();
        start.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning).unwrap();
        consumer.assign(&start).unwrap();
        let (_, end) = consumer.fetch_watermarks(&topic, 0, LONG).unwrap();
        let mut letters = Vec::new();
        while i64::try_from(letters.len()).unwrap() < end {
            let Some(message) = consumer.poll(LONG) else { panic!("no more dead letters") };
            let message = message.unwrap();
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
            let headers = message.headers().unwrap();
            let mut letter: BTreeMap<_, _> =
                headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect();
            letter.insert("payload".to_owned(), text(message.payload()));
            letters.push(letter);
        }
        letters
    }

    /// One request to the cluster, with its answer.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut curl = command("curl");
        curl.args(["-sS", "-X", method, &format!("{}/{path}", self.access.url)]).args(&self.access.curl);
        if let Some(body) = body {
            curl.args(["-H", "content-type: application/json", "--data-binary", &body.to_string()]);
        }
        let output = curl.output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{method} {path}: {output:?}"))
    }

    /// Documents that can be found, also those just stored.
    pub fn count(&self) -> u64 {
        self.ask("POST", &format!("{}/_refresh", self.data_stream()), None);
        self.ask("GET", &format!("{}/_count", self.data_stream()), None)["count"].as_u64().unwrap_or(0)
    }

    /// The ids of all documents, in order; one that is there twice is twice in it.
    pub fn ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        let mut after = Value::Null;
        loop {
            let mut query = json!({"size": 5000, "_source": ["event.id"], "sort": ["event.id"]});
            if !after.is_null() {
                query["search_after"] = json!([after]);
            }
            let answer = self.ask("POST", &format!("{}/_search", self.data_stream()), Some(&query));
            let hits = answer["hits"]["hits"].as_array().unwrap_or_else(|| panic!("{answer}"));
            if hits.is_empty() {
                return ids;
            }
            for hit in hits {
                assert_eq!(hit["_id"], hit["_source"]["event"]["id"]);
                ids.push(hit["_id"].as_str().unwrap().to_owned());
            }
            after = hits[hits.len() - 1]["sort"][0].clone();
        }
    }

    /// Waits until there are this many documents, as long as they become more.
    pub fn holds(&self, count: usize) {
        let mut last = 0;
        while last < count as u64 {
            last = within(LONG, &format!("document after {last} of {count}"), || {
                std::thread::sleep(Duration::from_millis(200));
                Some(self.count()).filter(|count| *count > last)
            });
        }
    }

    /// The same, and asserts that they are the events with each once.
    pub fn holds_each_once(&self, count: usize) {
        self.holds(count);
        let ids = self.ids();
        let set: BTreeSet<_> = ids.iter().cloned().collect();
        assert_eq!((ids.len(), set), (count, (0..count).map(id).collect()));
    }
}

pub fn id(number: usize) -> String {
    format!("019aa5d3-8000-7000-8000-{number:012x}")
}

/// An event of some 500 bytes.
pub fn event(number: usize) -> Value {
    json!({
        "@timestamp": format!("2026-11-21T10:00:00.{number:09}Z"),
        "ecs": {"version": "8.17"},
        "event": {"id": id(number), "kind": "event", "module": "kpulse", "dataset": "kpulse.events", "action": "packet_drop"},
        "host": {"name": "n1", "id": "h1"},
        "container": {"id": format!("c{}", number % 50)},
        "kpulse": {"schema": 1, "probe": "packet_drop", "suppressed": 0,
            "packet_drop": {"reason": "NO_SOCKET", "protocol": "udp", "direction": "in", "length": 22,
                "source": {"ip": "192.0.2.1", "port": number % 65536}}},
    })
}

/// The value of a series.
pub fn metric(service: &Service, series: &str) -> u64 {
    let address = service.logged("message=listening", "web");
    let body = kpulse_tests::http::get(&address, "/metrics", "").body;
    let line = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
}
