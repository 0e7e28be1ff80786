//! Networks that fail on demand: a namespace with nothing but loopback, and sockets that lose what arrives.

use crate::cgroup::Cgroup;
use crate::load;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Runs `work` in a child with a network namespace of its own, and gives the numbers that it returned.
pub fn in_namespace(
    container: Option<&Cgroup>,
    work: impl FnOnce() -> io::Result<Vec<u64>>,
) -> io::Result<Vec<u64>> {
    load::ask_child(container, || {
        isolate()?;
        work()
    })
}

/// Moves the calling thread into a new network namespace, whose loopback is up.
pub fn isolate() -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    bring_up("lo")
}

/// Gives loopback a name that no other namespace has.
pub fn rename_loopback(name: &str) -> io::Result<()> {
    set_flags("lo", 0)?;
    change("lo", libc::SIOCSIFNAME, |request| request.ifr_ifru.ifru_newname = name_bytes(name))?;
    bring_up(name)
}

/// Switches a device on.
pub fn bring_up(device: &str) -> io::Result<()> {
    set_flags(device, libc::IFF_UP)
}

/// Has this CPU take what loopback receives; the calling process has a /sys of its own then.
pub fn receive_on(cpu: usize) -> io::Result<()> {
    // SAFETY: the texts are C strings that live through the calls, and no other pointer is used.
    unsafe {
        checked(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        checked(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()))?;
        checked(libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, ptr::null()))?;
    }
    fs::write("/sys/class/net/lo/queues/rx-0/rps_cpus", format!("{:x}", 1_u64 << cpu))
}

/// A device whose other end is this process.
pub struct Tun(File);

