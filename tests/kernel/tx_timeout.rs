//! Devices that hang, against the kernel's own count.

use super::*;
use kpulse_tests::{is_guest, network, skip, until};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const NAME: &str = "tx_timeout";
const FAMILY: &str = "kpulse_tx_timeouts_total";
/// A card that every guest's kernel has a driver for, which minds time-outs.
const DRIVER: &str = "vmxnet3";

/// Time-outs of all queues of this namespace's devices since boot.
fn by_the_kernel() -> u64 {
    let devices = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let queues =
        devices.filter_map(|device| fs::read_dir(device.path().join("queues")).ok()).flatten().flatten();
    let counts = queues.filter_map(|queue| fs::read_to_string(queue.path().join("tx_timeout")).ok());
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

#[test]
fn a_device_without_a_time_out_has_no_series() {
    needs_root!();
    let before = by_the_kernel();
    let mut set = load(NAME, &wanting(Want::Metrics));
    let samples = scrape(&mut set, NAME, &mut identities());
    let happened = by_the_kernel() - before;
    assert!(total(&samples, FAMILY, &[]) <= happened, "{happened} by the kernel's count");
}

/// A network card whose interrupts do not arrive, so that its driver never learns that anything was sent.
struct Deaf {
    config: File,
    /// Where the message control of MSI-X is.
    control: u64,
}

impl Deaf {
    const CAPABILITIES: u64 = 0x34;
    const MSI_X: u8 = 0x11;
    const MASK_ALL: u16 = 1 << 14;

    fn make(device: &Path) -> io::Result<Self> {
        let config = OpenOptions::new().read(true).write(true).open(device.join("device/config"))?;
        let byte = |at: u64| {
            let mut byte = [0];
            config.read_exact_at(&mut byte, at).map(|()| byte[0])
        };
        let mut at = byte(Self::CAPABILITIES)?;
        while at != 0 && byte(at.into())? != Self::MSI_X {
            at = byte(u64::from(at) + 1)?;
        }
        if at == 0 {
            return Err(io::Error::other("the card has no MSI-X"));
        }
        let deaf = Self { config, control: u64::from(at) + 2 };
        deaf.set_mask(Self::MASK_ALL)?;
        Ok(deaf)
    }

    fn set_mask(&self, mask: u16) -> io::Result<()> {
        let mut bytes = [0; 2];
        self.config.read_exact_at(&mut bytes, self.control)?;
        let control = u16::from_le_bytes(bytes) & !Self::MASK_ALL | mask;
        self.config.write_all_at(&control.to_le_bytes(), self.control)
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        let _ = self.set_mask(0);
    }
}

/// The network card of a matrix guest, which nothing else uses: its name.
fn spare_card() -> Option<String> {
    let devices = fs::read_dir("/sys/class/net").ok().filter(|_| is_guest())?.flatten();
    let is_spare = |device: &fs::DirEntry| {
        fs::read_link(device.path().join("device/driver")).is_ok_and(|driver| driver.ends_with(DRIVER))
    };
    devices.filter(is_spare).find_map(|device| device.file_name().into_string().ok())
}

#[test]
fn a_card_that_hangs_is_an_event_with_its_driver() {
    needs_root!();
    let Some(device) = spare_card() else {
        skip(module_path!(), "there is no vmxnet3 to make hang; only guests of the kernel matrix have one");
        return;
    };
    let mut counting = load(NAME, &wanting(Want::Metrics));
    let mut set = load(NAME, &wanting(Want::Events));
    let mut events = set.take_events().expect("the rings open");
    network::bring_up(&device).expect("the card is there");
    let folder = Path::new("/sys/class/net").join(&device);
    until("a carrier", || fs::read_to_string(folder.join("carrier")).ok().filter(|it| it.trim() == "1"));
    let before = by_the_kernel();
    let deaf = Deaf::make(&folder).expect("root may write a card's configuration");
    let mut facts = Vec::new();
    until("a time-out", || {
        network::fill_queue(&device, 100).expect("the card is up");
        events.drain(&mut |fact| facts.push(fact));
        (!facts.is_empty()).then_some(())
    });
    drop(deaf);
    assert_eq!(facts.len() as u64, by_the_kernel() - before, "{facts:?}");
    let fact = &facts[0];
    assert_eq!((fact.kind, fact.value_ns, fact.pid, fact.cgroup), ("tx_timeout", None, 0, None));
    assert_eq!(fact.body["device"], device.as_str());
    assert_eq!(fact.body["driver"], DRIVER);
    let queue = folder.join(format!("queues/tx-{}/tx_timeout", fact.body["queue"]));
    assert_ne!(fs::read_to_string(queue).expect("every queue counts").trim(), "0");
    let samples = scrape(&mut counting, NAME, &mut identities());
    assert_eq!(count(&samples, FAMILY, &[&device]), facts.len() as u64);
    assert_sum_closes(set, &mut events, facts.len());
}
