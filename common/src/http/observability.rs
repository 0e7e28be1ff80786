//! The endpoints that every binary has: metrics, probes, health, readiness, and a page that links them.

use super::encoding::compressed;
use super::{Handler, Request, Response, count_requests, html, json, text, typed};
use crate::exposition::{self, Format, negotiate};
use crate::metric::Samples;
use hyper::header::ACCEPT;
use std::sync::Arc;

/// The path of the metrics unless a flag moves it.
pub const TELEMETRY_PATH: &str = "/metrics";

/// Where the answers come from.
pub struct Observability {
    /// The name of the program, for the page.
    pub title: &'static str,
    /// Everything to be told in one scrape.
    pub metrics: Box<dyn Fn(&Request) -> Samples + Send + Sync>,
    /// The state of the probes.
    pub probes: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Whether the program does its work; else why not.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl Observability {
    /// The handler of `/metrics`, `/probes`, `/-/healthy`, `/-/ready` and `/`.
    pub fn handler(self) -> Handler {
        self.handler_at(TELEMETRY_PATH)
    }

    /// As [`Observability::handler`], with the metrics at another path.
    pub fn handler_at(self, telemetry_path: &str) -> Handler {
        let telemetry_path = telemetry_path.to_owned();
        Arc::new(move |request| self.answer(request, &telemetry_path))
    }

    fn answer(&self, request: &Request, telemetry_path: &str) -> Response {
        match request.path.as_str() {
            path if path == telemetry_path => encode((self.metrics)(request), request),
            "/probes" => json(&(self.probes)()),
            "/-/healthy" => text(200, format!("{} is healthy.\n", self.title)),
            "/-/ready" => match (self.ready)() {
                Ok(()) => text(200, format!("{} is ready.\n", self.title)),
                Err(why) => text(503, format!("{} is not ready: {why}\n", self.title)),
            },
            "/" => html(page(self.title, telemetry_path)),
            _ => text(404, "Not found.\n"),
        }
    }
}

/// Writes the samples in the format that the client asked for.
fn encode(mut samples: Samples, request: &Request) -> Response {
    count_requests(&mut samples);
    let format = negotiate(request.header(ACCEPT));
    let body = match format {
        Format::Text => Some(exposition::text::encode(&samples).into_bytes()),
        Format::OpenMetrics => exposition::openmetrics::encode_owned(samples).ok().map(String::into_bytes),
        Format::Protobuf => exposition::protobuf::encode_owned(samples).ok(),
    };
    match body {
        Some(body) => compressed(typed(200, format.content_type(), ""), body, request),
        None => text(500, "The metrics cannot be written.\n"),
    }
}

fn page(title: &str, telemetry_path: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let links = [
        (telemetry_path, "Metrics"),
        ("/probes", "Probes and their state"),
        ("/-/healthy", "Health"),
        ("/-/ready", "Readiness"),
    ];
    let links: String = links
        .iter()
        .map(|(path, name)| format!("<li><a href=\"{}\">{name}</a></li>\n", escape(path)))
        .collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body>\n<h1>{title}</h1>\n<p>Version {version}</p>\n<ul>\n{links}</ul>\n</body>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}
