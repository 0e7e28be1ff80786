//! Is this layer one that the defaults know? The shape of the defaults decides, before any value is used.
//!
//! The `config` crate converts generously: `1.6` would become `2`, and `yes` a number. A configuration that is
//! read differently from how it looks is worse than one that is refused, so types are compared here.

use super::{ConfigError, Origin};
use ::config::{Map, Value, ValueKind};
use serde_json::Value as Json;

/// Compares a layer with the known keys. Empty sections and empty values are dropped: they mean the default.
/// Text from the environment becomes what the default is.
pub(super) fn table(
    values: &mut Map<String, Value>,
    known: &Json,
    origin: &Origin,
) -> Result<(), ConfigError> {
    let mut cursor = Cursor { root: known, origin, path: Vec::new() };
    cursor.table(values, known)
}

struct Cursor<'a> {
    root: &'a Json,
    origin: &'a Origin,
    path: Vec<String>,
}

impl Cursor<'_> {
    fn table(&mut self, values: &mut Map<String, Value>, known: &Json) -> Result<(), ConfigError> {
        values.retain(|_, value| value.kind != ValueKind::Nil);
        let mut keys: Vec<_> = values.keys().cloned().collect();
        keys.sort();
        for key in keys {
            let Some(value) = values.get_mut(&key) else { continue };
            self.path.push(key.clone());
            match known.as_object() {
                Some(entries) if !entries.is_empty() => match entries.get(&key) {
                    Some(expected) => self.value(value, expected)?,
                    None => return Err(self.unknown()),
                },
                _ => {}
            }
            self.path.pop();
        }
        Ok(())
    }

    fn value(&mut self, value: &mut Value, expected: &Json) -> Result<(), ConfigError> {
        let from_environment = matches!(self.origin, Origin::Environment(_));
        if let (ValueKind::String(text), true) = (&value.kind, from_environment)
            && let Some(kind) = parse(text, expected)
        {
            value.kind = kind;
        }
        let negative = matches!(value.kind, ValueKind::I64(number) if number < 0)
            || matches!(value.kind, ValueKind::Float(number) if number < 0.0);
        let fits = match (expected, &mut value.kind) {
            (Json::Object(_), ValueKind::Table(table)) => return self.table(table, expected),
            (Json::Null, _)
            | (Json::Bool(_), ValueKind::Boolean(_))
            | (Json::String(_), ValueKind::String(_))
            | (Json::Array(_), ValueKind::Array(_)) => true,
            (Json::Number(number), ValueKind::I64(_) | ValueKind::U64(_)) => !negative || is_negative(number),
            (Json::Number(number), ValueKind::Float(_)) => {
                number.is_f64() && (!negative || is_negative(number))
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let why = match expected {
            _ if negative => "it must not be negative".to_owned(),
            expected => format!("{} is expected", describe(expected)),
        };
        Err(ConfigError::Value { key: self.key(), origin: self.origin.clone(), value: show(value), why })
    }

    fn key(&self) -> String {
        self.path.join(".")
    }

    fn unknown(&self) -> ConfigError {
        let key = self.key();
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let likeness = |known: &str| {
            let whole = strsim::normalized_damerau_levenshtein(known, &key);
            let end = strsim::normalized_damerau_levenshtein(&last(known), &last(&key));
            whole.max(end) + whole / 10.0
        };
        let nearest = keys(self.root)
            .into_iter()
            .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
            .unwrap_or_default();
        ConfigError::UnknownKey { key, origin: self.origin.clone(), nearest }
    }
}

fn is_negative(number: &serde_json::Number) -> bool {
    number.as_f64().is_some_and(|number| number < 0.0)
}

/// Text as the environment gives it, in the type of the default; `None` leaves it as text.
fn parse(text: &str, expected: &Json) -> Option<ValueKind> {
    match expected {
        Json::Bool(_) => text.parse().ok().map(ValueKind::Boolean),
        Json::Number(number) if number.is_f64() => text.parse().ok().map(ValueKind::Float),
        Json::Number(_) => {
            text.parse().map(ValueKind::I64).or_else(|_| text.parse().map(ValueKind::U64)).ok()
        }
        Json::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(ValueKind::Array(items.map(|item| Value::new(None, item)).collect()))
        }
        _ => None,
    }
}

fn describe(expected: &Json) -> &'static str {
    match expected {
        Json::Bool(_) => "true or false",
        Json::Number(number) if number.is_f64() => "a number",
        Json::Number(_) => "a whole number",
        Json::String(text) if humantime::parse_duration(text).is_ok() => "a duration such as \"50ms\"",
        Json::String(_) => "text",
        Json::Array(_) => "a list",
        Json::Object(_) => "a section with keys",
        Json::Null => "nothing else",
    }
}

/// The value as an error shows it.
pub(super) fn show(value: &Value) -> String {
    /// Longer values are cut: an error is one readable line.
    const SHOWN: usize = 80;
    match &value.kind {
        ValueKind::String(text) => {
            let short: String = text.chars().take(SHOWN).collect();
            let more = if short.len() < text.len() { "…" } else { "" };
            format!("{short:?}{more}")
        }
        ValueKind::Table(_) => "a section".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        ValueKind::Nil => "empty".to_owned(),
        other => other.to_string(),
    }
}

/// Every key of a tree, sections too.
fn keys(tree: &Json) -> Vec<String> {
    let mut found = Vec::new();
    walk(tree, "", &mut |key, _| found.push(key.to_owned()));
    found
}

/// The keys that hold a value, with it.
pub(super) fn leaves(tree: &Json) -> Vec<(String, &Json)> {
    let mut found = Vec::new();
    walk(tree, "", &mut |key, value| {
        if !value.is_object() {
            found.push((key.to_owned(), value));
        }
    });
    found
}

fn walk<'a>(tree: &'a Json, prefix: &str, visit: &mut dyn FnMut(&str, &'a Json)) {
    let Some(entries) = tree.as_object() else { return };
    for (name, value) in entries {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        visit(&key, value);
        walk(value, &key, visit);
    }
}
