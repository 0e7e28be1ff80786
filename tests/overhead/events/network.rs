//! Loads of the network: each in a namespace of its own, with nothing but loopback.

use crate::loads::Clock;
use kpulse_tests::{network, shaper};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// Two sockets for datagrams; what the second sends comes to the first.
fn sockets() -> io::Result<(UdpSocket, UdpSocket)> {
    network::isolate()?;
    let (receiver, sender) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    sender.connect(receiver.local_addr()?)?;
    Ok((receiver, sender))
}

/// Each is there before it is read.
pub fn datagrams(clock: &mut Clock) -> anyhow::Result<()> {
    let (receiver, sender) = sockets()?;
    while !clock.is_over() {
        sender.send(b"x")?;
        receiver.recv(&mut [0])?;
    }
    Ok(())
}

/// Nobody reads, so that soon there is no room.
pub fn drops(clock: &mut Clock) -> anyhow::Result<()> {
    let (_receiver, sender) = sockets()?;
    while !clock.is_over() {
        sender.send(&[0; 1024])?;
    }
    Ok(())
}

/// Each waits in the queue of the device.
pub fn slow_device(clock: &mut Clock) -> anyhow::Result<()> {
    network::isolate()?;
    shaper::slow_loopback("kpulse-slow")?;
    while !clock.is_over() {
        shaper::datagrams(20)?;
    }
    Ok(())
}

/// Each piece is there before it is read.
pub fn stream(clock: &mut Clock) -> anyhow::Result<()> {
    network::isolate()?;
    let (mut client, mut server) = network::pair("127.0.0.1")?;
    client.set_nodelay(true)?;
    while !clock.is_over() {
        client.write_all(&[0; 1024])?;
        server.read_exact(&mut [0; 1024])?;
    }
    Ok(())
}

pub fn connections(clock: &mut Clock) -> anyhow::Result<()> {
    network::isolate()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    while !clock.is_over() {
        let client = TcpStream::connect(listener.local_addr()?)?;
        // Otherwise its port is not free for a minute.
        network::reset_on_close(&client)?;
        drop((listener.accept()?, client));
    }
    Ok(())
}

pub fn resets(clock: &mut Clock) -> anyhow::Result<()> {
    network::isolate()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    while !clock.is_over() {
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        server.write_all(b"nobody reads this")?;
        client.peek(&mut [0])?;
        drop(client);
        anyhow::ensure!(server.read_exact(&mut [0]).is_err(), "the connection was not reset");
    }
    Ok(())
}

/// One segment in ten is lost.
pub fn losses(clock: &mut Clock) -> anyhow::Result<()> {
    const CONNECTIONS: usize = 16;
    network::isolate()?;
    let (mut clients, mut servers, mut readers) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let (client, server) = network::pair("127.0.0.1")?;
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        network::lose_incoming(&server, 0.1)?;
        let mut reader = server.try_clone()?;
        readers.push(thread::spawn(move || io::copy(&mut reader, &mut io::sink())));
        clients.push(client);
        servers.push(server);
    }
    while !clock.is_over() {
        for client in &mut clients {
            // One that waits for an answer takes no more.
            let _ = client.write(&[0; 1024]);
        }
    }
    for server in &servers {
        server.shutdown(Shutdown::Both)?;
    }
    for reader in readers {
        let _ = reader.join();
    }
    Ok(())
}
