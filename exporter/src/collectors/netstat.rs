//! How the host's network protocols fare: fields of `/proc/net/snmp`, `netstat` and `snmp6`, each with its right type.

use super::{Collect, Host, HostCollector};
use kpulse_common::metric::{MetricDef, Samples};
use std::collections::HashMap;

/// A family, and the protocol and field that it is.
struct Field {
    def: MetricDef,
    protocol: &'static str,
    field: &'static str,
}

macro_rules! counter {
    ($protocol:literal, $field:literal, $name:literal, $help:literal) => {
        Field {
            def: MetricDef::counter(concat!("kpulse_netstat_", $name, "_total"), $help, &[]),
            protocol: $protocol,
            field: $field,
        }
    };
}

const FIELDS: [Field; 59] = [
    Field {
        def: MetricDef::gauge(
            "kpulse_netstat_tcp_established",
            "TCP connections, established or closing on the other side.",
            &[],
        ),
        protocol: "Tcp",
        field: "CurrEstab",
    },
    counter!("Tcp", "ActiveOpens", "tcp_active_opens", "TCP connections begun here."),
    counter!("Tcp", "PassiveOpens", "tcp_passive_opens", "TCP connections taken here."),
    counter!(
        "Tcp",
        "AttemptFails",
        "tcp_failed_attempts",
        "TCP connections that failed before they were established."
    ),
    counter!("Tcp", "EstabResets", "tcp_established_resets", "Established TCP connections that were reset."),
    counter!("Tcp", "InSegs", "tcp_received_segments", "TCP segments received."),
    counter!("Tcp", "OutSegs", "tcp_sent_segments", "TCP segments sent, without those sent again."),
    counter!("Tcp", "RetransSegs", "tcp_retransmitted_segments", "TCP segments sent again."),
    counter!("Tcp", "InErrs", "tcp_receive_errors", "TCP segments received broken."),
    counter!("Tcp", "OutRsts", "tcp_sent_resets", "TCP resets sent."),
    counter!("Tcp", "InCsumErrors", "tcp_checksum_errors", "TCP segments with a wrong checksum."),
    counter!(
        "TcpExt",
        "ListenOverflows",
        "tcp_listen_overflows",
        "Connections refused because the accept queue was full."
    ),
    counter!(
        "TcpExt",
        "ListenDrops",
        "tcp_listen_drops",
        "Connection requests dropped, whatever the reason."
    ),
    counter!(
        "TcpExt",
        "TCPReqQFullDrop",
        "tcp_request_queue_full_drops",
        "Connection requests dropped because the SYN queue was full."
    ),
    counter!(
        "TcpExt",
        "TCPReqQFullDoCookies",
        "tcp_request_queue_full_cookies",
        "Connection requests answered with a cookie because the SYN queue was full."
    ),
    counter!("TcpExt", "SyncookiesSent", "tcp_syncookies_sent", "SYN cookies sent."),
    counter!("TcpExt", "SyncookiesRecv", "tcp_syncookies_received", "Valid SYN cookies received."),
    counter!("TcpExt", "SyncookiesFailed", "tcp_syncookies_failed", "Invalid SYN cookies received."),
    counter!("TcpExt", "TCPTimeouts", "tcp_timeouts", "Retransmission timers that ran out."),
    counter!("TcpExt", "TCPSynRetrans", "tcp_syn_retransmits", "Connection requests sent again."),
    counter!("TcpExt", "TCPFastRetrans", "tcp_fast_retransmits", "Segments sent again before a timeout."),
    counter!(
        "TcpExt",
        "TCPSlowStartRetrans",
        "tcp_slow_start_retransmits",
        "Segments sent again after a timeout."
    ),
    counter!(
        "TcpExt",
        "TCPLostRetransmit",
        "tcp_lost_retransmits",
        "Segments sent again that were lost again."
    ),
    counter!("TcpExt", "TCPRetransFail", "tcp_failed_retransmits", "Segments that could not be sent again."),
    counter!("TcpExt", "TCPLossProbes", "tcp_loss_probes", "Tail loss probes sent."),
    counter!("TcpExt", "TCPSpuriousRTOs", "tcp_spurious_timeouts", "Timeouts that proved needless."),
    counter!(
        "TcpExt",
        "TCPOFOQueue",
        "tcp_out_of_order_queued",
        "Segments queued because one before them was missing."
    ),
    counter!(
        "TcpExt",
        "TCPOFODrop",
        "tcp_out_of_order_dropped",
        "Segments out of order that found no memory."
    ),
    counter!(
        "TcpExt",
        "TCPRcvQDrop",
        "tcp_receive_queue_dropped",
        "Segments that found no memory in the receive queue."
    ),
    counter!(
        "TcpExt",
        "TCPBacklogDrop",
        "tcp_backlog_dropped",
        "Segments dropped because the socket's backlog was full."
    ),
    counter!(
        "TcpExt",
        "TCPZeroWindowDrop",
        "tcp_zero_window_dropped",
        "Segments dropped because the receive window was closed."
    ),
    counter!(
        "TcpExt",
        "TCPToZeroWindowAdv",
        "tcp_zero_windows_announced",
        "Times that a receive window was announced closed."
    ),
    counter!(
        "TcpExt",
        "TCPFromZeroWindowAdv",
        "tcp_zero_windows_reopened",
        "Times that a closed receive window was announced open."
    ),
    counter!(
        "TcpExt",
        "PruneCalled",
        "tcp_prunes",
        "Times that a receive queue was pruned for lack of memory."
    ),
    counter!(
        "TcpExt",
        "RcvPruned",
        "tcp_receive_queue_pruned",
        "Segments dropped from receive queues for lack of memory."
    ),
    counter!(
        "TcpExt",
        "TCPMemoryPressures",
        "tcp_memory_pressures",
        "Times that TCP came under memory pressure."
    ),
    counter!("TcpExt", "TCPAbortOnMemory", "tcp_aborts_on_memory", "Connections aborted for lack of memory."),
    counter!(
        "TcpExt",
        "TCPAbortOnTimeout",
        "tcp_aborts_on_timeout",
        "Connections aborted after too many retransmissions."
    ),
    counter!(
        "TcpExt",
        "TCPAbortOnData",
        "tcp_aborts_on_data",
        "Connections aborted because they were closed with a reset."
    ),
    counter!(
        "TcpExt",
        "TCPAbortOnClose",
        "tcp_aborts_on_close",
        "Connections closed with data still unread."
    ),
    counter!(
        "TcpExt",
        "TCPTimeWaitOverflow",
        "tcp_time_wait_overflows",
        "Connections that found no room in time-wait."
    ),
    counter!("TcpExt", "TW", "tcp_time_wait_ended", "Connections that ended their time-wait by timeout."),
    counter!("TcpExt", "TCPChallengeACK", "tcp_challenge_acks", "Challenge acknowledgements sent."),
    counter!(
        "TcpExt",
        "PFMemallocDrop",
        "reserve_memory_dropped",
        "Packets in reserve memory dropped by sockets not meant for it."
    ),
    counter!("Udp", "InDatagrams", "udp_received_datagrams", "UDP datagrams delivered."),
    counter!("Udp", "OutDatagrams", "udp_sent_datagrams", "UDP datagrams sent."),
    counter!("Udp", "NoPorts", "udp_no_ports", "UDP datagrams to a port where nobody listened."),
    counter!("Udp", "InErrors", "udp_receive_errors", "UDP datagrams that could not be delivered."),
    counter!(
        "Udp",
        "RcvbufErrors",
        "udp_receive_buffer_errors",
        "UDP datagrams that found the receive buffer full."
    ),
    counter!(
        "Udp",
        "SndbufErrors",
        "udp_send_buffer_errors",
        "UDP datagrams that found the send buffer full."
    ),
    counter!("Udp", "InCsumErrors", "udp_checksum_errors", "UDP datagrams with a wrong checksum."),
    counter!(
        "Ip",
        "InDiscards",
        "ip_receive_discards",
        "IPv4 packets received and discarded for lack of resources."
    ),
    counter!("Ip", "OutDiscards", "ip_send_discards", "IPv4 packets to be sent and discarded."),
    counter!("Ip", "OutNoRoutes", "ip_no_routes", "IPv4 packets that had no route."),
    counter!("Ip", "ReasmFails", "ip_reassembly_failures", "IPv4 packets that could not be put together."),
    counter!("Ip", "FragFails", "ip_fragmentation_failures", "IPv4 packets that could not be taken apart."),
    counter!("Icmp", "InErrors", "icmp_receive_errors", "ICMP messages received broken."),
    counter!(
        "Icmp",
        "InDestUnreachs",
        "icmp_received_unreachable",
        "ICMP messages received that told of an unreachable destination."
    ),
    counter!(
        "Icmp",
        "OutDestUnreachs",
        "icmp_sent_unreachable",
        "ICMP messages sent that told of an unreachable destination."
    ),
];

