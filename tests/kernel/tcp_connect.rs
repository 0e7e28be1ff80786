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

/// Events of a container's connections, the numbers that `work` returned about them, and the container.
fn tell(
    number: u32,
    threshold: Option<Duration>,
    work: impl FnOnce() -> io::Result<Vec<u64>>,
) -> (Vec<Fact>, Vec<u64>, Cgroup) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut options = wanting(Want::Events);
    if let Some(threshold) = threshold {
        options.thresholds.tcp_connect.min_handshake = threshold;
    }
    let mut set = load(NAME, &options);
    assert!(set.status()[0].hooks.iter().all(|status| status.hook != "accept"), "no event needs it");
    let mut events = set.take_events().expect("the rings open");
    let told = network::in_namespace(Some(&container), work).expect("the work goes well");
    let facts = drain_for(&mut events, Duration::from_millis(200));
    assert_sum_closes(set, &mut events, facts.len());
    (facts, told, container)
}

/// A connection to this address whose first SYN is lost, and how long connect() took.
fn connect_late(address: &'static str) -> io::Result<(TcpStream, u64)> {
    let listener = TcpListener::bind((address, 0))?;
    let to = listener.local_addr()?;
    network::lose_incoming(&listener, 1.0)?;
    let client = thread::spawn(move || {
        let begin = Instant::now();
        TcpStream::connect(to).map(|client| (client, nanoseconds(begin.elapsed())))
    });
    until("a repeated SYN", || {
        (network::counter("TcpExt", "TCPTimeouts").expect("a counter") >= 1).then_some(())
    });
    network::lose_nothing(listener.as_raw_fd())?;
    let connected = client.join().expect("the client ends")?;
    listener.accept()?;
    Ok(connected)
}

/// Asserts who an event is of, and that its value is what the program measured.
fn assert_client(fact: &Fact, container: &Cgroup, pid: u64, elapsed: u64) {
    assert_eq!((fact.kind, &fact.body["role"]), ("tcp_connect_slow", &"client".into()));
    assert_eq!((u64::from(fact.pid), fact.cgroup), (pid, Some(container.cgroup_id())));
    let value = fact.value_ns.expect("it has a value");
    assert!(value <= elapsed && value >= elapsed / 10 * 9, "{value} ns, by the program {elapsed}");
}

fn a_late_handshake_is_an_event(address: &'static str, number: u32) {
    let (facts, told, container) = tell(number, None, || {
        let (client, elapsed) = connect_late(address)?;
        let ports = network::ports(&client)?;
        let repeats = network::counter("TcpExt", "TCPSynRetrans")?;
        // A quick one is none.
        let quick = network::ports(&network::pair(address)?.0)?;
        Ok(vec![ports[0], ports[1], elapsed, std::process::id().into(), repeats, quick[0], quick[1]])
    });
    let ours = of_flow(&facts, [told[0], told[1]]);
    assert_eq!(ours.len(), 1, "{facts:?}");
    assert_client(ours[0], &container, told[3], told[2]);
    assert_address(ours[0], address);
    assert_eq!(
        (&ours[0].body["outcome"], &ours[0].body["retransmits"]),
        (&"established".into(), &told[4].into())
    );
    assert!(ours[0].body["errno"].is_null(), "{:?}", ours[0]);
    assert_eq!(ours[0].threshold_ns, Some(1_000_000_000));
    assert_eq!(of_flow(&facts, [told[5], told[6]]), Vec::<&Fact>::new());
}

#[test]
fn a_late_handshake_of_ipv4_is_an_event_of_who_connects() {
    needs_root!();
    a_late_handshake_is_an_event("127.0.0.1", 0xd6);
}

#[test]
fn a_late_handshake_of_ipv6_is_an_event_of_who_connects() {
    needs_root!();
    a_late_handshake_is_an_event("::1", 0xd7);
}

