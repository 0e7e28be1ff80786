//! `/api/v1/profile`, `/api/v1/targets` and the page: past windows of any scope, in any form.

use super::page;
use super::targets::Targets;
use crate::aggregate::{Scope, Selection};
use crate::export::folded::Folded;
use crate::export::svg;
use crate::pipeline::Shared;
use hyper::header::{CONTENT_SECURITY_POLICY, HOST, HeaderValue};
use kpulse_common::clock::rfc3339;
use kpulse_common::http::{self, Handler, Request, Response};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A picture or page runs its own script and loads nothing from elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-src 'self'; frame-ancestors 'self'",
);
/// Longest stretch that is answered, seconds.
const MAX_SECONDS: u64 = 86_400;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Folded,
    Svg,
    Json,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub scope: Scope,
    pub last: Duration,
    pub format: Format,
}

/// Why a request cannot be answered: a status and a sentence.
type Refusal = (u16, String);

impl Query {
    /// Reads `scope`, `pid`, `container`, `seconds` and `format`; whatever else is there is refused by name.
    pub fn of(parameters: &[(String, String)], default_seconds: u64) -> Result<Self, Refusal> {
        let bad = |sentence: String| Err((400, sentence));
        let (mut scope, mut pid, mut container, mut format) = (None, None, None, Format::Folded);
        let mut seconds = default_seconds;
        for (name, value) in parameters {
            match (name.as_str(), value.as_str()) {
                ("scope", "host" | "process" | "container") => scope = Some(value.as_str()),
                ("scope", _) => return bad("scope is host, process or container".into()),
                ("pid", _) => match value.parse() {
                    Ok(number) => pid = Some(number),
                    Err(_) => return bad("pid is the number of a process".into()),
                },
                ("container", id) => container = Some(id.to_owned()),
                ("seconds", _) => match value.parse() {
                    Ok(number) if (1..=MAX_SECONDS).contains(&number) => seconds = number,
                    _ => return bad(format!("seconds is a whole number from 1 to {MAX_SECONDS}")),
                },
                ("format", "folded") => format = Format::Folded,
                ("format", "svg") => format = Format::Svg,
                ("format", "json") => format = Format::Json,
                ("format", _) => return bad("format is folded, svg or json".into()),
                _ => return bad("the parameters are scope, pid, container, seconds and format".into()),
            }
        }
        let scope = match (scope, pid, container) {
            (None | Some("host"), None, None) => Scope::Host,
            (None | Some("process"), Some(pid), None) => Scope::Process(pid),
            (None | Some("container"), None, Some(id)) if !id.is_empty() => Scope::Container(id),
            (Some("process"), None, None) => return bad("scope=process needs pid=".into()),
            (Some("container"), None, _) => return bad("scope=container needs container=".into()),
            _ => return bad("pid goes with scope=process, container with scope=container".into()),
        };
        Ok(Self { scope, last: Duration::from_secs(seconds), format })
    }
}

/// Answers the API and the page.
pub fn handler(shared: Shared) -> Handler {
    Arc::new(move |request| {
        answer(&shared, request).unwrap_or_else(|(status, sentence)| refuse(status, &sentence))
    })
}

fn answer(shared: &Shared, request: &Request) -> Result<Response, Refusal> {
    check_host(request)?;
    match request.path.as_str() {
        "/api/v1/profile" => profile(shared, &Query::of(&request.query, 10)?),
        "/api/v1/targets" => {
            let query = Query::of(&request.query, 60)?;
            let (selection, targets) = targets(shared, &query)?;
            Ok(http::json(&json!({ "window": window(&selection), "targets": targets })))
        }
        "/" => {
            let query = Query::of(&request.query, 60)?;
            let (selection, targets) = targets(shared, &query)?;
            Ok(guarded(http::html(page::render(&query, &selection, &targets))))
        }
        _ => Err((404, "there are /, /api/v1/profile and /api/v1/targets".into())),
    }
}

/// A page of another site may have its name point to this machine; the browser then still sends that name.
fn check_host(request: &Request) -> Result<(), Refusal> {
    let Some(host) = request.header(HOST) else { return Ok(()) };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
    if name.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback()) {
        return Ok(());
    }
    Err((403, "profiles are served to this machine: ask for localhost or 127.0.0.1".into()))
}

