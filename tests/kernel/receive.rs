//! Packets that wait to be read, against the clock of the program that lets them wait.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::network;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
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

fn measure(number: u32, work: impl Fn() -> io::Result<Vec<u64>>) -> (Samples, Vec<u64>, bool) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut identities = identities();
    let mut set = load(NAME, &wanting(Want::Metrics));
    // The kernel begins to stamp a little after it was asked to.
    kpulse_tests::until("stamps", || {
        network::in_namespace(None, udp).expect("the work goes well");
        value(&scrape(&mut set, NAME, &mut identities), FAMILY, &["udp", "user"])
    });
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
