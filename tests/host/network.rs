//! Devices, protocols, sockets.

use crate::{Exporter, assert_between, between, while_child_holds};
use kpulse_exporter_ebpf::{LoadOptions, ProbeSet, ProbeState};
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::load::{self, Worker};
use kpulse_tests::process::run;
use kpulse_tests::{PACED, burn, is_root, network, skip, until, within};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn lo(file: &str) -> f64 {
    fs::read_to_string(format!("/sys/class/net/lo/{file}")).unwrap().trim().parse().unwrap()
}

/// Connects to itself so often; both ends of each connection are open when it returns.
pub fn connections(count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = |_| {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    (0..count).map(connect).collect()
}

#[test]
fn a_devices_bytes_are_those_of_sysfs_and_grow_by_what_was_sent() {
    let exporter = Exporter::start(&["netdev"]);
    let read = || (lo("statistics/rx_bytes"), lo("statistics/tx_packets"), lo("carrier_changes"));
    let (before, page, after) = between(&exporter, read);
    let value = |page: &crate::Page, family: &str| page.value(family, &[("device", "lo")]);
    let received = value(&page, "kpulse_netdev_receive_bytes_total");
    assert_between("rx_bytes", before.0, received, after.0);
    let sent = value(&page, "kpulse_netdev_transmit_packets_total");
    assert_between("tx_packets", before.1, sent, after.1);
    assert_eq!(value(&page, "kpulse_network_carrier_changes_total"), before.2);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..20 {
        socket.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
    }
    let grown = value(&exporter.scrape(), "kpulse_netdev_receive_bytes_total") - received;
    assert!(grown >= 20_000.0, "{grown}");
}

/// Families of a device, and the kernel's file of each.
const STATISTICS: [(&str, &str); 13] = [
    ("kpulse_netdev_receive_bytes_total", "statistics/rx_bytes"),
    ("kpulse_netdev_receive_packets_total", "statistics/rx_packets"),
    ("kpulse_netdev_receive_errors_total", "statistics/rx_errors"),
    ("kpulse_netdev_receive_dropped_total", "statistics/rx_dropped"),
    ("kpulse_netdev_receive_fifo_errors_total", "statistics/rx_fifo_errors"),
    ("kpulse_netdev_receive_multicast_total", "statistics/multicast"),
    ("kpulse_netdev_transmit_bytes_total", "statistics/tx_bytes"),
    ("kpulse_netdev_transmit_packets_total", "statistics/tx_packets"),
    ("kpulse_netdev_transmit_errors_total", "statistics/tx_errors"),
    ("kpulse_netdev_transmit_dropped_total", "statistics/tx_dropped"),
    ("kpulse_netdev_transmit_fifo_errors_total", "statistics/tx_fifo_errors"),
    ("kpulse_netdev_transmit_carrier_errors_total", "statistics/tx_carrier_errors"),
    ("kpulse_network_carrier_changes_total", "carrier_changes"),
];

#[test]
fn everything_of_each_device_is_what_sysfs_has() {
    let exporter = Exporter::start(&["netdev"]);
    let devices = || fs::read_dir("/sys/class/net").unwrap().map(|device| device.unwrap().path());
    let read = || -> BTreeMap<_, Option<f64>> {
        let files = devices().flat_map(|device| STATISTICS.map(|(_, file)| device.join(file)));
        files
            .map(|file| {
                (file.clone(), fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()))
            })
            .collect()
    };
    let (before, page, after) = between(&exporter, read);
    let mut compared = 0;
    for device in devices() {
        let name = device.file_name().unwrap().to_str().unwrap();
        for (family, file) in STATISTICS {
            let [before, after] =
                [&before, &after].map(|files| files.get(&device.join(file)).copied().flatten());
            // One that another test made or removed meanwhile has no two readings.
            if let (Some(before), Some(after), Some(told)) =
                (before, after, page.find(family, &[("device", name)]))
            {
                assert_between(&format!("{name} {file}"), before, told, after);
                compared += 1;
            }
        }
    }
    assert!(compared >= STATISTICS.len(), "{compared}");
}

