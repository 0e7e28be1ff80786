//! Which packets are meant? Expressions in a part of the syntax of pcap-filter(7), for what a packet's headers say.
//!
//! ```text
//! expression = term { ( "and" | "&&" | "or" | "||" ) term }
//! term       = ( "not" | "!" ) term | "(" expression ")" | test
//! test       = "ip" | "ip6" | "tcp" | "udp" | "icmp" | "icmp6"
//!            | [ "ip" | "ip6" ] [ "src" | "dst" ] ( [ "host" ] address | "net" address "/" length )
//!            | [ "tcp" | "udp" ] [ "src" | "dst" ] ( "port" number | "portrange" number "-" number )
//!            | "ifname" name
//! ```
//!
//! As in pcap, `and` and `or` bind alike and from left to right, `not` binds closer than both, what is no keyword where a
//! test is expected repeats the words of the test before it (`port 80 or 443`), and without a side either fits. The word
//! `host` may be left out after a side only.

mod parse;

pub use parse::FilterError;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Tests that one expression may have: what the kernel's program has room for.
pub const TESTS_MAX: usize = 64;
/// Longest name of a device.
pub const DEVICE_BYTES_MAX: usize = 15;

/// An expression, or none, which means every packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PacketFilter(pub Option<Expression>);

/// What a packet must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// This.
    Test(Test),
    /// Not that.
    Not(Box<Expression>),
    /// Both.
    And(Box<Expression>, Box<Expression>),
    /// Either.
    Or(Box<Expression>, Box<Expression>),
}

/// One thing that a packet may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// It is of this protocol.
    Protocol(Protocol),
    /// An address is this one, or in this network.
    Address {
        /// Which address.
        side: Side,
        /// The address; what is behind `length` is zero.
        address: IpAddr,
        /// Leading bits that must fit.
        length: u8,
    },
    /// A port is in this range.
    Ports {
        /// `tcp` or `udp`; `None` for either.
        protocol: Option<Protocol>,
        /// Which port.
        side: Side,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// It was on this network device.
    Device(String),
}

/// How long addresses of the family of this one are.
pub fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// What a network's length leaves of addresses of the family of this one; `None` where it is longer than they are.
pub fn mask(address: IpAddr, length: u8) -> Option<IpAddr> {
    let behind = u32::from(bits(address).checked_sub(length)?);
    Some(match address {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::MAX.checked_shl(behind).unwrap_or(0)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(u128::MAX.checked_shl(behind).unwrap_or(0)).into(),
    })
}

/// Words of the syntax.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// How it is written.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn of(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|it| it.word() == word)
            }
        }
    };
}

words! {
    /// What a packet is of.
    Protocol {
        /// IPv4.
        Ip = "ip",
        /// IPv6.
        Ip6 = "ip6",
        /// TCP over either.
        Tcp = "tcp",
        /// UDP over either.
        Udp = "udp",
        /// ICMP, over IPv4.
        Icmp = "icmp",
        /// ICMPv6, over IPv6.
        Icmp6 = "icmp6",
    }
}

words! {
    /// Which end of a packet's way.
    Side {
        /// Either.
        Either = "",
        /// Where it comes from.
        Source = "src",
        /// Where it goes to.
        Destination = "dst",
    }
}

impl TryFrom<String> for PacketFilter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        parse::parse(&text).map(Self)
    }
}

impl From<PacketFilter> for String {
    fn from(filter: PacketFilter) -> Self {
        filter.to_string()
    }
}

impl fmt::Display for PacketFilter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |expression| expression.fmt(out))
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Both bind alike and to the left, so that only what stands right of them needs parentheses.
        let closed = |inner: &Self| match inner {
            Self::And(..) | Self::Or(..) => format!("({inner})"),
            Self::Test(_) | Self::Not(_) => inner.to_string(),
        };
        match self {
            Self::Test(test) => test.fmt(out),
            Self::Not(inner) => write!(out, "not {}", closed(inner)),
            Self::And(left, right) => write!(out, "{left} and {}", closed(right)),
            Self::Or(left, right) => write!(out, "{left} or {}", closed(right)),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blank = |word: &str| if word.is_empty() { String::new() } else { format!("{word} ") };
        match self {
            Self::Protocol(protocol) => out.write_str(protocol.word()),
            Self::Address { side, address, length } => {
                write!(out, "{}", blank(side.word()))?;
                if *length == bits(*address) {
                    write!(out, "host {address}")
                } else {
                    write!(out, "net {address}/{length}")
                }
            }
            Self::Ports { protocol, side, first, last } => {
                let protocol = protocol.map_or("", Protocol::word);
                write!(out, "{}{}", blank(protocol), blank(side.word()))?;
                if first == last {
                    write!(out, "port {first}")
                } else {
                    write!(out, "portrange {first}-{last}")
                }
            }
            Self::Device(name) => write!(out, "ifname {name}"),
        }
    }
}

#[cfg(test)]
mod any;
#[cfg(test)]
mod tests;
