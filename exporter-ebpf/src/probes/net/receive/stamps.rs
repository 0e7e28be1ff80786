//! The kernel's stamps of arriving packets, and the clock that they are of.

use crate::error::ProbeError;
use crate::maps::{Maps, Table};
use crate::probe::Upkeep;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Has the kernel stamp every packet that arrives, for as long as it lives.
pub(super) struct Stamps {
    real_offset: Table<u32, u64>,
    _socket: UdpSocket,
}

impl Stamps {
    pub(super) fn open(maps: &Maps) -> Result<Self, ProbeError> {
        let socket = ask_for_stamps().map_err(|error| {
            ProbeError::MissingFeature(format!("the kernel refused to stamp packets: {error}"))
        })?;
        Ok(Self { real_offset: maps.table("real_offset")?, _socket: socket })
    }
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

/// CLOCK_REALTIME minus CLOCK_MONOTONIC.
pub(super) fn real_offset_ns() -> u64 {
    let (before, real, after) =
        (now_ns(libc::CLOCK_MONOTONIC), now_ns(libc::CLOCK_REALTIME), now_ns(libc::CLOCK_MONOTONIC));
    real.wrapping_sub(before + after.saturating_sub(before) / 2)
}

fn now_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both clocks exist on every Linux, and `time` lives through the call.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
