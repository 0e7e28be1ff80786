//! Opening the listening socket, with errors that say which flag helps.

use super::HttpError;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

/// Listens on `":10840"` (every address of both families), `"127.0.0.1:0"` or `"[::1]:10840"`.
///
/// # Errors
/// One sentence that names `flag`, the flag or key that gave the address.
pub fn bind(address: &str, flag: &str) -> Result<TcpListener, HttpError> {
    let listener = open(address, flag)?;
    listener.set_nonblocking(true)?;
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