/// What is told of a device that a container has, and what the kernel counts of it, when `provoke` has returned: packets
/// received in error and dropped, then those of sending. The device goes with what that returns.
fn told_of_device<T>(
    number: u32,
    device: &str,
    provoke: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<[[f64; 4]; 2]> {
    let container = Cgroup::container("cpu", number)?;
    let id = Cgroup::id(number);
    let exporter = Exporter::start(&["netdev"]);
    let folder = tempfile::tempdir()?;
    let (lost, scraped) = (folder.path().join("lost"), folder.path().join("scraped"));
    std::thread::scope(|scope| {
        let child = scope.spawn(|| {
            network::in_namespace(Some(&container), || {
                let _kept = provoke()?;
                fs::write(&lost, fs::read("/proc/self/net/dev")?)?;
                until("the scrape", || scraped.exists().then_some(()));
                Ok(vec![])
            })
        });
        let line = |text: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
            line.map(|line| line.split_ascii_whitespace().map(|number| number.parse().unwrap()).collect())
        };
        let kernels: Option<Vec<f64>> = until("the child", || {
            let counted = fs::read_to_string(&lost).ok().and_then(|text| line(&text));
            counted.map(Some).or_else(|| child.is_finished().then_some(None))
        });
        let both = kernels.map(|kernels| {
            let labels = [("container_id", id.as_str()), ("device", device)];
            let page = until("the series", || {
                let page = exporter.scrape();
                page.find("kpulse_netdev_receive_dropped_total", &labels).is_some().then_some(page)
            });
            let told = ["receive_errors", "receive_dropped", "transmit_errors", "transmit_dropped"]
                .map(|family| page.value(&format!("kpulse_netdev_{family}_total"), &labels));
            [told, [2, 3, 10, 11].map(|column| kernels[column])]
        });
        fs::write(&scraped, [])?;
        child.join().unwrap()?;
        both.ok_or_else(|| io::Error::other("the child has ended"))
    })
}

#[test]
fn a_containers_devices_tell_what_they_lose() {
    const TEST: &str = "a_containers_devices_tell_what_they_lose";
    if !is_root() {
        return skip(TEST, "only root can make cgroups and network namespaces");
    }
    if !Path::new("/dev/net/tun").exists() {
        return skip(TEST, "this kernel makes no tunnel devices (module tun)");
    }
    let [told, kernels] = told_of_device(0xf5, "cable0", || {
        let tunnel = network::Tun::make("cable0")?;
        // Neither of IPv4 nor of IPv6.
        (0..7).for_each(|_| assert!(tunnel.receive(&[0; 40]).is_err()));
        // Nobody takes what it sends: its queue has room for 500 packets.
        network::fill_queue("cable0", 600).map(|()| tunnel)
    })
    .unwrap();
    assert_eq!(told, kernels);
    assert_eq!(told[1], 7.0);
    assert!(told[3] > 0.0, "{told:?}");
}

#[test]
fn a_containers_devices_tell_of_errors() {
    const TEST: &str = "a_containers_devices_tell_of_errors";
    if !is_root() {
        return skip(TEST, "only root can make cgroups and network namespaces");
    }
    // Its other end is nowhere, and IPv6, where there is any, has nothing of its own to say. It is asked for in a namespace
    // that is gone again at once.
    let make = "f=/proc/sys/net/ipv6/conf/default/disable_ipv6; if [ -e $f ]; then echo 1 >$f; fi
        ip link add tunnel0 type vxlan id 3 dstport 4789 remote 192.0.2.1 && ip link set tunnel0 up";
    let can = run(Command::new("unshare").args(["--net", "sh", "-c", make]));
    if can.code != Some(0) {
        return skip(TEST, &format!("this system makes no VXLAN (iproute2, util-linux): {}", can.stderr));
    }
    let [told, kernels] = told_of_device(0xf6, "tunnel0", || {
        run(Command::new("sh").args(["-c", make]));
        network::fill_queue("tunnel0", 5)?;
        // Congestion that was marked on the way, around a packet that says it does not know the mark.
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        network::set_tos(&socket, 3)?;
        (0..7).try_for_each(|_| socket.send_to(&vxlan_packet(3), "127.0.0.1:4789").map(drop))
    })
    .unwrap();
    assert_eq!(told, kernels);
    assert_eq!([told[0], told[2]], [7.0, 5.0]);
}

