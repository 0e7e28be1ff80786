//! Does a client call this server by a name of this machine? A page of another site may have its own name point to a
//! loopback address; the browser then still sends that name.

use super::Request;
use hyper::header::HOST;
use std::net::IpAddr;

/// Whether every name in the request is a loopback one; HTTP/1.0 sends none.
pub fn is_local(request: &Request) -> bool {
    request.headers.get_all(HOST).iter().all(|host| host.to_str().is_ok_and(is_loopback_name))
}

fn is_loopback_name(host: &str) -> bool {
    let without_port = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    without_port.eq_ignore_ascii_case("localhost")
        || without_port.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_of_this_machine_is_local() {
        for good in ["localhost", "LOCALHOST:10852", "127.0.0.1:80", "127.9.9.9", "[::1]:10852", "[::1]"] {
            assert!(is_loopback_name(good), "{good}");
        }
        for bad in ["evil.example", "evil.example:10852", "192.0.2.1", "[::2]:1", "localhost.example", ""] {
            assert!(!is_loopback_name(bad), "{bad}");
        }
    }
}
