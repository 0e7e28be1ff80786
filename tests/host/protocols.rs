//! What the kernel counts of TCP, UDP, IP and ICMP: each by the kernel's own name, and those that a test can provoke.

use crate::network::connections;
use crate::{Exporter, assert_between, between};
use kpulse_tests::{is_root, network, skip, until};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

/// Each family of the collector, and the kernel's name for it.
const PROTOCOLS: [(&str, &str); 58] = [
    ("tcp_active_opens", "Tcp ActiveOpens"),
    ("tcp_passive_opens", "Tcp PassiveOpens"),
    ("tcp_failed_attempts", "Tcp AttemptFails"),
    ("tcp_established_resets", "Tcp EstabResets"),
    ("tcp_received_segments", "Tcp InSegs"),
    ("tcp_sent_segments", "Tcp OutSegs"),
    ("tcp_retransmitted_segments", "Tcp RetransSegs"),
    ("tcp_receive_errors", "Tcp InErrs"),
    ("tcp_sent_resets", "Tcp OutRsts"),
    ("tcp_checksum_errors", "Tcp InCsumErrors"),
    ("tcp_listen_overflows", "TcpExt ListenOverflows"),
    ("tcp_listen_drops", "TcpExt ListenDrops"),
    ("tcp_request_queue_full_drops", "TcpExt TCPReqQFullDrop"),
    ("tcp_request_queue_full_cookies", "TcpExt TCPReqQFullDoCookies"),
    ("tcp_syncookies_sent", "TcpExt SyncookiesSent"),
    ("tcp_syncookies_received", "TcpExt SyncookiesRecv"),
    ("tcp_syncookies_failed", "TcpExt SyncookiesFailed"),
    ("tcp_timeouts", "TcpExt TCPTimeouts"),
    ("tcp_syn_retransmits", "TcpExt TCPSynRetrans"),
    ("tcp_fast_retransmits", "TcpExt TCPFastRetrans"),
    ("tcp_slow_start_retransmits", "TcpExt TCPSlowStartRetrans"),
    ("tcp_lost_retransmits", "TcpExt TCPLostRetransmit"),
    ("tcp_failed_retransmits", "TcpExt TCPRetransFail"),
    ("tcp_loss_probes", "TcpExt TCPLossProbes"),
    ("tcp_spurious_timeouts", "TcpExt TCPSpuriousRTOs"),
    ("tcp_out_of_order_queued", "TcpExt TCPOFOQueue"),
    ("tcp_out_of_order_dropped", "TcpExt TCPOFODrop"),
    ("tcp_receive_queue_dropped", "TcpExt TCPRcvQDrop"),
    ("tcp_backlog_dropped", "TcpExt TCPBacklogDrop"),
    ("tcp_zero_window_dropped", "TcpExt TCPZeroWindowDrop"),
    ("tcp_zero_windows_announced", "TcpExt TCPToZeroWindowAdv"),
    ("tcp_zero_windows_reopened", "TcpExt TCPFromZeroWindowAdv"),
    ("tcp_prunes", "TcpExt PruneCalled"),
    ("tcp_receive_queue_pruned", "TcpExt RcvPruned"),
    ("tcp_memory_pressures", "TcpExt TCPMemoryPressures"),
    ("tcp_aborts_on_memory", "TcpExt TCPAbortOnMemory"),
    ("tcp_aborts_on_timeout", "TcpExt TCPAbortOnTimeout"),
    ("tcp_aborts_on_data", "TcpExt TCPAbortOnData"),
    ("tcp_aborts_on_close", "TcpExt TCPAbortOnClose"),
    ("tcp_time_wait_overflows", "TcpExt TCPTimeWaitOverflow"),
    ("tcp_time_wait_ended", "TcpExt TW"),
    ("tcp_challenge_acks", "TcpExt TCPChallengeACK"),
    ("reserve_memory_dropped", "TcpExt PFMemallocDrop"),
    ("udp_received_datagrams", "Udp InDatagrams"),
    ("udp_sent_datagrams", "Udp OutDatagrams"),
    ("udp_no_ports", "Udp NoPorts"),
    ("udp_receive_errors", "Udp InErrors"),
    ("udp_receive_buffer_errors", "Udp RcvbufErrors"),
    ("udp_send_buffer_errors", "Udp SndbufErrors"),
    ("udp_checksum_errors", "Udp InCsumErrors"),
    ("ip_receive_discards", "Ip InDiscards"),
    ("ip_send_discards", "Ip OutDiscards"),
    ("ip_no_routes", "Ip OutNoRoutes"),
    ("ip_reassembly_failures", "Ip ReasmFails"),
    ("ip_fragmentation_failures", "Ip FragFails"),
    ("icmp_receive_errors", "Icmp InErrors"),
    ("icmp_received_unreachable", "Icmp InDestUnreachs"),
    ("icmp_sent_unreachable", "Icmp OutDestUnreachs"),
];

