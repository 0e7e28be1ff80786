//! The object `kpulse` of an event from JSON. What serde derives for names that are not known beforehand copies every value
//! of the object first, which costs more than the rest of the event.

use super::Kpulse;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// A text of an event that stays where the JSON is.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(transparent)]
pub struct Text<'e>(#[serde(borrow)] pub Cow<'e, str>);

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The fields of a probe, whatever they are.
#[derive(Debug)]
pub struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for AnyObject {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self)
    }
}

impl<'de, T: Deserialize<'de> + Default + Ord + Borrow<str>, B: Deserialize<'de>> Deserialize<'de>
    for Kpulse<T, B>
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T, B>(PhantomData<(T, B)>);

impl<'de, T: Deserialize<'de> + Default + Ord + Borrow<str>, B: Deserialize<'de>> Visitor<'de>
    for Fields<T, B>
{
    type Value = Kpulse<T, B>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Kpulse<T, B>, M::Error> {
        let (mut schema, mut probe, mut suppressed) = (None, None, None);
        let (mut cpu, mut cgroup, mut value_ns, mut threshold_ns, mut stack) = (None, None, None, None, None);
        let mut body = BTreeMap::new();
        while let Some(name) = map.next_key::<T>()? {
            match name.borrow() {
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
