//! How do the binaries answer HTTP: a small server for reading requests, and the endpoints all three have.

pub mod client;
mod encoding;
mod listen;
mod local;
mod observability;
mod query;
mod requests;
mod server;
mod web;

pub use listen::{activated, bind};
pub use local::is_local;
pub use observability::Observability;
pub use requests::{REQUESTS, count_requests};
pub use server::{Posts, Server, serve, serve_protected};
pub use web::WebConfig;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer; its body is whole, since everything we serve fits in memory.
pub type Response = hyper::Response<Full<Bytes>>;

/// A request as handlers see it.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET or HEAD; POST where the server takes [`Posts`].
    pub method: hyper::Method,
    /// The path, percent-decoded.
    pub path: String,
    /// Names and values of the query, decoded, in order.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: hyper::HeaderMap,
    /// What was posted; empty otherwise.
    pub body: Bytes,
    /// When it had come in whole; it may have waited since.
    pub received: Instant,
}

/// How long Prometheus will wait for this answer.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";
/// More than any configured timeout; a larger one is a mistake.
const SCRAPE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

impl Request {
    /// All values of a query parameter, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A header that is text.
    pub fn header(&self, name: hyper::header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// How long the scraper says that it waits for the whole answer; `None` when it does not say, or not in a way that
    /// makes sense.
    pub fn scrape_timeout(&self) -> Option<Duration> {
        let seconds: f64 = self.headers.get(SCRAPE_TIMEOUT)?.to_str().ok()?.trim().parse().ok()?;
        let timeout = Duration::try_from_secs_f64(seconds).ok()?;
        (!timeout.is_zero()).then(|| timeout.min(SCRAPE_TIMEOUT_MAX))
    }
}

/// Answers requests. It runs on a thread where blocking is allowed; how many run at once is bounded.
pub type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// Why there is no HTTP server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address does not parse or resolve.
    #[error(
        "the address {address:?} of {flag} cannot be used: {why}; write for example \":10840\", \"127.0.0.1:10840\" or \"[::1]:10840\""
    )]
    Address {
        /// As it was given.
        address: String,
        /// The flag that gave it.
        flag: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another socket has the port.
    #[error(
        "cannot listen on {address}: another process has this port; stop it, or choose another with {flag}"
    )]
    Taken {
        /// As it was given.
        address: String,
        /// The flag that chooses another.
        flag: String,
    },
    /// The kernel refuses the address.
    #[error("cannot listen on {address}: {source}; choose another address with {flag}")]
    Bind {
        /// As it was given.
        address: String,
        /// The flag that chooses another.
        flag: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// systemd passed no socket that can be served.
    #[error(
        "no socket was passed by systemd, as --web.systemd-socket wants it: {why}; start it by a .socket unit"
    )]
    Activation {
        /// What was found.
        why: String,
    },
    /// The web configuration cannot be used.
    #[error("the web configuration {} cannot be used: {why}", path.display())]
    WebConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The listener cannot be used.
    #[error("the HTTP server cannot use its socket: {0}")]
    Socket(#[from] std::io::Error),
}

/// A plain-text answer.
pub fn text(status: u16, body: impl Into<String>) -> Response {
    typed(status, "text/plain; charset=utf-8", body.into())
}

/// A page.
pub fn html(body: impl Into<String>) -> Response {
    typed(200, "text/html; charset=utf-8", body.into())
}

/// A JSON answer.
pub fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(body) => typed(200, "application/json", body + "\n"),
        Err(error) => text(500, format!("The answer cannot be written as JSON: {error}\n")),
    }
}

/// An answer of any type.
pub fn typed(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() =
        hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(hyper::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
