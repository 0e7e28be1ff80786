//! A program that runs on the clock of every CPU, of those that come online later too.
//!
//! The kernel ends the events of a CPU that goes offline, and does not begin them again when it is back.

use aya::util::online_cpus;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Shortest time between two looks at the CPUs, each of which asks every one for its count.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

const TYPE_SOFTWARE: u64 = 1;
const COUNT_CPU_CLOCK: u64 = 0;
/// Size of `struct perf_event_attr` in every kernel since 4.1.
const ATTRIBUTES_BYTES: u64 = 112;
/// Bits of its flags.
const DISABLED: u64 = 1;
const FREQUENCY: u64 = 1 << 10;
const FLAG_CLOEXEC: u64 = 8;
/// `PERF_EVENT_IOC_ENABLE` and `PERF_EVENT_IOC_SET_BPF`.
const ENABLE: libc::c_ulong = 0x2400;
const SET_BPF: libc::c_ulong = 0x4004_2408;

/// Dropping it takes the program off the clocks.
pub(crate) struct CpuClock {
    program: OwnedFd,
    hz: u64,
    state: Mutex<State>,
}

struct State {
    events: BTreeMap<u32, Event>,
    looked_at: Instant,
    /// Whether a CPU that could not be added was told.
    is_told: bool,
}

struct Event {
    file: File,
    /// What it had counted at the last look.
    count: u64,
}

impl CpuClock {
    /// Attaches a loaded program to all CPUs that are online, so many times a second.
    pub(crate) fn attach(program: BorrowedFd<'_>, hz: u64) -> io::Result<Self> {
        let program = program.try_clone_to_owned()?;
        let cpus = online_cpus().map_err(|(_, error)| error)?;
        let events = cpus.into_iter().map(|cpu| Ok((cpu, Event::attach(cpu, hz, program.as_fd())?)));
        let events = events.collect::<io::Result<_>>()?;
        let state = State { events, looked_at: Instant::now(), is_told: false };
        Ok(Self { program, hz, state: Mutex::new(state) })
    }

    /// Attaches to CPUs that came online. Cheap to be called often: it looks every five seconds at most.
    fn follow(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked_at.elapsed() < LOOK_INTERVAL {
            return;
        }
        state.looked_at = Instant::now();
        let Ok(online) = online_cpus() else { return };
        // One that went and came between two looks is in the list, with an event that counts no more.
        state.events.retain(|cpu, event| online.contains(cpu) && event.is_alive());
        for cpu in online {
            if state.events.contains_key(&cpu) {
                continue;
            }
            match Event::attach(cpu, self.hz, self.program.as_fd()) {
                Ok(event) => {
                    state.events.insert(cpu, event);
                }
                Err(error) if !state.is_told => {
                    tracing::warn!(cpu, %error, "what runs on a CPU that came online is not seen");
                    state.is_told = true;
                }
                Err(_) => {}
            }
        }
    }
}

impl Event {
    fn attach(cpu: u32, hz: u64, program: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::from(open(cpu, hz)?);
        // SAFETY: both calls take plain numbers and an open descriptor.
        let attached = unsafe {
            libc::ioctl(file.as_raw_fd(), SET_BPF, program.as_raw_fd()) == 0
                && libc::ioctl(file.as_raw_fd(), ENABLE, 0) == 0
        };
        if attached { Ok(Self { file, count: 0 }) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether the clock has gone on since the last look.
    fn is_alive(&mut self) -> bool {
        let mut count = [0; 8];
        let before = self.count;
        match self.file.read_exact(&mut count) {
            Ok(()) => self.count = u64::from_ne_bytes(count),
            Err(_) => return false,
        }
        self.count > before
    }
}

/// Has the clocks that are still attached follow the CPUs.
pub(crate) fn follow(clocks: &[Weak<CpuClock>]) {
    clocks.iter().filter_map(Weak::upgrade).for_each(|clock| clock.follow());
}

/// The clock of a CPU for all processes, not enabled yet.
pub(crate) fn open(cpu: u32, hz: u64) -> io::Result<OwnedFd> {
    // `struct perf_event_attr`: type and size, config, frequency, sample type, read format, flags; the rest is zero.
    let mut attributes = [0u64; ATTRIBUTES_BYTES as usize / 8];
    attributes[0] = TYPE_SOFTWARE | ATTRIBUTES_BYTES << 32;
    attributes[1] = COUNT_CPU_CLOCK;
    attributes[2] = hz;
    attributes[5] = DISABLED | FREQUENCY;
    let (every_process, no_group) = (-1, -1);
    // SAFETY: the attributes have the size that they state and live through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_ptr(),
            every_process,
            cpu,
            no_group,
            FLAG_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}
