//! TCP connections, against the clock of the program that makes them and what the sockets tell it.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::{network, until};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Instant;

const NAME: &str = "tcp_connect";
const HANDSHAKE: &str = "kpulse_tcp_handshake_seconds";
const ACCEPT_WAIT: &str = "kpulse_tcp_accept_wait_seconds";
const RTT: &str = "kpulse_tcp_rtt_seconds";
const RWND_LIMITED: &str = "kpulse_tcp_rwnd_limited_seconds_total";

/// What one container's connections were like, and the numbers that `work` returned about them.
fn provoke(
    number: u32,
    options: &LoadOptions,
    work: impl FnOnce() -> io::Result<Vec<u64>>,
) -> (Samples, Vec<u64>, Cgroup) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut identities = identities();
    let mut set = load(NAME, options);
    let told = network::in_namespace(Some(&container), work).expect("the work goes well");
    (scrape(&mut set, NAME, &mut identities), told, container)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("a test is shorter than 500 years")
}

#[test]
fn a_handshake_takes_a_client_as_long_as_connect_does() {
    needs_root!();
    let (samples, told, _) = provoke(0xd1, &wanting(Want::Metrics), || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        // The first SYN is lost, so connect() takes the second that TCP waits before the next one.
        network::lose_incoming(&listener, 1.0)?;
        let client = thread::spawn(move || {
            let begin = Instant::now();
            TcpStream::connect(address).map(|_| nanoseconds(begin.elapsed()))
        });
        until("a repeated SYN", || {
            (network::counter("TcpExt", "TCPTimeouts").expect("a counter") >= 1).then_some(())
        });
        network::lose_nothing(listener.as_raw_fd())?;
        let elapsed = client.join().expect("the client ends")?;
        drop(listener);
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
        Ok(vec![elapsed])
    });
    let measured = histogram(&samples, HANDSHAKE, &["client", &Cgroup::id(0xd1)]);
    assert_eq!(measured.count(), 1, "a refused connection has no handshake");
    let low = nanoseconds(Duration::from_millis(900));
    assert!((low..=told[0]).contains(&measured.sum_ns), "{} ns, connect() {}", measured.sum_ns, told[0]);
}

/// The smoothed round-trip time by the socket's own account, in microseconds.
fn round_trip(socket: &impl AsRawFd) -> io::Result<u64> {
    Ok(network::tcp_info(socket)?.round_trip_us)
}

#[test]
fn round_trips_are_those_that_the_sockets_tell() {
    needs_root!();
    const CONNECTIONS: u64 = 5;
    let (samples, told, container) = provoke(0xd2, &wanting(Want::Metrics), || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (mut handshakes, mut servers, mut clients) = (0, 0, 0);
        for _ in 0..CONNECTIONS {
            let mut client = TcpStream::connect(listener.local_addr()?)?;
            let (mut server, _) = listener.accept()?;
            handshakes += round_trip(&server)?;
            server.write_all(b"hello")?;
            client.read_exact(&mut [0; 5])?;
            servers += round_trip(&server)?;
            clients += round_trip(&client)?;
            // A reset ends both ends at once, with no further sample.
            network::reset_on_close(&client)?;
            drop(client);
            server.read_exact(&mut [0]).expect_err("the connection was reset");
        }
        Ok(vec![handshakes, servers, clients])
    });
    let us = |histogram: &Histogram| histogram.sum_ns / 1000;
    let id = Cgroup::id(0xd2);
    if container.is_v1() {
        // The handshake of a server is done by no task: it counts for the host.
        assert!(histogram(&samples, HANDSHAKE, &["server"]).sum_ns / 1000 >= told[0]);
    } else {
        let handshake = histogram(&samples, HANDSHAKE, &["server", &id]);
        assert_eq!((handshake.count(), us(&handshake)), (CONNECTIONS, told[0]));
    }
    for (role, expected) in [("server", told[1]), ("client", told[2])] {
        let measured = histogram(&samples, RTT, &[role, &id]);
        assert_eq!((measured.count(), us(&measured)), (CONNECTIONS, expected), "{role}");
    }
}

fn accept_waits_as_long_as_the_server_is_busy(options: &LoadOptions, number: u32) {
    const BUSY: Duration = Duration::from_millis(120);
    let (samples, told, _) = provoke(number, options, || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let begin = Instant::now();
        let client = TcpStream::connect(listener.local_addr()?)?;
        thread::sleep(BUSY);
        let (server, _) = listener.accept()?;
        drop((client, server));
        Ok(vec![nanoseconds(begin.elapsed())])
    });
    let measured = histogram(&samples, ACCEPT_WAIT, &[&Cgroup::id(number)]);
    assert_eq!(measured.count(), 1);
    assert!(
        (nanoseconds(BUSY)..=told[0]).contains(&measured.sum_ns),
        "{} ns for {BUSY:?}, at most {}",
        measured.sum_ns,
        told[0]
    );
}

#[test]
fn a_connection_waits_for_accept_as_long_as_its_server_is_busy() {
    needs_root!();
    accept_waits_as_long_as_the_server_is_busy(&wanting(Want::Metrics), 0xd3);
}

#[test]
fn the_end_of_the_system_call_tells_accept_as_well() {
    needs_root!();
    let options = LoadOptions { avoid: ["fexit"].into(), ..wanting(Want::Metrics) };
    accept_waits_as_long_as_the_server_is_busy(&options, 0xd4);
}

#[test]
fn a_peer_that_does_not_read_limits_its_sender_as_long_as_the_socket_says() {
    needs_root!();
    const ASLEEP: Duration = Duration::from_millis(500);
    let (samples, told, _) = provoke(0xd5, &wanting(Want::Metrics), || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.set_nonblocking(true)?;
        until("a full window", || {
            while client.write(&[0; 65_536]).is_ok() {}
            let limited = network::tcp_info(&client).expect("the socket tells").rwnd_limited_us;
            (limited >= ASLEEP.as_micros() as u64).then_some(())
        });
        let at_least = network::tcp_info(&client)?.rwnd_limited_us;
        let begin = Instant::now();
        network::reset_on_close(&client)?;
        drop((client, server));
        Ok(vec![at_least * 1000, nanoseconds(begin.elapsed())])
    });
    let Some(Value::Number(seconds)) = value(&samples, RWND_LIMITED, &[&Cgroup::id(0xd5)]) else {
        panic!("{:?}", samples.families());
    };
    // The kernel counts in jiffies, of 10 ms at the longest.
    let (low, high) = (told[0] as f64 / 1e9, (told[0] + told[1]) as f64 / 1e9 + 0.02);
    assert!((low - 0.02..=high).contains(&seconds), "{seconds} s, the socket says {low} to {high}");
}
