//! From when on? A time span before now (`5m`) or a point in time (`2026-11-21T10:00:00Z`).

use std::time::SystemTime;

/// The moment that `text` stands for.
pub fn parse(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let span = humantime::parse_duration(text).map_err(|_| {
        format!(
            "since is neither a time span nor a time: {text:?}; write for example 5m or 2026-11-21T10:00:00Z"
        )
    })?;
    // Longer than there has been time means everything.
    Ok(SystemTime::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn reads_spans_and_times() {
        let parsed = parse("5m").unwrap();
        let span = SystemTime::now().duration_since(parsed).unwrap();
        assert!((Duration::from_secs(300)..Duration::from_secs(310)).contains(&span));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_255_200);
        assert_eq!(parse("2026-11-21T10:00:00Z"), Ok(time));
        assert_eq!(parse("2026-11-21 10:00:00"), Ok(time));
        assert!(parse("1000000000years").is_ok());
        for wrong in ["", "5", "-5m", "yesterday", "5 m m"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