#[test]
fn a_handshake_below_the_threshold_is_no_event() {
    needs_root!();
    let (facts, told, _) = tell(0xd8, Some(Duration::from_secs(3600)), || {
        Ok(network::ports(&connect_late("127.0.0.1")?.0)?.to_vec())
    });
    assert_eq!(of_flow(&facts, [told[0], told[1]]), Vec::<&Fact>::new());
}

#[test]
fn both_ends_of_a_handshake_have_a_time() {
    needs_root!();
    let (facts, told, container) = tell(0xd9, Some(Duration::from_nanos(1)), || {
        let (client, server) = network::pair("127.0.0.1")?;
        let ports = network::ports(&client)?;
        Ok(vec![ports[0], ports[1], round_trip(&server)?])
    });
    let (client, server) = (of_flow(&facts, [told[0], told[1]]), of_flow(&facts, [told[1], told[0]]));
    assert_eq!((client.len(), server.len()), (1, 1), "{facts:?}");
    assert_eq!((&client[0].body["role"], &server[0].body["role"]), (&"client".into(), &"server".into()));
    assert_eq!(server[0].value_ns, Some(told[2] * 1000));
    if !container.is_v1() {
        assert_eq!(server[0].cgroup, Some(container.cgroup_id()));
    }
}

#[test]
fn failed_handshakes_are_events_with_their_errno() {
    needs_root!();
    let (facts, told, container) = tell(0xda, None, || {
        // Few repeats of the SYN, of which newer kernels add some.
        std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1")?;
        let deaf = TcpListener::bind("127.0.0.1:0")?;
        network::lose_incoming(&deaf, 1.0)?;
        let begin = Instant::now();
        let error = TcpStream::connect(deaf.local_addr()?).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
        let (elapsed, repeats) = (nanoseconds(begin.elapsed()), network::counter("TcpExt", "TCPSynRetrans")?);
        let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        TcpStream::connect(closed).expect_err("nobody listens");
        let pid = std::process::id().into();
        Ok(vec![deaf.local_addr()?.port().into(), closed.port().into(), pid, elapsed, repeats])
    });
    let to =
        |port: u64| facts.iter().filter(|fact| fact.body["destination"]["port"] == port).collect::<Vec<_>>();
    let (late, refused) = (to(told[0]), to(told[1]));
    assert_eq!((late.len(), refused.len()), (1, 1), "{facts:?}");
    assert_client(late[0], &container, told[2], told[3]);
    assert_eq!(
        (&late[0].body["errno"], &late[0].body["retransmits"]),
        (&libc::ETIMEDOUT.into(), &told[4].into())
    );
    assert_eq!((&refused[0].body["errno"], refused[0].threshold_ns), (&libc::ECONNREFUSED.into(), None));
    assert!(refused[0].body["source"]["port"].as_u64() > Some(0), "{refused:?}");
    for fact in [late[0], refused[0]] {
        assert_eq!((&fact.body["outcome"], fact.cgroup), (&"failed".into(), Some(container.cgroup_id())));
        assert_address(fact, "127.0.0.1");
    }
}

#[test]
fn who_gives_up_on_a_handshake_is_told_only_if_patient() {
    needs_root!();
    const PATIENT: Duration = Duration::from_millis(1200);
    let (facts, told, container) = tell(0xdb, None, || {
        let deaf = TcpListener::bind("127.0.0.1:0")?;
        let address = deaf.local_addr()?;
        network::lose_incoming(&deaf, 1.0)?;
        TcpStream::connect_timeout(&address, PATIENT / 24).expect_err("nobody answers");
        let begin = Instant::now();
        TcpStream::connect_timeout(&address, PATIENT).expect_err("nobody answers");
        Ok(vec![address.port().into(), std::process::id().into(), nanoseconds(begin.elapsed())])
    });
    let ours: Vec<&Fact> = facts.iter().filter(|fact| fact.body["destination"]["port"] == told[0]).collect();
    assert_eq!(ours.len(), 1, "{facts:?}");
    assert_client(ours[0], &container, told[1], told[2]);
    assert_eq!(ours[0].body["outcome"], "abandoned");
    assert!(ours[0].body["errno"].is_null(), "{:?}", ours[0]);
}
