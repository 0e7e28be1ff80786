//! `serve`: what ran in the last day, kept on disk and answered over HTTP.

mod api;
mod metrics;
mod page;
mod targets;

use crate::aggregate::Scope;
use crate::config::{Config, Kept, check_loopback};
use crate::files::Files;
use crate::history::{Bounds, FILE, Keeper, Retention, Store};
use crate::pipeline::{Pipeline, Shared};
use crate::sample;
use crate::upload::Uploader;
use anyhow::Context;
use kpulse_common::cli::{Shutdown, notify_ready, notify_stopping, state_dir};
use kpulse_common::http::{self, Observability, WebConfig};
use kpulse_exporter_ebpf::ProbeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// Different stacks that one window holds.
const WINDOW_ENTRIES: usize = 65_536;
/// Memory of closed windows that are not on the disk.
const MEMORY_BYTES: usize = 16 << 20;
/// Beats without a counted sample after which the profiler calls itself not ready.
const LATE_BEATS: u32 = 10;

/// Serves until a signal comes.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let mut shutdown = Shutdown::catch().context("cannot catch signals")?;
    check_loopback(&config.api.listen_address)?;
    let protection = WebConfig::of_key(&config.web.config_file)?;
    let web = http::bind(&config.web.listen_address, "--web.listen-address")?;
    let api = http::bind(&config.api.listen_address, "--api.listen-address")?;
    tracing::info!(web = %web.local_addr()?, api = %api.local_addr()?, "listening");

    let (shared, keeper) = history(&config.history)?;
    let uploader = Uploader::new(&config.upload, config.sample.period(), &config.path, &shared)?;
    let files = Files::start(&config.files, &config.path, &shared)?;
    let probes = sample::load(config);
    // Without samples the answers still say why, so that nobody has to search a log for it.
    let pipeline = match sample::open(&probes) {
        Ok(mut samples) => {
            let unwinder = sample::unwind(&probes, Scope::Host, config, &shared)?;
            let drain = Box::new(move || Ok(samples.drain()?));
            let pipeline =
                Pipeline::start(drain, config.sample.interval, Scope::Host, &config.path, &shared)?;
            Some((pipeline, unwinder))
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "there will be no profiles");
            None
        }
    };
    let probes = Arc::new(Mutex::new(probes));
    let (stop, stopped) = watch::channel(());
    let observability = observability(config, &shared, &probes);
    let web = http::serve_protected(web, observability.handler(), protection, closed(stopped.clone()));
    let web = tokio::spawn(web);
    let api = tokio::spawn(http::serve(
        api,
        api::handler(shared.clone(), config.sample.period()),
        closed(stopped.clone()),
    ));
    let upload = uploader.map(|uploader| tokio::spawn(uploader.run(stopped.clone())));
    notify_ready();

    shutdown.wait().await;
    notify_stopping();
    tracing::info!("stopping");
    drop(stop);
    let last = tokio::task::spawn_blocking(move || {
        if let Some((pipeline, unwinder)) = pipeline {
            pipeline.finish();
            drop(unwinder);
        }
        shared.close();
        if let Some(keeper) = keeper {
            keeper.finish();
        }
        if let Some(files) = files {
            files.finish();
        }
    });
    tokio::select! {
        _ = last => {}
        () = shutdown.wait() => {}
    }
    if let Some(upload) = upload {
        upload.await.context("the uploads failed")?;
    }
    web.await.context("the metrics server failed")??;
    api.await.context("the API server failed")??;
    Ok(())
}

/// The history, and who writes it to the disk: nobody where that cannot be done.
fn history(kept: &Kept) -> anyhow::Result<(Shared, Option<Keeper>)> {
    let Kept { window, max_age, max_bytes } = *kept;
    let shared =
        Shared::new(Bounds { window, window_entries: WINDOW_ENTRIES, max_age, max_bytes: MEMORY_BYTES });
    let path = state_dir().join(FILE);
    let keeper = match Store::open(&path, Retention { max_age, max_bytes }, SystemTime::now()) {
        Ok(store) => Some(Keeper::start(&shared, Arc::new(store))?),
        Err(error) => {
            let (error, memory) = (format!("{error:#}"), MEMORY_BYTES >> 20);
            tracing::error!(
                error,
                "the history is kept in memory, {memory} MiB of it, and ends with this process; \
                 KPULSE_STATE_DIR names another directory"
            );
            None
        }
    };
    Ok((shared, keeper))
}

/// Ends when the sender is gone.
async fn closed(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

fn observability(config: &Config, shared: &Shared, probes: &Arc<Mutex<ProbeSet>>) -> Observability {
    let paths = config.path.clone();
    let (metrics_shared, metrics_probes) = (shared.clone(), probes.clone());
    let (ready_shared, ready_probes) = (shared.clone(), probes.clone());
    let status_probes = probes.clone();
    let late = config.sample.interval * LATE_BEATS + Duration::from_secs(5);
    let started = Instant::now();
    Observability {
        title: "kpulse-profiler",
        metrics: Box::new(move |_| metrics::collect(&metrics_shared, &lock(&metrics_probes), &paths)),
        probes: Box::new(move || serde_json::to_value(lock(&status_probes).status()).unwrap_or_default()),
        ready: Box::new(move || ready(&ready_shared, &lock(&ready_probes), started, late)),
    }
}

fn lock(probes: &Mutex<ProbeSet>) -> std::sync::MutexGuard<'_, ProbeSet> {
    probes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ready(shared: &Shared, probes: &ProbeSet, started: Instant, late: Duration) -> Result<(), String> {
    if let Some(why) = sample::why_inactive(probes) {
        return Err(format!("the CPUs are not sampled: {why}"));
    }
    let state = shared.lock();
    if let Some(error) = &state.totals.failing {
        return Err(format!("the samples cannot be read: {error}"));
    }
    let waited = state.totals.counted.unwrap_or(started).elapsed();
    if waited > late {
        return Err(format!("no sample was counted for {} s", waited.as_secs()));
    }
    Ok(())
}
