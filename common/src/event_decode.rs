//! The object `kpulse` of an event from JSON. What serde derives for names that are not known beforehand copies every value
//! of the object first, which costs more than the rest of the event.

use super::Kpulse;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

impl<'de> Deserialize<'de> for Kpulse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Kpulse;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Kpulse, M::Error> {
        let (mut schema, mut probe, mut suppressed) = (None, None, None);
        let (mut cpu, mut cgroup, mut value_ns, mut threshold_ns, mut stack) = (None, None, None, None, None);
        let mut body = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "schema" => schema = Some(map.next_value()?),
                "probe" => probe = Some(map.next_value()?),
                "cpu" => cpu = map.next_value()?,
                "cgroup" => cgroup = map.next_value()?,
                "value_ns" => value_ns = map.next_value()?,
                "threshold_ns" => threshold_ns = map.next_value()?,
                "suppressed" => suppressed = Some(map.next_value()?),
                "stack" => stack = map.next_value()?,
                _ => {
                    body.insert(name, map.next_value()?);
                }
            }
        }
        let missing = M::Error::missing_field;
        Ok(Kpulse {
            schema: schema.ok_or_else(|| missing("schema"))?,
            probe: probe.ok_or_else(|| missing("probe"))?,
            cpu,
            cgroup,
            value_ns,
            threshold_ns,
            suppressed: suppressed.ok_or_else(|| missing("suppressed"))?,
            stack,
            body,
        })
    }
}
