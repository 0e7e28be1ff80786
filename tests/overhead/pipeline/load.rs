//! Events of 1 KiB, as many as are wanted, and those of the kernel.

use std::io::{self, BufWriter, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime};

/// What one event has as JSON, with its end of line.
const BYTES: usize = 1 << 10;

/// One event of a process in a pod, as `forward` writes them.
fn event(number: u64, time: &str) -> String {
    let container = number % 50;
    let stack = [
        "sk_skb_reason_drop",
        "__udp4_lib_rcv",
        "ip_protocol_deliver_rcu",
        "ip_local_deliver_finish",
        "__netif_receive_skb_one_core",
        "process_backlog",
        "__napi_poll",
        "net_rx_action",
        "handle_softirqs",
    ];
    let mut event = format!(
        r#"{{"@timestamp":"{time}","ecs":{{"version":"8.17"}},"event":{{"id":"0192f1a0-0000-7000-8000-{number:012x}","kind":"event","module":"kpulse","dataset":"kpulse.events","action":"packet_drop"}},"host":{{"name":"node-7","id":"8f0e6f1c8d0c4bb1a7a6a2f5f7a7c9d1","os":{{"kernel":"6.12.57-amd64"}}}},"process":{{"pid":{pid},"name":"server","executable":"/usr/bin/server","command_line":"/usr/bin/server --port 8125","thread":{{"id":{pid},"name":"worker"}}}},"container":{{"id":"{container:064x}","name":"server","runtime":"containerd"}},"kpulse":{{"schema":1,"probe":"packet_drop","cpu":{cpu},"suppressed":0,"stack":{{"kernel":["{stack}"]}},"packet_drop":{{"reason":"NO_SOCKET","protocol":"udp","direction":"in","length":{length},"device":"eth0","netns":4026531833,"source":{{"ip":"192.0.2.{cpu}","port":{port}}},"destination":{{"ip":"192.0.2.1","port":8125}}}}}}}}"#,
        pid = 1000 + number % 4000,
        cpu = number % 64,
        stack = stack.join("\",\""),
        length = 20 + number % 1400,
        port = number % 65536,
    );
    // The labels of a configuration fill the rest.
    let room = BYTES.saturating_sub(event.len() + r#"{"labels":{"":""},"#.len());
    event.insert_str(1, &format!(r#""labels":{{"a":"{}"}},"#, "x".repeat(room)));
    event
}

fn at(time: SystemTime) -> String {
    kpulse_common::clock::rfc3339(time)
}

/// This many, all of this moment.
pub fn write(out: impl Write, events: u64) -> io::Result<()> {
    let (mut out, time) = (BufWriter::new(out), at(SystemTime::now()));
    for number in 0..events {
        writeln!(out, "{}", event(number, &time))?;
    }
    out.flush()
}

/// So many a second, each of its own moment: when one is late, the next ones are not.
pub fn write_at_pace(out: impl Write, per_second: u64, time: Duration) -> io::Result<()> {
    let (mut out, begin) = (BufWriter::with_capacity(4096, out), Instant::now());
    let mut number = 0;
    while begin.elapsed() < time {
        let due = (begin.elapsed().as_secs_f64() * per_second as f64) as u64;
        while number < due {
            writeln!(out, "{}", event(number, &at(SystemTime::now())))?;
            number += 1;
        }
        out.flush()?;
        std::thread::sleep(Duration::from_millis(2));
    }
    while number < per_second * time.as_secs() {
        writeln!(out, "{}", event(number, &at(SystemTime::now())))?;
        number += 1;
    }
    out.flush()
}

/// Datagrams to a port that nobody listens at, as fast as one thread sends.
pub fn drop_packets(time: Duration) {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (socket, begin) = (UdpSocket::bind("127.0.0.1:0").unwrap(), Instant::now());
    while begin.elapsed() < time {
        // An earlier answer from the port is an error of this send.
        let _ = socket.send_to(b"x", nobody);
    }
}