fn select(shared: &Shared, scope: &Scope, last: Duration) -> Result<Selection, Refusal> {
    let selection = shared.lock().history.select(scope, last, Instant::now());
    selection.ok_or_else(|| (503, "there is no profile yet".into()))
}

fn targets(shared: &Shared, query: &Query) -> Result<(Selection, Targets), Refusal> {
    let selection = select(shared, &Scope::Host, query.last)?;
    let identities = shared.lock().containers.clone();
    let targets = Targets::of(&selection, &identities);
    Ok((selection, targets))
}

fn profile(shared: &Shared, query: &Query) -> Result<Response, Refusal> {
    let selection = select(shared, &query.scope, query.last)?;
    if query.format == Format::Json {
        return Ok(http::json(&document(query, &selection)));
    }
    let folded = Folded::of(selection.entries.iter().map(|(key, count)| (key, *count)));
    if query.format == Format::Folded {
        return Ok(http::text(200, folded.text()));
    }
    let title = format!("CPU time of {}", query.scope.title());
    let subtitle =
        format!("{} to {}, {} samples", rfc3339(selection.from), rfc3339(selection.to), selection.samples);
    let drawn = svg::draw(&folded, &title, &subtitle).ok().and_then(|svg| String::from_utf8(svg).ok());
    let drawn = drawn.ok_or_else(|| (500, "the flame graph cannot be drawn".to_owned()))?;
    Ok(guarded(http::typed(200, "image/svg+xml", drawn)))
}

/// A profile as data: stacks from root to leaf.
fn document(query: &Query, selection: &Selection) -> Value {
    let mut stacks: Vec<_> = selection.entries.iter().collect();
    stacks.sort_by(|(one, count), (other, more)| {
        more.cmp(count)
            .then_with(|| (one.pid, &one.thread, &one.stack).cmp(&(other.pid, &other.thread, &other.stack)))
    });
    let stacks: Vec<_> = stacks
        .into_iter()
        .map(|(key, count)| {
            let frames: Vec<&str> = key.stack.iter().map(AsRef::as_ref).collect();
            json!({
                "process": { "pid": key.pid, "name": &*key.process, "thread": { "name": &*key.thread } },
                "container": key.container.as_deref().map(|id| json!({ "id": id })),
                "frames": frames,
                "count": count,
            })
        })
        .collect();
    json!({ "scope": query.scope.title(), "window": window(selection), "stacks": stacks })
}

fn window(selection: &Selection) -> Value {
    json!({
        "from": rfc3339(selection.from),
        "to": rfc3339(selection.to),
        "samples": selection.samples,
        "lost": selection.lost,
    })
}

fn guarded(mut response: Response) -> Response {
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
    response
}

fn refuse(status: u16, sentence: &str) -> Response {
    let mut response = http::json(&json!({ "error": sentence }));
    if let Ok(status) = hyper::StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, Refusal> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| pair.split_once('='));
        Query::of(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>(), 10)
    }

    #[test]
    fn a_query_says_its_scope_or_is_refused() {
        assert_eq!(query("").unwrap().scope, Scope::Host);
        let process = query("scope=process&pid=7&seconds=30&format=svg").unwrap();
        assert_eq!(
            (process.scope, process.last, process.format),
            (Scope::Process(7), Duration::from_secs(30), Format::Svg)
        );
        assert_eq!(query("container=abc").unwrap().scope, Scope::Container("abc".into()));
        for bad in [
            "scope=process",
            "scope=container",
            "scope=container&container=",
            "scope=all",
            "pid=x",
            "pid=-1",
            "seconds=0",
            "seconds=1e9",
            "format=pdf",
            "scope=host&pid=1",
            "pid=1&container=a",
            "what=1",
        ] {
            assert_eq!(query(bad).unwrap_err().0, 400, "{bad}");
        }
    }

    #[test]
    fn another_name_for_this_machine_is_refused() {
        let request = |host: &str| {
            let headers = [(HOST, HeaderValue::from_str(host).unwrap())].into_iter().collect();
            let received = std::time::Instant::now();
            Request { method: hyper::Method::GET, path: "/".into(), query: Vec::new(), headers, received }
        };
        for good in ["localhost", "localhost:10852", "127.0.0.1:1", "[::1]:10852", "[::1]"] {
            check_host(&request(good)).unwrap();
        }
        for bad in ["evil.example", "evil.example:10852", "192.0.2.1", ""] {
            assert_eq!(check_host(&request(bad)).unwrap_err().0, 403, "{bad}");
        }
    }
}
