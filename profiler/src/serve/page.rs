//! The page at `/`: what ran, as a list, and the flame graph of what was chosen.

use super::api::Query;
use super::targets::Targets;
use crate::aggregate::{Scope, Selection};
use kpulse_common::clock::rfc3339;
use std::fmt::Write;

/// Rows of each table; a longer list is asked for as JSON.
const ROWS: usize = 100;
/// The stretches that can be chosen.
const STRETCHES: [(u64, &str); 4] = [(10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h")];

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --bar: #e07b39; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 82rem; padding: 1rem 1.5rem 3rem; }
h1 { font-size: 1.35rem; margin: .2rem 0; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, nav { margin: .3rem 0; } .quiet { opacity: .7; }
nav a, nav b { margin-right: .9rem; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; } td, th { padding: .22rem .7rem .22rem 0; border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 6rem; }
td.share { width: 30%; } .bar { background: var(--bar); height: .7rem; border-radius: 2px; min-width: 1px; }
code { font-size: .9em; overflow-wrap: anywhere; }
iframe { border: 1px solid var(--line); border-radius: 6px; width: 100%; height: 36rem; background: #fff; }
";

/// The whole page.
pub fn render(query: &Query, selection: &Selection, targets: &Targets) -> String {
    let title = format!("CPU time of {}", query.scope.title());
    let seconds = query.last.as_secs();
    let chosen = parameters(&query.scope);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0} – kpulse</title><style>{STYLE}</style></head>\n<body>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    let lost: u64 = selection.lost.values().sum();
    put(
        &mut page,
        format_args!(
            "<p class=\"quiet\">{} to {} · {} samples on this machine · {lost} lost</p>\n<nav>",
            rfc3339(selection.from),
            rfc3339(selection.to),
            targets.samples
        ),
    );
    for (stretch, name) in STRETCHES {
        if stretch == seconds {
            put(&mut page, format_args!("<b>{name}</b>"));
        } else {
            put(&mut page, format_args!("<a href=\"/?{}seconds={stretch}\">{name}</a>", escape(&chosen)));
        }
    }
    if query.scope != Scope::Host {
        put(&mut page, format_args!("<a href=\"/?seconds={seconds}\">whole host</a>"));
    }
    let source = escape(&format!("/api/v1/profile?{chosen}seconds={seconds}&format="));
    put(
        &mut page,
        format_args!(
            "<a href=\"{source}svg\">SVG</a><a href=\"{source}folded\">folded</a><a href=\"{source}json\">JSON</a>\
         <a href=\"{source}pprof\">pprof</a><a href=\"{source}speedscope\">speedscope</a>\
         <a href=\"{source}firefox\">Firefox Profiler</a></nav>\n\
         <iframe src=\"{source}svg\" title=\"Flame graph\"></iframe>\n"
        ),
    );
    containers(&mut page, targets, seconds);
    processes(&mut page, targets, seconds);
    page.push_str("</body>\n</html>\n");
    page
}

fn containers(page: &mut String, targets: &Targets, seconds: u64) {
    if targets.containers.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Containers</h2>\n<table><tr><th>Container</th><th>Pod</th><th></th><th>Samples</th></tr>\n",
    );
    for container in targets.containers.iter().take(ROWS) {
        let short: String = container.id.chars().take(12).collect();
        let name = container.container.as_deref().unwrap_or(&short);
        let pod = [&container.namespace, &container.pod].map(|part| part.as_deref().unwrap_or_default());
        let link = parameters(&Scope::Container(container.id.clone()));
        put(
            page,
            format_args!(
                "<tr><td><a href=\"/?{}seconds={seconds}\">{}</a></td><td>{}</td>{}</tr>\n",
                escape(&link),
                escape(name),
                escape(pod.join("/").trim_matches('/')),
                share(container.samples, targets.samples)
            ),
        );
    }
    page.push_str("</table>\n");
    rest(page, targets.containers.len() + targets.containers_left_out);
}

fn processes(page: &mut String, targets: &Targets, seconds: u64) {
    page.push_str("<h2>Processes</h2>\n");
    if targets.processes.is_empty() {
        page.push_str("<p>Nothing ran, or nothing was sampled yet; /-/ready of the metrics address says whether sampling works.</p>\n");
        return;
    }
    page.push_str("<table><tr><th>Process</th><th>Name</th><th></th><th>Samples</th></tr>\n");
    for process in targets.processes.iter().take(ROWS) {
        put(
            page,
            format_args!(
                "<tr><td><a href=\"/?scope=process&amp;pid={0}&amp;seconds={seconds}\">{0}</a></td><td><code>{1}</code></td>{2}</tr>\n",
                process.pid,
                escape(&process.name),
                share(process.samples, targets.samples)
            ),
        );
    }
    page.push_str("</table>\n");
    rest(page, targets.processes.len() + targets.processes_left_out);
}

fn rest(page: &mut String, all: usize) {
    if all > ROWS {
        put(
            page,
            format_args!(
                "<p class=\"quiet\">{} more in <a href=\"/api/v1/targets\">/api/v1/targets</a></p>\n",
                all - ROWS
            ),
        );
    }
}

fn share(samples: u64, all: u64) -> String {
    let percent = samples as f64 * 100.0 / all.max(1) as f64;
    format!(
        "<td class=\"share\"><div class=\"bar\" style=\"width:{percent:.1}%\"></div></td>\
         <td class=\"number\">{samples} · {percent:.1} %</td>"
    )
}

/// The parameters of a scope, each followed by `&`.
fn parameters(scope: &Scope) -> String {
    match scope {
        Scope::Host => String::new(),
        Scope::Process(pid) => format!("scope=process&pid={pid}&"),
        Scope::Container(id) => format!("scope=container&container={}&", percent_encoded(id)),
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            put(&mut out, format_args!("%{byte:02X}"));
        }
        out
    })
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

/// Text that stays text in an element and in a quoted attribute.
fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, letter| {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            control if control.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Key, Window};
    use crate::export::Format;
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    #[test]
    fn hostile_names_stay_text() {
        let hostile = "\"><script>alert(1)</script>\u{1b}[2J";
        let stack: [Arc<str>; 1] = [hostile.into()];
        let mut window = Window::new(SystemTime::UNIX_EPOCH, 9);
        let container = Some(Arc::from(hostile));
        window.add(
            Key {
                pid: 7,
                process: hostile.into(),
                thread: hostile.into(),
                container,
                stack: Arc::from(stack.as_slice()),
            },
            3,
        );
        let selection = Selection::gather([&window], &Scope::Host).unwrap();
        let targets = Targets::of(&selection, &HashMap::new());
        let scope = Scope::Container(hostile.into());
        let query = Query {
            scope,
            last: Duration::from_secs(60),
            ago: Duration::ZERO,
            baseline: None,
            format: Format::Svg,
        };
        let page = render(&query, &selection, &targets);
        assert!(!page.contains("<script") && !page.contains('\u{1b}'));
        assert!(page.contains("&lt;script&gt;alert(1)"));
        assert!(page.contains("container=%22%3E%3Cscript%3E"));
    }
}