/// The kernel's counters of the host's namespace by protocol and name, of those that it has.
fn protocol_counters() -> BTreeMap<String, f64> {
    let text = ["snmp", "netstat"].map(|file| fs::read_to_string(format!("/proc/1/net/{file}")).unwrap());
    let text = text.concat();
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines.chunks(2).flat_map(|pair| {
        let [names, values] = [pair[0], pair[1]].map(|line| line.split_ascii_whitespace());
        let protocol = names.clone().next().unwrap().trim_end_matches(':');
        names.zip(values).skip(1).map(move |(name, value)| (format!("{protocol} {name}"), value))
    });
    // One of them may be negative, and is none of ours.
    pairs.filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect()
}

#[test]
fn every_protocol_counter_is_the_kernels_of_that_name() {
    let exporter = Exporter::start(&["netstat"]);
    let (before, page, after) = between(&exporter, protocol_counters);
    let mut told = 0;
    for (family, name) in PROTOCOLS {
        let family = format!("kpulse_netstat_{family}_total");
        match (before.get(name), after.get(name)) {
            (Some(&before), Some(&after)) => assert_between(name, before, page.value(&family, &[]), after),
            _ => assert_eq!(page.find(&family, &[]), None, "this kernel has no {name}"),
        }
        told += usize::from(page.find(&family, &[]).is_some());
    }
    let families = page.0.lines().filter(|line| line.starts_with("# TYPE kpulse_netstat_"));
    // The gauge of established connections is compared elsewhere.
    assert_eq!(families.count(), told + 1, "the list above lacks a family");
}

/// A packet as the device would have it, sent by the kernel as it is.
fn send_raw(protocol: u8, payload: &[u8]) {
    let header = [
        &[0x45, 0][..],
        &u16::try_from(20 + payload.len()).unwrap().to_be_bytes(),
        &[0, 1, 0, 0, 64, protocol, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1],
    ];
    let packet = [&header.concat(), payload].concat();
    network::send_raw(&network::raw_socket().unwrap(), &packet, Ipv4Addr::LOCALHOST).unwrap();
}

/// What one scrape after the other shows of these families of `netstat`.
fn grown<const N: usize>(exporter: &Exporter, families: [&str; N], provoke: impl FnOnce()) -> [f64; N] {
    let read = || {
        let page = exporter.scrape();
        families.map(|family| page.value(&format!("kpulse_netstat_{family}_total"), &[]))
    };
    let before = read();
    provoke();
    let after = read();
    std::array::from_fn(|index| after[index] - before[index])
}

const TIMES: usize = 20;

/// Other tests of this machine may do the same at the same time: at least.
fn assert_grown<const N: usize>(grown: [f64; N], families: [&str; N]) {
    let least = TIMES as f64;
    assert!(grown.iter().all(|&grown| grown >= least), "{families:?} by {grown:?}, not {least}");
}

#[test]
fn connections_that_fail_are_counted_by_how() {
    let exporter = Exporter::start(&["netstat"]);
    let families = ["tcp_failed_attempts", "tcp_sent_resets"];
    let refused = grown(&exporter, families, || {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        (0..TIMES).for_each(|_| assert!(TcpStream::connect(closed).is_err()));
    });
    assert_grown(refused, families);
    let families = ["tcp_established_resets", "tcp_aborts_on_data", "tcp_sent_resets"];
    let reset = grown(&exporter, families, || {
        for (client, mut server) in connections(TIMES) {
            network::reset_on_close(&client).unwrap();
            drop(client);
            assert!(server.read_exact(&mut [0]).is_err());
        }
    });
    assert_grown(reset, families);
    let families = ["tcp_aborts_on_close"];
    let unread = grown(&exporter, families, || {
        for (client, mut server) in connections(TIMES) {
            server.write_all(b"nobody reads this").unwrap();
            client.peek(&mut [0]).unwrap();
            drop(client);
        }
    });
    assert_grown(unread, families);
}

