//! Segments sent again, against the counters of a network namespace that loses them.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::{network, until};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

const NAME: &str = "tcp_retransmit";
const FAMILY: &str = "kpulse_tcp_retransmits_total";

fn counter(group: &'static str, name: &'static str) -> impl Fn() -> u64 {
    move || network::counter(group, name).expect("every kernel counts it")
}

/// The namespace's counters that tell of retransmits.
fn counters() -> io::Result<Vec<u64>> {
    let tcp = network::counter("Tcp", "RetransSegs")?;
    let extended = ["TCPLossProbes", "TCPTimeouts", "TCPFastRetrans", "TCPSynRetrans"];
    let rest = extended.map(|name| network::counter("TcpExt", name));
    std::iter::once(Ok(tcp)).chain(rest).collect()
}

/// Counts by reason that `work` caused, and what the namespace's counters say.
fn provoke(number: u32, work: impl FnOnce() -> io::Result<()>) -> (impl Fn(&str) -> u64, Vec<u64>, bool) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut identities = identities();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = scrape(&mut set, NAME, &mut identities);
    let oracle = network::in_namespace(Some(&container), || {
        work()?;
        counters()
    });
    let after = scrape(&mut set, NAME, &mut identities);
    let is_v1 = container.is_v1();
    let by_reason = move |reason: &str| {
        if is_v1 {
            // What timers send again is the host's, together with what the machine itself loses meanwhile.
            total(&after, FAMILY, &[reason]) - total(&before, FAMILY, &[reason])
        } else {
            count(&after, FAMILY, &[reason, &Cgroup::id(number)])
        }
    };
    (by_reason, oracle.expect("the work goes well"), !is_v1)
}

/// What is counted for one container only is exact.
fn assert_equal(counted: u64, expected: u64, is_exact: bool, what: &str) {
    assert!(
        if is_exact { counted == expected } else { counted >= expected },
        "{what}: counted {counted}, the kernel {expected}"
    );
}

#[test]
fn what_nobody_acknowledges_is_probed_and_sent_again_after_timeouts() {
    needs_root!();
    let (counted, oracle, is_exact) = provoke(0xc1, || {
        let (mut client, mut server) = network::pair("127.0.0.1")?;
        client.set_nodelay(true)?;
        network::lose_incoming(&server, 1.0)?;
        client.write_all(b"lost")?;
        client.write_all(b"too!")?;
        let timeouts = counter("TcpExt", "TCPTimeouts");
        until("two timeouts", || (timeouts() >= 2).then_some(()));
        network::lose_nothing(server.as_raw_fd())?;
        server.read_exact(&mut [0; 8])
    });
    let [segments, probes, timeouts, fast, _] = oracle[..] else { panic!("{oracle:?}") };
    assert!(timeouts >= 2 && counted("rto") >= timeouts, "{oracle:?}: {}", counted("rto"));
    let counted_segments = counted("rto") + counted("tlp") + counted("fast");
    assert_equal(counted_segments, segments, is_exact, "segments");
    assert_equal(counted("fast"), fast, is_exact, "fast");
    if is_exact {
        // A probe may also be what was never sent before.
        assert!(probes >= 1 && counted("tlp") <= probes, "{} tlp of {probes} probes", counted("tlp"));
    }
}

#[test]
fn losses_within_a_stream_are_repaired_in_fast_recovery() {
    needs_root!();
    let (counted, oracle, is_exact) = provoke(0xc2, || {
        let (mut client, mut server) = network::pair("127.0.0.1")?;
        client.set_nodelay(true)?;
        network::lose_incoming(&server, 0.2)?;
        let fd = server.as_raw_fd();
        let reader = thread::spawn(move || io::copy(&mut server, &mut io::sink()));
        let fast = counter("TcpExt", "TCPFastRetrans");
        until("fast retransmits", || {
            (0..50).try_for_each(|_| client.write_all(&[0; 400])).expect("the connection lives");
            (fast() >= 3).then_some(())
        });
        network::lose_nothing(fd)?;
        drop(client);
        reader.join().expect("the reader ends").map(drop)
    });
    let [segments, _, _, fast, _] = oracle[..] else { panic!("{oracle:?}") };
    assert_equal(counted("fast"), fast, is_exact, "fast");
    assert_equal(counted("rto") + counted("tlp") + counted("fast"), segments, is_exact, "segments");
}

/// Both ends of a handshake send again what the other did not answer.
#[test]
fn handshakes_that_get_no_answer_are_told_apart_by_side() {
    needs_root!();
    let (counted, oracle, is_exact) = provoke(0xc3, || {
        let repeats = counter("TcpExt", "TCPSynRetrans");
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address: SocketAddr = listener.local_addr()?;
        // A deaf server: the client repeats its SYN.
        network::lose_incoming(&listener, 1.0)?;
        let client = thread::spawn(move || TcpStream::connect(address));
        until("a repeated SYN", || (repeats() >= 1).then_some(()));
        network::lose_nothing(listener.as_raw_fd())?;
        let connection = client.join().expect("the client ends")?;
        drop((listener.accept()?, connection));
        // A deaf client: the server repeats its SYN-ACK, and the client its SYN.
        let socket = network::socket(libc::SOCK_STREAM)?;
        network::lose_incoming(&socket, 1.0)?;
        let (fd, before) = (socket.as_raw_fd(), repeats());
        let client = thread::spawn(move || network::connect(socket, address));
        until("repeats of both", || (repeats() >= before + 2).then_some(()));
        network::lose_nothing(fd)?;
        client.join().expect("the client ends").map(drop)
    });
    let [segments, _, _, _, repeats] = oracle[..] else { panic!("{oracle:?}") };
    assert!(counted("syn") >= 1 && counted("synack") >= 1, "{} {}", counted("syn"), counted("synack"));
    assert_equal(counted("syn") + counted("synack"), repeats, is_exact, "repeats");
    let of_connections = counted("rto") + counted("tlp") + counted("fast");
    assert_equal(counted("syn") + counted("synack") + of_connections, segments, is_exact, "segments");
}

