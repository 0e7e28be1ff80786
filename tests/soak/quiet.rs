//! A machine that browses and has no fault: no drop is worth an event.
//!
//! `make test` browses for twenty seconds, `make soak` for ten minutes: KPULSE_SOAK_QUIET_SECONDS says how long.

use crate::gateway;
use kpulse_tests::process::run;
use kpulse_tests::{is_root, load, network, skip, until};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

/// Connections that a browser has to one server at once.
const PARALLEL: usize = 6;
/// Lengths of answers: what pages, styles, pictures and downloads have.
const LENGTHS: [usize; 4] = [200, 8_000, 120_000, 1_000_000];
/// From one page to the next: the machine is quiet.
const PAUSE: Duration = Duration::from_millis(100);

fn time_wanted() -> Duration {
    let wanted = std::env::var("KPULSE_SOAK_QUIET_SECONDS").ok();
    let seconds = wanted.map_or(20, |text| text.parse().expect("KPULSE_SOAK_QUIET_SECONDS is a number"));
    Duration::from_secs(seconds)
}

/// Answers each request, the index of a length in one byte, until the client leaves or asks for the end.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0];
    loop {
        match (stream.read(&mut request)?, LENGTHS.get(usize::from(request[0]))) {
            (1.., Some(length)) => stream.write_all(&vec![1; *length])?,
            _ => return stream.shutdown(Shutdown::Write),
        }
    }
}

fn serve(address: &str) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(|| answer(stream));
        }
    });
    Ok(address)
}

/// Answers each datagram with itself, as a name server does with one.
fn resolve(address: &str) -> io::Result<SocketAddr> {
    let socket = UdpSocket::bind(address)?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let _ = socket.send_to(&query[..length], client);
        }
    });
    Ok(address)
}

/// One connection: a few requests on it, and one of the ways in which such connections end.
fn browse(server: SocketAddr, turn: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    for request in 0..=turn % 3 {
        let index = (turn + request) % LENGTHS.len();
        stream.write_all(&[u8::try_from(index).map_err(io::Error::other)?])?;
        // Some leave in the middle of a long answer, which resets the connection.
        let is_left = turn.is_multiple_of(5) && index == 3;
        let mut answer = vec![0; if is_left { 1_000 } else { LENGTHS[index] }];
        stream.read_exact(&mut answer)?;
        if is_left {
            return Ok(());
        }
    }
    match turn % 4 {
        // The server closes first, this end after it, or at the same time.
        0 => stream.write_all(&[u8::MAX]).and_then(|()| stream.read(&mut [0]).map(drop)),
        1 => stream.shutdown(Shutdown::Write).and_then(|()| stream.read(&mut [0]).map(drop)),
        2 => stream.write_all(&[u8::MAX]),
        _ => Ok(()),
    }
}

/// A page: names, connections side by side, and a server that is not there, over IPv4 and IPv6.
fn load_page(servers: &[(SocketAddr, SocketAddr)], turn: usize) -> io::Result<()> {
    for (server, resolver) in servers {
        let client = UdpSocket::bind((server.ip(), 0))?;
        client.send_to(b"where is it", resolver)?;
        client.recv(&mut [0; 512])?;
        thread::scope(|scope| {
            let connections: Vec<_> =
                (0..PARALLEL).map(|index| scope.spawn(move || browse(*server, turn + index))).collect();
            connections
                .into_iter()
                .try_for_each(|it| it.join().map_err(|_| io::Error::other("it panicked"))?)
        })?;
        let closed = TcpListener::bind((server.ip(), 0))?.local_addr()?;
        if TcpStream::connect(closed).is_ok() {
            return Err(io::Error::other("nobody listens there"));
        }
    }
    Ok(())
}

/// Pages for a while, and at the end a datagram for nobody. Gives the network namespace, the pages, and that port.
fn browse_for(time: Duration) -> io::Result<Vec<u64>> {
    let servers = ["127.0.0.1:0", "[::1]:0"].map(|address| Ok((serve(address)?, resolve(address)?)));
    let servers = servers.into_iter().collect::<io::Result<Vec<_>>>()?;
    let (begin, mut pages) = (Instant::now(), 0);
    while begin.elapsed() < time {
        load_page(&servers, pages)?;
        pages += 1;
        thread::sleep(PAUSE);
    }
    let port = network::drop_datagrams(3)?;
    let namespace = std::fs::metadata("/proc/self/ns/net")?.ino();
    Ok(vec![namespace, pages as u64, port.into()])
}

#[test]
fn a_browsing_machine_has_no_drop_worth_an_event() {
    if !is_root() {
        return skip("a_browsing_machine", "needs root");
    }
    let state = tempfile::tempdir().unwrap();
    let running = gateway::start(&mut gateway::command(state.path(), "run"));
    let told = load::ask_child(None, || {
        network::isolate()?;
        browse_for(time_wanted())
    });
    let [namespace, pages, port] = told.unwrap()[..] else { panic!("three numbers") };
    assert!(pages > 0);
    let drops = || -> Vec<Value> {
        let printed =
            run(gateway::command(state.path(), "events").args(["-o", "json", "--kind", "packet_drop"]));
        let events = printed.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let ours = |drop: &Value| drop["netns"] == namespace;
        events.map(|mut event| event["kpulse"]["packet_drop"].take()).filter(ours).collect()
    };
    let is_provoked = |drop: &Value| drop["destination"]["port"] == port;
    // What was dropped before the datagram for nobody is stored before it.
    let drops = until("the drop that was provoked", || Some(drops()).filter(|it| it.iter().any(is_provoked)));
    let others: Vec<_> = drops.iter().filter(|drop| !is_provoked(drop)).collect();
    assert!(others.is_empty(), "{} drops in {pages} pages: {others:?}", others.len());
    drop(running);
}
