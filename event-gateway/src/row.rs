//! An event in one line, for people: the table of the command line and of the page.

use serde_json::Value;
use std::time::Duration;

/// Longest text of the column with the probe's own fields.
const DETAIL_MAX: usize = 200;

/// The columns.
pub const HEADINGS: [&str; 6] = ["TIME", "KIND", "VALUE", "PROCESS", "CONTAINER", "DETAIL"];

/// The cells of an encoded event; what it does not hold is `-`.
pub fn cells(json: &str) -> [String; 6] {
    let event: Value = serde_json::from_str(json).unwrap_or_default();
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let time = text("/@timestamp").map(|time| time.split_once('.').map_or(time, |(seconds, _)| seconds));
    let value = event.pointer("/kpulse/value_ns").and_then(Value::as_u64).map(duration);
    let container =
        text("/container/name").or_else(|| text("/container/id").and_then(|id| id.get(..12).or(Some(id))));
    let body = text("/event/action").and_then(|kind| event.get("kpulse")?.get(kind)).map(detail);
    [
        time.map(|time| time.replacen('T', " ", 1)),
        text("/event/action").map(str::to_owned),
        value,
        process(&event),
        container.map(str::to_owned),
        body,
    ]
    .map(|cell| cell.filter(|cell| !cell.is_empty()).map_or_else(|| "-".to_owned(), |cell| printable(&cell)))
}

fn process(event: &Value) -> Option<String> {
    let process = event.get("process")?;
    let name = process.get("name").or_else(|| process.pointer("/thread/name")).and_then(Value::as_str);
    Some(format!("{}[{}]", name.unwrap_or("?"), process.get("pid")?))
}

/// `1.5s`, `12.3ms`, `45µs`: three digits are enough to see.
fn duration(nanoseconds: u64) -> String {
    let seconds = Duration::from_nanos(nanoseconds).as_secs_f64();
    match nanoseconds {
        0..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{:.0}µs", seconds * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1}ms", seconds * 1e3),
        _ => format!("{seconds:.2}s"),
    }
}

/// The probe's own fields as `name=value`, nested names joined by dots.
fn detail(body: &Value) -> String {
    let mut words = Vec::new();
    flatten("", body, &mut words);
    let text = words.join(" ");
    match text.char_indices().nth(DETAIL_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn flatten(name: &str, value: &Value, words: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (inner, value) in fields {
                let name = if name.is_empty() { inner.clone() } else { format!("{name}.{inner}") };
                flatten(&name, value, words);
            }
        }
        Value::String(text) => words.push(format!("{name}={text}")),
        other => words.push(format!("{name}={other}")),
    }
}

/// Names come from containers: a terminal must not obey them.
fn printable(text: &str) -> String {
    let is_plain = |char: char| {
        !char.is_control()
            && !matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .flat_map(|char| if is_plain(char) { vec![char] } else { char.escape_unicode().collect() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shows_what_an_event_holds() {
        let event = serde_json::json!({
            "@timestamp": "2026-11-21T10:00:00.123456789Z",
            "event": {"action": "packet_drop"},
            "process": {"pid": 7, "thread": {"id": 8, "name": "ngi\u{1b}[2Jnx"}},
            "container": {"id": "0c1d2e3f405162738495a6b7c8d9eafb"},
            "kpulse": {"value_ns": 12_345_678, "packet_drop": {"reason": "NO_SOCKET", "source": {"port": 53}}},
        });
        assert_eq!(
            cells(&event.to_string()),
            [
                "2026-11-21 10:00:00",
                "packet_drop",
                "12.3ms",
                "ngi\\u{1b}[2Jnx[7]",
                "0c1d2e3f4051",
                "reason=NO_SOCKET source.port=53"
            ]
        );
        assert_eq!(cells("{}"), ["-"; 6]);
        assert_eq!(cells("broken"), ["-"; 6]);
    }

    #[test]
    fn durations_are_readable() {
        let shown = [1, 1_500, 999_999, 50_000_000, 1_500_000_000, u64::MAX].map(duration);
        assert_eq!(shown, ["1ns", "2µs", "1000µs", "50.0ms", "1.50s", "18446744073.71s"]);
    }

    proptest! {
        #[test]
        fn no_cell_moves_the_cursor(name in any::<String>(), field in any::<String>(), value in any::<String>()) {
            let event = serde_json::json!({
                "event": {"action": "x"}, "process": {"pid": 1, "name": name}, "container": {"id": value.clone()},
                "kpulse": {"x": {field: value}},
            });
            for cell in cells(&event.to_string()) {
                prop_assert!(!cell.chars().any(char::is_control), "{:?}", cell);
            }
        }
    }
}
