//! `/api/v1/profile`, `/api/v1/targets` and the page: past windows of any scope, in any form.

use super::page;
use super::targets::Targets;
use crate::aggregate::{Detail, Scope, Selection};
use crate::export::json::window;
use crate::export::{Format, Profile};
use crate::history::Stretch;
use crate::pipeline::Shared;
use clap::ValueEnum;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use kpulse_common::http::{self, Handler, Request, Response};
use kpulse_common::memory;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A picture or page runs its own script and loads nothing from elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-src 'self'; frame-ancestors 'self'",
);
/// Longest stretch that is answered, seconds.
const MAX_SECONDS: u64 = 86_400;
const PARAMETERS: &str = "scope, pid, container, seconds or from, ago or until, baseline and format";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub scope: Scope,
    pub last: Duration,
    /// How long ago that stretch ended.
    pub ago: Duration,
    /// How long before it the stretch ended that it is compared with.
    pub baseline: Option<Duration>,
    pub format: Format,
    /// When it was asked.
    pub now: SystemTime,
}

/// Why a request cannot be answered: a status and a sentence.
type Refusal = (u16, String);

impl Query {
    /// Reads [`PARAMETERS`]; whatever else is there is refused by name.
    pub fn of(
        parameters: &[(String, String)],
        default_seconds: u64,
        now: SystemTime,
    ) -> Result<Self, Refusal> {
        let bad = |sentence: String| Err((400, sentence));
        let (mut scope, mut pid, mut container, mut format) = (None, None, None, Format::Folded);
        let (mut seconds, mut ago, mut from, mut until, mut baseline) = (None, None, None, None, None);
        let stretch = |name: &str, value: &str, least: u64| match value.parse() {
            Ok(number) if (least..=MAX_SECONDS).contains(&number) => Ok(number),
            _ => Err((400, format!("{name} is a whole number from {least} to {MAX_SECONDS}"))),
        };
        for (name, value) in parameters {
            match (name.as_str(), value.as_str()) {
                ("scope", "host" | "process" | "container") => scope = Some(value.as_str()),
                ("scope", _) => return bad("scope is host, process or container".into()),
                ("pid", _) => match value.parse() {
                    Ok(number) => pid = Some(number),
                    Err(_) => return bad("pid is the number of a process".into()),
                },
                ("container", id) => container = Some(id.to_owned()),
                ("seconds", _) => seconds = Some(stretch(name, value, 1)?),
                ("ago", _) => ago = Some(stretch(name, value, 0)?),
                ("from", _) => from = Some(time(name, value)?),
                ("until", _) => until = Some(time(name, value)?),
                ("baseline", _) => baseline = Some(stretch(name, value, 1)?),
                ("format", _) => match Format::from_str(value, false) {
                    Ok(known) => format = known,
                    Err(_) => return bad("format is folded, svg, json, pprof, speedscope or firefox".into()),
                },
                _ => return bad(format!("the parameters are {PARAMETERS}")),
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
        if baseline.is_some() && !matches!(format, Format::Folded | Format::Svg) {
            return bad("a comparison is folded or svg".into());
        }
        if (from.is_some() && seconds.is_some()) || (until.is_some() && ago.is_some()) {
            return bad("from stands in place of seconds, until in place of ago".into());
        }
        let ago = match until {
            Some(until) => now.duration_since(until).unwrap_or(Duration::ZERO),
            None => Duration::from_secs(ago.unwrap_or(0)),
        };
        let last = match from {
            Some(from) => now.duration_since(from).unwrap_or(Duration::ZERO).saturating_sub(ago),
            None => Duration::from_secs(seconds.unwrap_or(default_seconds)),
        };
        if last.is_zero() || last > Duration::from_secs(MAX_SECONDS) {
            return bad(format!("from lies before until, by {MAX_SECONDS} s at most, and in the past"));
        }
        Ok(Self { scope, last, ago, baseline: baseline.map(Duration::from_secs), format, now })
    }
}

/// A time as RFC 3339 has it, or seconds since 1970.
fn time(name: &str, text: &str) -> Result<SystemTime, Refusal> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let since_epoch = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(seconds));
    since_epoch.or_else(|| humantime::parse_rfc3339_weak(text).ok()).ok_or_else(|| {
        (400, format!("{name} is a time such as 2026-11-21T10:00:00Z, or whole seconds since 1970"))
    })
}