impl Tun {
    /// Makes it in the namespace of the calling thread, and switches it on.
    pub fn make(name: &str) -> io::Result<Self> {
        const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
        let end = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: an all-zero ifreq is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = name_bytes(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request lives through the call.
        checked(unsafe { libc::ioctl(end.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        bring_up(name)?;
        Ok(Self(end))
    }

    /// Has the device receive a packet.
    pub fn receive(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write_all(packet)
    }
}

/// Gives a device this many frames to send, or as many as its queue has room for.
pub fn fill_queue(device: &str, frames: u32) -> io::Result<()> {
    const PROTOCOL: u16 = 0x88b5; // For experiments: nobody listens.
    const FRAME: [u8; 60] = [0xff; 60];
    let socket = open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    let name = std::ffi::CString::new(device).map_err(io::Error::other)?;
    // SAFETY: an all-zero address is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = PROTOCOL.to_be();
    // SAFETY: the name is a C string that lives through the call.
    address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    for _ in 0..frames {
        match send(&socket, &FRAME, &address) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => break,
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Sets the largest packet of a device.
pub fn set_mtu(device: &str, bytes: i32) -> io::Result<()> {
    change(device, libc::SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = bytes)
}

/// Sets the byte of IPv4's header that tells the type of service and congestion.
pub fn set_tos(socket: &UdpSocket, tos: libc::c_int) -> io::Result<()> {
    let (value, length) = ((&raw const tos).cast(), size_of_val(&tos) as libc::socklen_t);
    // SAFETY: the value has the size that is given, and lives through the call.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS, value, length) })
        .map(drop)
}

fn set_flags(device: &str, flags: i32) -> io::Result<()> {
    change(device, libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = flags as libc::c_short)
}

fn change(device: &str, request: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<()> {
    let socket = socket(libc::SOCK_DGRAM)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut argument: libc::ifreq = unsafe { std::mem::zeroed() };
    argument.ifr_name = name_bytes(device);
    fill(&mut argument);
    // SAFETY: the argument is what these requests take, and lives through the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw const argument) }).map(drop)
}

/// A device's name as the kernel keeps it: at most 15 bytes, then zeros.
fn name_bytes(name: &str) -> [libc::c_char; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    bytes
}

/// A counter of the calling thread's network namespace, for example `TcpExt` `TCPLossProbes` or `Tcp` `RetransSegs`.
pub fn counter(group: &str, name: &str) -> io::Result<u64> {
    for file in ["/proc/thread-self/net/netstat", "/proc/thread-self/net/snmp"] {
        let text = fs::read_to_string(file)?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let mut pairs = names.split(' ').zip(values.split(' '));
            if let Some((_, value)) = pairs.find(|(candidate, _)| *candidate == name) {
                return value.parse().map_err(io::Error::other);
            }
        }
    }
    Err(io::Error::other(format!("there is no counter {group} {name}")))
}

/// A socket of IPv4 that is not connected yet.
pub fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    open(libc::AF_INET, kind, 0)
}

/// A socket that sends packets of IPv4 with the headers that they are given.
pub fn raw_socket() -> io::Result<OwnedFd> {
    open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)
}

fn open(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved, and the descriptor is owned by nothing else.
    unsafe {
        let fd = checked(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sends a packet as it is; the kernel fills in what is zero in its header.
pub fn send_raw(socket: &impl AsRawFd, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
    send(socket, packet, &address_of(SocketAddrV4::new(to, 0)))
}

/// Sends to an address of the socket's family, and does not wait for room.
fn send<A: Copy>(socket: &impl AsRawFd, bytes: &[u8], to: &A) -> io::Result<()> {
    let (address, length) = (std::ptr::from_ref(to).cast(), size_of::<A>() as libc::socklen_t);
    // SAFETY: the bytes and the address live through the call, with the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT,
            address,
            length,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn address_of(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

/// Sends datagrams to a port that nobody listens at, which the kernel drops, and gives back the port.
pub fn drop_datagrams(count: usize) -> io::Result<u16> {
    // Bound and released: nobody else has it, and the number is not one that others use.
    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    for _ in 0..count {
        // A new socket each time: the second send of one reports the refusal of the first.
        UdpSocket::bind("127.0.0.1:0")?.send_to(b"kpulse", ("127.0.0.1", port))?;
    }
    Ok(port)
}

/// Connects, and waits for that as long as the kernel does.
pub fn connect(socket: OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    let SocketAddr::V4(address) = address else { return Err(io::Error::other("the socket is of IPv4")) };
    let raw = address_of(address);
    // SAFETY: the address lives through the call and has the size that is given.
    checked(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t)
    })?;
    Ok(TcpStream::from(socket))
}

/// Both ends of a connection to this address.
pub fn pair(address: &str) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((address, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

/// Ports of a connection's end, its own first.
pub fn ports(end: &TcpStream) -> io::Result<[u64; 2]> {
    Ok([end.local_addr()?.port().into(), end.peer_addr()?.port().into()])
}

/// Bounds the queue of a socket that listens already.
pub fn listen(socket: RawFd, backlog: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(unsafe { libc::listen(socket, backlog) }).map(drop)
}

/// Makes a socket lose this share of the segments that arrive for it: before TCP sees them, as if a wire had.
pub fn lose_incoming(socket: &impl AsRawFd, share: f64) -> io::Result<()> {
    const LOAD_RANDOM: (u16, u32) = (0x20, (-0x1000i32 + 56) as u32);
    const JUMP_IF_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    let step = |code, jump_false, value| libc::sock_filter { code, jt: 0, jf: jump_false, k: value };
    let mut steps = [
        step(LOAD_RANDOM.0, 0, LOAD_RANDOM.1),
        step(JUMP_IF_GREATER, 1, (share * f64::from(u32::MAX)) as u32),
        step(RETURN, 0, u32::MAX),
        step(RETURN, 0, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program and its steps live through the call, which copies them.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Lets everything through again.
pub fn lose_nothing(socket: RawFd) -> io::Result<()> {
    let ignored = 0i32;
    // SAFETY: the kernel ignores the value; it lives through the call.
    checked(unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            (&raw const ignored).cast(),
            size_of_val(&ignored) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// What a TCP socket tells of itself.
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub round_trip_us: u64,
    /// How long the peer's window kept it from sending.
    pub rwnd_limited_us: u64,
}

/// Asks a TCP socket. The kernel adds fields to `struct tcp_info` and moves none.
pub fn tcp_info(socket: &impl AsRawFd) -> io::Result<TcpInfo> {
    const ROUND_TRIP: usize = 68;
    const RWND_LIMITED: usize = 176;
    let mut bytes = [0u8; 192];
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: the buffer has the length that is given, and both live through the call.
    checked(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(TcpInfo {
        round_trip_us: word(ROUND_TRIP).into(),
        rwnd_limited_us: u64::from(word(RWND_LIMITED + 4)) << 32 | u64::from(word(RWND_LIMITED)),
    })
}

/// Bounds the send or the receive buffer of a socket (`SO_SNDBUF`, `SO_RCVBUF`); the kernel takes it twice.
pub fn set_buffer(socket: &impl AsRawFd, option: libc::c_int, bytes: i32) -> io::Result<()> {
    // SAFETY: the value has the size that is given, and lives through the call.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Sends `bytes`, or receives into them, by the system call of this name; how many there were, or messages of them.
pub fn transfer(call: &str, socket: &impl AsRawFd, bytes: &mut [u8]) -> io::Result<usize> {
    let (fd, start, length) = (socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len());
    let (one, two) = bytes.split_at_mut(length / 2);
    let mut parts =
        [one, two].map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
    // SAFETY: an all-zero header is valid; whatever it and the calls point to lives through the calls.
    let moved = unsafe {
        let mut messages: libc::mmsghdr = std::mem::zeroed();
        (messages.msg_hdr.msg_iov, messages.msg_hdr.msg_iovlen) = (parts.as_mut_ptr(), parts.len());
        match call {
            "write" => libc::write(fd, start, length),
            "writev" => libc::writev(fd, parts.as_ptr(), 2),
            "sendto" => libc::send(fd, start, length, 0),
            "sendmsg" => libc::sendmsg(fd, &raw const messages.msg_hdr, 0),
            "sendmmsg" => libc::sendmmsg(fd, &raw mut messages, 1, 0) as isize,
            "read" => libc::read(fd, start, length),
            "readv" => libc::readv(fd, parts.as_ptr(), 2),
            "recvfrom" => libc::recv(fd, start, length, 0),
            "recvmsg" => libc::recvmsg(fd, &raw mut messages.msg_hdr, 0),
            "recvmmsg" => libc::recvmmsg(fd, &raw mut messages, 1, 0, std::ptr::null_mut()) as isize,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Makes closing the connection reset it.
pub fn reset_on_close(socket: &impl AsRawFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the value has the size that is given, and lives through the call.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    })
    .map(drop)
}

fn checked(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
