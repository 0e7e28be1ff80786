//! Filters as the programs read them: one step for each test, with the steps that follow it. `and`, `or` and `not` are
//! where those lead.

use super::abi;
use crate::error::ProbeError;
use crate::maps::{Maps, Table};
use crate::probe::Rule;
use kpulse_common::packet_filter::{Expression, Protocol, Side, TESTS_MAX, Test, mask};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const KEEP: u8 = abi::FILTER_KEEP as u8;
const SKIP: u8 = abi::FILTER_SKIP as u8;

const _: () = assert!(TESTS_MAX == abi::FILTER_STEPS as usize, "what is accepted fits");

/// Puts the filter of the thresholds into the map.
pub(super) fn rule(maps: &Maps) -> Result<Rule, ProbeError> {
    let table: Table<u32, abi::packet_drop_filter> = maps.table("filter")?;
    Ok(Box::new(move |thresholds| match &thresholds.packet_drop.filter.0 {
        Some(expression) => table.set(&0, &compile(expression)),
        None => table.remove(&0),
    }))
}

/// The same as steps. Written from the last to the first, so that each knows where it leads.
pub(super) fn compile(expression: &Expression) -> abi::packet_drop_filter {
    let mut filter = abi::packet_drop_filter { first: abi::FILTER_STEPS, ..Default::default() };
    filter.first = write(expression, KEEP, SKIP, &mut filter).into();
    filter
}

/// Where to begin with an expression that leads to one place where it holds, and else to another.
fn write(expression: &Expression, holds: u8, fails: u8, filter: &mut abi::packet_drop_filter) -> u8 {
    match expression {
        Expression::Not(inner) => write(inner, fails, holds, filter),
        Expression::And(left, right) => {
            let then = write(right, holds, fails, filter);
            write(left, then, fails, filter)
        }
        Expression::Or(left, right) => {
            let otherwise = write(right, holds, fails, filter);
            write(left, holds, otherwise, filter)
        }
        Expression::Test(test) => {
            filter.first -= 1;
            filter.reads_device |= u32::from(matches!(test, Test::Device(_)));
            let place = filter.first as u8;
            filter.steps[usize::from(place)] = abi::packet_drop_step { next: [fails, holds], ..step(test) };
            place
        }
    }
}

fn step(test: &Test) -> abi::packet_drop_step {
    let any = abi::packet_drop_step { ends: ends(Side::Either), last_port: u16::MAX, ..Default::default() };
    match test {
        Test::Protocol(protocol) => demand(of_protocol(*protocol), any),
        Test::Ports { protocol, side, first, last } => {
            let step =
                abi::packet_drop_step { ends: ends(*side), first_port: *first, last_port: *last, ..any };
            let step = demand((abi::FILTER_HAS_PORTS, abi::FILTER_HAS_PORTS), step);
            protocol.map_or(step, |protocol| demand(of_protocol(protocol), step))
        }
        Test::Address { side, address, length } => {
            let mut step = demand(version(*address), abi::packet_drop_step { ends: ends(*side), ..any });
            let mask = mask(*address, *length).map_or([u32::MAX; 4], address_words);
            step.mask[..4].copy_from_slice(&mask);
            step.value[..4].copy_from_slice(&address_words(*address));
            step
        }
        Test::Device(name) => {
            let mut step = abi::packet_drop_step { ends: 1 << abi::FILTER_DEVICE, ..any };
            let (mut value, mut mask) = ([0; 16], [0; 16]);
            value[..name.len()].copy_from_slice(name.as_bytes());
            // What is behind the end of a name may be left of a longer one.
            mask[..=name.len()].fill(0xff);
            step.value[..4].copy_from_slice(&words(value));
            step.mask[..4].copy_from_slice(&words(mask));
            step
        }
    }
}

/// Bits of the word behind the address, and what they must be.
type Kind = (u32, u32);

fn demand((mask, value): Kind, mut step: abi::packet_drop_step) -> abi::packet_drop_step {
    step.mask[4] |= mask;
    step.value[4] |= value;
    step
}

fn of_protocol(protocol: Protocol) -> Kind {
    let number = |number| (0xff, number);
    let both = |(mask, value): Kind, (more, rest): Kind| (mask | more, value | rest);
    match protocol {
        Protocol::Ip => version(Ipv4Addr::UNSPECIFIED.into()),
        Protocol::Ip6 => version(Ipv6Addr::UNSPECIFIED.into()),
        Protocol::Tcp => number(6),
        Protocol::Udp => number(17),
        Protocol::Icmp => both(number(1), of_protocol(Protocol::Ip)),
        Protocol::Icmp6 => both(number(58), of_protocol(Protocol::Ip6)),
    }
}

fn version(address: IpAddr) -> Kind {
    let version = if address.is_ipv4() { 4 } else { 6 };
    (0xff << abi::FILTER_VERSION_SHIFT, version << abi::FILTER_VERSION_SHIFT)
}

fn ends(side: Side) -> u8 {
    let (source, destination) = (1 << abi::FILTER_SOURCE, 1 << abi::FILTER_DESTINATION);
    match side {
        Side::Either => source | destination,
        Side::Source => source,
        Side::Destination => destination,
    }
}

/// In the order of the wire; an address of IPv4 is the first word.
fn address_words(address: IpAddr) -> [u32; 4] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    words(bytes)
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|index| u32::from_ne_bytes(words[index]))
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