const METRICS: [MetricDef; FIELDS.len()] = {
    let mut defs = [FIELDS[0].def; FIELDS.len()];
    let mut index = 0;
    while index < FIELDS.len() {
        defs[index] = FIELDS[index].def;
        index += 1;
    }
    defs
};

pub const COLLECTOR: HostCollector = HostCollector {
    name: "netstat",
    metrics: &METRICS,
    is_default: true,
    make: |_| Box::new(Netstat::new()),
};

struct Netstat {
    fields: HashMap<(&'static str, &'static str), usize>,
}

impl Netstat {
    fn new() -> Self {
        let keys = FIELDS.iter().enumerate().map(|(index, field)| ((field.protocol, field.field), index));
        Self { fields: keys.collect() }
    }

    /// Adds what a file holds: for each protocol a line of names and a line of values.
    fn read(&self, text: &str, found: &mut [Option<u64>; FIELDS.len()]) {
        let mut lines = text.lines();
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let (Some((protocol, names)), Some((of, values))) =
                (names.split_once(':'), values.split_once(':'))
            else {
                continue;
            };
            if protocol != of {
                continue;
            }
            for (name, value) in names.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
                if let Some(index) = self.fields.get(&(protocol, name)) {
                    found[*index] = value.parse().ok();
                }
            }
        }
    }
}

