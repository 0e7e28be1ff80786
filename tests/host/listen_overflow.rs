//! Connections that a full queue turns away, and receivers that are full, against the counters of their namespace.

use crate::Exporter;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::{is_root, network, skip, until};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

const OVERFLOWS: &str = "kpulse_tcp_listen_overflows_total";
const ZERO_WINDOWS: &str = "kpulse_tcp_zero_windows_total";

fn counters() -> std::io::Result<Vec<u64>> {
    Ok(vec![
        network::counter("TcpExt", "ListenOverflows")?,
        network::counter("TcpExt", "TCPToZeroWindowAdv")?,
    ])
}

/// Nobody accepts: the third connection finds no room.
fn overflow() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    network::listen(listener.as_raw_fd(), 1)?;
    for _ in 0..4 {
        thread::spawn(move || TcpStream::connect(address));
    }
    until("an overflow", || (counters().ok()?[0] >= 2).then_some(()));
    Ok(())
}

/// Nobody reads until the window is shut.
fn fill() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nonblocking(true)?;
    until("a shut window", || {
        while client.write(&[0; 65_536]).is_ok() {}
        (counters().ok()?[1] >= 1).then_some(())
    });
    server.read(&mut [0; 4096]).map(drop)
}

#[test]
fn a_container_with_its_own_network_counts_for_itself() {
    if !is_root() {
        return skip("a_container_with_its_own_network", "only root can make cgroups and network namespaces");
    }
    let container = Cgroup::container("cpu", 0xf1).unwrap();
    let id = Cgroup::id(0xf1);
    let labels = [("container_id", id.as_str())];
    let exporter = Exporter::start(&["listen_overflow"]);
    assert_eq!(exporter.scrape().find(OVERFLOWS, &labels), None, "there is no process yet");
    // The child lives until it was scraped: the folder that it waits for tells it.
    let told = tempfile::tempdir().unwrap();
    let (counted, scraped) = (told.path().join("counted"), told.path().join("scraped"));
    thread::scope(|scope| {
        let child = scope.spawn(|| {
            network::in_namespace(Some(&container), || {
                overflow()?;
                fill()?;
                let counts = counters()?;
                std::fs::write(&counted, format!("{} {}\n", counts[0], counts[1]))?;
                until("the scrape", || scraped.exists().then_some(()));
                // What TCP repeats meanwhile may be turned away as well.
                Ok([counts, counters()?].concat())
            })
        });
        let least = until("the child", || {
            let text = std::fs::read_to_string(&counted).ok()?;
            let (overflows, windows) = text.strip_suffix('\n')?.split_once(' ')?;
            Some([overflows, windows].map(|count| count.parse::<f64>().unwrap()))
        });
        // New cgroups are looked for once a second, and a namespace may have been read before all of it had happened.
        let page = until("the series", || {
            let page = exporter.scrape();
            let told = [OVERFLOWS, ZERO_WINDOWS].map(|family| page.find(family, &labels));
            told.iter().zip(least).all(|(told, least)| told.is_some_and(|told| told >= least)).then_some(page)
        });
        std::fs::write(&scraped, []).unwrap();
        let counts = child.join().unwrap().unwrap();
        let between = |family, index: usize| {
            let value = page.value(family, &labels) as u64;
            assert!((counts[index]..=counts[index + 2]).contains(&value), "{family}: {value}, {counts:?}");
        };
        between(OVERFLOWS, 0);
        between(ZERO_WINDOWS, 1);
        assert!(page.find(OVERFLOWS, &[("container_id", "")]).is_some(), "the host counts as well");
    });
    drop(container);
    until("end of the series", || exporter.scrape().find(OVERFLOWS, &labels).is_none().then_some(()));
}
