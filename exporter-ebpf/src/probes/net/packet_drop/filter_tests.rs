//! The program in the kernel against what an expression means: the same C, compiled for this machine.

#[path = "../../../../../common/src/packet_filter/any.rs"]
mod any;

use super::*;
use kpulse_common::packet_filter::PacketFilter;
use proptest::prelude::*;
use proptest::sample::select;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// Reads a filter and then packets, and answers each with one byte.
const PROGRAM: &str = r#"
#include <stdbool.h>
#include <stdio.h>
#include <linux/types.h>
#define __bpf__
#include "filter.h"
int main(void)
{
	static struct packet_drop_filter filter;
	struct filter_end ends[FILTER_ENDS];
	if (fread(&filter, sizeof(filter), 1, stdin) != 1)
		return 1;
	while (fread(ends, sizeof(ends), 1, stdin) == 1)
		putchar(filter_keeps(&filter, ends) ? '1' : '0');
	return 0;
}
"#;

static COMPILED: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("filter.c");
    std::fs::write(&source, PROGRAM).unwrap();
    let crate_folder = env!("CARGO_MANIFEST_DIR");
    let status = Command::new("cc")
        .args(["-O1", "-Wall", "-I", &format!("{crate_folder}/include")])
        .args(["-I", &format!("{crate_folder}/src/probes/net/packet_drop")])
        .arg("-o")
        .args([&folder.path().join("filter"), &source])
        .status()
        .unwrap();
    assert!(status.success());
    folder
});

/// What the headers of a packet say. Ports are those of the addresses.
#[derive(Debug, Clone)]
struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    device: &'static [u8],
}

impl Packet {
    fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17)
    }

    /// As three `struct filter_end` have it.
    fn bytes(&self) -> Vec<u8> {
        let mut device = [0; 16];
        device[..self.device.len()].copy_from_slice(self.device);
        let version = if self.source.is_ipv4() { 4 } else { 6 };
        let kind = u32::from(self.protocol) | version << 8 | u32::from(self.has_ports()) << 16;
        let port = |end: SocketAddr| if self.has_ports() { end.port().into() } else { 0 };
        let ends = [
            (address_words(self.source.ip()), port(self.source)),
            (address_words(self.destination.ip()), port(self.destination)),
            (words(device), 0),
        ];
        let numbers = ends.into_iter().flat_map(|(words, port)| words.into_iter().chain([kind, port]));
        numbers.flat_map(u32::to_ne_bytes).collect()
    }
}

/// What an expression means.
fn holds(expression: &Expression, packet: &Packet) -> bool {
    match expression {
        Expression::Not(inner) => !holds(inner, packet),
        Expression::And(left, right) => holds(left, packet) && holds(right, packet),
        Expression::Or(left, right) => holds(left, packet) || holds(right, packet),
        Expression::Test(Test::Protocol(protocol)) => is_of(*protocol, packet),
        Expression::Test(Test::Address { side, address, length }) => {
            ends(*side, packet).iter().any(|end| is_within(end.ip(), *address, *length))
        }
        Expression::Test(Test::Ports { protocol, side, first, last }) => {
            packet.has_ports()
                && protocol.is_none_or(|protocol| is_of(protocol, packet))
                && ends(*side, packet).iter().any(|end| (*first..=*last).contains(&end.port()))
        }
        Expression::Test(Test::Device(name)) => {
            packet.device.split(|byte| *byte == 0).next() == Some(name.as_bytes())
        }
    }
}

fn ends(side: Side, packet: &Packet) -> Vec<SocketAddr> {
    match side {
        Side::Either => vec![packet.source, packet.destination],
        Side::Source => vec![packet.source],
        Side::Destination => vec![packet.destination],
    }
}

fn is_of(protocol: Protocol, packet: &Packet) -> bool {
    match protocol {
        Protocol::Ip => packet.source.is_ipv4(),
        Protocol::Ip6 => packet.source.is_ipv6(),
        Protocol::Tcp => packet.protocol == 6,
        Protocol::Udp => packet.protocol == 17,
        Protocol::Icmp => packet.source.is_ipv4() && packet.protocol == 1,
        Protocol::Icmp6 => packet.source.is_ipv6() && packet.protocol == 58,
    }
}