/// Answers the API and the page, one after the other: an answer about a day takes memory and a CPU.
pub fn handler(shared: Shared, period: Duration) -> Handler {
    let turn = Mutex::new(());
    Arc::new(move |request| {
        if !http::is_local(request) {
            return refuse(403, "profiles are served to this machine: ask for localhost or 127.0.0.1");
        }
        // It guards nothing that could be left half done.
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answer(&shared, period, request);
        // What an answer about a day needed is many times what it says.
        memory::trim();
        answer.unwrap_or_else(|(status, sentence)| refuse(status, &sentence))
    })
}

fn answer(shared: &Shared, period: Duration, request: &Request) -> Result<Response, Refusal> {
    let query = |seconds| Query::of(&request.query, seconds, SystemTime::now());
    match request.path.as_str() {
        "/api/v1/profile" => profile(shared, period, &query(10)?),
        // As Go programs serve their own, but at once: what it would wait for is there already.
        "/debug/pprof/profile" => profile(shared, period, &Query { format: Format::Pprof, ..query(30)? }),
        "/api/v1/targets" => {
            let query = query(60)?;
            let (selection, targets) = targets(shared, &query)?;
            Ok(http::json(&json!({ "window": window(&selection), "targets": targets })))
        }
        "/" => {
            let query = query(60)?;
            let (selection, targets) = targets(shared, &query)?;
            Ok(guarded(http::html(page::render(&query, &selection, &targets))))
        }
        _ => Err((404, "there are /, /api/v1/profile, /api/v1/targets and /debug/pprof/profile".into())),
    }
}

/// What is asked for, of a stretch that ended so long ago.
fn select(
    shared: &Shared,
    query: &Query,
    scope: &Scope,
    detail: Detail,
    ago: Duration,
) -> Result<Selection, Refusal> {
    let selection = shared.select(scope, detail, Stretch::of(query.last, ago, query.now));
    let selection = selection.map_err(|error| (500, format!("{error:#}")))?;
    selection.ok_or_else(|| (503, "there is no profile of that time".into()))
}

fn targets(shared: &Shared, query: &Query) -> Result<(Selection, Targets), Refusal> {
    let selection = select(shared, query, &Scope::Host, Detail::Targets, query.ago)?;
    let targets = Targets::of(&selection);
    Ok((selection, targets))
}

fn profile(shared: &Shared, period: Duration, query: &Query) -> Result<Response, Refusal> {
    let of = |ago| select(shared, query, &query.scope, Detail::Stacks, ago);
    let before = match query.baseline {
        // Folded at once, so that two selections are never in memory.
        Some(baseline) => {
            let selection = of(query.ago + baseline)?;
            Some(Profile { scope: &query.scope, selection: &selection, period }.folded())
        }
        None => None,
    };
    let selection = of(query.ago)?;
    let profile = Profile { scope: &query.scope, selection: &selection, period };
    let content = match before {
        None => profile.render(query.format),
        Some(before) => profile.render_difference(&before, query.format),
    };
    let content = content.map_err(|error| (500, format!("the profile cannot be written: {error:#}")))?;
    Ok(guarded(http::typed(200, query.format.content_type(), content)))
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
        let pairs: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Query::of(&pairs, 10, SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
    }

    #[test]
    fn a_stretch_is_said_by_its_length_or_its_ends() {
        let stretch = |text: &str| {
            let found = query(text)?;
            Ok::<_, Refusal>((found.last.as_secs(), found.ago.as_secs()))
        };
        for (text, expected) in [
            ("", (10, 0)),
            ("seconds=60&ago=3600", (60, 3600)),
            ("from=1799999000", (1000, 0)),
            ("from=1799999000&until=1799999900", (900, 100)),
            ("from=2027-01-15T07:30:00Z&until=2027-01-15T07:50:00Z", (1200, 600)),
            ("until=1799990000", (10, 10_000)),
            ("seconds=60&until=1799990000", (60, 10_000)),
            ("from=1799999000&until=1900000000", (1000, 0)),
        ] {
            assert_eq!(stretch(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "from=1799999000&seconds=60",
            "until=1799999000&ago=60",
            "from=1799999000&until=1799999000",
            "from=1900000000",
            "from=1700000000",
            "from=yesterday",
            "from=-5",
        ] {
            assert_eq!(stretch(bad).unwrap_err().0, 400, "{bad}");
        }
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
            "ago=-1",
            "baseline=0",
            "baseline=9&format=pprof",
            "scope=host&pid=1",
            "pid=1&container=a",
            "what=1",
        ] {
            assert_eq!(query(bad).unwrap_err().0, 400, "{bad}");
        }
    }
}
