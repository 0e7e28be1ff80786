//! What rtnetlink says of devices, which it calls links.

use crate::netlink::{self, DATAGRAM_BYTES, Received, Socket, attributes, u32_at};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

/// Bytes of `struct ifinfomsg`.
const ABOUT: usize = 16;

/// `IFLA_…` of `linux/if_link.h`.
const NAME: u16 = 3;
const BELOW: u16 = 5;
const MASTER: u16 = 10;
const CARRIER_CHANGES: u16 = 35;
const BELOW_IN: u16 = 37;
/// Bytes of `struct ifaddrmsg`, and `IFA_…` of `linux/if_addr.h`.
const ABOUT_ADDRESS: usize = 8;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
/// `NETNSA_…` of `linux/net_namespace.h`.
const NSID: u16 = 1;
const FD: u16 = 3;

/// A link as the kernel tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether somebody switched it on.
    pub is_enabled: bool,
    /// Whether it is on and has a carrier.
    pub is_up: bool,
    /// How often the carrier came or went since the device was made.
    pub changes: Option<u32>,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// The device that its packets go through: the other end of a veth, what a VLAN or a macvlan is on top of.
    pub below: Option<u32>,
    /// What our namespace calls that of the device below, where it is another.
    pub below_in: Option<u32>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A link that is there.
    Link(Link),
    /// A link that is gone.
    Gone(u32),
    /// The end of a dump.
    Done,
    /// The kernel refuses a dump with this errno.
    Refused(i32),
}

/// The devices of the namespace of the calling thread.
pub fn all() -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    netlink::dump(libc::NETLINK_ROUTE, libc::RTM_GETLINK, &[0; ABOUT], &mut |message| {
        found.extend(link(message.payload));
    })?;
    Ok(found)
}

/// The addresses of a device in the namespace of the calling thread.
pub fn addresses(device: u32) -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    netlink::dump(libc::NETLINK_ROUTE, libc::RTM_GETADDR, &[0; ABOUT_ADDRESS], &mut |message| {
        found.extend(address(message.payload).filter(|(of, _)| *of == device).map(|(_, address)| address));
    })?;
    Ok(found)
}

fn address(payload: &[u8]) -> Option<(u32, IpAddr)> {
    let of = |wanted: u16| attributes(payload.get(ABOUT_ADDRESS..)?).find(|(kind, _)| *kind == wanted);
    // That of the other end, where the link is between two.
    let (_, value) = of(LOCAL).or_else(|| of(ADDRESS))?;
    let address = match i32::from(*payload.first()?) {
        libc::AF_INET => IpAddr::from(*value.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*value.first_chunk::<16>()?),
        _ => return None,
    };
    Some((u32_at(payload, 4)?, address))
}

/// What the namespace of the calling thread calls another, as [`Link::below_in`] has it; `None` where it has no name.
pub fn name_of(namespace: &File) -> io::Result<Option<u32>> {
    let attribute = [8u16.to_ne_bytes(), FD.to_ne_bytes()].concat();
    let request = [&[0; 4], &attribute[..], &namespace.as_raw_fd().to_ne_bytes()].concat();
    let socket = Socket::open(libc::NETLINK_ROUTE, 0)?;
    socket.ask_one(libc::RTM_GETNSID, &request)?;
    let mut buffer = vec![0; DATAGRAM_BYTES];
    let Received::Datagram(length) = socket.receive(&mut buffer)? else { return Ok(None) };
    let name = netlink::messages(&buffer[..length]).find_map(|message| {
        let is_answer = message.kind == libc::RTM_NEWNSID;
        let (_, value) =
            attributes(message.payload.get(4..)?).find(|(kind, _)| is_answer && *kind == NSID)?;
        u32_at(value, 0)
    });
    Ok(name.filter(|&name| name.cast_signed() >= 0))
}

/// The messages of a datagram, and whether links changed while the kernel wrote the dump that they are of. What is not
/// about links, and what is cut off, is passed over.
pub fn parse(datagram: &[u8]) -> (Vec<Message>, bool) {
    let is_interrupted = netlink::messages(datagram).any(|message| message.is_interrupted);
    (netlink::messages(datagram).filter_map(message).collect(), is_interrupted)
}

fn message(message: netlink::Message) -> Option<Message> {
    match (message.end(), message.kind) {
        (Some(Ok(())), _) => Some(Message::Done),
        (Some(Err(errno)), _) => Some(Message::Refused(errno)),
        (None, libc::RTM_NEWLINK) => link(message.payload).map(Message::Link),
        (None, libc::RTM_DELLINK) => index(message.payload).map(Message::Gone),
        (None, _) => None,
    }
}

