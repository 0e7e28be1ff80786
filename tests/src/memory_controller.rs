//! Errors of memory, as if a memory controller had found them.
//!
//! qemu's q35 keeps whatever is written to registers that it gives no meaning. The driver of an older chipset, whose
//! registers lie elsewhere than those that q35 does model, finds there what a test writes.

use crate::until;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const DRIVER: &str = "i3000_edac";
/// Where a guest of the kernel matrix has the driver: it finds nothing to drive before a test has prepared it.
const MODULE: &str = "/modules/i3000_edac.ko";

/// q35's own bridges.
const HOST_BRIDGE: &str = "/sys/bus/pci/devices/0000:00:00.0";
const LPC_BRIDGE: &str = "/sys/bus/pci/devices/0000:00:1f.0";
const Q35: [u8; 4] = [0x86, 0x80, 0xc0, 0x29];
/// Where the LPC bridge tells the place of a block of registers in memory, hardly any of which qemu models.
const ROOT_COMPLEX_BASE: u64 = 0xf0;
const BLOCK_BYTES: usize = 0x4000;

/// Registers of the Intel 3000's host bridge, and bits of them, as the driver reads them.
const BLOCK_BASE: u64 = 0x44;
const ERROR_ADDRESS: u64 = 0x58;
const ERROR_SYNDROME: u64 = 0x5c;
const ERROR_STATUS: u64 = 0xc8;
const CORRECTED: u16 = 1;
const UNCORRECTED: u16 = 2;
/// Of each channel in the block of registers: ends of its four ranks in 32 MiB, and attributes of each two.
const RANKS: [(usize, [u8; 4]); 4] = [
    (0x100, [4, 8, 12, 12]),
    (0x108, [0x22, 0x02, 0, 0]),
    (0x180, [4, 8, 12, 12]),
    (0x188, [0x22, 0x02, 0, 0]),
];

/// How often the driver looks for errors. It means to clear what it found by writing ones, which are errors here: so
/// this is also the time that there is to clear them.
const PERIOD: (&str, &str) = ("/sys/module/edac_core/parameters/edac_mc_poll_msec", "3000");

/// One with three rows of 256 MiB, each of a rank in either channel.
pub struct MemoryController {
    bridge: File,
    folder: PathBuf,
}

#[derive(Clone, Copy)]
pub enum Severity {
    Corrected,
    Uncorrected,
}

impl Severity {
    fn bit(self) -> u16 {
        match self {
            Self::Corrected => CORRECTED,
            Self::Uncorrected => UNCORRECTED,
        }
    }
}

impl MemoryController {
    /// Has the kernel drive one until this is dropped, or says why it cannot. Only for guests: it takes over registers.
    pub fn set_up() -> Result<Self, &'static str> {
        if !Path::new(MODULE).exists() {
            return Err("this kernel has no driver of a memory controller that qemu could be taken for");
        }
        let open =
            |bridge: &str| File::options().read(true).write(true).open(Path::new(bridge).join("config"));
        let bridge = open(HOST_BRIDGE).map_err(|_| "there is no host bridge")?;
        let mut identity = [0; 4];
        bridge.read_exact_at(&mut identity, 0).expect("each device has one");
        if identity != Q35 {
            return Err("the machine is no q35 of qemu");
        }
        let mut base = [0; 4];
        let lpc = open(LPC_BRIDGE).map_err(|_| "there is no LPC bridge")?;
        lpc.read_exact_at(&mut base, ROOT_COMPLEX_BASE).expect("root may read it");
        let base = u32::from_ne_bytes(base) & !1;
        write_ranks(base).expect("root may write to registers");
        bridge.write_all_at(&base.to_ne_bytes(), BLOCK_BASE).expect("root may write to registers");
        fs::write(PERIOD.0, PERIOD.1).expect("a kernel that has the driver has its parameter");
        override_driver(DRIVER);
        let controller = Self { bridge, folder: "/sys/devices/system/edac/mc/mc0".into() };
        run("insmod", MODULE);
        assert!(controller.folder.exists(), "the driver found no controller");
        controller.clear().expect("root may write to registers");
        Ok(controller)
    }

    /// Errors that the driver counted.
    pub fn count(&self, severity: Severity) -> u64 {
        let name = match severity {
            Severity::Corrected => "ce_count",
            Severity::Uncorrected => "ue_count",
        };
        let count = fs::read_to_string(self.folder.join(name)).expect("the driver is there");
        count.trim().parse().expect("it is a number")
    }

    /// Has the driver find one error in a channel's memory.
    pub fn err(&self, severity: Severity, address: u32, channel: u8, syndrome: u8) -> io::Result<()> {
        let before = self.count(severity);
        // Without what is below 128 bytes, where the channel is.
        let place = address & !0x7f | u32::from(channel);
        self.bridge.write_all_at(&place.to_ne_bytes(), ERROR_ADDRESS)?;
        self.bridge.write_all_at(&[syndrome], ERROR_SYNDROME)?;
        self.bridge.write_all_at(&severity.bit().to_ne_bytes(), ERROR_STATUS)?;
        until("poll of the driver", || (self.count(severity) > before).then_some(()));
        self.clear()
    }

    fn clear(&self) -> io::Result<()> {
        self.bridge.write_all_at(&[0; 2], ERROR_STATUS)
    }
}

impl Drop for MemoryController {
    fn drop(&mut self) {
        run("rmmod", DRIVER);
        override_driver("");
    }
}

/// Which driver the host bridge takes, whatever it is; its own choice if empty.
fn override_driver(name: &str) {
    fs::write(Path::new(HOST_BRIDGE).join("driver_override"), format!("{name}\n")).expect("it has a bus");
}

fn run(program: &str, argument: &str) {
    let status = Command::new(program).arg(argument).status().expect("the guest has it");
    assert!(status.success(), "{program} {argument}: {status}");
}

/// Populates ranks, in the block of registers at this physical address.
fn write_ranks(base: u32) -> io::Result<()> {
    let memory = File::options().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&memory);
    // SAFETY: a new mapping touches no memory that is in use.
    let block = unsafe {
        libc::mmap(std::ptr::null_mut(), BLOCK_BYTES, protection, libc::MAP_SHARED, fd, base.into())
    };
    if block == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for (offset, bytes) in RANKS {
        // SAFETY: the registers lie in the block, at multiples of 4, and nothing else of this program uses it.
        unsafe { block.byte_add(offset).cast::<u32>().write_volatile(u32::from_ne_bytes(bytes)) };
    }
    // SAFETY: nothing points into the mapping any longer.
    match unsafe { libc::munmap(block, BLOCK_BYTES) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
