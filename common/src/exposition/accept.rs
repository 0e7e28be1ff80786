//! Content negotiation by the Accept header (RFC 9110), for the three formats that exist.

/// A form of exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Delimited protobuf, with native histograms.
    Protobuf,
}

impl Format {
    /// The value of the Content-Type header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// More ranges than any client sends; the rest is not looked at.
const RANGES_MAX: usize = 32;

/// The format that the client wants most. Only an explicit wish gives another than text: a wildcard, an unknown type
/// and a header that does not parse give text, which every client reads.
pub fn negotiate(accept: Option<&str>) -> Format {
    let Some(accept) = accept else { return Format::Text };
    let Some(ranges) = accept.split(',').take(RANGES_MAX).map(range).collect::<Option<Vec<_>>>() else {
        return Format::Text;
    };
    let mut best = (Format::Text, 0.0);
    for (format, quality) in ranges.into_iter().filter_map(|(format, quality)| Some((format?, quality))) {
        // Of equals the first stands, as the client listed it first.
        if quality > best.1 {
            best = (format, quality);
        }
    }
    best.0
}

/// One media range with its quality; the format is `None` when we do not have it. `None` when malformed.
fn range(text: &str) -> Option<(Option<Format>, f64)> {
    let mut parts = text.split(';').map(str::trim);
    let (kind, subtype) = parts.next()?.split_once('/')?;
    if kind.is_empty() || subtype.is_empty() {
        return None;
    }
    let mut quality = 1.0;
    let (mut version, mut proto, mut encoding) = (None, None, None);
    for parameter in parts.filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => quality = value.parse().ok().filter(|quality| (0.0..=1.0).contains(quality))?,
            "version" => version = Some(value),
            "proto" => proto = Some(value),
            "encoding" => encoding = Some(value),
            _ => {}
        }
    }
    let kind = format!("{kind}/{subtype}").to_ascii_lowercase();
    let format = match (kind.as_str(), version) {
        ("application/openmetrics-text", None | Some("1.0.0")) => Some(Format::OpenMetrics),
        ("text/plain", None | Some("0.0.4")) | ("*/*" | "text/*", _) => Some(Format::Text),
        ("application/vnd.google.protobuf", _) => {
            let is_ours = proto == Some("io.prometheus.client.MetricFamily") && encoding == Some("delimited");
            is_ours.then_some(Format::Protobuf)
        }
        _ => None,
    };
    Some((format, quality))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_format_with_the_highest_quality() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;\
                          version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        // What Prometheus 2.40 and newer send with native histograms enabled.
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
                      application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let newest = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;\
                      escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;\
                      q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let protobuf = "application/vnd.google.protobuf";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            (native, Format::Protobuf),
            (newest, Format::Protobuf),
            (protobuf, Format::Text),
            (&format!("{protobuf};proto=io.prometheus.client.MetricFamily"), Format::Text),
            (&format!("{protobuf};proto=io.prometheus.client.MetricFamily;encoding=text"), Format::Text),
            (&format!("{protobuf};proto=other;encoding=delimited"), Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.5", Format::Text),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.6", Format::OpenMetrics),
            ("text/plain, application/openmetrics-text", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;version=9.9.9", Format::Text),
            ("application/openmetrics-text;version=0.0.1", Format::Text),
            ("*/*", Format::Text),
            ("application/json", Format::Text),
        ] {
            assert_eq!(negotiate(Some(accept)), format, "{accept}");
        }
        assert_eq!(negotiate(None), Format::Text);
    }

    #[test]
    fn gives_text_when_any_part_is_malformed() {
        for accept in [
            "",
            ",",
            ";;;",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=x",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text, garbage",
            "application/openmetrics-text;version",
            "/",
        ] {
            assert_eq!(negotiate(Some(accept)), Format::Text, "{accept:?}");
        }
    }
}
