//! Dropped packets: provoked on loopback, compared with what was sent.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::network;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

const NAME: &str = "packet_drop";
const FAMILY: &str = "kpulse_packets_dropped_total";
const DATAGRAMS: u64 = 5;

/// Sends datagrams to a port that nobody listens on; (source port, destination port).
fn send_to_closed_port(address: &str) -> std::io::Result<(u16, u16)> {
    let closed = UdpSocket::bind((address, 0))?.local_addr()?;
    let sender = UdpSocket::bind((address, 0))?;
    for _ in 0..DATAGRAMS {
        sender.send_to(b"nobody listens", closed)?;
    }
    Ok((sender.local_addr()?.port(), closed.port()))
}

/// The reason for no socket, by the name that this kernel can give.
fn no_socket(has_reasons: bool, address: &str) -> &'static str {
    match (has_reasons, address) {
        (true, _) => "NO_SOCKET",
        (false, "127.0.0.1") => "__udp4_lib_rcv",
        (false, _) => "__udp6_lib_rcv",
    }
}

fn has_reasons(set: &ProbeSet) -> bool {
    set.status()[0].hooks[0].program != "kfree_skb"
}

#[test]
fn counts_datagrams_that_nobody_listens_for() {
    needs_root!();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let reason = no_socket(has_reasons(&set), "127.0.0.1");
    let mut identities = identities();
    let before = total(&scrape(&mut set, NAME, &mut identities), FAMILY, &[reason, "udp"]);
    send_to_closed_port("127.0.0.1").expect("loopback is up");
    let after = total(&scrape(&mut set, NAME, &mut identities), FAMILY, &[reason, "udp"]);
    assert!(after >= before + DATAGRAMS, "{before} before, {after} after {DATAGRAMS} more");
}

/// Sends datagrams that nobody reads, until the receiver has room for no more; how many were lost.
fn overfill() -> std::io::Result<Vec<u64>> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    kpulse_tests::until("lost datagrams", || {
        (0..100).try_for_each(|_| sender.send(&[0; 1024]).map(drop)).expect("it is connected");
        (network::counter("Udp", "RcvbufErrors").expect("a counter") >= 20).then_some(())
    });
    Ok(vec![network::counter("Udp", "RcvbufErrors")?])
}

#[test]
fn datagrams_that_find_no_room_are_their_receivers() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xab).expect("a cgroup can be made");
    let mut identities = identities();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = total(&scrape(&mut set, NAME, &mut identities), FAMILY, &["udp"]);
    let lost = network::in_namespace(Some(&container), overfill).expect("the work goes well")[0];
    let after = scrape(&mut set, NAME, &mut identities);
    let tells_receiver = set.status()[0].hooks[0].program == "kfree_skb_with_socket";
    if tells_receiver && !container.is_v1() {
        let id = Cgroup::id(0xab);
        assert_eq!(count(&after, FAMILY, &["SOCKET_RCVBUFF", "udp", &id]), lost);
        assert_eq!(total(&after, FAMILY, &["udp", &id]), lost);
    } else {
        assert!(total(&after, FAMILY, &["udp"]) >= before + lost, "{lost} lost");
    }
}

fn event_tells_the_flow(address: &str) {
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    let Ok((source, destination)) = send_to_closed_port(address) else {
        kpulse_tests::skip(module_path!(), &format!("{address} cannot be used here"));
        return;
    };
    let facts = drain_for(&mut events, Duration::from_millis(200));
    let ours = of_flow(&facts, [source.into(), destination.into()]);
    assert_eq!(ours.len() as u64, DATAGRAMS, "{facts:?}");
    for fact in &ours {
        assert_eq!((fact.kind, &fact.body["protocol"]), ("packet_drop", &"udp".into()));
        assert_address(fact, address);
        let told = if has_reasons(&set) { &fact.body["reason"] } else { &fact.body["location"] };
        assert_eq!(told, no_socket(has_reasons(&set), address), "{fact:?}");
        assert!(fact.kernel_stack.iter().any(|function| function.contains("udp")), "{:?}", fact.kernel_stack);
        assert_eq!(fact.body["device"], "lo");
    }
    assert_sum_closes(set, &mut events, facts.len());
}

#[test]
fn an_event_tells_flow_reason_and_stack_of_ipv4() {
    needs_root!();
    event_tells_the_flow("127.0.0.1");
}

#[test]
fn an_event_tells_flow_reason_and_stack_of_ipv6() {
    needs_root!();
    event_tells_the_flow("::1");
}

#[test]
fn ordinary_connections_drop_nothing_worth_an_event() {
    needs_root!();
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let address = listener.local_addr().expect("it is bound");
    let server = thread::spawn(move || {
        for stream in listener.incoming().take(50) {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(&[1; 65_536]);
        }
    });
    for index in 0..50 {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it reads");
        // Every other client leaves in the middle of the answer, as browsers do.
        let mut answer = vec![0; if index % 2 == 0 { 65_536 } else { 100 }];
        stream.read_exact(&mut answer).expect("it answers");
    }
    server.join().expect("the server ends");
    let refused = TcpStream::connect(address);
    assert!(refused.is_err(), "nobody listens any more");
    let facts = drain_for(&mut events, Duration::from_millis(300));
    let ports = |fact: &&Fact| {
        fact.body["source"]["port"] == address.port() || fact.body["destination"]["port"] == address.port()
    };
    assert_eq!(facts.iter().filter(ports).collect::<Vec<_>>(), Vec::<&Fact>::new());
}
