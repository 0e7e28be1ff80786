//! What was there in the last minutes? Answers events as JSON, and hosts the page.
//!
//! Only for this machine: the address is a loopback address, and a request must name it as such, since a web page
//! of another origin can point its own name at 127.0.0.1.

use crate::page;
use crate::query::Query;
use crate::sink::local::Reader;
use kpulse_common::http::{Handler, Request, Response, html, is_local, text, typed};
use kpulse_common::profile;
use std::path::PathBuf;
use std::sync::Arc;

/// Events in one answer unless it is asked for another number.
const LIMIT_DEFAULT: usize = 100;
/// Most events in one answer.
const LIMIT_MAX: usize = 1_000;

/// What is told who brings profiles to a gateway that ends in its own store.
const NO_PROFILES: &str = "Profiles are taken by \"kpulse-event-gateway forward\", on their way to Kafka; on a machine without \
    Kafka they are on the profiler's own page, http://localhost:10852/.\n";

/// The handler of the API's address.
pub fn handler(store: PathBuf) -> Handler {
    Arc::new(move |request| {
        if !is_local(request) {
            return text(403, "This address is only for clients that call it localhost.\n");
        }
        let answer = match request.path.as_str() {
            "/" => query(request).map(|query| {
                find(&store, &query).map(|found| html(page::render(&found, query.kind.as_deref())))
            }),
            "/api/v1/events" => {
                query(request).map(|query| find(&store, &query).map(|found| json_array(&found)))
            }
            profile::PATH => return text(404, NO_PROFILES),
            _ => return text(404, "Not found.\n"),
        };
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                tracing::error!("a request could not be answered: {error:#}");
                text(503, format!("The event store cannot be read: {error:#}\n"))
            }
            Err(why) => text(400, why + "\n"),
        }
    })
}

fn find(store: &std::path::Path, query: &Query) -> anyhow::Result<Vec<String>> {
    Reader::open(store)?.newest(query)
}

/// The documents, which are JSON already, as an array in the order of time.
fn json_array(newest_first: &[String]) -> Response {
    let documents: Vec<&str> = newest_first.iter().rev().map(String::as_str).collect();
    typed(200, "application/json", format!("[{}]\n", documents.join(",\n")))
}

fn query(request: &Request) -> Result<Query, String> {
    let mut query = Query { limit: LIMIT_DEFAULT, ..Query::default() };
    for (name, value) in &request.query {
        if name == "limit" {
            query.limit = limit(value)?;
            continue;
        }
        query.set(name, value).unwrap_or_else(|| {
            Err(format!("unknown parameter {name:?}; there are {} and limit", Query::NAMES.join(", ")))
        })?;
    }
    Ok(query)
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| format!("limit must be from 1 to {LIMIT_MAX}: {text:?}"))
}

#[cfg(test)]
mod tests;
