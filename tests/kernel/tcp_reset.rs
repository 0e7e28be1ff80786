//! Connections that are reset, against how many were and the counters of their network namespace.

use super::*;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::network;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const NAME: &str = "tcp_reset";
const FAMILY: &str = "kpulse_tcp_resets_total";
const CONNECTIONS: u64 = 4;

#[test]
fn closing_with_unread_data_is_a_reset_that_the_other_end_receives() {
    needs_root!();
    let container = Cgroup::container("cpu", 0xe1).expect("a cgroup can be made");
    let mut identities = identities();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let before = scrape(&mut set, NAME, &mut identities);
    let told = network::in_namespace(Some(&container), || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        for _ in 0..CONNECTIONS {
            let client = TcpStream::connect(listener.local_addr()?)?;
            let (mut server, _) = listener.accept()?;
            server.write_all(b"nobody reads this")?;
            client.peek(&mut [0])?;
            drop(client);
            server.read_exact(&mut [0]).expect_err("the connection was reset");
        }
        Ok(vec![network::counter("Tcp", "OutRsts")?])
    });
    let after = scrape(&mut set, NAME, &mut identities);
    assert_eq!(told.expect("the work goes well"), [CONNECTIONS]);
    let id = Cgroup::id(0xe1);
    // close() is done by the task that owns the socket, so every hierarchy tells whose it is.
    assert_eq!(total(&after, FAMILY, &["sent", &id]), CONNECTIONS);
    if set.status()[0].hooks[0].program == "tcp_send_reset_with_reason" {
        assert_eq!(count(&after, FAMILY, &["sent", "TCP_ABORT_ON_CLOSE", &id]), CONNECTIONS);
    }
    if container.is_v1() {
        assert!(total(&after, FAMILY, &["received"]) >= total(&before, FAMILY, &["received"]) + CONNECTIONS);
    } else {
        assert_eq!(total(&after, FAMILY, &["received", &id]), CONNECTIONS);
    }
}

#[test]
fn a_connection_to_a_closed_port_is_reset_by_the_host() {
    needs_root!();
    let mut identities = identities();
    let mut set = load(NAME, &wanting(Want::Metrics));
    if set.status()[0].hooks[0].program == "tcp_send_reset" {
        kpulse_tests::skip(
            module_path!(),
            "before 6.10 the kernel does not tell of a reset without a socket",
        );
        return;
    }
    let before = count(&scrape(&mut set, NAME, &mut identities), FAMILY, &["sent", "NO_SOCKET"]);
    let told = network::in_namespace(None, || {
        let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        for _ in 0..CONNECTIONS {
            TcpStream::connect(closed).expect_err("nobody listens");
        }
        Ok(vec![network::counter("Tcp", "OutRsts")?])
    });
    let after = count(&scrape(&mut set, NAME, &mut identities), FAMILY, &["sent", "NO_SOCKET"]);
    assert_eq!(told.expect("the work goes well"), [CONNECTIONS]);
    assert!(after >= before + CONNECTIONS, "{before} before, {after} after {CONNECTIONS} more");
}
