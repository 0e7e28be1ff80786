//! Packets that wait to be read, against the clock of the program that lets them wait.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::network;
use kpulse_tests::stuck_page::StuckPage;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Instant;

const NAME: &str = "receive";
const FAMILY: &str = "kpulse_net_receive_latency_seconds";
const ROUNDS: u64 = 12;
const WAIT: Duration = Duration::from_millis(25);

/// Lets what `send` sent wait before `receive` gets it; how long each waited at most, all together.
fn rounds(
    mut send: impl FnMut() -> io::Result<()>,
    mut receive: impl FnMut() -> io::Result<()>,
) -> io::Result<Vec<u64>> {
    let mut total = Duration::ZERO;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        send()?;
        thread::sleep(WAIT);
        receive()?;
        total += begin.elapsed();
    }
    Ok(vec![total.as_nanos() as u64])
}

/// The kernel begins to stamp a little after it was asked to.
fn wait_for_stamps(set: &mut ProbeSet, identities: &mut Identities) {
    kpulse_tests::until("stamps", || {
        network::in_namespace(None, udp).expect("the work goes well");
        value(&scrape(set, NAME, identities), FAMILY, &["udp", "user"])
    });
}

/// Returns when the kernel stamps packets, as somebody has asked it to.
pub(crate) fn wait_until_stamped() {
    wait_for_stamps(&mut load(NAME, &wanting(Want::Metrics)), &mut identities());
}

fn measure(number: u32, work: impl Fn() -> io::Result<Vec<u64>>) -> (Samples, Vec<u64>, bool) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut identities = identities();
    let mut set = load(NAME, &wanting(Want::Metrics));
    wait_for_stamps(&mut set, &mut identities);
    let told = network::in_namespace(Some(&container), work).expect("the work goes well");
    (scrape(&mut set, NAME, &mut identities), told, container.is_v1())
}

fn tcp() -> io::Result<Vec<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    rounds(|| client.write_all(b"wait"), || server.read_exact(&mut [0; 4]))
}

fn udp() -> io::Result<Vec<u64>> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    rounds(|| sender.send(b"wait").map(drop), || receiver.recv(&mut [0; 4]).map(drop))
}

/// Each waited at least as long as its reader slept, and no longer than its round took.
fn assert_waited(measured: &Histogram, most_ns: u64) {
    assert_eq!(measured.count(), ROUNDS);
    let least_ns = ROUNDS * WAIT.as_nanos() as u64;
    assert!(
        (least_ns..=most_ns).contains(&measured.sum_ns),
        "{} ns, {least_ns} to {most_ns}",
        measured.sum_ns
    );
}

#[test]
fn a_stream_waits_for_its_reader_and_not_for_its_socket() {
    needs_root!();
    let (samples, told, is_v1) = measure(0xf5, tcp);
    let id = Cgroup::id(0xf5);
    let user = histogram(&samples, FAMILY, &["tcp", "user", &id]);
    assert_waited(&user, told[0]);
    if !is_v1 {
        let socket = histogram(&samples, FAMILY, &["tcp", "socket", &id]);
        assert!(socket.count() >= ROUNDS, "{} segments", socket.count());
        assert!(
            socket.sum_ns < user.sum_ns / 2,
            "{} ns to the socket, {} to the user",
            socket.sum_ns,
            user.sum_ns
        );
    }
}

#[test]
fn a_datagram_waits_for_its_reader() {
    needs_root!();
    let (samples, told, _) = measure(0xf6, udp);
    assert_waited(&histogram(&samples, FAMILY, &["udp", "user", &Cgroup::id(0xf6)]), told[0]);
}

#[test]
fn it_is_off_unless_it_is_asked_for() {
    assert!(!probe(NAME).is_default);
    let others = probes::ALL.iter().filter(|probe| probe.name != NAME);
    assert!(others.filter(|probe| probe.collector.is_some()).any(|probe| probe.is_default));
}

/// How long what is too late waits; the threshold is at four fifths of it.
const LATE: Duration = Duration::from_secs(1);
/// How long the socket is held: less than the 200 ms after which its peer sends again.
const HELD: Duration = Duration::from_millis(150);
/// Far above every wait of a test, for the stage that it is not about.
const NEVER: Duration = Duration::from_secs(3600);

/// What `work` returns: the least and the most that something waited, the ports of its flow, and who reads.
struct Wait {
    ns: [u64; 2],
    ports: [u64; 2],
    reader: u64,
}

/// Events of a container's sockets while `work` runs, which tells what it let wait.
fn tell(
    number: u32,
    thresholds: [Duration; 2],
    work: impl FnOnce() -> io::Result<Vec<u64>>,
) -> (Vec<Fact>, Wait) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut options = wanting(Want::Events);
    [options.thresholds.receive.min_to_user, options.thresholds.receive.min_to_socket] = thresholds;
    let mut set = load(NAME, &options);
    let mut events = set.take_events().expect("the rings open");
    wait_until_stamped();
    let told = network::in_namespace(Some(&container), work).expect("the work goes well");
    let facts = drain_for(&mut events, Duration::from_millis(200));
    assert_sum_closes(set, &mut events, facts.len());
    let [least, most, source, destination, reader] = told[..] else { panic!("{told:?}") };
    let wait = Wait { ns: [least, most], ports: [source, destination], reader };
    // The machine's other programs may be late too.
    let ours = facts.into_iter().filter(|fact| fact.cgroup == Some(container.cgroup_id()));
    (ours.collect(), wait)
}

