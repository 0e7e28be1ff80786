//! `kpulse-event-gateway run`: the whole gateway in one process, with the embedded store; and what `forward` shares
//! with it.

use crate::config::{Config, event_probes, probe_names};
use crate::enrich::{Enrich, Lives};
use crate::pipeline::Pipeline;
use crate::policies::Keeper;
use crate::ring::{Ring, Rings};
use crate::sink::Sink;
use crate::sink::local::{FILE, LocalSink};
use crate::spool::Spool;
use crate::tally::Tally;
use crate::watch::{Queue, Watchers};
use crate::{api, metrics, profiles};
use anyhow::{Context, Result};
use kpulse_common::cli::{self, CommonFlags, Shutdown};
use kpulse_common::config::{Value, changed_keys};
use kpulse_common::http::{self, Handler, Observability, Server, WebConfig};
use kpulse_common::metric::Samples;
use kpulse_common::paths::Paths;
use kpulse_common::{logging, memory, self_metrics};
use kpulse_exporter_ebpf::{ProbeSet, ProbeState, ProbeStatus};
use serde_json::json;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// The probes; `None` until they are loaded, and again once they are detached.
type Probes = Arc<Mutex<Option<ProbeSet>>>;

/// What the kernel's programs tell: events, and what names the processes in them.
type Records = (Option<Box<dyn Ring>>, Option<Box<dyn Lives>>);

/// Where the events of a node go.
pub struct Destination {
    /// What takes them from the pipeline.
    pub sink: Box<dyn Sink>,
    /// Its file.
    pub store: PathBuf,
    /// The API, where there is something to show or to take.
    pub api: Option<(TcpListener, Server)>,
    /// What the rest of the way tells of itself.
    pub metrics: Box<dyn Fn(&mut Samples) + Send + Sync>,
}

/// What the endpoints show.
struct Shared {
    probes: Probes,
    /// `None` until they are started, and again once they are to end.
    watchers: Mutex<Option<Watchers>>,
    spool: Arc<Spool>,
    tally: Arc<Tally>,
    paths: Paths,
    sink: &'static str,
    further: Box<dyn Fn(&mut Samples) + Send + Sync>,
}

/// Runs with the embedded store until SIGTERM or SIGINT.
pub fn run(common: &CommonFlags, overrides: &[(String, Value)]) -> Result<()> {
    serve_node(common, overrides, |config| {
        let api = http::bind(config.api.address(), "--api.listen-address")?;
        let store = cli::state_dir().join(FILE);
        let sink = Box::new(LocalSink::open(&store, config.output.local.clone())?);
        let server = Server::usual(api::handler(store.clone())).taking(profiles::POSTS);
        Ok(Destination { sink, store, api: Some((api, server)), metrics: Box::new(|_| ()) })
    })
}

/// Sends what happens on this machine to a destination until SIGTERM or SIGINT.
pub fn serve_node(
    common: &CommonFlags,
    overrides: &[(String, Value)],
    destination: impl FnOnce(&Config) -> Result<Destination>,
) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(async {
        // Before anything else, so that a signal during the start ends it cleanly.
        let mut shutdown = Shutdown::catch().context("cannot catch signals")?;
        let config = Config::load(common, overrides.to_vec())?;
        logging::init(config.log.level, config.log.format)?;
        serve(config, common, overrides, &mut shutdown, destination).await
    });
    // A start that was interrupted may still be loading probes; the kernel takes them out when the process ends.
    runtime.shutdown_background();
    result
}

