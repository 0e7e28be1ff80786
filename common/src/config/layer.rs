//! One layer of the configuration: its values as nested tables, and where they came from.

use super::{ConfigError, Origin, one_line};
use ::config::{FileFormat, Format, Map, Source, Value, ValueKind};
use std::ffi::OsString;
use std::path::Path;

/// Configuration files are small; anything larger is a mistaken path.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One source of values.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub origin: Origin,
    pub values: Map<String, Value>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.values.clone())
    }
}

impl Layer {
    pub fn defaults(known: &serde_json::Value) -> Self {
        Self { origin: Origin::Default, values: table(from_json(known)) }
    }

    pub fn file(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let syntax = |why: &str| ConfigError::Syntax { path: path.to_owned(), why: one_line(why) };
        let length = std::fs::metadata(path).map_err(read)?.len();
        if length > FILE_BYTES_MAX {
            return Err(syntax(&format!("it has {length} bytes, more than {FILE_BYTES_MAX}")));
        }
        let bytes = std::fs::read(path).map_err(read)?;
        let text = String::from_utf8(bytes).map_err(|error| syntax(&error.to_string()))?;
        // The parser takes NUL for the end, and a file of zeros is what a crash leaves behind.
        if text.contains('\0') {
            return Err(syntax("it holds a NUL byte"));
        }
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self { origin: Origin::File(path.to_owned()), values: Map::new() });
        }
        let values = FileFormat::Yaml.parse(None, &text).map_err(|error| syntax(&error.to_string()))?;
        Ok(Self { origin: Origin::File(path.to_owned()), values })
    }

    /// One layer for each variable, so that an error can name it.
    pub fn environment(
        prefix: &str,
        variables: impl Iterator<Item = (String, OsString)>,
    ) -> Result<Vec<Self>, ConfigError> {
        let start = format!("{prefix}__");
        let mut layers = Vec::new();
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(&start).filter(|rest| !prefix.is_empty() && !rest.is_empty())
            else {
                continue;
            };
            let key = rest.to_lowercase().replace("__", ".");
            let origin = Origin::Environment(name.clone());
            let value = value.into_string().map_err(|value| ConfigError::Value {
                key: key.clone(),
                origin: origin.clone(),
                value: format!("{value:?}"),
                why: "it must be UTF-8".to_owned(),
            })?;
            layers.push(Self { origin, values: nest(&key, Value::new(None, value)) });
        }
        // The order of the environment is accidental; errors should not be.
        layers.sort_by_key(|layer| layer.origin.to_string());
        Ok(layers)
    }

    pub fn flag(key: &str, value: &Value) -> Self {
        let flag = format!("--{}", key.replace('_', "-"));
        Self { origin: Origin::Flag(flag), values: nest(key, value.clone()) }
    }

    /// The value at a dotted key, with the `[0]` of an array's element left out.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut steps = key.split('[').next()?.split('.');
        let first = self.values.get(steps.next()?)?;
        steps.try_fold(first, |value, step| match &value.kind {
            ValueKind::Table(table) => table.get(step),
            _ => None,
        })
    }
}

/// `a.b.c` with a value becomes the table that holds it.
fn nest(key: &str, value: Value) -> Map<String, Value> {
    let mut steps = key.rsplit('.');
    let last = steps.next().unwrap_or_default().to_owned();
    steps.fold(Map::from_iter([(last, value)]), |inner, step| {
        Map::from_iter([(step.to_owned(), Value::new(None, ValueKind::Table(inner)))])
    })
}

fn from_json(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => ValueKind::Nil,
        serde_json::Value::Bool(flag) => ValueKind::Boolean(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => ValueKind::I64(number),
            (None, Some(number)) => ValueKind::U64(number),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => ValueKind::String(text.clone()),
        serde_json::Value::Array(items) => ValueKind::Array(items.iter().map(from_json).collect()),
        serde_json::Value::Object(object) => {
            ValueKind::Table(object.iter().map(|(key, value)| (key.clone(), from_json(value))).collect())
        }
    };
    Value::new(None, kind)
}

fn table(value: Value) -> Map<String, Value> {
    match value.kind {
        ValueKind::Table(table) => table,
        _ => Map::new(),
    }
}
