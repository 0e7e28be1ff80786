//! Any expression of addresses, ports and devices to choose from. The tests of the kernel's program read this file too.

use super::*;
use proptest::prelude::*;
use proptest::sample::select;

fn any_test(
    addresses: BoxedStrategy<IpAddr>,
    ports: BoxedStrategy<u16>,
    devices: BoxedStrategy<String>,
) -> impl Strategy<Value = Test> {
    let side = || select(Side::ALL);
    let address = (side(), addresses, any::<u8>()).prop_map(|(side, address, length)| {
        let length = length % (if address.is_ipv4() { 33 } else { 129 });
        let address = match (address, mask(address, length)) {
            (IpAddr::V4(address), Some(IpAddr::V4(mask))) => (address & mask).into(),
            (IpAddr::V6(address), Some(IpAddr::V6(mask))) => (address & mask).into(),
            other => panic!("{other:?} are of one family"),
        };
        Test::Address { side, address, length }
    });
    let protocol = select(&[None, Some(Protocol::Tcp), Some(Protocol::Udp)][..]);
    let ports = (protocol, side(), ports.clone(), ports).prop_map(|(protocol, side, one, other)| {
        Test::Ports { protocol, side, first: one.min(other), last: one.max(other) }
    });
    prop_oneof![
        select(Protocol::ALL).prop_map(Test::Protocol),
        address,
        ports,
        devices.prop_map(Test::Device)
    ]
}

pub(super) fn any_expression(
    addresses: BoxedStrategy<IpAddr>,
    ports: BoxedStrategy<u16>,
    devices: BoxedStrategy<String>,
) -> impl Strategy<Value = Expression> {
    let test = any_test(addresses, ports, devices).prop_map(Expression::Test);
    test.prop_recursive(8, 24, 2, |inner| {
        let pair = (inner.clone(), inner.clone()).prop_map(|(one, other)| (Box::new(one), Box::new(other)));
        prop_oneof![
            inner.prop_map(|it| Expression::Not(Box::new(it))),
            pair.clone().prop_map(|(left, right)| Expression::And(left, right)),
            pair.prop_map(|(left, right)| Expression::Or(left, right)),
        ]
    })
}
