//! System calls that wait to send, and data that waits for its reader, against the clock of the program that waits.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::{network, shaper};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Instant;

const NAME: &str = "socket_wait";
const SENDING: [&str; 5] = ["write", "writev", "sendto", "sendmsg", "sendmmsg"];
const RECEIVING: [&str; 5] = ["read", "readv", "recvfrom", "recvmsg", "recvmmsg"];
const MIN: Duration = Duration::from_millis(300);
/// Far below and far above it.
const EARLY: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(1);
/// For the kind that a test is not about.
const NEVER: Duration = Duration::from_secs(3600);
/// Longer than any kernel's.
const TICK: u64 = 10_000_000;
/// What the test asks for, of which the kernel makes twice as much; and more than both ends hold together.
const BUFFER: i32 = 128 << 10;
const BYTES: usize = 2 << 20;
const PIECE: usize = 4096;
const DATA: usize = 4;
const ROOM: usize = 64;

/// Events of a container's calls, and the numbers that `work` returned, behind the process that did it.
fn tell(
    number: u32,
    [min_send, min_receive]: [Duration; 2],
    work: impl FnOnce() -> io::Result<Vec<u64>>,
) -> (Vec<Fact>, Vec<u64>) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut options = wanting(Want::Events);
    (options.thresholds.socket_wait.min_send, options.thresholds.socket_wait.min_receive) =
        (min_send, min_receive);
    let mut set = load(NAME, &options);
    assert_eq!(set.status()[0].missing, [""; 0]);
    let mut events = set.take_events().expect("the rings open");
    super::receive::wait_until_stamped();
    let told = network::in_namespace(Some(&container), || {
        let pid = std::process::id().into();
        Ok([vec![pid], work()?].concat())
    });
    let facts = drain_for(&mut events, Duration::from_millis(200));
    assert_sum_closes(set, &mut events, facts.len());
    // The machine's other programs may be slow too.
    let ours = facts.into_iter().filter(|fact| fact.cgroup == Some(container.cgroup_id()));
    (ours.collect(), told.expect("the work goes well"))
}

