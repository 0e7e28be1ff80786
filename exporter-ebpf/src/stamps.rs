//! The kernel's stamps of arriving packets, and the clock that they are of.

use crate::error::ProbeError;
use crate::maps::{Maps, Table};
use crate::probe::Upkeep;
use kpulse_common::clock::real_offset_ns;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Has the kernel stamp every packet that arrives, for as long as it lives.
pub(crate) struct Stamps {
    real_offset: Table<u32, u64>,
    _socket: UdpSocket,
}

impl Stamps {
    pub(crate) fn open(maps: &Maps) -> Result<Self, ProbeError> {
        let socket = ask_for_stamps().map_err(|error| {
            ProbeError::MissingFeature(format!("the kernel refused to stamp packets: {error}"))
        })?;
        Ok(Self { real_offset: maps.table("real_offset")?, _socket: socket })
    }
}

/// Tells programs the clock that stamps are of, before any of them runs.
pub(crate) fn set_clock(maps: &Maps) -> Result<(), ProbeError> {
    maps.table("real_offset")?.set(&0u32, &real_offset_ns())
}

impl Upkeep for Stamps {
    /// Both clocks run at one rate; only setting the time moves them against each other.
    fn keep(&mut self) -> Result<(), ProbeError> {
        self.real_offset.set(&0, &real_offset_ns())
    }
}

/// A socket that nothing is ever sent to, and that wants to know when its packets arrive.
fn ask_for_stamps() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let yes: libc::c_int = 1;
    // SAFETY: the value has the size that is given, and lives through the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const yes).cast(),
            size_of_val(&yes) as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}
