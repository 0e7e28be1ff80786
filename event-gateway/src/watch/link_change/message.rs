//! What rtnetlink says of links: bytes in, messages out.

use crate::watch::netlink::{self, u16_at, u32_at};

/// Bytes of `struct ifinfomsg`.
const ABOUT: usize = 16;
/// `IFLA_…` of `linux/if_link.h`.
const NAME: u16 = 3;
const CARRIER_CHANGES: u16 = 35;
/// The bits of an attribute's type that are its number.
const TYPE_MASK: u16 = 0x3fff;

/// A link as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    let (mut name, mut changes) = (None, None);
    let mut rest = payload.get(ABOUT..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        match kind & TYPE_MASK {
            NAME => {
                let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
                name = Some(String::from_utf8_lossy(&value[..end]).into_owned());
            }
            CARRIER_CHANGES => changes = u32_at(value, 0),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Link {
        index,
        name: name?,
        is_enabled: flags & libc::IFF_UP != 0,
        is_up: flags & libc::IFF_LOWER_UP != 0,
        changes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::netlink::tests::encoded;
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
            Message::Link(Link { index, name: name.to_owned(), is_enabled: true, is_up, changes })
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

    proptest! {
        #[test]
        fn any_bytes_are_survived(noise in proptest::collection::vec(any::<u8>(), 0..256)) {
            parse(&noise);
            parse(&encoded(libc::RTM_NEWLINK, 0, &noise));
            let link = [about(0, 1, 0, &[(NAME, b"a\0")]), noise].concat();
            prop_assert!(parse(&encoded(libc::RTM_NEWLINK, 0, &link)).0.len() <= 1);
        }
    }
}
