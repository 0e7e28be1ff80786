//! Requests over connections that are kept.

use super::config::ElasticsearchConfig;
use super::trust;
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
use std::time::Duration;

/// Longest answer: that of a bulk has some 50 bytes for each event, and more for each that is refused.
const ANSWER_MAX: usize = 64 << 20;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for its next request.
const IDLE: Duration = Duration::from_secs(30);
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

    /// The beginning of the body, for an error.
    pub fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
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
        let https = HttpsConnectorBuilder::new().with_tls_config(trust::tls(config)?).https_or_http();
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
        let response = self.http.request(request).await.map_err(|error| anyhow!(causes(&error)))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok(Answer { status, body: body.map_err(|error| anyhow!(causes(&*error)))?.to_bytes() })
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
