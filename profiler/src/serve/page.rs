//! The page at `/`: what ran, as a list, and the flame graph of what was chosen.

use super::api::Query;
use super::targets::Targets;
use crate::aggregate::{Scope, Selection};
use kpulse_common::clock::rfc3339_seconds;
use std::fmt::Write;

/// The stretches that can be chosen, how long ago they may have ended, and what they can be compared with.
const STRETCHES: [(u64, &str); 6] =
    [(10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"), (21_600, "6 h"), (86_400, "24 h")];
const ENDS: [(u64, &str); 6] = [
    (0, "now"),
    (60, "1 min ago"),
    (600, "10 min ago"),
    (3600, "1 h ago"),
    (21_600, "6 h ago"),
    (43_200, "12 h ago"),
];
const BASELINES: [(u64, &str); 6] = [
    (0, "nothing"),
    (60, "1 min before"),
    (600, "10 min before"),
    (3600, "1 h before"),
    (21_600, "6 h before"),
    (43_200, "12 h before"),
];

/// Shows the rows that have every word of the field; the picture has a search and a zoom of its own.
const SCRIPT: &str = "
const field = document.getElementById('filter'), rows = [...document.querySelectorAll('tr.target')];
const texts = rows.map(row => row.textContent.toLowerCase());
field.addEventListener('input', () => {
  const words = field.value.toLowerCase().split(/\\s+/);
  rows.forEach((row, number) => { row.hidden = !words.every(word => texts[number].includes(word)); });
});
";

/// The roots of a flame graph are at its bottom.
const TO_THE_ROOTS: &str = "this.contentWindow.scrollTo(0, 1e9)";

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
input { font: inherit; padding: .2rem .5rem; width: 20rem; max-width: 100%; margin-top: 1.4rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
iframe { border: 1px solid var(--line); border-radius: 6px; width: 100%; height: 36rem; background: #fff; }
";

/// The whole page.
pub fn render(query: &Query, selection: &Selection, targets: &Targets) -> String {
    let title = format!("CPU time of {}", query.scope.title());
    let chosen = Chosen::of(query);
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
            rfc3339_seconds(selection.from),
            rfc3339_seconds(selection.to),
            targets.samples
        ),
    );
    choices(&mut page, &STRETCHES, chosen.seconds, |seconds| Chosen { seconds, ..chosen.clone() });
    if query.scope != Scope::Host {
        let host = Chosen { scope: String::new(), ..chosen.clone() };
        put(&mut page, format_args!("<a href=\"/?{}\">whole host</a>", host.parameters()));
    }
    page.push_str("</nav>\n<nav>Ended: ");
    choices(&mut page, &ENDS, chosen.ago, |ago| Chosen { ago, ..chosen.clone() });
    page.push_str("</nav>\n<nav>Compared with: ");
    choices(&mut page, &BASELINES, chosen.baseline, |baseline| Chosen { baseline, ..chosen.clone() });
    page.push_str("</nav>\n<nav>");
    let source = format!("/api/v1/profile?{}&amp;format=", chosen.parameters());
    let forms: &[(&str, &str)] = if chosen.baseline > 0 { &FORMS[..2] } else { &FORMS };
    for (form, name) in forms {
        put(&mut page, format_args!("<a href=\"{source}{form}\">{name}</a>"));
    }
    put(
        &mut page,
        format_args!(
            "</nav>\n<iframe src=\"{source}svg\" title=\"Flame graph\" onload=\"{TO_THE_ROOTS}\"></iframe>\n\
             <input id=\"filter\" type=\"search\" placeholder=\"Filter containers and processes\" \
             aria-label=\"Filter containers and processes\">\n"
        ),
    );
    containers(&mut page, targets, &chosen);
    processes(&mut page, targets, &chosen);
    put(&mut page, format_args!("<script>{SCRIPT}</script>\n"));
    page.push_str("</body>\n</html>\n");
    page
}

/// The forms of a profile; the first two also of a comparison.
const FORMS: [(&str, &str); 6] = [
    ("svg", "SVG"),
    ("folded", "folded"),
    ("json", "JSON"),
    ("pprof", "pprof"),
    ("speedscope", "speedscope"),
    ("firefox", "Firefox Profiler"),
];

/// What the page shows, as the parameters of an address.
#[derive(Clone)]
struct Chosen {
    scope: String,
    seconds: u64,
    ago: u64,
    baseline: u64,
}

impl Chosen {
    fn of(query: &Query) -> Self {
        let (seconds, ago) = (query.last.as_secs(), query.ago.as_secs());
        let baseline = query.baseline.map_or(0, |baseline| baseline.as_secs());
        Self { scope: parameters(&query.scope), seconds, ago, baseline }
    }

    /// Parameters as they stand in a quoted attribute.
    fn parameters(&self) -> String {
        let mut all = format!("{}seconds={}", self.scope, self.seconds);
        for (name, value) in [("ago", self.ago), ("baseline", self.baseline)] {
            if value > 0 {
                put(&mut all, format_args!("&{name}={value}"));
            }
        }
        escape(&all)
    }
}

fn choices(page: &mut String, choices: &[(u64, &str)], chosen: u64, to: impl Fn(u64) -> Chosen) {
    for &(choice, name) in choices {
        if choice == chosen {
            put(page, format_args!("<b>{name}</b>"));
        } else {
            put(page, format_args!("<a href=\"/?{}\">{name}</a>", to(choice).parameters()));
        }
    }
}

fn containers(page: &mut String, targets: &Targets, chosen: &Chosen) {
    if targets.containers.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Containers</h2>\n<table><tr><th>Container</th><th>Pod</th><th></th><th>Samples</th></tr>\n",
    );
    for container in &targets.containers {
        let short: String = container.id.chars().take(12).collect();
        let name = container.container.as_deref().unwrap_or(&short);
        let pod = [&container.namespace, &container.pod].map(|part| part.as_deref().unwrap_or_default());
        let link = Chosen { scope: parameters(&Scope::Container(container.id.clone())), ..chosen.clone() };
        put(
            page,
            format_args!(
                "<tr class=\"target\"><td><a href=\"/?{}\">{}</a></td><td>{}</td>{}</tr>\n",
                link.parameters(),
                escape(name),
                escape(pod.join("/").trim_matches('/')),
                share(container.samples, targets.samples)
            ),
        );
    }
    page.push_str("</table>\n");
    rest(page, targets.containers_left_out);
}

fn processes(page: &mut String, targets: &Targets, chosen: &Chosen) {
    page.push_str("<h2>Processes</h2>\n");
    if targets.processes.is_empty() {
        page.push_str("<p>Nothing ran, or nothing was sampled yet; /-/ready of the metrics address says whether sampling works.</p>\n");
        return;
    }
    page.push_str("<table><tr><th>Process</th><th>Name</th><th></th><th>Samples</th></tr>\n");
    for process in &targets.processes {
        let link = Chosen { scope: parameters(&Scope::Process(process.pid)), ..chosen.clone() };
        put(
            page,
            format_args!(
                "<tr class=\"target\"><td><a href=\"/?{}\">{}</a></td><td><code>{}</code></td>{}</tr>\n",
                link.parameters(),
                process.pid,
                escape(&process.name),
                share(process.samples, targets.samples)
            ),
        );
    }
    page.push_str("</table>\n");
    rest(page, targets.processes_left_out);
}

fn rest(page: &mut String, left_out: usize) {
    if left_out > 0 {
        put(page, format_args!("<p class=\"quiet\">{left_out} more ran less</p>\n"));
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
        let targets = Targets::of(&selection);
        let scope = Scope::Container(hostile.into());
        let query = Query {
            scope,
            last: Duration::from_secs(60),
            ago: Duration::ZERO,
            baseline: None,
            format: Format::Svg,
            now: SystemTime::UNIX_EPOCH,
        };
        let page = render(&query, &selection, &targets);
        assert!(page.matches("<script").count() == 1 && !page.contains('\u{1b}'));
        assert!(page.contains("&lt;script&gt;alert(1)"));
        assert!(page.contains("container=%22%3E%3Cscript%3E"));
    }

    #[test]
    fn a_thousand_targets_are_a_page_that_a_browser_likes() {
        let mut window = Window::new(SystemTime::UNIX_EPOCH, 5000);
        for pid in 1..=1200u32 {
            let stack: [Arc<str>; 1] = ["main".into()];
            let container = Some(Arc::from(format!("{pid:064x}")));
            let process: Arc<str> = format!("worker-{pid}").into();
            let thread = process.clone();
            window
                .add(Key { pid, process, thread, container, stack: Arc::from(stack.as_slice()) }, pid.into());
        }
        let selection = Selection::gather([&window], &Scope::Host).unwrap();
        let (last, ago, baseline) =
            (Duration::from_secs(60), Duration::from_secs(600), Some(Duration::from_secs(60)));
        let (scope, format, now) = (Scope::Process(7), Format::Svg, SystemTime::UNIX_EPOCH);
        let query = Query { scope, last, ago, baseline, format, now };
        let begun = std::time::Instant::now();
        let page = render(&query, &selection, &Targets::of(&selection));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(page.len() < 1 << 20, "{} bytes", page.len());
        assert_eq!(page.matches("<tr class=\"target\">").count(), 2000);
        assert_eq!(page.matches("200 more ran less").count(), 2);
        assert!(page.contains("scope=process&amp;pid=1200&amp;seconds=60&amp;ago=600&amp;baseline=60\""));
        assert!(page.contains("format=svg") && !page.contains("format=pprof"), "only these compare");
    }
}