/// Whether the first bits are the same, one by one.
fn is_within(address: IpAddr, network: IpAddr, length: u8) -> bool {
    let bits = |address: IpAddr| -> Vec<bool> {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
    };
    let (address, network) = (bits(address), bits(network));
    let length = usize::from(length);
    address.len() == network.len() && address[..length] == network[..length]
}

/// Which of the packets the compiled filter keeps.
fn kept(expression: &Expression, packets: &[Packet]) -> Vec<bool> {
    let filter = compile(expression);
    // SAFETY: the type has no padding, and lives until the bytes are copied.
    let filter = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(&filter).cast::<u8>(), size_of_val(&filter)).to_vec()
    };
    let input = [filter, packets.iter().flat_map(Packet::bytes).collect()].concat();
    let mut program = Command::new(COMPILED.path().join("filter"));
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Few enough for the pipes to hold them.
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let mut answers = String::new();
    child.stdout.take().unwrap().read_to_string(&mut answers).unwrap();
    assert!(child.wait().unwrap().success() && answers.len() == packets.len(), "{answers:?}");
    answers.chars().map(|answer| answer == '1').collect()
}

const ADDRESSES: [&[&str]; 2] = [
    &["10.0.0.1", "10.0.0.2", "10.128.0.1", "138.0.0.1", "0.0.0.0"],
    &["2001:db8::1", "2001:db8::2", "2001:db8:8000::1", "a001:db8::1", "::", "::10.0.0.1"],
];
const PORTS: &[u16] = &[0, 1, 53, 80, 443, u16::MAX];
/// The second has a rest of a longer name.
const DEVICES: &[&[u8]] = &[b"lo", b"eth0\0up0", b"eth00", b"", b"abcdefghijklmno"];

fn any_packet() -> impl Strategy<Value = Packet> {
    let flow = select(&ADDRESSES[..]).prop_flat_map(|family| (select(family), select(family)));
    let ports = (select(PORTS), select(PORTS));
    (flow, ports, select(&[1, 6, 17, 58, 132][..]), select(DEVICES)).prop_map(
        |((source, destination), (from, to), protocol, device)| Packet {
            source: SocketAddr::new(source.parse().unwrap(), from),
            destination: SocketAddr::new(destination.parse().unwrap(), to),
            protocol,
            device,
        },
    )
}

fn any_expression() -> impl Strategy<Value = Expression> {
    let address = |address: &str| address.parse().unwrap();
    any::any_expression(
        select(ADDRESSES.concat()).prop_map(address).boxed(),
        select(PORTS).boxed(),
        select(&["lo", "eth0", "eth00", "eth", "abcdefghijklmno"][..]).prop_map(str::to_owned).boxed(),
    )
}

proptest! {
    #[test]
    fn the_program_keeps_what_the_expression_means(
        expression in any_expression(),
        packets in prop::collection::vec(any_packet(), 32),
    ) {
        let expected: Vec<bool> = packets.iter().map(|packet| holds(&expression, packet)).collect();
        let found = kept(&expression, &packets);
        let differs = packets.iter().zip(expected.iter().zip(&found)).find(|(_, (one, other))| one != other);
        prop_assert!(differs.is_none(), "{}: {:?}", expression, differs);
    }
}

#[test]
fn an_expression_of_as_many_tests_as_may_be_is_followed_to_its_end() {
    let ports = (1..=TESTS_MAX).map(|port| format!("port {port}")).collect::<Vec<_>>().join(" or ");
    let filter = PacketFilter::try_from(ports).unwrap().0.unwrap();
    let packet = |port: usize| Packet {
        source: SocketAddr::new([10, 0, 0, 1].into(), 0),
        destination: SocketAddr::new([10, 0, 0, 2].into(), port.try_into().unwrap()),
        protocol: 17,
        device: b"lo",
    };
    let answers = kept(&filter, &[packet(1), packet(TESTS_MAX), packet(TESTS_MAX + 1)]);
    assert_eq!(answers, [true, true, false]);
}