fn ns(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// Whose call it was, which one, and that its value is one that the caller's own clock allows.
fn assert_call(fact: &Fact, pid: u64, call: &str, [least, most]: [u64; 2]) {
    assert_eq!((u64::from(fact.pid), &fact.body["call"]), (pid, &call.into()), "{fact:?}");
    assert_eq!(fact.kernel_stack, [""; 0]);
    assert_user_stack(fact, fact.pid);
    let value = fact.value_ns.expect("it is a duration");
    assert!((least..=most).contains(&value), "{value} ns, not of {least} to {most}: {fact:?}");
    assert_eq!(fact.threshold_ns, Some(ns(MIN)));
}

/// What was asked and moved; a call of several messages says how many.
fn assert_bytes(fact: &Fact, asked: usize, [moved_by, moved]: [&str; 2], is_several: bool) {
    let asked = if is_several { serde_json::Value::Null } else { asked.into() };
    let messages = if is_several { 1.into() } else { serde_json::Value::Null };
    assert_eq!((&fact.body["asked_bytes"], &fact.body["messages"]), (&asked, &messages), "{fact:?}");
    assert_eq!(fact.body[moved_by].to_string(), moved, "{fact:?}");
}

/// Sends more than the connection holds to a reader that sleeps first: how long the call took, alone and with the
/// questions around it, between which the peer's window was full for the third time.
fn send_to_sleeper(call: &str, address: &str, sleep: Duration) -> io::Result<Vec<u64>> {
    let (client, mut server) = network::pair(address)?;
    network::set_buffer(&client, libc::SO_SNDBUF, BUFFER)?;
    network::set_buffer(&server, libc::SO_RCVBUF, BUFFER)?;
    let ports = network::ports(&client)?;
    let reader = thread::spawn(move || {
        thread::sleep(sleep);
        server.read_exact(&mut vec![0; BYTES])
    });
    let mut bytes = vec![1; BYTES];
    let before_all = Instant::now();
    let before = network::tcp_info(&client)?.rwnd_limited_us;
    let begin = Instant::now();
    let sent = network::transfer(call, &client, &mut bytes)?;
    let took = begin.elapsed();
    let limited = network::tcp_info(&client)?.rwnd_limited_us - before;
    let all = before_all.elapsed();
    assert_eq!(sent, if call == "sendmmsg" { 1 } else { BYTES });
    reader.join().expect("the reader ends")?;
    Ok(vec![ns(took), ns(all), limited * 1000, ports[0], ports[1]])
}

fn each_blocked_sender_is_told(address: &'static str, number: u32) {
    let (facts, told) = tell(number, [MIN, NEVER], || {
        let mut told = Vec::new();
        for call in SENDING {
            told.extend(send_to_sleeper(call, address, LATE)?);
        }
        Ok(told)
    });
    assert_eq!(facts.len(), SENDING.len(), "{facts:?}");
    for (call, numbers) in SENDING.into_iter().zip(told[1..].chunks(5)) {
        let [took, all, limited, source, destination] = numbers[..] else { panic!("{told:?}") };
        let [fact] = of_flow(&facts, [source, destination])[..] else { panic!("{call}: {facts:?}") };
        assert_eq!((fact.kind, &fact.body["protocol"]), ("socket_send_slow", &"tcp".into()));
        assert_address(fact, address);
        assert_call(fact, told[0], call, [took * 9 / 10, took]);
        assert_bytes(fact, BYTES, ["sent_bytes", &BYTES.to_string()], call == "sendmmsg");
        assert_eq!(fact.body["send_buffer_bytes"], 2 * BUFFER);
        let field = |name: &str| fact.body[name].as_u64().unwrap_or_else(|| panic!("{name}: {fact:?}"));
        assert!(field("send_queue_bytes") < BYTES as u64, "{fact:?}");
        // The kernel counts whole ticks.
        let (slack, told) = (all - fact.value_ns.unwrap_or(0) + 2 * TICK, field("rwnd_limited_ns"));
        assert!(told.abs_diff(limited) <= slack, "{slack} and {limited}: {fact:?}");
        assert!((ns(LATE) / 2..=took + 2 * TICK).contains(&told), "{took}: {fact:?}");
        assert!(field("sndbuf_limited_ns") <= took, "{fact:?}");
    }
}

#[test]
fn each_blocked_sender_is_told_of_ipv4() {
    needs_root!();
    each_blocked_sender_is_told("127.0.0.1", 0x501);
}

#[test]
fn each_blocked_sender_is_told_of_ipv6() {
    needs_root!();
    each_blocked_sender_is_told("::1", 0x502);
}

/// The peer reads nothing, until the sender has enough of it.
#[test]
fn a_sender_that_fails_is_told_with_its_error() {
    needs_root!();
    let (facts, told) = tell(0x503, [MIN, NEVER], || {
        let (mut client, server) = network::pair("127.0.0.1")?;
        network::set_buffer(&client, libc::SO_SNDBUF, BUFFER)?;
        network::set_buffer(&server, libc::SO_RCVBUF, BUFFER)?;
        client.set_write_timeout(Some(LATE))?;
        let ports = network::ports(&client)?;
        loop {
            let begin = Instant::now();
            if let Err(error) = client.write(&[1; PIECE]) {
                let errno = error.raw_os_error().map_or(0, i32::unsigned_abs);
                return Ok(vec![ns(begin.elapsed()), ports[0], ports[1], errno.into()]);
            }
        }
    });
    let [pid, took, source, destination, errno] = told[..] else { panic!("{told:?}") };
    let failed: Vec<&Fact> = facts.iter().filter(|fact| !fact.body["errno"].is_null()).collect();
    let [fact] = failed[..] else { panic!("{told:?}: {facts:?}") };
    assert_eq!(of_flow(&facts, [source, destination]).len(), facts.len(), "{fact:?}");
    assert_call(fact, pid, "sendto", [took * 9 / 10, took]);
    assert_bytes(fact, PIECE, ["sent_bytes", "null"], false);
    assert_eq!(fact.body["errno"], errno);
    assert!(fact.body["send_queue_bytes"].as_u64() >= Some(PIECE as u64), "{fact:?}");
}

/// A datagram waits until its socket's earlier ones have left a slow link.
#[test]
fn a_datagram_that_waits_for_its_send_buffer_is_told() {
    needs_root!();
    let device = format!("kpw{}", std::process::id());
    let (facts, told) = tell(0x504, [MIN, NEVER], || {
        match shaper::slow_loopback(&device) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(vec![]),
            outcome => outcome?,
        }
        let (receiver, sender) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        network::set_buffer(&sender, libc::SO_SNDBUF, 25_000)?;
        let to = receiver.local_addr()?;
        // Forty fragments of 12 ms each, of whose memory the buffer holds about half.
        sender.send_to(&[0; 58_000], to)?;
        let begin = Instant::now();
        sender.send_to(&[0; DATA], to)?;
        Ok(vec![ns(begin.elapsed()), sender.local_addr()?.port().into(), to.port().into()])
    });
    let [pid, took, source, destination] = told[..] else {
        kpulse_tests::skip(module_path!(), "the kernel has no token buckets (module sch_tbf)");
        return;
    };
    assert!(took > ns(MIN), "{told:?}");
    let [fact] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!((fact.kind, &fact.body["protocol"]), ("socket_send_slow", &"udp".into()));
    assert_eq!(of_flow(&facts, [source, destination]).len(), 1, "{fact:?}");
    assert_address(fact, "127.0.0.1");
    assert_call(fact, pid, "sendto", [took * 9 / 10, took]);
    assert_bytes(fact, DATA, ["sent_bytes", &DATA.to_string()], false);
    assert!(fact.body["send_queue_bytes"].as_u64() > Some(0) && fact.body["send_buffer_bytes"] == 50_000);
    assert!(fact.body["rwnd_limited_ns"].is_null(), "{fact:?}");
}