/// A VXLAN header and a frame with an empty IPv4 packet.
fn vxlan_packet(network: u8) -> Vec<u8> {
    let header = [8, 0, 0, 0, 0, 0, network, 0];
    let ethernet = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    let ip = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    [&header[..], &ethernet, &[8, 0], &ip].concat()
}

#[test]
fn what_a_tunnel_gets_out_of_order_is_a_fifo_error() {
    const TEST: &str = "what_a_tunnel_gets_out_of_order";
    if !kpulse_tests::is_guest() {
        return skip(TEST, "this machine's devices are not a test's to add to");
    }
    let make = "ip tunnel add order0 mode gre local 127.0.0.1 remote 127.0.0.2 iseq && ip link set order0 up";
    let made = run(Command::new("sh").args(["-c", make]));
    if made.code != Some(0) {
        return skip(TEST, &format!("this kernel makes no GRE tunnel (module ip_gre): {}", made.stderr));
    }
    let socket = network::raw_socket().unwrap();
    for sequence in [10, 5, 6, 11, 7] {
        network::send_raw(&socket, &gre_packet(sequence), Ipv4Addr::LOCALHOST).unwrap();
    }
    let exporter = Exporter::start(&["netdev"]);
    let told = exporter.scrape().value("kpulse_netdev_receive_fifo_errors_total", &[("device", "order0")]);
    let counted = fs::read_to_string("/sys/class/net/order0/statistics/rx_fifo_errors").unwrap();
    assert_eq!((told, counted.trim()), (3.0, "3"));
    assert_eq!(run(Command::new("ip").args(["link", "del", "order0"])).code, Some(0));
}

/// From the other end of the tunnel: a GRE header with a number, and an empty IPv4 packet.
fn gre_packet(sequence: u32) -> Vec<u8> {
    let outer = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 47, 0, 0, 127, 0, 0, 2, 127, 0, 0, 1];
    let inner = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    [&outer[..], &[0x10, 0, 8, 0], &sequence.to_be_bytes(), &inner].concat()
}

#[test]
fn a_containers_devices_count_for_it_and_its_loopback_does_not() {
    if !is_root() {
        return skip("a_containers_devices", "only root can make cgroups and network namespaces");
    }
    const RECEIVED: &str = "kpulse_netdev_receive_bytes_total";
    let container = Cgroup::container("cpu", 0xf2).unwrap();
    let id = Cgroup::id(0xf2);
    let labels = |device| [("container_id", id.as_str()), ("device", device)];
    let exporter = Exporter::start(&["netdev"]);
    let told = tempfile::tempdir().unwrap();
    let (sent, scraped) = (told.path().join("sent"), told.path().join("scraped"));
    let page = std::thread::scope(|scope| {
        let child = scope.spawn(|| {
            network::in_namespace(Some(&container), || {
                // Under another name it is a device like any other.
                network::rename_loopback("cable0")?;
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                for _ in 0..10 {
                    socket.send_to(&[0; 500], socket.local_addr()?)?;
                }
                fs::write(&sent, [])?;
                until("the scrape", || scraped.exists().then_some(()));
                Ok(vec![])
            })
        });
        until("the child", || sent.exists().then_some(()));
        let page = until("the series", || {
            let page = exporter.scrape();
            page.find(RECEIVED, &labels("cable0")).is_some().then_some(page)
        });
        fs::write(&scraped, []).unwrap();
        child.join().unwrap().unwrap();
        page
    });
    // With the headers of UDP and IP; loopback adds none.
    assert_eq!(page.find(RECEIVED, &labels("cable0")), Some(10.0 * (500.0 + 8.0 + 20.0)));
    assert_eq!(page.find("kpulse_netdev_transmit_packets_total", &labels("cable0")), Some(10.0));
    assert_eq!(page.find(RECEIVED, &labels("lo")), None);
    drop(container);
    until("end of the series", || {
        exporter.scrape().find(RECEIVED, &labels("cable0")).is_none().then_some(())
    });
}

