//! Sends every closed window to a store of profiles, once and in order.
//!
//! The history is the queue: a store that is down or slow costs no memory, and a window that left the history before the
//! store took it is counted. How far it got is kept with the history; a kill can have one window sent twice.

mod credentials;
mod document;
mod otlp;
mod request;

use crate::aggregate::Selection;
use crate::config::Upload;
use crate::pipeline::Shared;
use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kpulse_common::event::Host;
use kpulse_common::host;
use kpulse_common::paths::Paths;
use request::{Outgoing, Source};
use rustls::{ClientConfig, RootCertStore};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// As the history knows this reader of its windows.
const READER: &str = "upload";
/// How often it is looked whether a window was closed.
const BEAT: Duration = Duration::from_secs(1);
/// Between two attempts; it doubles up to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];
/// Longest part of an answer that is read, for the log.
const ANSWER_MAX: usize = 4096;

/// What became of windows and attempts.
const SENT: &str = "sent";
const REFUSED: &str = "refused";
const LOST: &str = "lost";
const RETRIED: &str = "retried";

/// Sends windows to one store.
pub struct Uploader {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    config: Upload,
    period: Duration,
    host: Host,
    shared: Shared,
}

/// Why something was not taken.
enum Failure {
    /// It may be taken later.
    Passing(anyhow::Error),
    /// It never will.
    Refused(anyhow::Error),
}

impl Uploader {
    /// Checks the address; the store need not be there. `None` where none is set.
    pub fn new(
        config: &Upload,
        period: Duration,
        paths: &Paths,
        shared: &Shared,
    ) -> anyhow::Result<Option<Self>> {
        if config.url.is_empty() {
            return Ok(None);
        }
        let url: Uri =
            config.url.parse().with_context(|| format!("upload.url {:?} is no address", config.url))?;
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            bail!("upload.url must not hold a password; there are username and password_file for it");
        }
        let tls = match url.scheme_str() {
            Some("https") => credentials::tls(config)?,
            Some("http") => {
                ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
            }
            _ => bail!("upload.url {:?} begins neither with http:// nor https://", config.url),
        };
        credentials::headers(config)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(config.timeout));
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let http =
            Client::builder(TokioExecutor::new()).build(https.enable_http1().wrap_connector(connector));
        let host = host::read(paths);
        Ok(Some(Self { http, config: config.clone(), period, host, shared: shared.clone() }))
    }

    /// Sends until it is told to stop; what is under way then is given up.
    pub async fn run(self, mut stopped: watch::Receiver<()>) {
        tokio::select! {
            () = self.send_all() => {}
            () = async { while stopped.changed().await.is_ok() {} } => {}
        }
    }

    async fn send_all(&self) {
        let mut next = self.begin().await;
        loop {
            let closed = self.with_history(move |shared| shared.closed(next)).await;
            let Some(closed) = closed.flatten() else {
                sleep(BEAT).await;
                continue;
            };
            self.count(LOST, closed.first - next);
            next = closed.next;
            self.send(closed.first, closed.selection).await;
            let url = self.config.url.clone();
            self.with_history(move |shared| shared.set_place(READER, &url, next)).await;
        }
    }

    /// Where the last sender to this address ended; else what was closed since the start.
    async fn begin(&self) -> u64 {
        let url = self.config.url.clone();
        let known = self.with_history(move |shared| shared.place(READER, &url)).await;
        known.unwrap_or_else(|| self.shared.lock().history.began())
    }

    /// Asks the history on a thread that may wait for a disk; `None` after an error.
    async fn with_history<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Shared) -> anyhow::Result<T> + Send + 'static,
    ) -> Option<T> {
        let shared = self.shared.clone();
        let answer = tokio::task::spawn_blocking(move || ask(&shared)).await.map_err(anyhow::Error::from);
        answer
            .and_then(|answer| answer)
            .inspect_err(|error| tracing::debug!(error = format!("{error:#}"), "the uploads have no history"))
            .ok()
    }

    /// Sends a window until the store has it, refuses it, or the window has left the history.
    async fn send(&self, number: u64, window: Selection) {
        let Some(mut waiting) = self.requests(window).await else { return self.count(LOST, 1) };
        let mut pause = PAUSES[0];
        let mut outcome = SENT;
        while let Some(next) = waiting.front() {
            match self.post(next).await {
                Ok(()) => {
                    waiting.pop_front();
                    pause = PAUSES[0];
                }
                Err(Failure::Refused(error)) => {
                    tracing::warn!(error = format!("{error:#}"), "a profile was refused");
                    waiting.pop_front();
                    outcome = REFUSED;
                }
                Err(Failure::Passing(error)) => {
                    self.count(RETRIED, 1);
                    tracing::debug!(error = format!("{error:#}"), "a profile waits");
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES[1]);
                    if !self.shared.lock().history.has(number) {
                        tracing::warn!(error = format!("{error:#}"), "a profile was given up");
                        outcome = LOST;
                        break;
                    }
                }
            }
        }
        self.count(outcome, 1);
    }

    async fn requests(&self, window: Selection) -> Option<VecDeque<Outgoing>> {
        let (period, form, host) = (self.period, self.config.form, self.host.clone());
        let make = move || request::requests(form, &Source { window: &window, period, host: &host });
        let made = tokio::task::spawn_blocking(make).await.map_err(anyhow::Error::from);
        made.and_then(|made| made)
            .inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "a profile cannot be written"))
            .ok()
    }

    async fn post(&self, outgoing: &Outgoing) -> Result<(), Failure> {
        let url = format!("{}{}", self.config.url.trim_end_matches('/'), outgoing.path);
        let mut request = Request::post(&url)
            .body(Full::new(outgoing.body.clone()))
            .map_err(|error| Failure::Refused(error.into()))?;
        // A token that is just being replaced is there again later.
        *request.headers_mut() = credentials::headers(&self.config).map_err(Failure::Passing)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(outgoing.content_type));
        let answer = timeout(self.config.timeout, async {
            let response = self.http.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            let text = body.map(Collected::to_bytes).unwrap_or_default();
            anyhow::Ok((status, String::from_utf8_lossy(&text).into_owned()))
        });
        let answer = answer
            .await
            .map_err(|_| anyhow!("no answer within {:?}", self.config.timeout))
            .and_then(|answer| answer);
        let (status, text) =
            answer.with_context(|| format!("cannot reach {url}")).map_err(Failure::Passing)?;
        let error = || anyhow!("{url} answered {status}: {}", text.trim());
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failure::Passing(error())),
            status if status.is_client_error() => Err(Failure::Refused(error())),
            _ => Err(Failure::Passing(error())),
        }
    }

    fn count(&self, outcome: &'static str, windows: u64) {
        if windows > 0 {
            *self.shared.lock().totals.uploads.entry(outcome).or_default() += windows;
        }
    }
}

#[cfg(test)]
mod tests;
