use super::*;
use std::thread;

fn link(is_up: bool, changes: u32) -> Link {
    let name = "eth0".to_owned();
    Link { index: 7, name, is_enabled: true, is_up, changes: Some(changes), ..Link::default() }
}

/// A watch that follows what a test tells it.
struct Told {
    watch: LinkChange,
    start: Instant,
}

impl Told {
    /// With `eth0` up since before the start.
    fn new() -> Self {
        let mut watch = LinkChange::open(Path::new("/proc"), BUFFER_BYTES).unwrap();
        watch.devices.clear();
        let start = Instant::now();
        watch.take(Message::Link(link(true, 2)), start, true);
        Self { watch, start }
    }

    fn at(&mut self, milliseconds: u64, message: Message) -> Vec<(&'static str, Option<u32>)> {
        let now = self.start + Duration::from_millis(milliseconds);
        self.watch.take(message, now, false);
        self.watch.settled(now).iter().map(|(_, body)| (body.state, body.carrier_changes)).collect()
    }
}

#[test]
fn a_change_is_told_once_it_stands_and_what_flaps_is_one_event() {
    let mut told = Told::new();
    assert_eq!(told.at(0, Message::Link(link(false, 3))), []);
    assert_eq!(told.watch.next(), told.start + SETTLE);
    assert_eq!(told.at(299, Message::Link(link(false, 3))), []);
    assert_eq!(told.at(300, Message::Done), [("down", Some(1))]);
    assert_eq!(told.at(1_000, Message::Done), []);
    told.at(2_000, Message::Link(link(true, 4)));
    told.at(2_100, Message::Link(link(false, 5)));
    assert_eq!(told.at(2_400, Message::Done), [("down", Some(2))], "down again, and not in silence");
    let mut renamed = link(false, 5);
    renamed.name = "lan0".to_owned();
    assert_eq!(told.at(5_000, Message::Link(renamed)), []);
    assert_eq!(told.at(9_000, Message::Done), []);
}

#[test]
fn what_comes_and_goes_with_a_container_is_no_event() {
    let mut told = Told::new();
    told.at(0, Message::Link(link(false, 3)));
    told.at(10, Message::Gone(7));
    assert_eq!(told.at(1_000, Message::Done), [], "taken down and away at once");
    told.at(2_000, Message::Link(link(false, 0)));
    told.at(2_010, Message::Link(link(true, 1)));
    assert_eq!(told.at(3_000, Message::Done), [], "a new device comes up");
    told.at(4_000, Message::Link(link(false, 2)));
    assert_eq!(told.at(5_000, Message::Done), [("down", Some(1))], "and loses its link later");
}

/// Switches loopback on or off.
fn switch(socket: &Socket, is_on: bool) {
    // SAFETY: an all-zero request is valid, and lives through the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..2].copy_from_slice(&[b'l'.cast_signed(), b'o'.cast_signed()]);
        request.ifr_ifru.ifru_flags = if is_on { libc::IFF_UP as libc::c_short } else { 0 };
        assert_eq!(libc::ioctl(socket.fd(), libc::SIOCSIFFLAGS, &raw const request), 0);
    }
}

#[test]
fn a_socket_that_overflows_is_counted_and_all_links_are_read_anew() {
    let in_namespace = || {
        // SAFETY: no memory is involved; the namespace is that of this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            println!("SKIP: a network namespace cannot be made here (needs root)");
            return;
        }
        let mut watch = LinkChange::open(Path::new("/proc"), 1).unwrap();
        let found = |watch: &mut LinkChange, after: Duration| {
            let now = Instant::now() + after;
            watch.receive(now, false).unwrap();
            watch.settled(now).into_iter().map(|(_, body)| (body.device, body.state)).collect::<Vec<_>>()
        };
        assert_eq!(found(&mut watch, Duration::ZERO), []);
        assert!(watch.resyncs() == Some(0) && watch.devices.len() == 1);
        // Its end is another state than its beginning, and is among what is lost.
        (0..101).for_each(|turn| switch(&watch.socket, turn % 2 == 0));
        assert_eq!(found(&mut watch, Duration::ZERO), []);
        assert!(watch.resyncs() > Some(0), "the socket holds less than 101 messages");
        assert!(matches!(watch.dump, Dump::Complete));
        assert_eq!(found(&mut watch, SETTLE), [("lo".to_owned(), "up")]);
    };
    thread::spawn(in_namespace).join().unwrap();
}
