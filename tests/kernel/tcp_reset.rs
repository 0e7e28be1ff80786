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

/// What the events of one connection say, which the client closes with unread data.
fn both_ends_of_a_reset_tell(bound: &'static str, address: &'static str, number: u32) {
    let container = Cgroup::container("cpu", number).expect("a cgroup can be made");
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    let told = network::in_namespace(Some(&container), || {
        let listener = TcpListener::bind((bound, 0))?;
        let client = TcpStream::connect((address, listener.local_addr()?.port()))?;
        let (mut server, _) = listener.accept()?;
        let ports = network::ports(&client)?;
        server.write_all(b"nobody reads this")?;
        client.peek(&mut [0])?;
        drop(client);
        server.read_exact(&mut [0]).expect_err("the connection was reset");
        Ok(vec![ports[0], ports[1], std::process::id().into()])
    });
    let told = told.expect("the work goes well");
    let facts = drain_for(&mut events, Duration::from_millis(200));
    let (sent, received) = (of_flow(&facts, [told[0], told[1]]), of_flow(&facts, [told[1], told[0]]));
    assert_eq!((sent.len(), received.len()), (1, 1), "{facts:?}");
    let (sent, received) = (sent[0], received[0]);
    for fact in [sent, received] {
        assert_eq!((fact.kind, fact.value_ns), ("tcp_reset", None));
        assert_address(fact, address);
    }
    // close() is done by the task that owns the socket, so every hierarchy tells whose it is.
    assert_eq!((u64::from(sent.pid), sent.cgroup), (told[2], Some(container.cgroup_id())));
    assert_eq!((&sent.body["direction"], &sent.body["state"]), (&"sent".into(), &"close".into()));
    assert!(sent.kernel_stack.iter().any(|function| function.contains("close")), "{:?}", sent.kernel_stack);
    assert_user_stack(sent, sent.pid);
    let has_reasons = set.status()[0].hooks[0].program == "tcp_send_reset_with_reason";
    if has_reasons {
        assert_eq!(sent.body["reason"], "TCP_ABORT_ON_CLOSE");
    } else {
        assert!(sent.body["reason"].is_null(), "{sent:?}");
    }
    assert_eq!(
        (&received.body["direction"], &received.body["state"]),
        (&"received".into(), &"established".into())
    );
    assert!(received.body["reason"].is_null(), "{received:?}");
    if !container.is_v1() {
        assert_eq!(received.cgroup, Some(container.cgroup_id()));
    }
    assert_sum_closes(set, &mut events, facts.len());
}

#[test]
fn both_ends_of_a_reset_tell_their_flow_of_ipv4() {
    needs_root!();
    both_ends_of_a_reset_tell("127.0.0.1", "127.0.0.1", 0xe2);
}

#[test]
fn both_ends_of_a_reset_tell_their_flow_of_ipv6() {
    needs_root!();
    both_ends_of_a_reset_tell("::1", "::1", 0xe3);
}

#[test]
fn a_socket_of_ipv6_that_speaks_ipv4_tells_addresses_of_ipv4() {
    needs_root!();
    both_ends_of_a_reset_tell("::", "127.0.0.1", 0xe4);
}

fn a_refused_connection_tells_its_flow(address: &'static str) {
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    let told = network::in_namespace(None, || {
        let closed = TcpListener::bind((address, 0))?.local_addr()?;
        TcpStream::connect(closed).expect_err("nobody listens");
        Ok(vec![closed.port().into()])
    });
    let closed = told.expect("the work goes well")[0];
    let facts = drain_for(&mut events, Duration::from_millis(200));
    let with = |end: &str| facts.iter().filter(|fact| fact.body[end]["port"] == closed).collect::<Vec<_>>();
    let (sent, received) = (with("source"), with("destination"));
    assert_eq!(received.len(), 1, "{facts:?}");
    assert_address(received[0], address);
    assert_eq!(
        (&received[0].body["direction"], &received[0].body["state"]),
        (&"received".into(), &"syn_sent".into())
    );
    // Before 6.10 the kernel does not tell of a reset without a socket.
    let is_told = set.status()[0].hooks[0].program == "tcp_send_reset_with_reason";
    assert_eq!(sent.len(), usize::from(is_told), "{facts:?}");
    for fact in sent {
        assert_address(fact, address);
        assert_eq!(fact.body["destination"]["port"], received[0].body["source"]["port"]);
        assert_eq!((&fact.body["direction"], &fact.body["reason"]), (&"sent".into(), &"NO_SOCKET".into()));
        assert!(fact.body["state"].is_null() && fact.cgroup.is_none(), "there is no socket: {fact:?}");
    }
    assert_sum_closes(set, &mut events, facts.len());
}

#[test]
fn a_refused_connection_of_ipv4_tells_its_flow_without_a_socket() {
    needs_root!();
    a_refused_connection_tells_its_flow("127.0.0.1");
}

#[test]
fn a_refused_connection_of_ipv6_tells_its_flow_without_a_socket() {
    needs_root!();
    a_refused_connection_tells_its_flow("::1");
}