async fn serve(
    config: Config,
    common: &CommonFlags,
    overrides: &[(String, Value)],
    shutdown: &mut Shutdown,
    destination: impl FnOnce(&Config) -> Result<Destination>,
) -> Result<()> {
    let protection = WebConfig::of_key(&config.web.config_file)?;
    let web = http::bind(&config.web.listen_address, "--web.listen-address")?;
    let Destination { sink, store, api, metrics } = destination(&config)?;
    let shared = Arc::new(Shared {
        probes: Probes::default(),
        watchers: Mutex::default(),
        spool: Arc::new(Spool::new(config.capacity())),
        tally: Arc::new(Tally::default()),
        paths: config.path.clone(),
        sink: sink.name(),
        further: metrics,
    });
    announce(&web, api.as_ref().map(|(listener, _)| listener), &store);
    let (stop_http, stopped) = watch::channel(());
    let server = Server::usual(observability(shared.clone())).protected_by(protection);
    let served = [(web, server)].into_iter().chain(api);
    let servers: Vec<_> =
        served.map(|(listener, server)| tokio::spawn(answer(listener, server, stopped.clone()))).collect();

    let loading = load(&config, &shared.probes)?;
    let (ring, lives) = tokio::select! {
        records = loading => records.context("the probes could not be loaded")?,
        () = shutdown.wait() => return Ok(()),
    };
    let enrich = Enrich::new(&config.path, config.labels.clone()).with_lives(lives);
    let watched = Queue::default();
    let pauses = shared.with_probes(ProbeSet::pauses).unwrap_or_default();
    *lock(&shared.watchers) = Some(Watchers::start(&config, &pauses, &watched)?);
    let ring = Box::new(Rings::new(ring, watched));
    let pipeline = Pipeline::start(Some(ring), enrich, &shared.spool, sink, &shared.tally)?;
    cli::notify_ready();
    let active = shared.status().iter().filter(|probe| probe.state == ProbeState::Active).count();
    tracing::info!(active, probes = probe_names().count(), "ready");
    // Gone before the probes are: it holds their maps.
    let keeper = shared.with_probes(|probes| keep_rules(probes, &config)).flatten();
    until_shutdown(config, keeper.as_ref(), &shared, common, overrides, shutdown).await?;
    drop(keeper);

    cli::notify_stopping();
    tracing::info!("stopping");
    let its = shared.clone();
    let stopping = tokio::task::spawn_blocking(move || {
        // Detached first: then what is in the rings is all there will be.
        drop(lock(&its.probes).take());
        drop(lock(&its.watchers).take());
        pipeline.stop();
    });
    stopping.await.context("the pipeline did not stop")?;
    drop(stop_http);
    for server in servers {
        // A server that failed has said so.
        let _ = server.await;
    }
    Ok(())
}

fn announce(web: &TcpListener, api: Option<&TcpListener>, store: &Path) {
    let address = |listener: &TcpListener| listener.local_addr().map(|it| it.to_string()).unwrap_or_default();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        web = address(web),
        api = api.map(address),
        store = %store.display(),
        "listening"
    );
}

async fn answer(listener: TcpListener, server: Server, mut stopped: watch::Receiver<()>) {
    let until = async move {
        // The sender is dropped to stop; it never sends.
        let _ = stopped.changed().await;
    };
    if let Err(error) = server.serve(listener, until).await {
        tracing::error!("an HTTP server ended: {error}");
    }
}

/// Loads the probes on a thread of their own, which a shutdown need not wait for.
fn load(config: &Config, probes: &Probes) -> Result<oneshot::Receiver<Records>> {
    let (loaded, loading) = oneshot::channel();
    let (options, probes) = (config.load_options(), probes.clone());
    let load = move || {
        let mut set = ProbeSet::load(&event_probes().collect::<Vec<_>>(), &options);
        let ring = match set.take_events() {
            Ok(events) => Some(Box::new(events) as Box<dyn Ring>),
            Err(error) => {
                tracing::error!("no event will come from this kernel: {error}; /probes says why");
                None
            }
        };
        let lives = set.take_lives().unwrap_or_else(|error| {
            tracing::error!("processes that are gone will have no names: {error}");
            None
        });
        let lives = lives.map(|lives| Box::new(lives) as Box<dyn Lives>);
        set.watch_cost(|| {});
        *lock(&probes) = Some(set);
        // The verifier's log, BTF and relocations, about 10 MiB.
        memory::trim();
        // A receiver that is gone means the process is ending.
        let _ = loaded.send((ring, lives));
    };
    std::thread::Builder::new()
        .name("load".to_owned())
        .spawn(load)
        .context("cannot start the thread that loads probes")?;
    Ok(loading)
}

