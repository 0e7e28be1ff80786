//! Real Kafka, Elasticsearch and OpenSearch on free loopback ports, which end with the test program however it ends; and a
//! Python.

use crate::process::{Service, command};
use crate::{http, within};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A Java process on a busy machine takes this long to answer at most.
const START_MAX: Duration = Duration::from_secs(180);

/// One of the start scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kafka,
    Elasticsearch,
    OpenSearch,
}

impl Kind {
    fn script(self) -> PathBuf {
        let name = match self {
            Self::Kafka => "kafka.sh",
            Self::Elasticsearch => "elasticsearch.sh",
            Self::OpenSearch => "opensearch.sh",
        };
        folder().join(name)
    }

    /// Downloads it where it is not in the cache yet; why that cannot be done here.
    pub fn install(self) -> Result<(), String> {
        install(&self.script()).map_err(|why| format!("{self:?} cannot be had: {why}"))
    }
}

fn install(script: &Path) -> Result<(), String> {
    let output = command(script).arg("install").output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
    if output.status.success() { Ok(()) } else { Err(last.to_owned()) }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("services")
}

/// A Python with the packages of the example consumer.
pub struct Python;

impl Python {
    /// Downloads the packages where they are not in the cache yet; why that cannot be done here.
    pub fn install() -> Result<(), String> {
        install(&folder().join("python.sh")).map_err(|why| format!("confluent-kafka cannot be had: {why}"))
    }

    /// Runs a program.
    pub fn command(file: &Path) -> Command {
        let mut python = command(folder().join("python.sh"));
        python.arg(file);
        python
    }
}

/// A service with its ports and its data, running or not.
pub struct Server {
    kind: Kind,
    folder: PathBuf,
    ports: [u16; 2],
    settings: Vec<String>,
    process: Option<Service>,
}

impl Server {
    /// Starts one with its data in a folder, and more settings as `name=value`.
    pub fn start(kind: Kind, folder: &Path, settings: &[&str]) -> Self {
        Self::start_at(free_ports(), kind, folder, settings)
    }

    /// The same at these ports, which the settings may name.
    pub fn start_at(ports: [u16; 2], kind: Kind, folder: &Path, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut server = Self { kind, folder: folder.to_owned(), ports, settings, process: None };
        server.resume();
        server
    }

    /// Starts it again, with its data and at the same address.
    pub fn resume(&mut self) {
        let mut command = command(self.kind.script());
        command.arg(&self.folder).args(self.ports.map(|port| port.to_string())).args(&self.settings);
        let service = for_life(command);
        within(START_MAX, &format!("{:?} that is ready", self.kind), || {
            assert!(!service.has_ended(), "{:?} ended:\n{}", self.kind, service.stderr());
            self.is_ready(&service).then_some(())
        });
        self.process = Some(service);
    }

    fn is_ready(&self, service: &Service) -> bool {
        if self.kind == Kind::Kafka {
            return service.stderr().contains("Kafka Server started");
        }
        // Whoever asks for a name and a certificate listens only when it is ready.
        if self.settings.iter().any(|setting| setting == "xpack.security.enabled=true") {
            return TcpStream::connect(self.address()).is_ok();
        }
        let health = "/_cluster/health?wait_for_status=yellow&timeout=1s";
        http::request(&self.address(), "GET", health, "").is_ok_and(|answer| answer.status == 200)
    }

    /// Ends it and starts it with other settings, with its data and at the same address.
    pub fn restart(&mut self, settings: &[&str]) {
        self.kill();
        self.settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        self.resume();
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut service) = self.process.take() {
            service.signal(libc::SIGKILL);
            service.wait();
        }
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Service::pid)
    }
}

/// Ports that nobody listens at; nothing keeps them until the service does.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Starts a process that the kernel kills with this one. It is tied to the thread that started it, so that thread stays.
fn for_life(mut command: Command) -> Service {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: prctl is safe between fork and exec; it touches no memory.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let service = Service::start(command.stdin(Stdio::null()));
        sender.send(service).unwrap();
        loop {
            std::thread::park();
        }
    });
    receiver.recv().unwrap()
}
