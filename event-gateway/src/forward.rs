//! `kpulse-event-gateway forward`: rings → enrich → route → spool on disk → Kafka, and profiles that are posted → spool.

use crate::config::{Api, Config};
use crate::lines::{self, Lines};
use crate::run::{Destination, serve_node};
use crate::sink::kafka::{Producer, ProducerCounts};
use crate::spool::disk::{DiskSpool, FILE, Record};
use crate::{metrics, profiles};
use anyhow::{Context, Result};
use kpulse_common::cli::{self, CommonFlags, Shutdown};
use kpulse_common::config::Value;
use kpulse_common::http::{self, Server};
use kpulse_common::logging;
use std::io::{BufRead, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Events of a file that the spool takes at once.
const BATCH_MAX: usize = 2_000;
/// How long an event of a file waits for more of them.
const LINGER: Duration = Duration::from_millis(100);
/// Events of a file that are read ahead.
const READ_AHEAD: usize = 256;
/// Time between two rounds of giving free pages of the spool back.
const SHRINK_INTERVAL: Duration = Duration::from_secs(10);
/// How soon room in the spool, or its emptiness, is noticed.
const POLL: Duration = Duration::from_millis(20);

/// Flags of `forward`.
#[derive(clap::Args, Debug)]
pub struct ForwardFlags {
    #[command(flatten)]
    web: crate::WebFlags,
    /// Address, on this machine only, to which kpulse-profiler posts profiles (`upload.form: gateway`) [default: none].
    #[arg(long = "api.listen-address", value_name = "ADDRESS", conflicts_with = "input")]
    api_listen_address: Option<String>,
    /// Send the events of this file instead of the kernel's, one JSON document a line, and end; `-` reads from stdin.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// The thread that sends to Kafka.
struct Sender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Sender {
    fn start(producer: Producer) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let its = stop.clone();
        let thread = Builder::new().name("kafka".to_owned()).spawn(move || producer.run(&its));
        Ok(Self { stop, thread: thread.context("cannot start the thread that sends to Kafka")? })
    }

    /// What Kafka does not take within the grace stays in the spool.
    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::error!("the thread that sends to Kafka had panicked");
        }
    }
}

/// Runs until SIGTERM or SIGINT, or until a file was sent.
pub fn run(common: &CommonFlags, flags: ForwardFlags) -> Result<()> {
    let mut overrides = flags.web.overrides();
    overrides.extend(crate::api_override(&flags.api_listen_address));
    match flags.input {
        None => forward_node(common, &overrides),
        Some(path) => forward_file(common, overrides, &path),
    }
}

/// The spool and who sends what it holds, with a look at the counts.
fn open(config: &Config) -> Result<(DiskSpool, Producer, PathBuf)> {
    let store = cli::state_dir().join(FILE);
    // Wrong settings are told before a file is made.
    config.kafka.client(crate::sink::kafka::Role::Producer)?;
    let spool = DiskSpool::open(&store, config.output.spool.clone())?;
    let producer = Producer::new(&config.kafka, spool.clone())?;
    Ok((spool, producer, store))
}

fn forward_node(common: &CommonFlags, overrides: &[(String, Value)]) -> Result<()> {
    let mut sender = None;
    let served = serve_node(common, overrides, |config| {
        let api = listen(&config.api)?;
        let (spool, producer, store) = open(config)?;
        let counts = producer.counts();
        sender = Some(Sender::start(producer)?);
        let (sink, bounds, taken) = (Box::new(spool.clone()), spool.bounds().clone(), Arc::default());
        let handler = profiles::handler(spool.clone(), config.labels.clone(), Arc::clone(&taken));
        let api = api.map(|listener| (listener, Server::usual(handler).taking(profiles::POSTS)));
        let metrics = move |out: &mut _| {
            metrics::forward(&spool.state(), &bounds, &counts(), out);
            metrics::profiles(&taken, out);
        };
        Ok(Destination { sink, store, api, metrics: Box::new(metrics) })
    });
    if let Some(sender) = sender {
        sender.stop();
    }
    served
}