#[test]
fn protocol_counters_grow_by_what_was_provoked() {
    let exporter = Exporter::start(&["netstat"]);
    let names = ["tcp_active_opens", "tcp_passive_opens", "udp_no_ports", "udp_received_datagrams"];
    let read = || {
        let page = exporter.scrape();
        names.map(|name| page.value(&format!("kpulse_netstat_{name}_total"), &[]))
    };
    let before = read();
    let held = connections(25);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..15 {
        // The answer to the one before makes every other send fail, which is the point.
        let _ = socket.send_to(b"x", closed);
    }
    for _ in 0..10 {
        let _ = socket.send_to(b"x", socket.local_addr().unwrap());
    }
    socket.set_nonblocking(true).unwrap();
    let received = (0..25).filter(|_| socket.recv(&mut [0; 8]).is_ok()).count();
    let after = read();
    let grown: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    // The scrapes are connections too, one for each end.
    assert!(grown[0] >= 26.0 && grown[1] >= 26.0, "{grown:?}");
    assert!(grown[2] >= 5.0, "{grown:?}");
    assert!(received >= 1 && grown[3] >= received as f64, "{received} received, {grown:?}");
    let established = exporter.scrape().value("kpulse_netstat_tcp_established", &[]);
    assert!(established >= 50.0, "{established} while {} are held", 2 * held.len());
}

/// TCP sockets of a network namespace by the kernel's number of their state, both tables of it together.
fn by_state(folder: &str) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for table in ["tcp", "tcp6"].map(|file| fs::read_to_string(format!("{folder}/{file}"))) {
        let table = table.unwrap_or_default();
        for line in table.lines().skip(1) {
            *counts.entry(line.split_ascii_whitespace().nth(3).unwrap().to_owned()).or_default() += 1.0;
        }
    }
    counts
}

const CONNECTIONS: &str = "kpulse_tcp_connections";

#[test]
fn a_containers_connections_are_in_the_states_that_they_were_brought_to() {
    if !is_root() {
        return skip("a_containers_connections", "only root can make cgroups and network namespaces");
    }
    let container = Cgroup::container("cpu", 0xf3).unwrap();
    let id = Cgroup::id(0xf3);
    let exporter = Exporter::start(&["tcp_connections"]);
    let prepare = || {
        network::isolate().unwrap();
        let established = connections(5);
        let listeners: Vec<_> =
            ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap()).into();
        let half_closed = connections(3);
        half_closed.iter().for_each(|(client, _)| client.shutdown(Shutdown::Write).unwrap());
        for (client, mut server) in connections(4) {
            // Who closes first waits; if both closed at once, both would.
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        }
        (established, listeners, half_closed)
    };
    // By number and name, with how many there are.
    let expected = [
        ("01", "established", 10.0),
        ("0A", "listen", 3.0),
        ("05", "fin_wait2", 3.0),
        ("08", "close_wait", 3.0),
        ("06", "time_wait", 4.0),
    ];
    while_child_holds(&container, prepare, |pid| {
        let kernels: BTreeMap<_, _> = expected.map(|(number, _, count)| (number.to_owned(), count)).into();
        until("the kernel's own account of them", || {
            (by_state(&format!("/proc/{pid}/net")) == kernels).then_some(())
        });
        for (_, state, count) in expected {
            let labels = [("container_id", id.as_str()), ("state", state)];
            let is_told = || (exporter.scrape().find(CONNECTIONS, &labels) == Some(count)).then_some(());
            within(PACED, state, is_told);
        }
        let page = exporter.scrape();
        let lines = page.0.lines().filter(|line| line.starts_with(CONNECTIONS) && line.contains(&id));
        assert_eq!(lines.count(), expected.len(), "a container has no series of zero");
    });
    drop(container);
    until("end of the series", || (!exporter.scrape().0.contains(&id)).then_some(()));
}