/// The link of a message about the device itself: a bridge tells of its ports in messages of its own family, and a port
/// that leaves it is not gone.
fn index(payload: &[u8]) -> Option<u32> {
    let family = i32::from(*payload.first()?);
    (family == libc::AF_UNSPEC).then(|| u32_at(payload, 4)).flatten()
}

fn link(payload: &[u8]) -> Option<Link> {
    let index = index(payload)?;
    let flags = u32_at(payload, 8)?.cast_signed();
    let mut name = None;
    let (is_enabled, is_up) = (flags & libc::IFF_UP != 0, flags & libc::IFF_LOWER_UP != 0);
    let mut link = Link { index, is_enabled, is_up, ..Link::default() };
    for (kind, value) in attributes(payload.get(ABOUT..)?) {
        match kind {
            NAME => {
                let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
                name = Some(String::from_utf8_lossy(&value[..end]).into_owned());
            }
            CARRIER_CHANGES => link.changes = u32_at(value, 0),
            MASTER => link.master = u32_at(value, 0),
            BELOW => link.below = u32_at(value, 0),
            BELOW_IN => link.below_in = u32_at(value, 0),
            _ => {}
        }
    }
    Some(Link { name: name?, ..link })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::encoded;
    use proptest::prelude::*;

    fn about(family: u8, index: u32, flags: i32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        bytes.extend(index.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 4]);
        for (kind, value) in attributes {
            bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn links_are_read_and_ports_of_bridges_passed_over() {
        let bridge = libc::AF_BRIDGE as u8;
        let on = libc::IFF_UP | libc::IFF_LOWER_UP;
        let attributes: [(u16, &[u8]); 3] =
            [(1, b"x"), (NAME, b"eth0\0"), (CARRIER_CHANGES, &7u32.to_ne_bytes())];
        let datagram = [
            encoded(libc::RTM_NEWLINK, 0, &about(0, 2, on, &attributes)),
            encoded(libc::RTM_NEWLINK, 0, &about(0, 3, libc::IFF_UP, &[(NAME, b"eth1\0")])),
            encoded(libc::RTM_NEWLINK, 0, &about(bridge, 2, on, &attributes)),
            encoded(libc::RTM_DELLINK, 0, &about(bridge, 2, on, &attributes)),
            encoded(libc::RTM_DELLINK, 0, &about(0, 4, 0, &[])),
            encoded(libc::NLMSG_ERROR as u16, 0, &(-libc::EBUSY).to_ne_bytes()),
            encoded(libc::NLMSG_ERROR as u16, 0, &0i32.to_ne_bytes()),
            encoded(libc::NLMSG_DONE as u16, 0, &[0; 4]),
        ]
        .concat();
        let link = |index, name: &str, is_up, changes| {
            let link = Link { index, name: name.to_owned(), is_up, changes, ..Link::default() };
            Message::Link(Link { is_enabled: true, ..link })
        };
        let expected = [
            link(2, "eth0", true, Some(7)),
            link(3, "eth1", false, None),
            Message::Gone(4),
            Message::Refused(libc::EBUSY),
            Message::Done,
        ];
        assert_eq!(parse(&datagram), (expected.to_vec(), false));
        let interrupted = encoded(libc::NLMSG_DONE as u16, libc::NLM_F_DUMP_INTR as u16, &[0; 4]);
        assert_eq!(parse(&interrupted), (vec![Message::Done], true));
    }

    #[test]
    fn loopback_has_its_addresses_and_its_namespace_a_name_or_none() {
        let loopback = all().unwrap().into_iter().find(|link| link.name == "lo").unwrap();
        assert!(addresses(loopback.index).unwrap().contains(&IpAddr::from([127, 0, 0, 1])));
        assert!(addresses(u32::MAX).unwrap().is_empty());
        name_of(&File::open("/proc/self/ns/net").unwrap()).unwrap();
        let refused = name_of(&File::open("/proc/self/exe").unwrap());
        assert_eq!(refused.unwrap_or(None), None, "no namespace");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(noise in proptest::collection::vec(any::<u8>(), 0..256)) {
            parse(&noise);
            parse(&encoded(libc::RTM_NEWLINK, 0, &noise));
            let _ = address(&noise);
            let link = [about(0, 1, 0, &[(NAME, b"a\0")]), noise].concat();
            prop_assert!(parse(&encoded(libc::RTM_NEWLINK, 0, &link)).0.len() <= 1);
        }
    }
}