/// Where profiles are taken, if they are to be.
fn listen(api: &Api) -> Result<Option<TcpListener>> {
    let address = &api.listen_address;
    let bound = (!address.is_empty()).then(|| http::bind(address, "--api.listen-address"));
    Ok(bound.transpose()?)
}

fn forward_file(common: &CommonFlags, overrides: Vec<(String, Value)>, path: &Path) -> Result<()> {
    let config = Config::load(common, overrides)?;
    logging::init(config.log.level, config.log.format)?;
    let input = lines::open(path)?;
    let (spool, producer, _) = open(&config)?;
    let counts = producer.counts();
    let is_over = Arc::new(AtomicBool::new(false));
    catch_signals(&is_over)?;
    let sender = Sender::start(producer)?;
    let read = read_file(input, &spool, &is_over);
    // After an error what Kafka does not take within the grace waits in the spool for the next start.
    while read.is_ok() && spool.state().events > 0 && !is_over.load(Ordering::Acquire) {
        std::thread::sleep(POLL);
    }
    sender.stop();
    let (ProducerCounts { sent, .. }, state) = (counts(), spool.state());
    let dropped: u64 = state.dropped.values().sum();
    writeln!(std::io::stdout(), "{sent} events sent, {} wait in the spool, {dropped} dropped", state.events)
        .context("cannot write to stdout")?;
    read.with_context(|| format!("{} was sent up to a line that cannot be", path.display()))?;
    if state.events == 0 { spool.vacuum() } else { Ok(()) }
}

/// Reads as fast as the spool has room: of a file nothing is dropped for the rest of it.
fn read_file(input: impl BufRead + Send + 'static, spool: &DiskSpool, is_over: &AtomicBool) -> Result<()> {
    let room = spool.bounds().max_bytes / 2;
    let read = read_ahead(input)?;
    let (mut has_more, mut shrunk_at) = (true, Instant::now());
    while has_more && !is_over.load(Ordering::Acquire) {
        let (batch, end) = next_batch(&read);
        while spool.state().bytes > room && !is_over.load(Ordering::Acquire) {
            std::thread::sleep(POLL);
        }
        spool.append(&batch)?;
        if shrunk_at.elapsed() >= SHRINK_INTERVAL {
            spool.shrink()?;
            shrunk_at = Instant::now();
        }
        has_more = end.is_none();
        end.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// Has a thread of its own read: a line of a pipe may be long in coming, and what came before it must not wait.
fn read_ahead(input: impl BufRead + Send + 'static) -> Result<Receiver<Result<Record<'static>>>> {
    let (sender, read) = sync_channel(READ_AHEAD);
    let run = move || {
        for line in Lines::new(input) {
            // Nobody takes any more once the process ends.
            if sender.send(line.map(|line| Record::of(&line.event, line.json))).is_err() {
                break;
            }
        }
    };
    Builder::new().name("input".to_owned()).spawn(run).context("cannot start the thread that reads")?;
    Ok(read)
}

/// What comes within the time, and the end of the file, if that is what comes next.
fn next_batch(read: &Receiver<Result<Record<'static>>>) -> (Vec<Record<'static>>, Option<Result<()>>) {
    let (mut batch, until) = (Vec::new(), Instant::now() + LINGER);
    while batch.len() < BATCH_MAX {
        match read.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Ok(record)) => batch.push(record),
            Ok(Err(error)) => return (batch, Some(Err(error))),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return (batch, Some(Ok(()))),
        }
    }
    (batch, None)
}

/// Sets the flag at SIGTERM or SIGINT.
fn catch_signals(is_over: &Arc<AtomicBool>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let mut shutdown = runtime.block_on(async { Shutdown::catch() }).context("cannot catch signals")?;
    let is_over = is_over.clone();
    let wait = move || {
        runtime.block_on(shutdown.wait());
        is_over.store(true, Ordering::Release);
    };
    Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}
