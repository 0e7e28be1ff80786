//! Dropped packets: provoked on loopback, compared with what was sent.

use super::*;
use kpulse_common::packet_filter::PacketFilter;
use kpulse_common::thresholds::Thresholds;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::{network, until};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

const NAME: &str = "packet_drop";
const FAMILY: &str = "kpulse_packets_dropped_total";
const DATAGRAMS: u64 = 5;

fn send(sender: &UdpSocket, to: SocketAddr) {
    for _ in 0..DATAGRAMS {
        sender.send_to(b"nobody listens", to).expect("loopback takes it");
    }
}

/// Sends datagrams to a port that nobody listens on; (source port, destination port).
fn send_to_closed_port(address: &str) -> std::io::Result<(u16, u16)> {
    let closed = UdpSocket::bind((address, 0))?.local_addr()?;
    let sender = UdpSocket::bind((address, 0))?;
    send(&sender, closed);
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
        // Loopback delivers in a softirq, which works on top of the sender.
        assert_eq!(fact.user_stack, None);
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

/// Sends the second half of a datagram alone, for which the kernel waits in vain.
fn send_second_fragment(destination: Ipv4Addr) -> std::io::Result<Vec<u64>> {
    std::fs::write("/proc/sys/net/ipv4/ipfrag_time", "1")?;
    // The kernel fills in length, number, source and checksum; the offset is one unit of 8 bytes.
    let mut packet = [0; 36];
    (packet[0], packet[7], packet[8], packet[9]) = (0x45, 1, 64, 17);
    packet[16..20].copy_from_slice(&destination.octets());
    // What a reader that knows of no fragments takes for ports.
    packet[20..24].copy_from_slice(&[0x11; 4]);
    let socket = network::raw_socket()?;
    until("the end of waiting", || {
        network::send_raw(&socket, &packet, destination).ok()?;
        thread::sleep(Duration::from_millis(300));
        network::counter("Ip", "ReasmTimeout").ok().filter(|timeouts| *timeouts >= 3)
    });
    Ok(Vec::new())
}

#[test]
fn a_fragment_that_is_not_the_first_tells_no_ports() {
    needs_root!();
    let destination = Ipv4Addr::new(127, 0, 9, 9);
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    network::in_namespace(None, || send_second_fragment(destination)).expect("fragments can be sent");
    let facts = drain_for(&mut events, Duration::from_millis(200));
    let is_ours = |fact: &&Fact| fact.body["destination"]["ip"] == destination.to_string();
    let ours: Vec<_> = facts.iter().filter(is_ours).collect();
    assert!(!ours.is_empty(), "{facts:?}");
    for fact in ours {
        assert_eq!(fact.body["protocol"], "udp");
        let ports = [&fact.body["source"]["port"], &fact.body["destination"]["port"]];
        assert!(ports.iter().all(|port| port.is_null()), "{fact:?}");
    }
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

/// No packet is of both.
const NOTHING: &str = "udp and tcp";

fn keeping(filter: &str) -> Thresholds {
    let mut thresholds = Thresholds::default();
    thresholds.packet_drop.filter = PacketFilter::try_from(filter.to_owned()).expect("it can be read");
    thresholds
}

#[test]
fn the_filter_decides_in_the_kernel_which_drops_make_events() {
    needs_root!();
    let mut set = load(NAME, &LoadOptions { thresholds: keeping(NOTHING), ..wanting(Want::Events) });
    let (mut events, mut policies) = (set.take_events().expect("rings"), set.policies().expect("maps"));
    let mut told = |addresses: &[&str], filter: Option<&dyn Fn([u16; 2]) -> String>| -> Vec<u64> {
        let mut sender = |address: &&str| {
            let [closed, sender] = [0; 2].map(|_| UdpSocket::bind((*address, 0)).expect("loopback is up"));
            let to = closed.local_addr().expect("it is bound");
            let ports = [sender.local_addr().expect("it is bound").port(), to.port()];
            if let Some(filter) = filter {
                policies.apply(&keeping(&filter(ports)), &HashMap::new()).expect("the maps can be written");
            }
            drop(closed);
            send(&sender, to);
            let facts = drain_for(&mut events, Duration::from_millis(50));
            of_flow(&facts, ports.map(u64::from)).len() as u64
        };
        addresses.iter().map(&mut sender).collect()
    };
    let both = ["127.0.0.1", "::1"];
    assert_eq!(told(&both, None), [0, 0], "with the filter that it was loaded with");
    for (filter, v4, v6) in [
        ("", true, true),
        ("udp", true, true),
        ("not udp", false, false),
        ("ip and not icmp", true, false),
        ("ip6 and not icmp6", false, true),
        ("host 127.0.0.1", true, false),
        ("src host ::1 and dst host ::1", false, true),
        ("dst net 127.0.0.0/8 or src ::2", true, false),
        ("net ::/127", false, true),
        ("src net ::2/127", false, false),
        ("port SOURCE", true, true),
        ("tcp port SOURCE", false, false),
        ("dst port SOURCE", false, false),
        ("udp src port SOURCE and dst port CLOSED", true, true),
        ("portrange CLOSED-65535", true, true),
        ("ip or udp and dst portrange 0-CLOSED and not ip6", true, false),
        ("ifname lo && !(src port CLOSED || tcp)", true, true),
        ("ifname l or ifname loo", false, false),
        (NOTHING, false, false),
    ] {
        let filled = |[source, closed]: [u16; 2]| {
            filter.replace("SOURCE", &source.to_string()).replace("CLOSED", &closed.to_string())
        };
        let expected = [v4, v6].map(|is_kept| if is_kept { DATAGRAMS } else { 0 });
        assert_eq!(told(&both, Some(&filled)), expected, "{filter}");
    }
    let longest = |[source, _]: [u16; 2]| format!("{}port {source}", "port 0 or ".repeat(63));
    assert_eq!(told(&both, Some(&longest)), [DATAGRAMS; 2], "each of the most tests there may be");
}

#[test]
fn what_the_filter_keeps_out_is_counted_and_takes_nothing_from_the_rate_limit() {
    needs_root!();
    let mut thresholds = keeping(NOTHING);
    thresholds.rate_limit.burst = 1;
    thresholds.rate_limit.events_per_second = 1;
    let mut counting = load(NAME, &LoadOptions { thresholds: thresholds.clone(), ..wanting(Want::Metrics) });
    let mut telling = load(NAME, &LoadOptions { thresholds: thresholds.clone(), ..wanting(Want::Events) });
    let (mut events, mut policies) =
        (telling.take_events().expect("rings"), telling.policies().expect("maps"));
    let reason = no_socket(has_reasons(&counting), "127.0.0.1");
    let mut identities = identities();
    let mut counted = || total(&scrape(&mut counting, NAME, &mut identities), FAMILY, &[reason, "udp"]);
    let before = counted();
    send_to_closed_port("127.0.0.1").expect("loopback is up");
    assert!(counted() >= before + DATAGRAMS, "{before} before");
    assert_eq!(drain_for(&mut events, Duration::from_millis(100)), []);
    assert_eq!(events.produced().iter().map(|(_, count)| count).sum::<u64>(), 0);

    let sender = UdpSocket::bind("127.0.0.1:0").expect("loopback is up");
    let closed = UdpSocket::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("loopback is up");
    let port = sender.local_addr().expect("it is bound").port();
    thresholds.packet_drop = keeping(&format!("udp src port {port}")).packet_drop;
    policies.apply(&thresholds, &HashMap::new()).expect("the maps can be written");
    send(&sender, closed);
    let facts = drain_for(&mut events, Duration::from_millis(100));
    assert!(facts.iter().all(|fact| fact.body["source"]["port"] == port), "{facts:?}");
    // A bucket may fill up again meanwhile.
    assert!((1..DATAGRAMS as usize).contains(&facts.len()), "{facts:?}");
    assert_eq!(events.produced().iter().map(|(_, count)| count).sum::<u64>(), DATAGRAMS);
    assert_sum_closes(telling, &mut events, facts.len());
}