/// Sends, and receives by the call after a while: how long it waited at least and at most, and its flow.
fn receive_after(
    sleep: Duration,
    call: &str,
    send: &impl AsRawFd,
    receive: &impl AsRawFd,
) -> io::Result<[u64; 2]> {
    let begin = Instant::now();
    network::transfer("sendto", send, &mut [1; DATA])?;
    let sent = Instant::now();
    thread::sleep(sleep);
    let least = sent.elapsed();
    let received = network::transfer(call, receive, &mut [0; ROOM])?;
    assert_eq!(received, if call == "recvmmsg" { 1 } else { DATA });
    Ok([ns(least), ns(begin.elapsed())])
}

fn early_and_late(
    ports: [u64; 2],
    call: &str,
    send: &impl AsRawFd,
    receive: &impl AsRawFd,
) -> io::Result<Vec<u64>> {
    receive_after(EARLY, call, send, receive)?;
    Ok([receive_after(LATE, call, send, receive)?, ports].concat())
}

fn assert_late_readers(facts: &[Fact], told: &[u64], [address, protocol]: [&str; 2]) {
    assert_eq!(facts.len(), RECEIVING.len(), "{facts:?}");
    for (call, numbers) in RECEIVING.into_iter().zip(told[1..].chunks(4)) {
        let [least, most, source, destination] = numbers[..] else { panic!("{told:?}") };
        let [fact] = of_flow(facts, [source, destination])[..] else { panic!("{call}: {facts:?}") };
        assert_eq!((fact.kind, &fact.body["protocol"]), ("socket_receive_slow", &protocol.into()));
        assert_address(fact, address);
        assert_call(fact, told[0], call, [least, most]);
        assert_bytes(fact, ROOM, ["received_bytes", &DATA.to_string()], call == "recvmmsg");
        let field = |name: &str| fact.body[name].as_u64().unwrap_or_else(|| panic!("{name}: {fact:?}"));
        // What waited until the call began was read when it ended.
        assert!(fact.value_ns.unwrap_or(0) + field("call_ns") <= most, "{most}: {fact:?}");
        assert!(field("receive_buffer_bytes") > 0, "{fact:?}");
        let queue = field("receive_queue_bytes");
        assert!(if protocol == "tcp" { queue == DATA as u64 } else { queue > DATA as u64 }, "{fact:?}");
    }
}