/// Thresholds can change while the probes run; without the keeper they stay as they were loaded.
fn keep_rules(probes: &ProbeSet, config: &Config) -> Option<Keeper> {
    let kept = probes.policies().map_err(anyhow::Error::from);
    match kept.and_then(|policies| Ok(Keeper::start(policies, config)?)) {
        Ok(keeper) => Some(keeper),
        Err(error) => {
            tracing::error!("thresholds stay as they are until a restart: {error:#}");
            None
        }
    }
}

/// Waits for the end; SIGHUP reads the configuration again meanwhile.
async fn until_shutdown(
    mut config: Config,
    keeper: Option<&Keeper>,
    shared: &Shared,
    common: &CommonFlags,
    overrides: &[(String, Value)],
    shutdown: &mut Shutdown,
) -> Result<()> {
    let mut hang_up = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            _ = hang_up.recv() => reload(&mut config, keeper, shared, common, overrides),
        }
    }
}

/// Takes over the log level and the thresholds; the rest needs a restart, and that is said.
fn reload(
    config: &mut Config,
    keeper: Option<&Keeper>,
    shared: &Shared,
    common: &CommonFlags,
    overrides: &[(String, Value)],
) {
    let new = match Config::load(common, overrides.to_vec()) {
        Ok(new) => new,
        Err(error) => return tracing::error!("the configuration stays as it was: {error:#}"),
    };
    if let Err(error) = logging::set_level(new.log.level) {
        tracing::error!("the log level stays as it was: {error}");
    }
    config.log.level = new.log.level;
    if let Some(watchers) = &*lock(&shared.watchers) {
        watchers.change(&new);
    }
    if let Some(keeper) = keeper {
        keeper.change(&new);
        config.thresholds = new.thresholds.clone();
        config.overrides = new.overrides.clone();
    }
    match changed_keys(config, &new).as_slice() {
        [] => tracing::info!("the configuration was read again"),
        keys => tracing::warn!("restart to apply what changed: {}", keys.join(", ")),
    }
}

fn observability(shared: Arc<Shared>) -> Handler {
    let (for_metrics, for_probes, for_ready) = (shared.clone(), shared.clone(), shared);
    let observability = Observability {
        title: "kpulse-event-gateway",
        metrics: Box::new(move |_| for_metrics.samples()),
        probes: Box::new(move || for_probes.probe_states()),
        ready: Box::new(move || for_ready.ready()),
    };
    observability.handler()
}

/// What is in it is whole at any time, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn probe_states(&self) -> serde_json::Value {
        let loading = || probe_names().map(|name| json!({"name": name, "state": "loading"})).collect();
        self.with_probes(|_| ()).map_or_else(loading, |()| json!(self.status()))
    }

    /// Every probe, with BPF and without.
    fn status(&self) -> Vec<ProbeStatus> {
        let mut status = self.with_probes(ProbeSet::status).unwrap_or_default();
        status.extend(lock(&self.watchers).iter().flat_map(Watchers::status));
        status
    }

    fn with_probes<T>(&self, show: impl FnOnce(&ProbeSet) -> T) -> Option<T> {
        lock(&self.probes).as_ref().map(show)
    }

    fn samples(&self) -> Samples {
        let mut out = Samples::default();
        self_metrics::build_info("kpulse-event-gateway", &mut out);
        self_metrics::process(&self.paths, &mut out);
        self.with_probes(|set| set.self_metrics(&mut out));
        if let Some(watchers) = &*lock(&self.watchers) {
            watchers.self_metrics(&mut out);
        }
        metrics::pipeline(&self.spool, &self.tally, self.sink, &mut out);
        (self.further)(&mut out);
        out
    }

    fn ready(&self) -> Result<(), String> {
        self.with_probes(|_| ()).ok_or("the probes are being loaded or detached")?;
        self.tally.counts().sink_error.map_or(Ok(()), Err)
    }
}