/// Asserts that there is one event, of the one wait that was too late.
fn assert_told_once(facts: &[Fact], wait: &Wait, [address, protocol, stage]: [&str; 3]) {
    let [fact] = facts else { panic!("one event, not {facts:?}") };
    assert_eq!(of_flow(facts, wait.ports).len(), 1, "{fact:?}");
    assert_address(fact, address);
    assert_eq!((fact.kind, u64::from(fact.pid)), ("net_receive_delay", wait.reader));
    assert_eq!((&fact.body["protocol"], &fact.body["stage"]), (&protocol.into(), &stage.into()), "{fact:?}");
    let value = fact.value_ns.expect("it is a duration");
    assert!((wait.ns[0]..=wait.ns[1]).contains(&value), "{value} ns, not of {:?}", wait.ns);
    assert!(Some(value) >= fact.threshold_ns && !fact.kernel_stack.is_empty(), "{fact:?}");
    assert_user_stack(fact, fact.pid);
}

/// Sends and reads: waits below the threshold, and one above it. Gives what that one waited, and the rest of [`Wait`].
fn one_late(
    ports: [u16; 2],
    mut send: impl FnMut() -> io::Result<()>,
    mut receive: impl FnMut() -> io::Result<()>,
) -> io::Result<Vec<u64>> {
    let mut ns = [0; 2];
    for time in [WAIT, LATE, WAIT] {
        let begin = Instant::now();
        send()?;
        let sent = Instant::now();
        thread::sleep(time);
        let least = sent.elapsed();
        receive()?;
        if time == LATE {
            ns = [least, begin.elapsed()].map(|time| time.as_nanos() as u64);
        }
    }
    Ok([ns.to_vec(), ports.map(u64::from).to_vec(), vec![std::process::id().into()]].concat())
}

fn a_late_reader_of_a_stream(address: &'static str, number: u32) {
    let (facts, wait) = tell(number, [LATE * 4 / 5, NEVER], || {
        let (mut client, mut server) = network::pair(address)?;
        let ports = [client.local_addr()?.port(), server.local_addr()?.port()];
        let read = || {
            server.read_exact(&mut [0; 1])?;
            server.read_exact(&mut [0; 3])
        };
        one_late(ports, || client.write_all(b"wait"), read)
    });
    assert_told_once(&facts, &wait, [address, "tcp", "user"]);
    assert_eq!(facts[0].body["queue_bytes"], 4);
}

fn a_late_reader_of_a_datagram(address: &'static str, number: u32) {
    let (facts, wait) = tell(number, [LATE * 4 / 5, NEVER], || {
        let (receiver, sender) = (UdpSocket::bind((address, 0))?, UdpSocket::bind((address, 0))?);
        sender.connect(receiver.local_addr()?)?;
        let ports = [sender.local_addr()?.port(), receiver.local_addr()?.port()];
        one_late(ports, || sender.send(b"wait").map(drop), || receiver.recv(&mut [0; 4]).map(drop))
    });
    assert_told_once(&facts, &wait, [address, "udp", "user"]);
    assert!(facts[0].body["queue_bytes"].as_u64().is_some_and(|bytes| bytes >= 4), "{facts:?}");
}

#[test]
fn a_late_reader_is_one_event_of_ipv4() {
    needs_root!();
    a_late_reader_of_a_stream("127.0.0.1", 0xf7);
    a_late_reader_of_a_datagram("127.0.0.1", 0xf8);
}

#[test]
fn a_late_reader_is_one_event_of_ipv6() {
    needs_root!();
    a_late_reader_of_a_stream("::1", 0xf9);
    a_late_reader_of_a_datagram("::1", 0xfa);
}

/// The reader holds the socket while it waits for a page, so what arrives meanwhile has to wait for the socket.
#[test]
fn a_segment_that_waits_for_its_socket_is_one_event() {
    needs_root!();
    let (facts, wait) = tell(0xfb, [NEVER, HELD * 4 / 5], || {
        let (mut client, mut server) = network::pair("127.0.0.1")?;
        let page = StuckPage::make()?;
        let (address, fd) = (page.address(), server.as_raw_fd());
        client.write_all(b"first")?;
        let reader = thread::spawn(move || {
            // SAFETY: the page is mapped for as long as the process lives, and nothing else uses it.
            unsafe { libc::recv(fd, address as *mut libc::c_void, 5, 0) }
        });
        page.wait_for_touch()?;
        let begin = Instant::now();
        client.write_all(b"second")?;
        let sent = Instant::now();
        thread::sleep(HELD);
        let least = sent.elapsed();
        drop(page);
        assert_eq!(reader.join().expect("the reader ends"), 5);
        let ns = [least, begin.elapsed()].map(|time| time.as_nanos() as u64);
        server.read_exact(&mut [0; 6])?;
        let ports = [network::ports(&client)?, ns].concat();
        Ok(vec![ports[2], ports[3], ports[0], ports[1], std::process::id().into()])
    });
    assert_told_once(&facts, &wait, ["127.0.0.1", "tcp", "socket"]);
}