#[test]
fn readers_that_stop_close_their_windows_and_open_them() {
    let exporter = Exporter::start(&["netstat"]);
    let changes =
        |what| exporter.scrape().value(&format!("kpulse_netstat_tcp_zero_windows_{what}_total"), &[]);
    let [announced, reopened] = ["announced", "reopened"].map(changes);
    let mut held = Vec::new();
    for (mut client, server) in connections(TIMES) {
        client.set_nonblocking(true).unwrap();
        let sent: usize = std::iter::from_fn(|| client.write(&[1; 1 << 16]).ok()).sum();
        held.push((client, server, sent));
    }
    // A window that is too small for a segment closes when the sender has filled it all the same, after a while.
    let is_over = |what, before: f64| (changes(what) - before >= TIMES as f64).then_some(());
    until("closed windows", || is_over("announced", announced));
    for (_client, server, sent) in &mut held {
        server.read_exact(&mut vec![0; *sent]).unwrap();
    }
    until("windows that are open again", || is_over("reopened", reopened));
}

#[test]
fn datagrams_that_find_no_room_and_packets_that_are_broken_are_counted() {
    if !is_root() {
        return skip("datagrams_that_find_no_room", "only root can send broken packets");
    }
    let exporter = Exporter::start(&["netstat", "sockstat"]);
    let families = ["udp_receive_errors", "udp_receive_buffer_errors"];
    let lost = grown(&exporter, families, || {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        network::set_buffer(&receiver, libc::SO_RCVBUF, 4096).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..TIMES + 16 {
            sender.send_to(&[0; 4096], receiver.local_addr().unwrap()).unwrap();
        }
    });
    assert_grown(lost, families);
    let families = ["udp_checksum_errors", "udp_receive_errors"];
    let broken = grown(&exporter, families, || {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = receiver.local_addr().unwrap().port().to_be_bytes();
        let datagram = [&[9, 9][..], &port, &[0, 10, 0xbe, 0xef], b"??"].concat();
        (0..TIMES).for_each(|_| send_raw(17, &datagram));
    });
    assert_grown(broken, families);
    let families = ["tcp_checksum_errors", "tcp_receive_errors"];
    let broken = grown(&exporter, families, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_be_bytes();
        let syn = [&[9, 9][..], &port, &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0xbe, 0xef, 0, 0]].concat();
        (0..TIMES).for_each(|_| send_raw(6, &syn));
    });
    assert_grown(broken, families);
}

#[test]
fn buffers_and_orphans_of_sockets_are_counted() {
    let exporter = Exporter::start(&["sockstat"]);
    let memory =
        |protocol| exporter.scrape().value("kpulse_sockstat_memory_bytes", &[("protocol", protocol)]);
    // A CPU keeps up to 1 MiB for itself, which no sum shows.
    const SHOWN: f64 = 8e6;
    let before = memory("udp");
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let receivers: Vec<_> = (0..128).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for receiver in receivers.iter().cycle().take(128 * 16) {
        sender.send_to(&[0; 8000], receiver.local_addr().unwrap()).unwrap();
    }
    let grown = memory("udp") - before;
    assert!(grown >= SHOWN, "{grown} bytes in queues that nobody reads");
    let before = memory("tcp");
    let orphans = || exporter.scrape().value("kpulse_sockstat_tcp_orphaned", &[]);
    let before_orphans = orphans();
    let mut readers = Vec::new();
    for (mut client, server) in connections(10) {
        client.set_nonblocking(true).unwrap();
        while client.write(&[1; 1 << 16]).is_ok() {}
        // It has data left that nobody takes: the kernel keeps it without its process.
        drop(client);
        readers.push(server);
    }
    let (grown, orphaned) = (memory("tcp") - before, orphans() - before_orphans);
    assert!(grown >= SHOWN && orphaned >= 10.0, "{grown} bytes, {orphaned} orphans");
    drop(readers);
    until("the end of the orphans", || (orphans() < before_orphans + 5.0).then_some(()));
}
