//! Netlink: sockets to the kernel, and the messages in what it sends.

pub mod links;
pub mod namespaces;
pub mod sockets;

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Longer than any datagram of the kernel.
pub const DATAGRAM_BYTES: usize = 64 << 10;
/// The bits of an attribute's type that are its number.
const ATTRIBUTE_MASK: u16 = 0x3fff;
/// Most datagrams of a dump that is read at once: some hundred thousand sockets.
const DATAGRAMS_MAX: usize = 4_096;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// In the network namespace of the thread that made it.
pub struct Socket(OwnedFd);

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A datagram of this length.
    Datagram(usize),
    /// Nothing more at present; only from a socket that does not wait.
    Nothing,
    /// Datagrams are lost: there was no room for them.
    Lost,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'d> {
    /// What it is about, in its protocol's numbers.
    pub kind: u16,
    /// Whether what is told of changed while the kernel wrote the dump that this belongs to.
    pub is_interrupted: bool,
    /// What follows the header.
    pub payload: &'d [u8],
}

impl Socket {
    /// For a protocol, `NETLINK_…`. The flags are those of socket(2).
    pub fn open(protocol: libc::c_int, flags: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
        // SAFETY: no memory is involved, and nothing else owns the descriptor.
        let socket =
            unsafe { OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_NETLINK, kind, protocol))?) };
        Ok(Self(socket))
    }

    /// Hears from now on what goes to these groups, of which so many bytes may wait.
    pub fn join(&self, groups: libc::c_int, buffer_bytes: libc::c_int) -> io::Result<()> {
        // SAFETY: an all-zero address is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups as u32;
        let (value, option) = ((&raw const buffer_bytes).cast(), size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: both values have the sizes that are given, and live through the calls.
        unsafe {
            // Beyond the system's bound it needs a right; without, the bound has to do.
            if libc::setsockopt(self.fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, option) < 0 {
                checked(libc::setsockopt(self.fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, value, option))?;
            }
            let length = size_of_val(&address) as libc::socklen_t;
            checked(libc::bind(self.fd(), (&raw const address).cast(), length)).map(drop)
        }
    }

    /// For poll(2).
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Asks for a dump: everything of a kind, in messages that [`Message::end`] closes.
    pub fn ask(&self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.request(kind, libc::NLM_F_DUMP, payload)
    }

    /// Asks for one thing, which a message answers.
    pub fn ask_one(&self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.request(kind, 0, payload)
    }

    fn request(&self, kind: u16, flags: libc::c_int, payload: &[u8]) -> io::Result<()> {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let request = encode(kind, flags, payload);
        // SAFETY: the request has the length that is given, and lives through the call.
        let sent = unsafe { libc::send(self.fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next datagram.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            // SAFETY: the buffer has the length that is given, and lives through the call.
            let length =
                unsafe { libc::recv(self.fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) };
            match usize::try_from(length) {
                // With MSG_TRUNC it is the whole length, of which the buffer holds a part.
                Ok(length) if length > buffer.len() => return Ok(Received::Lost),
                Ok(length) => return Ok(Received::Datagram(length)),
                Err(_) => {}
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(Received::Nothing),
                Some(libc::ENOBUFS) => return Ok(Received::Lost),
                _ => return Err(error),
            }
        }
    }
}

impl Message<'_> {
    /// Whether a dump ends here, and the errno where the kernel does not tell all: an error answers what it refuses at
    /// once, and a dump that fails says so in its last message.
    pub fn end(&self) -> Option<Result<(), i32>> {
        let errno = u32_at(self.payload, 0).map_or(0, |word| word.cast_signed().wrapping_neg());
        match i32::from(self.kind) {
            libc::NLMSG_ERROR | libc::NLMSG_DONE if errno > 0 => Some(Err(errno)),
            libc::NLMSG_DONE => Some(Ok(())),
            // An error of 0 acknowledges.
            _ => None,
        }
    }
}

/// The messages of a datagram. What is cut off is passed over.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let (kind, flags) = (u16_at(datagram, 4)?, u16_at(datagram, 6)?);
        let payload = datagram.get(HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, is_interrupted: i32::from(flags) & libc::NLM_F_DUMP_INTR != 0, payload })
    })
}

/// The attributes of a message, by number. What is cut off is passed over.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(u16_at(bytes, 0)?), u16_at(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & ATTRIBUTE_MASK, value))
    })
}

/// A message as it is sent.
fn encode(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = (HEADER + payload.len()) as u32;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], payload].concat()
}

/// Gives each message of a dump, of this kind, to `each`. It asks from the network namespace of the calling thread.
pub fn dump(
    protocol: libc::c_int,
    ask: u16,
    payload: &[u8],
    each: &mut dyn FnMut(Message),
) -> io::Result<()> {
    let socket = Socket::open(protocol, 0)?;
    socket.ask(ask, payload)?;
    let mut buffer = vec![0; DATAGRAM_BYTES];
    for _ in 0..DATAGRAMS_MAX {
        let Received::Datagram(length) = socket.receive(&mut buffer)? else { break };
        for message in messages(&buffer[..length]) {
            match message.end() {
                Some(end) => return end.map_err(io::Error::from_raw_os_error),
                None => each(message),
            }
        }
    }
    Err(io::Error::other("the answer has no end"))
}

/// The number at a place, if it is there.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The number at a place, if it is there.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The outcome of a system call.
pub fn checked(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message in a datagram of several.
    pub(crate) fn encoded(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = encode(kind, flags, payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_dump_ends_well_or_with_the_kernels_reason() {
        let end = |kind: i32, payload: &[u8]| {
            messages(&encoded(kind as u16, 0, payload)).next().and_then(|message| message.end())
        };
        let refused = (-libc::ENOENT).to_ne_bytes();
        assert_eq!(end(libc::NLMSG_DONE, &[0; 4]), Some(Ok(())));
        assert_eq!(end(libc::NLMSG_DONE, &[]), Some(Ok(())));
        assert_eq!(end(libc::NLMSG_DONE, &refused), Some(Err(libc::ENOENT)));
        assert_eq!(end(libc::NLMSG_ERROR, &refused), Some(Err(libc::ENOENT)));
        assert_eq!(end(libc::NLMSG_ERROR, &[0; 4]), None, "it acknowledges");
        assert_eq!(end(16, &refused), None);
    }

    /// An unknown family is refused at once, an unknown protocol of a known family by the dump.
    #[test]
    fn the_kernel_refuses_a_dump_in_both_ways() {
        let socket = Socket::open(libc::NETLINK_SOCK_DIAG, 0).unwrap();
        let mut buffer = vec![0; DATAGRAM_BYTES];
        for (family, protocol, kind) in
            [(255, libc::IPPROTO_TCP, libc::NLMSG_ERROR), (libc::AF_INET, 255, libc::NLMSG_DONE)]
        {
            let mut request = [0; 56];
            (request[0], request[1]) = (family as u8, protocol as u8);
            socket.ask(20, &request).unwrap();
            let Received::Datagram(length) = socket.receive(&mut buffer).unwrap() else {
                panic!("no answer")
            };
            let message = messages(&buffer[..length]).next().unwrap();
            assert_eq!(i32::from(message.kind), kind);
            assert!(matches!(message.end(), Some(Err(_))), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(noise in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = messages(&noise).filter_map(|message| message.end()).count();
            let datagram = [encoded(20, 0, &noise), encoded(libc::NLMSG_DONE as u16, 0, &[])].concat();
            let found: Vec<Message> = messages(&datagram).collect();
            prop_assert_eq!(found.len(), 2);
            prop_assert_eq!(found[0].payload, &*noise);
        }
    }
}
