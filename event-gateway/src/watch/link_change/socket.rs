//! A socket that hears of links, and asks for all of them.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What may wait in the socket: some hundred messages.
pub const BUFFER_BYTES: libc::c_int = 1 << 20;
/// `linux/sockios.h` and `linux/ethtool.h`.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;

/// In the network namespace of the thread that made it.
pub struct Socket(OwnedFd);

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A datagram of this length.
    Datagram(usize),
    /// Nothing more at present.
    Nothing,
    /// Datagrams are lost: there was no room for them.
    Lost,
}

impl Socket {
    /// Hears of every link from now on.
    pub fn open(buffer_bytes: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is involved, and nothing else owns the descriptor.
        let socket = unsafe {
            let fd = checked(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE))?;
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: an all-zero address is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        let (value, option) = ((&raw const buffer_bytes).cast(), size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: both values have the sizes that are given, and live through the calls.
        unsafe {
            let fd = socket.as_raw_fd();
            // Beyond the system's bound it needs a right; without, the bound has to do.
            if libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, option) < 0 {
                checked(libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, value, option))?;
            }
            checked(libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as libc::socklen_t))?;
        }
        Ok(Self(socket))
    }

    /// For poll(2).
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Asks for all links; they come as messages of their own.
    pub fn ask(&self) -> io::Result<()> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let mut request = [0u8; 32];
        request[..4].copy_from_slice(&32u32.to_ne_bytes());
        request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
        request[6..8].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the request has the length that is given, and lives through the call.
        let sent = unsafe { libc::send(self.fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next datagram, without waiting for one.
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

    /// The driver of a device; `None` where it does not tell.
    pub fn driver(&self, device: &str) -> Option<String> {
        // `struct ethtool_drvinfo`: the command, the driver's name of 32 bytes, and more that is not asked for.
        let mut answer = [0u32; 49];
        answer[0] = ETHTOOL_GDRVINFO;
        // SAFETY: an all-zero request is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = answer.as_mut_ptr().cast();
        // SAFETY: the request points to memory of the size that the command fills, and both live through the call.
        checked(unsafe { libc::ioctl(self.fd(), SIOCETHTOOL, &raw mut request) }).ok()?;
        let name: Vec<u8> =
            answer[1..9].iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect();
        Some(String::from_utf8_lossy(&name).into_owned()).filter(|name| !name.is_empty())
    }
}

fn checked(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
