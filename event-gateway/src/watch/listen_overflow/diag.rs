//! Which sockets listen, and how full is the queue of each? inet_diag of one network namespace.

use crate::watch::netlink::{self, DATAGRAM_BYTES, Received, Socket, checked, u32_at};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

/// `linux/sock_diag.h`, and the state of `net/tcp_states.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP_LISTEN: u32 = 10;
/// Bytes of `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// Most datagrams of an answer: some thousand sockets.
const DATAGRAMS_MAX: usize = 256;

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub ip: IpAddr,
    pub port: u16,
    /// Connections that wait for accept().
    pub backlog: u32,
    /// How many may; the kernel lets one more in.
    pub limit: u32,
}

impl Listener {
    /// Whether the next connection is turned away.
    pub fn is_full(&self) -> bool {
        self.backlog > self.limit
    }
}

/// The sockets that listen for TCP in our own network namespace, or in that of a file.
pub fn listeners(namespace: Option<&Path>) -> io::Result<Vec<Listener>> {
    let Some(path) = namespace else { return ask() };
    // The namespace is the thread's own, and ends with it.
    let ask_there = || {
        let file = File::open(path)?;
        // SAFETY: the descriptor is open, and no memory is involved.
        checked(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })?;
        ask()
    };
    thread::scope(|scope| {
        let asking = thread::Builder::new().name("listeners".to_owned()).spawn_scoped(scope, ask_there)?;
        asking.join().unwrap_or_else(|_| Err(io::Error::other("the thread that asked panicked")))
    })
}

fn ask() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family as u8, &mut found)?;
    }
    Ok(found)
}

fn dump(family: u8, found: &mut Vec<Listener>) -> io::Result<()> {
    let socket = Socket::open(libc::NETLINK_SOCK_DIAG, 0)?;
    let mut request = [0; REQUEST];
    request[0] = family;
    request[1] = libc::IPPROTO_TCP as u8;
    request[4..8].copy_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
    socket.ask(SOCK_DIAG_BY_FAMILY, &request)?;
    let mut buffer = vec![0; DATAGRAM_BYTES];
    for _ in 0..DATAGRAMS_MAX {
        let Received::Datagram(length) = socket.receive(&mut buffer)? else { break };
        if parse(&buffer[..length], found)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the answer has no end"))
}

/// The listeners of a datagram; whether it is the last. An error says why the kernel tells no more.
fn parse(datagram: &[u8], found: &mut Vec<Listener>) -> io::Result<bool> {
    for message in netlink::messages(datagram) {
        if let Some(end) = message.end() {
            return end.map(|()| true).map_err(io::Error::from_raw_os_error);
        }
        if message.kind == SOCK_DIAG_BY_FAMILY {
            found.extend(listener(message.payload));
        }
    }
    Ok(false)
}

fn listener(payload: &[u8]) -> Option<Listener> {
    let payload: &[u8; ANSWER] = payload.first_chunk()?;
    let address: [u8; 16] = *payload.get(8..)?.first_chunk()?;
    let v4 = [address[0], address[1], address[2], address[3]];
    let ip = if i32::from(payload[0]) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::from(v4))
    } else {
        IpAddr::from(Ipv6Addr::from(address))
    };
    let port = u16::from_be_bytes([payload[4], payload[5]]);
    Some(Listener { ip, port, backlog: u32_at(payload, 56)?, limit: u32_at(payload, 60)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::netlink::tests::encoded;
    use proptest::prelude::*;
    use std::net::TcpListener;

    #[test]
    fn a_socket_that_listens_is_found_with_its_limit() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                println!("SKIP: {address} cannot be had here");
                continue;
            };
            let own = listener.local_addr().unwrap();
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 7) }, 0);
            let found = listeners(None).unwrap();
            let expected = Listener { ip: own.ip(), port: own.port(), backlog: 0, limit: 7 };
            assert!(found.contains(&expected) && !expected.is_full(), "{found:?}");
        }
    }

    #[test]
    fn a_refused_dump_is_an_error_with_its_reason() {
        let refused = dump(u8::MAX, &mut Vec::new()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{refused}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(noise in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&noise, &mut Vec::new());
            let mut found = Vec::new();
            let datagram = encoded(SOCK_DIAG_BY_FAMILY, 0, &noise);
            prop_assert!(!parse(&datagram, &mut found).unwrap());
            prop_assert_eq!(found.len(), usize::from(noise.len() >= ANSWER));
        }
    }
}
