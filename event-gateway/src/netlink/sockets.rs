//! The TCP sockets of the network namespace of the calling thread, from inet_diag.

use crate::netlink::{self, attributes, u32_at};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `linux/sock_diag.h` and `linux/inet_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Bytes of `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const REQUEST: usize = 56;
const ANSWER: usize = 72;

/// Which sockets, by their state in `net/tcp_states.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Established = 1,
    Listen = 10,
}

/// One socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; nothing but zeros where it listens.
    pub remote: SocketAddr,
    /// Number of the device that it is bound to; 0 for none.
    pub device: u32,
    /// Bytes that wait for the program, or connections that wait for accept().
    pub receive_queue: u32,
    /// Bytes that wait for the other end, or how many connections may wait; the kernel lets one more in.
    pub send_queue: u32,
    /// Its cgroup in the unified hierarchy; from Linux 5.9 on.
    pub cgroup: Option<u64>,
}

impl TcpSocket {
    /// Whether one that listens turns the next connection away.
    pub fn is_full(&self) -> bool {
        self.receive_queue > self.send_queue
    }
}

/// The TCP sockets in a state, of IPv4 and IPv6.
pub fn tcp(state: State) -> io::Result<Vec<TcpSocket>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family as u8, state, &mut found)?;
    }
    Ok(found)
}

fn dump(family: u8, state: State, found: &mut Vec<TcpSocket>) -> io::Result<()> {
    let mut request = [0; REQUEST];
    request[0] = family;
    request[1] = libc::IPPROTO_TCP as u8;
    request[4..8].copy_from_slice(&(1u32 << state as u32).to_ne_bytes());
    netlink::dump(libc::NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &request, &mut |message| {
        if message.kind == SOCK_DIAG_BY_FAMILY {
            found.extend(tcp_socket(message.payload));
        }
    })
}

fn tcp_socket(payload: &[u8]) -> Option<TcpSocket> {
    let (answer, rest) = payload.split_first_chunk::<ANSWER>()?;
    let is_v4 = i32::from(answer[0]) == libc::AF_INET;
    let end = |address: usize, port: usize| -> Option<SocketAddr> {
        let bytes: [u8; 16] = *answer.get(address..)?.first_chunk()?;
        let v4 = Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]);
        let ip = if is_v4 { IpAddr::from(v4) } else { IpAddr::from(Ipv6Addr::from(bytes)) };
        Some(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*answer.get(port..)?.first_chunk()?)))
    };
    let cgroup = attributes(rest).find(|(kind, _)| *kind == INET_DIAG_CGROUP_ID);
    Some(TcpSocket {
        local: end(8, 4)?,
        remote: end(24, 6)?,
        device: u32_at(answer, 40)?,
        receive_queue: u32_at(answer, 56)?,
        send_queue: u32_at(answer, 60)?,
        cgroup: cgroup.and_then(|(_, value)| Some(u64::from_ne_bytes(*value.first_chunk()?))),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    impl TcpSocket {
        pub(crate) fn at(local: SocketAddr) -> Self {
            let remote = SocketAddr::from(([0; 4], 0));
            Self { local, remote, device: 0, receive_queue: 0, send_queue: 0, cgroup: None }
        }
    }

    #[test]
    fn sockets_that_listen_and_that_are_connected_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                println!("SKIP: {address} cannot be had here");
                continue;
            };
            let own = listener.local_addr().unwrap();
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 7) }, 0);
            let its = |state| tcp(state).unwrap().into_iter().find(|socket| socket.local == own);
            let found = its(State::Listen).unwrap();
            assert_eq!((found.receive_queue, found.send_queue, found.is_full()), (0, 7, false));
            assert_eq!(its(State::Established), None);
            let client = TcpStream::connect(own).unwrap();
            let accepted = listener.accept().unwrap();
            assert_eq!(its(State::Established).unwrap().remote, accepted.1);
            drop(client);
        }
    }

    #[test]
    fn a_refused_dump_is_an_error_with_its_reason() {
        let refused = dump(u8::MAX, State::Listen, &mut Vec::new()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{refused}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(noise in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert_eq!(tcp_socket(&noise).is_some(), noise.len() >= ANSWER);
        }
    }
}