fn each_late_reader_is_told(address: &'static str, number: u32) {
    let (facts, told) = tell(number, [NEVER, MIN], || {
        let told = RECEIVING.map(|call| {
            let (client, server) = network::pair(address)?;
            early_and_late(network::ports(&client)?, call, &client, &server)
        });
        Ok(told.into_iter().collect::<io::Result<Vec<_>>>()?.concat())
    });
    assert_late_readers(&facts, &told, [address, "tcp"]);
    let (facts, told) = tell(number + 1, [NEVER, MIN], || {
        let told = RECEIVING.map(|call| {
            let (receiver, sender) = (UdpSocket::bind((address, 0))?, UdpSocket::bind((address, 0))?);
            sender.connect(receiver.local_addr()?)?;
            let ports = [sender.local_addr()?.port().into(), receiver.local_addr()?.port().into()];
            early_and_late(ports, call, &sender, &receiver)
        });
        Ok(told.into_iter().collect::<io::Result<Vec<_>>>()?.concat())
    });
    assert_late_readers(&facts, &told, [address, "udp"]);
}

#[test]
fn each_late_reader_is_told_of_ipv4() {
    needs_root!();
    each_late_reader_is_told("127.0.0.1", 0x505);
}

#[test]
fn each_late_reader_is_told_of_ipv6() {
    needs_root!();
    each_late_reader_is_told("::1", 0x507);
}

/// A reader waits for long on a connection that is kept open; then comes data, then the end, which nobody looks at for long.
fn idle(address: &str) -> io::Result<()> {
    let (mut client, mut server) = network::pair(address)?;
    let reader = thread::spawn(move || server.read_exact(&mut [0; DATA]).map(|()| server));
    thread::sleep(LATE);
    client.write_all(&[1; DATA])?;
    let mut server = reader.join().expect("the reader ends")?;
    client.shutdown(Shutdown::Write)?;
    thread::sleep(LATE);
    assert_eq!(server.read(&mut [0; ROOM])?, 0);
    let (receiver, sender) = (UdpSocket::bind((address, 0))?, UdpSocket::bind((address, 0))?);
    sender.connect(receiver.local_addr()?)?;
    let reader = thread::spawn(move || receiver.recv(&mut [0; ROOM]));
    thread::sleep(LATE);
    sender.send(&[1; DATA])?;
    reader.join().expect("the reader ends").map(drop)
}

#[test]
fn a_reader_that_waits_for_data_is_no_event() {
    needs_root!();
    let (facts, _) = tell(0x509, [MIN, MIN], || {
        ["127.0.0.1", "::1"].iter().try_for_each(|address| idle(address))?;
        Ok(vec![])
    });
    assert_eq!(facts, []);
}

/// Who only looks takes nothing, and what is read piecemeal waited once.
#[test]
fn data_that_waits_is_told_once() {
    needs_root!();
    let (facts, told) = tell(0x50a, [NEVER, MIN], || {
        let (mut client, mut server): (TcpStream, TcpStream) = network::pair("127.0.0.1")?;
        client.write_all(&[1; DATA])?;
        thread::sleep(LATE);
        server.peek(&mut [0; ROOM])?;
        (0..DATA).try_for_each(|_| server.read_exact(&mut [0; 1]))?;
        network::ports(&client).map(Vec::from)
    });
    assert_eq!((facts.len(), of_flow(&facts, [told[1], told[2]]).len()), (1, 1), "{facts:?}");
    assert_eq!(
        (&facts[0].body["asked_bytes"], &facts[0].body["received_bytes"]),
        (&1.into(), &1.into()),
        "{facts:?}"
    );
}

#[test]
fn a_wait_below_the_threshold_is_no_event() {
    needs_root!();
    let (facts, told) = tell(0x50b, [10 * LATE, 10 * LATE], || {
        let sent = send_to_sleeper("write", "127.0.0.1", LATE)?;
        let (client, server) = network::pair("127.0.0.1")?;
        let received = receive_after(LATE, "read", &client, &server)?;
        Ok(vec![sent[0], received[0]])
    });
    assert!(told[1..].iter().all(|time| (ns(MIN)..10 * ns(LATE)).contains(time)), "{told:?}");
    assert_eq!(facts, []);
}

#[test]
fn it_is_off_unless_it_is_asked_for() {
    assert!(!probe(NAME).is_default);
}
