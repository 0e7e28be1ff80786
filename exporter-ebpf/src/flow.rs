//! Between whom a packet or a connection is: the same names in every event that tells it.

use crate::abi;
use schemars::JsonSchema;
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Both ends, which stand side by side with the event's other fields.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Flow {
    /// Where it comes from.
    source: Endpoint,
    /// Where it goes to.
    destination: Endpoint,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Endpoint {
    /// Address.
    ip: IpAddr,
    /// Port; absent for protocols without.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

impl Flow {
    /// `None` where the kernel had no addresses to tell.
    pub(crate) fn of(raw: &abi::flow) -> Option<Self> {
        let endpoint = |address, port| {
            Some(Endpoint { ip: ip(raw.ip_version, address)?, port: (raw.has_ports != 0).then_some(port) })
        };
        Some(Self {
            source: endpoint(raw.source, raw.source_port)?,
            destination: endpoint(raw.destination, raw.destination_port)?,
        })
    }
}

fn ip(version: u8, words: [u32; 4]) -> Option<IpAddr> {
    match version {
        4 => Some(Ipv4Addr::from_bits(u32::from_be(words[0])).into()),
        6 => {
            let bits = words.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)));
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

/// The kernel's name of a TCP state; `None` where there was no socket.
pub(crate) fn tcp_state(number: u32) -> Option<&'static str> {
    const NAMES: [&str; 12] = [
        "established",
        "syn_sent",
        "syn_recv",
        "fin_wait1",
        "fin_wait2",
        "time_wait",
        "close",
        "close_wait",
        "last_ack",
        "listen",
        "closing",
        "new_syn_recv",
    ];
    NAMES.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_the_order_of_the_wire() {
        let flow = abi::flow {
            source: [u32::from_ne_bytes([127, 0, 0, 1]), 0, 0, 0],
            source_port: 80,
            ip_version: 4,
            has_ports: 1,
            ..abi::flow::default()
        };
        let text = |flow: &abi::flow| serde_json::to_string(&Flow::of(flow)).unwrap();
        assert_eq!(
            text(&flow),
            r#"{"source":{"ip":"127.0.0.1","port":80},"destination":{"ip":"0.0.0.0","port":0}}"#
        );
        let bytes: [u8; 16] = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let flow = abi::flow {
            destination: [word(0), word(4), word(8), word(12)],
            ip_version: 6,
            ..abi::flow::default()
        };
        assert_eq!(text(&flow), r#"{"source":{"ip":"::"},"destination":{"ip":"2001:db8::1"}}"#);
        assert_eq!(text(&abi::flow::default()), "null");
    }

    #[test]
    fn states_are_numbered_from_one() {
        assert_eq!(
            [0, 1, 7, 12, 13].map(tcp_state),
            [None, Some("established"), Some("close"), Some("new_syn_recv"), None]
        );
    }
}