#[test]
fn the_hosts_connections_are_those_of_its_own_tables() {
    let exporter = Exporter::start(&["tcp_connections"]);
    let value = |state| {
        let own = "namespace=\"\",pod=\"\",container=\"\",container_id=\"\",state=";
        let page = exporter.scrape();
        let line = format!("{CONNECTIONS}{{{own}\"{state}\"}} ");
        page.0.lines().find_map(|it| it.strip_prefix(&line)?.parse::<f64>().ok()).unwrap()
    };
    let held = connections(150);
    held.iter().take(50).for_each(|(client, _)| client.shutdown(Shutdown::Write).unwrap());
    let listeners: Vec<_> = (0..100).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    for (number, state, least) in [
        ("01", "established", 200.0),
        ("05", "fin_wait2", 50.0),
        ("08", "close_wait", 50.0),
        ("0A", "listen", 100.0),
    ] {
        // Other tests open and close a few.
        within(PACED, state, || {
            let kernels = by_state("/proc/1/net")[number];
            let told = value(state);
            (told >= least && (told - kernels).abs() < 16.0).then_some(())
        });
    }
    drop((held, listeners));
}

#[test]
fn sockets_in_use_are_those_that_are_open() {
    let exporter = Exporter::start(&["sockstat"]);
    let in_use = |protocol| exporter.scrape().value("kpulse_sockstat_in_use", &[("protocol", protocol)]);
    let before = in_use("udp");
    let held: Vec<_> = (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let grown = in_use("udp") - before;
    // Other tests open and close a few.
    assert!((grown - 64.0).abs() < 16.0, "{grown}");
    drop(held);
    let is_told = |least: f64, kernels: f64| {
        let told = exporter.scrape().value("kpulse_sockstat_tcp_time_wait", &[]);
        // Other tests open and close a few.
        (told >= least && (told - kernels).abs() < 16.0).then_some(())
    };
    let waiting = || by_state("/proc/1/net").get("06").copied().unwrap_or(0.0);
    // Who closes first waits.
    connections(60).into_iter().for_each(|(client, server)| drop((client, server)));
    until("connections in the state time_wait", || is_told(60.0, waiting()));
    let connections = connections(40);
    let page = exporter.scrape();
    let tcp = page.value("kpulse_sockstat_in_use", &[("protocol", "tcp")]);
    assert!(tcp >= 80.0, "{tcp} while {} are held", 2 * connections.len());
    assert!(page.value("kpulse_sockstat_used", &[]) >= 80.0);
}

#[test]
fn cpus_take_at_least_the_packets_that_were_sent() {
    let exporter = Exporter::start(&["softnet"]);
    let family = "kpulse_softnet_processed_total";
    let before = exporter.scrape().sum(family);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..100 {
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    }
    let page = exporter.scrape();
    let grown = page.sum(family) - before;
    assert!(grown >= 100.0, "{grown}");
    let cpus = page.0.lines().filter(|line| line.starts_with(&format!("{family}{{"))).count();
    let online = fs::read_to_string("/proc/cpuinfo").unwrap();
    assert_eq!(cpus, online.lines().filter(|line| line.starts_with("processor")).count());
}

/// Columns of /proc/net/softnet_stat, added up over CPUs.
fn softnet(columns: &[usize]) -> Vec<f64> {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap();
    let number = |line: &str, column| {
        f64::from(u32::from_str_radix(line.split_ascii_whitespace().nth(column).unwrap(), 16).unwrap())
    };
    columns.iter().map(|&column| text.lines().map(|line| number(line, column)).sum()).collect()
}

#[test]
fn what_cpus_count_of_packets_is_what_the_kernel_says() {
    let families = ["processed", "dropped", "squeezed", "received_rps", "flow_limited"];
    let exporter = Exporter::start(&["softnet"]);
    let (before, page, after) = between(&exporter, || softnet(&[0, 1, 2, 9, 10]));
    for (index, family) in families.into_iter().enumerate() {
        let told = page.sum(&format!("kpulse_softnet_{family}_total"));
        assert_between(family, before[index], told, after[index]);
    }
}

#[test]
fn packets_that_find_no_room_before_a_cpu_are_counted() {
    const BACKLOG: &str = "/proc/sys/net/core/netdev_max_backlog";
    if !kpulse_tests::is_guest() {
        return skip("packets_that_find_no_room", "the room is the whole machine's: only guests change it");
    }
    let exporter = Exporter::start(&["softnet"]);
    let room = fs::read_to_string(BACKLOG).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    std::thread::spawn(move || io::copy(&mut server, &mut io::sink()));
    let before = softnet(&[1])[0];
    // Room for one: of what an acknowledgement lets go at once, the rest is lost and sent again.
    fs::write(BACKLOG, "0").unwrap();
    let lost = until("packets that are lost", || {
        client.write_all(&[0; 1 << 20]).unwrap();
        Some(softnet(&[1])[0] - before).filter(|&lost| lost >= 10.0)
    });
    fs::write(BACKLOG, room.trim()).unwrap();
    let (least, page, most) = between(&exporter, || softnet(&[1]));
    let told = page.sum("kpulse_softnet_dropped_total");
    assert_between("dropped", least[0], told, most[0]);
    assert!(told >= before + lost, "{told}, {before}, {lost}");
}

#[test]
fn packets_that_wait_before_a_busy_cpu_are_told() {
    const NAME: &str = "packets_that_wait";
    if !kpulse_tests::is_guest() {
        return skip(NAME, "a CPU that does nothing else for seconds is a guest's");
    }
    let on_the_other = || {
        load::pin(1).unwrap();
        let exporter = Exporter::start(&["softnet"]);
        let burning = ProbeSet::load(&[&burn::KERNEL], &LoadOptions::default());
        if burning.status()[0].state != ProbeState::Active {
            return skip(NAME, "this kernel's BPF cannot burn time");
        }
        let _stuck = Worker::start(None, || {
            load::pin(0)?;
            load::rename(c"burn-kernel");
            load::spin(Duration::MAX);
            Ok(())
        });
        let _sending = Worker::start(None, || {
            network::isolate()?;
            network::receive_on(0)?;
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            loop {
                socket.send_to(b"x", socket.local_addr()?)?;
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let waiting = || softnet(&[11])[0];
        until("packets that wait", || (waiting() >= 10.0).then_some(()));
        let (before, page, after) = between(&exporter, waiting);
        assert_between("waiting", before, page.sum("kpulse_softnet_backlog_packets"), after);
        let of_the_other = page.value("kpulse_softnet_backlog_packets", &[("cpu", "1")]);
        assert!(before >= 10.0 && of_the_other < 10.0, "{before}, {of_the_other}");
    };
    std::thread::scope(|scope| scope.spawn(on_the_other).join().unwrap());
}

#[test]
fn a_cpu_that_stops_with_packets_left_is_counted() {
    const BUDGET: &str = "/proc/sys/net/core/netdev_budget";
    if !kpulse_tests::is_guest() {
        return skip(
            "a_cpu_that_stops",
            "the budget of packets is the whole machine's: only guests change it",
        );
    }
    let exporter = Exporter::start(&["softnet"]);
    let budget = fs::read_to_string(BUDGET).unwrap();
    let squeezed = || exporter.scrape().sum("kpulse_softnet_squeezed_total");
    let before = squeezed();
    fs::write(BUDGET, "1").unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..100 {
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    }
    let kernels = softnet(&[2])[0];
    fs::write(BUDGET, budget.trim()).unwrap();
    let grown = squeezed() - before;
    assert!(grown >= 50.0 && before + grown >= kernels, "{grown}, {kernels} by the kernel");
}
