//! `kpulse-event-gateway index`: Kafka → Elasticsearch or OpenSearch.
//!
//! One thread reads as a member of the consumer group, another delivers; an offset is committed when the fate of every
//! event up to it is known.

mod counts;
mod dead_letter;
mod deliver;
mod member;
mod offsets;
mod record;

use crate::config::Config;
use crate::dataset::Dataset;
use crate::sink::elasticsearch::Client;
use crate::sink::kafka::Health;
use anyhow::{Context, Result};
use counts::Counts;
pub use counts::FAMILIES;
use dead_letter::DeadLetters;
use deliver::{Delivery, Report};
use kpulse_common::cli::{self, CommonFlags, Shutdown};
use kpulse_common::config::Value;
use kpulse_common::http::{self, Observability, WebConfig};
use kpulse_common::metric::Samples;
use kpulse_common::paths::Paths;
use kpulse_common::{logging, self_metrics};
use member::{Member, Work};
pub use record::parse;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

/// Runs until SIGTERM or SIGINT.
pub fn run(common: &CommonFlags, overrides: Vec<(String, Value)>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(async {
        let mut shutdown = Shutdown::catch().context("cannot catch signals")?;
        let config = Config::load(common, overrides)?;
        logging::init(config.log.level, config.log.format)?;
        serve(&config, &mut shutdown).await
    });
    // What is still tried again is read again by whoever comes next.
    runtime.shutdown_background();
    result
}

async fn serve(config: &Config, shutdown: &mut Shutdown) -> Result<()> {
    let (counts, health, stop) = (Arc::new(Counts::default()), Arc::new(Health::default()), Arc::default());
    let client = Client::new(&config.elasticsearch)?;
    let (reports, reported) = std::sync::mpsc::channel();
    let (work, to_do) = tokio::sync::mpsc::unbounded_channel();
    let delivery = Delivery {
        client,
        data_streams: Dataset::ALL.map(|dataset| config.elasticsearch.data_stream_of(dataset)),
        dead_letters: DeadLetters::new(&config.kafka, counts.clone())?,
        counts: counts.clone(),
        reports,
    };
    let ways = (work, reported);
    let stop: Arc<AtomicBool> = stop;
    let member = Member::join(
        &config.kafka,
        &config.elasticsearch,
        ways,
        counts.clone(),
        health.clone(),
        stop.clone(),
    )?;
    let protection = WebConfig::of_key(&config.web.config_file)?;
    let web = http::bind(&config.web.listen_address, "--web.listen-address")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        web = web.local_addr().map(|it| it.to_string()).unwrap_or_default(),
        "listening"
    );
    let handler = observability(config.path.clone(), counts, health);
    let (stop_http, mut stopped) = watch::channel(());
    let server = tokio::spawn(async move {
        let until = async move {
            // The sender is dropped to stop; it never sends.
            let _ = stopped.changed().await;
        };
        if let Err(error) = http::serve_protected(web, handler, protection, until).await {
            tracing::error!("an HTTP server ended: {error}");
        }
    });
    tokio::spawn(work_off(Arc::new(delivery), to_do));
    let reading = std::thread::Builder::new().name("kafka".to_owned()).spawn(move || member.run());
    let reading = reading.context("cannot start the thread that reads from Kafka")?;
    cli::notify_ready();
    tracing::info!(topic = config.kafka.topic, data_stream = config.elasticsearch.data_stream, "ready");
    shutdown.wait().await;

    cli::notify_stopping();
    tracing::info!("stopping");
    stop.store(true, Ordering::Release);
    let joined = tokio::task::spawn_blocking(move || reading.join()).await;
    if !matches!(joined, Ok(Ok(()))) {
        tracing::error!("the thread that reads from Kafka had panicked");
    }
    drop(stop_http);
    // A server that failed has said so.
    let _ = server.await;
    Ok(())
}

/// Delivers side by side; the reading thread bounds how many there are.
async fn work_off(delivery: Arc<Delivery>, mut to_do: UnboundedReceiver<Work>) {
    while let Some(work) = to_do.recv().await {
        let delivery = delivery.clone();
        tokio::spawn(async move {
            match work {
                Work::Request(request) => delivery.deliver(request).await,
                Work::Rejected(record) => {
                    let (place, bytes) = (record.place, record.payload.as_ref().map_or(0, Vec::len));
                    delivery.dead_letters.send_record(record).await;
                    // The reading thread is gone only when the process ends.
                    let _ = delivery.reports.send(Report::Done(vec![place]));
                    let _ = delivery.reports.send(Report::Finished(bytes));
                }
            }
        });
    }
}

fn observability(paths: Paths, counts: Arc<Counts>, health: Arc<Health>) -> http::Handler {
    let (for_ready, kafka) = (counts.clone(), health.clone());
    let samples = move || {
        let mut out = Samples::default();
        self_metrics::build_info("kpulse-event-gateway", &mut out);
        self_metrics::process(&paths, &mut out);
        counts::samples(&counts.state(), health.last_error().as_deref(), &mut out);
        out
    };
    let observability = Observability {
        title: "kpulse-event-gateway index",
        metrics: Box::new(move |_| samples()),
        probes: Box::new(|| json!([])),
        ready: Box::new(move || {
            let error = kafka.last_error().or_else(|| for_ready.state().error);
            error.map_or(Ok(()), Err)
        }),
    };
    observability.handler()
}
