//! What is looked for? The conditions that the command line and the API share, and how they are written.

use std::time::SystemTime;

/// Longest text of a condition, in bytes.
const TEXT_MAX: usize = 256;

/// What to look for. An absent condition matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Not older than this.
    pub since: Option<SystemTime>,
    /// Older than this.
    pub until: Option<SystemTime>,
    /// Kind of the event.
    pub kind: Option<String>,
    /// The container's id, the beginning of it, or its name.
    pub container: Option<String>,
    /// The pod's name or uid.
    pub pod: Option<String>,
    /// The process.
    pub process: Option<Process>,
    /// A text in a frame of one of the stacks.
    pub stack: Option<String>,
    /// The newest this many.
    pub limit: usize,
}

/// A process, by its pid or by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// Its pid.
    Pid(u32),
    /// Its name.
    Name(String),
}

impl Query {
    /// Names of all conditions.
    pub const NAMES: [&str; 7] = ["since", "until", "kind", "container", "pod", "process", "stack"];

    /// Sets the condition `name`; the error is one sentence that begins with the name. `None` when there is no such
    /// condition.
    pub fn set(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        if !Self::NAMES.contains(&name) {
            return None;
        }
        Some(self.set_known(name, value))
    }

    fn set_known(&mut self, name: &str, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Err(format!("{name} is empty; leave it out to match everything"));
        }
        if value.len() > TEXT_MAX {
            return Err(format!("{name} has {} bytes, and may have {TEXT_MAX}", value.len()));
        }
        let text = || Some(value.to_owned());
        match name {
            "since" => self.since = Some(time(name, value)?),
            "until" => self.until = Some(time(name, value)?),
            "kind" => self.kind = text(),
            "container" => self.container = text(),
            "pod" => self.pod = text(),
            "process" => self.process = Some(process(value)?),
            _ => self.stack = text(),
        }
        match (self.since, self.until) {
            (Some(since), Some(until)) if since >= until => {
                Err("until is not after since, so nothing can match".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// A time span before now (`5m`) or a point in time (`2026-11-21T10:00:00Z`).
fn time(name: &str, text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let span = humantime::parse_duration(text).map_err(|_| {
        format!(
            "{name} is neither a time span nor a time: {text:?}; write for example 5m or 2026-11-21T10:00:00Z"
        )
    })?;
    // Longer than there has been time means everything.
    Ok(SystemTime::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH))
}

/// Digits are a pid, anything else a name.
fn process(text: &str) -> Result<Process, String> {
    if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return Ok(Process::Name(text.to_owned()));
    }
    let pid = text.parse().map_err(|_| format!("process is neither a process id nor a name: {text:?}"))?;
    Ok(Process::Pid(pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn set(name: &str, value: &str) -> Result<Query, String> {
        let mut query = Query::default();
        query.set(name, value).unwrap().map(|()| query)
    }

    #[test]
    fn reads_spans_and_times() {
        let parsed = set("since", "5m").unwrap().since.unwrap();
        let span = SystemTime::now().duration_since(parsed).unwrap();
        assert!((Duration::from_secs(300)..Duration::from_secs(310)).contains(&span));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_255_200);
        assert_eq!(set("since", "2026-11-21T10:00:00Z").unwrap().since, Some(time));
        assert_eq!(set("until", "2026-11-21 10:00:00").unwrap().until, Some(time));
        assert!(set("since", "1000000000years").is_ok());
        for wrong in ["5", "-5m", "yesterday", "5 m m"] {
            let why = set("until", wrong).unwrap_err();
            assert!(why.starts_with("until ") && why.contains(wrong), "{why}");
        }
    }

    #[test]
    fn digits_are_a_pid_and_the_rest_is_a_name() {
        assert_eq!(set("process", "17").unwrap().process, Some(Process::Pid(17)));
        for name in ["nginx", "7zip", "a-b", "π"] {
            assert_eq!(set("process", name).unwrap().process, Some(Process::Name(name.to_owned())));
        }
        for wrong in ["-1", "4294967296", "1-2"] {
            assert!(set("process", wrong).unwrap_err().contains(wrong));
        }
    }

    #[test]
    fn what_cannot_match_is_said_so() {
        let mut query = set("since", "1h").unwrap();
        assert!(query.set("until", "2h").unwrap().unwrap_err().contains("until is not after since"));
        for name in Query::NAMES {
            assert!(set(name, "").unwrap_err().starts_with(name));
            assert!(set(name, &"x".repeat(TEXT_MAX + 1)).unwrap_err().starts_with(name));
        }
        assert!(Query::default().set("knd", "x").is_none());
    }
}
