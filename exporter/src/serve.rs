//! Serving: listen first, load the probes beside, answer until SIGTERM.

use crate::config::{self, Config, Web};
use crate::filter::Filter;
use crate::flags::Flags;
use crate::scrape::{self, Scraper};
use crate::turn::THREAD_KEEP_ALIVE;
use crate::{collectors, privileges};
use anyhow::Context;
use kpulse_common::cli::{self, Shutdown};
use kpulse_common::config::{Layers, changed_keys};
use kpulse_common::http::{self, Handler, HttpError, Observability, Server, WebConfig};
use kpulse_common::{logging, memory};
use kpulse_exporter_ebpf::ProbeState;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Threads that answer requests; scrapes take turns anyway, so a few keep health answers quick.
const HANDLER_THREADS: usize = 4;
/// How long a shutdown waits for a scrape that is under way.
const SCRAPE_DRAIN: Duration = Duration::from_secs(1);

/// Until a probe that failed for a cause that may pass is loaded once more; then twice as long, and so on.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Serves until SIGTERM or SIGINT.
pub fn run(flags: Flags, config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HANDLER_THREADS)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(serve(flags.layers, config));
    runtime.shutdown_timeout(SCRAPE_DRAIN);
    result
}

async fn serve(layers: Layers, config: Config) -> anyhow::Result<()> {
    // First of all: until then a signal ends the process the hard way.
    let mut shutdown = Shutdown::catch().context("cannot catch SIGTERM")?;
    let hangups = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    let web = WebConfig::of_key(&config.web.config_file)?;
    let listeners = listeners(&config.web)?;
    let scraper = Arc::new(Scraper::new(&config));
    privileges::gain_none();
    load_beside(Arc::clone(&scraper), &config)?;
    // The threads that answer are made by this one, so they never have more.
    if let Err(error) = privileges::keep_only(privileges::SCRAPE) {
        tracing::warn!(%error, "the capabilities that a scrape does not need are kept");
    }
    let server = Server::new(handler(&scraper, &config), config.web.max_requests).protected_by(web.clone());
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    for listener in listeners {
        let address = listener.local_addr().context("cannot read the address of the listener")?;
        let tls = web.as_ref().is_some_and(|web| web.has_tls());
        tracing::info!(%address, path = config.web.telemetry_path, tls, "listening");
        let mut stopped = stopped.clone();
        let until_stopped = async move {
            // A sender that is gone means the same as a stop.
            let _ = stopped.wait_for(|is_stopped| *is_stopped).await;
        };
        servers.spawn(server.clone().serve(listener, until_stopped));
    }
    tokio::spawn(reload_on_hangup(hangups, layers, config));
    let failed = tokio::select! {
        () = shutdown.wait() => None,
        ended = servers.join_next() => ended,
    };
    cli::notify_stopping();
    tracing::info!("stopping");
    let _ = stop.send(true);
    let mut ended: Vec<_> = failed.into_iter().collect();
    while let Some(result) = servers.join_next().await {
        ended.push(result);
    }
    for result in ended {
        result.context("an HTTP server failed")??;
    }
    Ok(())
}

fn listeners(web: &Web) -> Result<Vec<TcpListener>, HttpError> {
    if web.systemd_socket {
        return http::activated();
    }
    web.listen_address.iter().map(|address| http::bind(address, "--web.listen-address")).collect()
}

/// Loads on a thread of its own: the verifier takes its time, and a SIGTERM meanwhile must end the process at once.
/// What failed for a cause that may pass is tried again, later each time; the thread ends when there is no more of it.
fn load_beside(scraper: Arc<Scraper>, config: &Config) -> anyhow::Result<()> {
    let options = scrape::load_options(config);
    let load = move || {
        // The loader logs what did not attach and why.
        let mut failed = scraper.load(&options);
        // The verifier's log, BTF and relocations, about 10 MiB.
        memory::trim();
        cli::notify_ready();
        let status = scraper.status().unwrap_or_default();
        let active = status.iter().filter(|probe| probe.state == ProbeState::Active).count();
        tracing::info!(active, probes = status.len(), "ready");
        let mut pause = RETRY_PAUSE;
        while !failed.is_empty() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
            failed = scraper.load_again(&failed, &options);
            memory::trim();
        }
    };
    std::thread::Builder::new().name("load".to_owned()).spawn(load).context("cannot start a thread")?;
    Ok(())
}

fn handler(scraper: &Arc<Scraper>, config: &Config) -> Handler {
    let switches: BTreeMap<_, _> =
        config.probes.iter().chain(&config.collectors).map(|(name, on)| (name.clone(), *on)).collect();
    let filter = move |request: &http::Request| Filter::of(request, |name| switches.get(name).copied());
    let filter = Arc::new(filter);
    let (metrics, probes, ready) = (Arc::clone(scraper), Arc::clone(scraper), Arc::clone(scraper));
    let metrics_filter = Arc::clone(&filter);
    let path = config.web.telemetry_path.clone();
    let inner = Observability {
        title: "kpulse-exporter",
        // A wrong filter was answered before.
        metrics: Box::new(move |request| {
            metrics.answer(request, &metrics_filter(request).unwrap_or(Filter::All))
        }),
        probes: Box::new(move || probe_states(&probes)),
        ready: Box::new(move || {
            if ready.is_ready() { Ok(()) } else { Err("the probes are being loaded".to_owned()) }
        }),
    }
    .handler_at(&path);
    Arc::new(move |request| {
        if request.path == path
            && let Err(answer) = filter(request)
        {
            return *answer;
        }
        inner(request)
    })
}

fn probe_states(scraper: &Scraper) -> serde_json::Value {
    match scraper.status() {
        Some(status) => json!(&status[..]),
        None => collectors::probes().map(|probe| json!({"name": probe.name, "state": "loading"})).collect(),
    }
}

/// Reads the configuration again on every SIGHUP. The level of the log changes at once; the rest says that it
/// needs a restart, since probes are loaded with it.
async fn reload_on_hangup(mut hangups: Signal, layers: Layers, mut current: Config) {
    while hangups.recv().await.is_some() {
        match config::read(&layers) {
            Ok(new) => current = apply(current, &new),
            Err(error) => tracing::error!(why = %error, "the configuration stays as it was"),
        }
    }
}

fn apply(mut current: Config, new: &Config) -> Config {
    let changed = changed_keys(&current, new);
    if changed.is_empty() {
        tracing::info!("the configuration has not changed");
    }
    for key in changed {
        if key == "log.level" {
            match logging::set_level(new.log.level) {
                Ok(()) => tracing::info!(key, "configuration key changed"),
                Err(error) => tracing::error!(key, why = %error, "configuration key cannot change"),
            }
        } else {
            tracing::warn!(key, "configuration key changed, which takes effect after a restart");
        }
    }
    current.log.level = new.log.level;
    current
}