/// Events of a container's connections, the numbers that `work` returned about them, and whether the kernel says why it
/// drops a packet.
fn tell(number: u32, work: impl FnOnce() -> io::Result<Vec<u64>>) -> (Vec<Fact>, Vec<u64>, Cgroup, bool) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut set = load(NAME, &wanting(Want::Events));
    let gives_reasons = set.status()[0].hooks.iter().any(|status| status.hook == "kfree_skb");
    let mut events = set.take_events().expect("the rings open");
    let told = network::in_namespace(Some(&container), work).expect("the work goes well");
    let facts = drain_for(&mut events, Duration::from_millis(200));
    assert_sum_closes(set, &mut events, facts.len());
    (facts, told, container, gives_reasons)
}

/// What is true of every event of a segment that its receiver's filter had dropped.
fn assert_lost_here(fact: &Fact, address: &str, container: &Cgroup, gives_reasons: bool) {
    assert_eq!((fact.kind, fact.value_ns), ("tcp_retransmit", None));
    assert_address(fact, address);
    assert!(fact.kernel_stack.iter().any(|function| function.contains("tcp")), "{:?}", fact.kernel_stack);
    if !container.is_v1() {
        assert_eq!(fact.cgroup, Some(container.cgroup_id()));
    }
    if gives_reasons {
        assert_eq!(fact.body["drop"]["reason"], "SOCKET_FILTER", "{fact:?}");
        assert!(fact.body["drop_location"].as_str().is_some_and(|place| place.contains("tcp")), "{fact:?}");
        assert!(fact.body["drop"]["age_ns"].as_u64().is_some_and(|age| age < 10_000_000_000), "{fact:?}");
    }
}

fn each_lost_segment_is_an_event(address: &'static str, number: u32) {
    let (facts, told, container, gives_reasons) = tell(number, || {
        let (mut client, mut server) = network::pair(address)?;
        client.write_all(b"heard")?;
        server.read_exact(&mut [0; 5])?;
        network::lose_incoming(&server, 1.0)?;
        let ports = network::ports(&client)?;
        client.write_all(b"lost")?;
        let segments = counter("Tcp", "RetransSegs");
        until("repeats", || (segments() >= 3).then_some(()));
        network::lose_nothing(server.as_raw_fd())?;
        server.read_exact(&mut [0; 4])?;
        Ok(vec![ports[0], ports[1], segments()])
    });
    let ours = of_flow(&facts, [told[0], told[1]]);
    assert_eq!(ours.len() as u64, told[2], "by the namespace's counter: {facts:?}");
    for fact in &ours {
        assert_lost_here(fact, address, &container, gives_reasons);
        assert!(fact.body["reason"] == "tlp" || fact.body["reason"] == "rto", "{fact:?}");
        assert_eq!((&fact.body["state"], &fact.body["segments"]), (&"established".into(), &1.into()));
        assert_eq!(fact.body["seq"], ours[0].body["seq"]);
        // A time-out gives up everything for lost, and this repeat is not on its way yet.
        let in_flight = u64::from(fact.body["reason"] == "tlp");
        assert_eq!(fact.body["in_flight"], in_flight, "{fact:?}");
        assert!(fact.body["rtt_ns"].as_u64().is_some_and(|rtt| rtt < 1_000_000_000), "{fact:?}");
    }
    assert_eq!(ours.last().map(|fact| &fact.body["reason"]), Some(&"rto".into()));
}

#[test]
fn each_lost_segment_of_ipv4_is_an_event_with_its_drop() {
    needs_root!();
    each_lost_segment_is_an_event("127.0.0.1", 0xc4);
}

#[test]
fn each_lost_segment_of_ipv6_is_an_event_with_its_drop() {
    needs_root!();
    each_lost_segment_is_an_event("::1", 0xc5);
}

#[test]
fn an_event_tells_which_side_of_a_handshake_repeats() {
    needs_root!();
    let (facts, told, container, gives_reasons) = tell(0xc6, || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let repeats = counter("TcpExt", "TCPSynRetrans");
        // A deaf client: the server repeats its SYN-ACK, and the client its SYN.
        let socket = network::socket(libc::SOCK_STREAM)?;
        network::lose_incoming(&socket, 1.0)?;
        let fd = socket.as_raw_fd();
        let client = thread::spawn(move || network::connect(socket, address));
        until("repeats of both", || (repeats() >= 2).then_some(()));
        network::lose_nothing(fd)?;
        let client = client.join().expect("the client ends")?;
        let ports = network::ports(&client)?;
        Ok(vec![ports[0], ports[1], counter("Tcp", "RetransSegs")()])
    });
    let (client, server) = (of_flow(&facts, [told[0], told[1]]), of_flow(&facts, [told[1], told[0]]));
    assert_eq!((client.len() + server.len()) as u64, told[2], "by the namespace's counter: {facts:?}");
    assert!(!client.is_empty() && !server.is_empty(), "{facts:?}");
    for fact in &server {
        assert_lost_here(fact, "127.0.0.1", &container, gives_reasons);
        assert_eq!((&fact.body["reason"], &fact.body["state"]), (&"synack".into(), &"new_syn_recv".into()));
    }
    for fact in &client {
        assert_eq!((&fact.body["reason"], &fact.body["state"]), (&"syn".into(), &"syn_sent".into()));
        assert!(fact.body["rtt_ns"].is_null() && fact.body["drop"].is_null(), "it arrived: {fact:?}");
    }
}
