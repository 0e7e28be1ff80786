//! Requests over connections that are kept.

use super::config::ElasticsearchConfig;
use anyhow::{Context, Result, anyhow};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use std::error::Error;
use std::io;
use std::time::Duration;

/// Longest answer: that of a bulk has some 50 bytes for each event, and more for each that is refused.
const ANSWER_MAX: usize = 64 << 20;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for its next request.
const IDLE: Duration = Duration::from_secs(30);
const NO_TLS: &str = "it seems to speak no TLS there: elasticsearch.url may have to begin with http://";
/// Longest part of an answer in an error.
const SHOWN: usize = 300;

/// A client of one cluster.
#[derive(Debug, Clone)]
pub struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("the answer is no JSON: {}", self.shown()))
    }

    /// Its own reason, or else the beginning of the body, for an error.
    pub fn shown(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let of_error = |name: &str| json["error"][name].as_str();
        let text = match (of_error("reason"), of_error("additional_unsuccessful_credentials")) {
            (Some(reason), Some(more)) => format!("{reason}; {more}").into(),
            (Some(reason), None) => reason.into(),
            (None, _) => String::from_utf8_lossy(&self.body),
        };
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }
}

impl Client {
    /// A client with these settings; Elasticsearch need not be there.
    pub fn new(config: &ElasticsearchConfig) -> Result<Self> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let base = config.base()?.to_owned();
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(kpulse_common::http::client::tls(config.identity())?)
            .https_or_http();
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(https.enable_http1().wrap_connector(connector));
        Ok(Self { http, base, authorization: config.authorization()?, timeout: config.timeout })
    }

    /// One request; an error when there is no whole answer in time.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let request = request.body(Full::new(body)).context("the address of Elasticsearch cannot be used")?;
        let answer = tokio::time::timeout(self.timeout, self.exchange(request));
        let answer = answer.await.unwrap_or_else(|_| Err(anyhow!("no answer within {:?}", self.timeout)));
        answer.with_context(|| format!("cannot reach Elasticsearch at {}", self.base))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let response = self.http.request(request).await.map_err(|error| self.told(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok(Answer { status, body: body.map_err(|error| self.told(&*error))?.to_bytes() })
    }

    /// Why there was no answer, and what may help.
    fn told(&self, error: &(dyn Error + 'static)) -> anyhow::Error {
        let causes = causes(error);
        match help(error, self.base.starts_with("https:")) {
            Some(help) => anyhow!("{causes}; {help}"),
            None => anyhow!(causes),
        }
    }

    /// A request whose body is JSON.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.request(method, path, "application/json", body).await
    }

    /// Events for a data stream. Of the answer only what decides comes back.
    pub async fn bulk(&self, data_stream: &str, body: Bytes) -> Result<Answer> {
        let path = format!(
            "/{data_stream}/_bulk?filter_path=items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason"
        );
        self.request(Method::POST, &path, "application/x-ndjson", body).await
    }
}

/// What TLS or the network itself found; what passes it on wraps it, even twice.
fn innermost<'e>(cause: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(error) if error.is::<io::Error>() || error.is::<rustls::Error>() => innermost(error),
        _ => cause,
    }
}

/// What of the configuration, or of the other side, is likely to be wrong.
fn help(error: &(dyn Error + 'static), is_https: bool) -> Option<&'static str> {
    let is_cut_off = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
    let is_no_http = |error: &hyper::Error| error.is_incomplete_message() || error.is_parse();
    let mut next = Some(error);
    while let Some(cause) = next {
        let inner = innermost(cause);
        if let Some(help) = inner.downcast_ref().and_then(help_of_tls) {
            return Some(help);
        }
        if is_https && inner.downcast_ref().is_some_and(is_cut_off) {
            return Some(NO_TLS);
        }
        if !is_https && cause.downcast_ref().is_some_and(is_no_http) {
            return Some("it may speak TLS there: elasticsearch.url may have to begin with https://");
        }
        next = cause.source();
    }
    None
}

fn help_of_tls(error: &rustls::Error) -> Option<&'static str> {
    use rustls::{CertificateError as Bad, Error};
    match error {
        Error::InvalidCertificate(Bad::UnknownIssuer) => {
            Some("elasticsearch.ca_file must hold the authority that signed it")
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            Some("elasticsearch.url must have a name that is in it")
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            Some("Elasticsearch needs a renewed one, unless the clock of this machine is wrong")
        }
        Error::AlertReceived(_) => Some(
            "elasticsearch.certificate_file and key_file must be what Elasticsearch accepts as a client's",
        ),
        Error::InvalidMessage(_) => Some(NO_TLS),
        _ => None,
    }
}

/// The whole chain: the outermost cause of hyper says little.
fn causes(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = inner.source();
    }
    told
}
