//! Compressing an answer, by the Accept-Encoding header (RFC 9110).

use super::{Request, Response};
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY};
use std::io::Write;

/// Smaller answers do not get smaller by more than a packet.
const WORTH_IT_BYTES: usize = 1 << 10;
/// The fastest levels: metrics shrink to a tenth with them, and a scrape's cost matters more than another percent.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;
/// More codings than any client names; the rest is not looked at.
const CODINGS_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
    Zstd,
}

/// Compresses `body` as the client wants it, and says so in the headers of `response`.
pub(super) fn compressed(mut response: Response, body: Vec<u8>, request: &Request) -> Response {
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    let coding = if body.len() < WORTH_IT_BYTES {
        Coding::Identity
    } else {
        // Several header lines mean the same as one that lists all of them.
        let lines: Vec<_> =
            request.headers.get_all(ACCEPT_ENCODING).iter().flat_map(HeaderValue::to_str).collect();
        negotiate(&lines.join(","))
    };
    let (name, packed) = match coding {
        Coding::Identity => (None, None),
        Coding::Gzip => (Some("gzip"), gzip(&body).ok()),
        Coding::Zstd => (Some("zstd"), zstd::bulk::compress(&body, ZSTD_LEVEL).ok()),
    };
    if let (Some(name), Some(_)) = (name, &packed) {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    *response.body_mut() = Full::new(Bytes::from(packed.unwrap_or(body)));
    response
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder =
        GzEncoder::new(Vec::with_capacity(body.len() / 8), flate2::Compression::new(GZIP_LEVEL));
    encoder.write_all(body)?;
    encoder.finish()
}

/// The coding that the client wants most; of equals the one that costs us least. A header that does not parse
/// gives the plain bytes, which every client reads.
fn negotiate(accept: &str) -> Coding {
    let Some(wishes) = accept
        .split(',')
        .map(str::trim)
        .filter(|wish| !wish.is_empty())
        .take(CODINGS_MAX)
        .map(wish)
        .collect::<Option<Vec<_>>>()
    else {
        return Coding::Identity;
    };
    let quality = |names: &[&str]| {
        let named = wishes.iter().find(|(name, _)| names.contains(&name.as_str()));
        let any = || wishes.iter().find(|(name, _)| name == "*");
        named.or_else(any).map_or(0.0, |(_, quality)| *quality)
    };
    let mut best = (Coding::Identity, 0.0);
    for (coding, quality) in
        [(Coding::Zstd, quality(&["zstd"])), (Coding::Gzip, quality(&["gzip", "x-gzip"]))]
    {
        if quality > best.1 {
            best = (coding, quality);
        }
    }
    // Only a client that names the plain form higher wants it more than a compressed one.
    let named_identity = wishes.iter().find(|(name, _)| name == "identity").map(|(_, quality)| *quality);
    if named_identity.is_some_and(|quality| quality > best.1) { Coding::Identity } else { best.0 }
}

fn wish(text: &str) -> Option<(String, f64)> {
    let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
    let quality = match parameters.trim() {
        "" => 1.0,
        parameter => {
            let (key, value) = parameter.split_once('=')?;
            let quality = value.trim().parse().ok().filter(|quality| (0.0..=1.0).contains(quality))?;
            key.trim().eq_ignore_ascii_case("q").then_some(quality)?
        }
    };
    Some((name.trim().to_ascii_lowercase(), quality))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn picks_the_coding_with_the_highest_quality() {
        for (accept, coding) in [
            ("", Coding::Identity),
            ("gzip", Coding::Gzip),
            ("x-gzip", Coding::Gzip),
            ("zstd", Coding::Zstd),
            ("gzip, deflate, br, zstd", Coding::Zstd),
            ("GZIP", Coding::Gzip),
            ("gzip;q=1.0, zstd;q=0.5", Coding::Gzip),
            ("gzip; q=0.2 , zstd ; q=0.3", Coding::Zstd),
            ("gzip;q=0", Coding::Identity),
            ("gzip;q=0, *", Coding::Zstd),
            ("zstd;q=0, *;q=0.1", Coding::Gzip),
            ("*", Coding::Zstd),
            ("*;q=0", Coding::Identity),
            ("identity, gzip;q=0.5", Coding::Identity),
            ("identity;q=0.5, gzip", Coding::Gzip),
            ("identity;q=0", Coding::Identity),
            ("deflate, br", Coding::Identity),
            ("gzip;q=2", Coding::Identity),
            ("gzip;q=x", Coding::Identity),
            ("gzip;q=NaN", Coding::Identity),
            ("gzip;level=1", Coding::Identity),
            (",,gzip,", Coding::Gzip),
        ] {
            assert_eq!(negotiate(accept), coding, "{accept:?}");
        }
    }

    #[test]
    fn both_codings_read_back_as_what_was_written() {
        let body: Vec<u8> = (0..100_000u32).flat_map(|number| (number % 777).to_le_bytes()).collect();
        let packed = gzip(&body).unwrap();
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, body);
        let packed = zstd::bulk::compress(&body, ZSTD_LEVEL).unwrap();
        assert_eq!(zstd::bulk::decompress(&packed, body.len()).unwrap(), body);
        assert!(packed.len() < body.len() / 2);
    }
}
