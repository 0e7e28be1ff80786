//! The newest events as one page, rendered here; it needs no script.

use crate::row::{HEADINGS, cells};
use std::fmt::Write;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2rem}table{border-collapse:collapse;width:100%}\
    th,td{text-align:left;padding:.25rem .75rem;border-bottom:1px solid #ddd;vertical-align:top}\
    td{font-family:ui-monospace,monospace;font-size:13px}td:last-child{word-break:break-all}";

/// The page with these documents, newest first.
pub fn render(newest_first: &[String], kind: Option<&str>) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>kpulse events</title><style>{STYLE}</style></head>\n<body>\n<h1>Events</h1>\n"
    );
    match kind {
        Some(kind) => {
            add(&mut page, format_args!("<p>Only {}. <a href=\"/\">All kinds</a></p>\n", escape(kind)));
        }
        None => page.push_str("<p>The newest first. <a href=\"/api/v1/events\">JSON</a></p>\n"),
    }
    if newest_first.is_empty() {
        page.push_str("<p>No event yet: nothing has reached its threshold.</p>\n");
    } else {
        table(&mut page, newest_first);
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn table(page: &mut String, documents: &[String]) {
    page.push_str("<table>\n<tr>");
    for heading in HEADINGS {
        add(page, format_args!("<th>{heading}</th>"));
    }
    page.push_str("</tr>\n");
    for document in documents {
        let [time, kind, rest @ ..] = cells(document);
        let kind = escape(&kind);
        add(
            page,
            format_args!("<tr><td>{}</td><td><a href=\"/?kind={kind}\">{kind}</a></td>", escape(&time)),
        );
        for cell in rest {
            add(page, format_args!("<td>{}</td>", escape(&cell)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("writing to a String cannot fail");
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_from_an_event_becomes_markup(text in any::<String>(), kind in "[<>\"'&a-z]{0,20}") {
            let event = serde_json::json!({"event": {"action": kind.clone()}, "process": {"pid": 1, "name": text}});
            let ours = render(&[], None).matches('<').count();
            let page = render(&[event.to_string()], None);
            // The table of one row: 6 headings, 6 cells, a link, and their ends; the sentence of the empty page is gone.
            let row = 2 * (1 + 2 + 6 + 6 + 1) - 2;
            prop_assert_eq!(page.matches('<').count(), ours + row);
            prop_assert!(!page.contains("\"\""));
        }
    }
}
