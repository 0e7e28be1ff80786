//! Which sockets listen, and how full is the queue of each? inet_diag of one network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;

/// `linux/sock_diag.h`, and the state of `net/tcp_states.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP_LISTEN: u32 = 10;
/// Bytes of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const HEADER: usize = 16;
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
    // SAFETY: no memory is involved, and nothing else owns the descriptor.
    let socket = unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        OwnedFd::from_raw_fd(checked(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG))?)
    };
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = [0u8; HEADER + REQUEST];
    request[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = libc::IPPROTO_TCP as u8;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
    let mut buffer = vec![0u8; 64 << 10];
    // SAFETY: the request has the length that is given, and lives through the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    for _ in 0..DATAGRAMS_MAX {
        // SAFETY: the buffer has the length that is given, and lives through the call.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
        if parse(&buffer[..length], found) {
            break;
        }
    }
    Ok(())
}

/// The listeners of a datagram; whether it is the last. An error ends a dump too.
fn parse(mut bytes: &[u8], found: &mut Vec<Listener>) -> bool {
    while let (Some(length), Some(kind)) = (bytes.first_chunk(), bytes.get(4..).and_then(<[u8]>::first_chunk))
    {
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let Some(payload) = bytes.get(HEADER..length) else { break };
        match u16::from_ne_bytes(*kind) {
            SOCK_DIAG_BY_FAMILY => found.extend(listener(payload)),
            kind if [libc::NLMSG_DONE, libc::NLMSG_ERROR].contains(&i32::from(kind)) => return true,
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn listener(payload: &[u8]) -> Option<Listener> {
    let payload: &[u8; ANSWER] = payload.first_chunk()?;
    let word = |at: usize| Some(u32::from_ne_bytes(*payload.get(at..)?.first_chunk()?));
    let address: [u8; 16] = *payload.get(8..)?.first_chunk()?;
    let v4 = [address[0], address[1], address[2], address[3]];
    let ip = if i32::from(payload[0]) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::from(v4))
    } else {
        IpAddr::from(Ipv6Addr::from(address))
    };
    let port = u16::from_be_bytes([payload[4], payload[5]]);
    Some(Listener { ip, port, backlog: word(56)?, limit: word(60)? })
}

fn checked(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    proptest! {
        #[test]
        fn any_bytes_are_survived(noise in proptest::collection::vec(any::<u8>(), 0..256)) {
            parse(&noise, &mut Vec::new());
            let mut message = [&((HEADER + noise.len()) as u32).to_ne_bytes()[..], &[20, 0, 0, 0]].concat();
            message.resize(HEADER, 0);
            let mut found = Vec::new();
            prop_assert!(!parse(&[message, noise.clone()].concat(), &mut found));
            prop_assert_eq!(found.len(), usize::from(noise.len() >= ANSWER));
        }
    }
}
