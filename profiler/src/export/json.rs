//! A profile as data: stacks from root to leaf.

use super::Profile;
use crate::aggregate::Selection;
use kpulse_common::clock::rfc3339;
use serde_json::{Value, json};

/// The whole profile.
pub fn document(profile: &Profile<'_>) -> Value {
    let stacks: Vec<_> = profile
        .sorted()
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
    json!({ "scope": profile.scope.title(), "window": window(profile.selection), "stacks": stacks })
}

/// The stretch of time, and what was sampled in it.
pub fn window(selection: &Selection) -> Value {
    json!({
        "from": rfc3339(selection.from),
        "to": rfc3339(selection.to),
        "samples": selection.samples,
        "lost": selection.lost,
    })
}