impl Collect for Netstat {
    fn collect(&mut self, host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
        let mut found = [None; FIELDS.len()];
        for name in ["snmp", "netstat"] {
            let path = host.net_file(name);
            self.read(host.text.read(&path)?, &mut found);
        }
        for (def, value) in METRICS.iter().zip(found) {
            if let Some(value) = value {
                out.count(def, &[], value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn established_and_resets(text: &str) -> (Option<u64>, Option<u64>) {
        let mut found = [None; FIELDS.len()];
        Netstat::new().read(text, &mut found);
        let named = |name| found[METRICS.iter().position(|def| def.name == name).unwrap()];
        (named("kpulse_netstat_tcp_established"), named("kpulse_netstat_tcp_sent_resets_total"))
    }

    #[test]
    fn values_are_found_by_name_wherever_a_kernel_puts_them() {
        assert_eq!(
            established_and_resets("Tcp: MaxConn CurrEstab OutRsts\nTcp: -1 7 300\n"),
            (Some(7), Some(300))
        );
        assert_eq!(established_and_resets("Tcp: OutRsts X CurrEstab\nTcp: 300 1 7\n"), (Some(7), Some(300)));
    }

    #[test]
    fn what_has_another_shape_is_absent() {
        for text in
            ["", "Tcp: OutRsts\n", "Tcp: OutRsts\nUdp: 4\n", "Tcp: OutRsts\nTcp: -1\n", "Tcp\nTcp: 1\n"]
        {
            assert_eq!(established_and_resets(text), (None, None), "{text:?}");
        }
        assert_eq!(established_and_resets("Tcp: CurrEstab OutRsts\nTcp: 7\n"), (Some(7), None));
    }
}
