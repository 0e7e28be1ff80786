//! A slow link: loopback of a new network namespace behind a token bucket, set up without any tool.

use crate::network;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// Bits a second of the link, so that a frame of 1,500 bytes takes 12 ms.
pub const RATE: u64 = 1_000_000;
/// Bytes that may leave at once.
pub const BURST: u64 = 1600;
/// Bytes of a datagram's frame on loopback: 42 of headers, and the payload.
pub const FRAME: u64 = 1500;
const PAYLOAD: usize = 1458;
const LOOPBACK_INDEX: i32 = 1;

/// Renames loopback and puts the bucket before it. The kernel says `ENOENT` where it has no token buckets.
pub fn slow_loopback(name: &str) -> io::Result<()> {
    network::rename_loopback(name)?;
    network::set_mtu(name, 1500)?;
    replace_root_qdisc()
}

/// How long datagrams waited, all together.
pub struct Waits {
    /// At least, by the bucket's arithmetic.
    pub least: Duration,
    /// At most, by the clock of who sends and receives them.
    pub most: Duration,
}

/// Sends datagrams at once, and receives them.
pub fn datagrams(count: u32) -> io::Result<Waits> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    receiver.set_read_timeout(Some(Duration::from_secs(30)))?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    let arrivals = thread::spawn(move || {
        let receive = |_| receiver.recv(&mut [0; PAYLOAD]).map(|_| Instant::now());
        (0..count).map(receive).collect::<io::Result<Vec<Instant>>>()
    });
    let begin = Instant::now();
    let (mut starts, mut least) = (Vec::new(), Duration::ZERO);
    for before in 0..u64::from(count) {
        starts.push(Instant::now());
        sender.send(&[0; PAYLOAD])?;
        // The frame leaves when the bucket has had time for it and all before it, but for what it held already.
        let bytes = ((before + 1) * FRAME).saturating_sub(BURST);
        let leaves = Duration::from_nanos(bytes * 8 * 1_000_000_000 / RATE);
        least += leaves.saturating_sub(begin.elapsed());
    }
    let arrived = arrivals.join().map_err(|_| io::Error::other("the receiver panicked"))??;
    Ok(Waits { least, most: starts.iter().zip(arrived).map(|(start, arrived)| arrived - *start).sum() })
}

/// Sends a stream in large pieces, which the kernel cuts into segments late; how long it took.
pub fn stream(bytes: usize) -> io::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let begin = Instant::now();
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    let reader = thread::spawn(move || io::copy(&mut server, &mut io::sink()));
    client.write_all(&vec![0; bytes])?;
    client.shutdown(Shutdown::Write)?;
    reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
    // The other end has closed as well.
    client.read_to_end(&mut Vec::new())?;
    Ok(begin.elapsed())
}

/// Packets that the device has sent, by its own count.
pub fn packets_sent(device: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'));
    let field = line.and_then(|line| line.split_ascii_whitespace().nth(9)?.parse().ok());
    field.ok_or_else(|| io::Error::other(format!("/proc/net/dev does not count {device}")))
}

/// `tc qdisc replace dev lo root tbf`, as one netlink message.
fn replace_root_qdisc() -> io::Result<()> {
    const RTM_NEWQDISC: u16 = 36;
    const FLAGS: u16 =
        (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
    const ROOT: u32 = u32::MAX;
    const ETHERNET: u8 = 1;
    let word = |value: u64| u32::try_from(value).map_err(io::Error::other);
    // struct tc_tbf_qopt: rate and peak rate as tc_ratespec, limit, buffer, mtu.
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(word(RATE / 8)?.to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(word(200 * FRAME)?.to_ne_bytes());
    parameters.extend([0; 8]);
    let options = [attribute(1, &parameters), attribute(6, &word(BURST)?.to_ne_bytes())].concat();
    // struct tcmsg: family, device, handle 1:0, parent, info.
    let mut body = vec![0; 4];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    for value in [0x1_0000, ROOT, 0] {
        body.extend(value.to_ne_bytes());
    }
    body.extend([attribute(1, b"tbf\0"), attribute(2, &options)].concat());
    let mut message = word(16 + body.len() as u64)?.to_ne_bytes().to_vec();
    message.extend(RTM_NEWQDISC.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    exchange(&message)
}

/// An attribute: length, type, value, and padding to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("attributes here are short");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends a request to the kernel, and turns its answer into a result.
fn exchange(message: &[u8]) -> io::Result<()> {
    // SAFETY: no memory is involved, and the descriptor is owned by nothing else.
    let mut socket = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        fs::File::from(OwnedFd::from_raw_fd(fd))
    };
    socket.write_all(message)?;
    let mut answer = [0; 4096];
    let length = socket.read(&mut answer)?;
    // struct nlmsgerr follows the header of 16 bytes: a negative errno, or 0.
    let error = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("the kernel gave no answer")),
    }
}
