//! Opening the listening socket, with errors that say which flag helps.

use super::HttpError;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Listens on `":10840"` (every address of both families), `"127.0.0.1:0"` or `"[::1]:10840"`.
///
/// # Errors
/// One sentence that names `flag`, the flag or key that gave the address.
pub fn bind(address: &str, flag: &str) -> Result<TcpListener, HttpError> {
    let listener = open(address, flag)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The sockets that systemd opened for this process (`LISTEN_FDS`). To be called once, since it takes them.
///
/// # Errors
/// When there is none, or one of them is no listening TCP socket.
pub fn activated() -> Result<Vec<TcpListener>, HttpError> {
    let refused = |why: String| HttpError::Activation { why };
    let passed = sd_notify::listen_fds().map_err(|error| refused(error.to_string()))?;
    let listeners = passed.map(|fd| adopt(fd).map_err(&refused)).collect::<Result<Vec<_>, _>>()?;
    if listeners.is_empty() {
        Err(refused("LISTEN_FDS is not set for this process".to_owned()))
    } else {
        Ok(listeners)
    }
}

fn adopt(fd: RawFd) -> Result<TcpListener, String> {
    let option = |name| {
        let mut value: libc::c_int = 0;
        let mut length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
        let target = std::ptr::from_mut(&mut value).cast();
        // SAFETY: the option's value is an int, which `value` is, and `length` is its size; a descriptor that is none
        // is an error.
        let outcome = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, target, &raw mut length) };
        (outcome == 0).then_some(value)
    };
    let is_stream = option(libc::SO_TYPE) == Some(libc::SOCK_STREAM);
    let is_ip = matches!(option(libc::SO_DOMAIN), Some(libc::AF_INET | libc::AF_INET6));
    if option(libc::SO_ACCEPTCONN) != Some(1) || !is_stream || !is_ip {
        return Err(format!("descriptor {fd} is no listening TCP socket"));
    }
    // SAFETY: systemd passed the descriptor to this process, which takes it once.
    let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    Ok(listener)
}

fn open(address: &str, flag: &str) -> Result<TcpListener, HttpError> {
    let unusable =
        |why: String| HttpError::Address { address: address.to_owned(), flag: flag.to_owned(), why };
    let addresses: Vec<SocketAddr> = if let Some(port) = address.strip_prefix(':') {
        let port: u16 = port.parse().map_err(|_| unusable(format!("{port:?} is not a port")))?;
        // Without IPv6 the first is refused and the second stands.
        vec![([0u16; 8], port).into(), ([0u8; 4], port).into()]
    } else {
        address.to_socket_addrs().map_err(|error| unusable(error.to_string()))?.collect()
    };
    let mut refused = None;
    for candidate in addresses {
        match TcpListener::bind(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                return Err(HttpError::Taken { address: address.to_owned(), flag: flag.to_owned() });
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(match refused {
        Some(source) => HttpError::Bind { address: address.to_owned(), flag: flag.to_owned(), source },
        None => unusable("it names no address".to_owned()),
    })
}
