//! What provokes the facts of each probe, again and again.

use crate::network;
use kpulse_common::packet_filter::PacketFilter;
use kpulse_common::thresholds::Thresholds;
use kpulse_exporter_ebpf::{LoadOptions, Probe, ProbeSet, ProbeState};
use kpulse_tests::burn;
use kpulse_tests::cgroup::Cgroup;
use kpulse_tests::disk::{FileSystem, Loop};
use kpulse_tests::load::{self, Worker};
use kpulse_tests::memory::{exhaust, limited, limited_for_good, touch_huge_pages};
use kpulse_tests::pressure::{page_cache, vmstat};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long a load runs, from the first time that it asks.
const TIME: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_nanos(1);

/// One way to provoke what a probe looks for.
pub struct Load {
    pub probe: &'static str,
    /// In one or two words.
    pub what: &'static str,
    /// Hooks whose programs tell of what it provokes.
    pub tellers: &'static [&'static str],
    /// Lowers the thresholds that it is to reach.
    pub arm: fn(&mut Thresholds),
    pub run: fn(&mut Clock) -> anyhow::Result<()>,
}

/// When a load has run for long enough.
#[derive(Default)]
pub struct Clock(Option<Instant>);

impl Clock {
    pub fn is_over(&mut self) -> bool {
        self.is_over_after(1)
    }

    /// For what comes rarely.
    fn is_over_after(&mut self, times: u32) -> bool {
        self.0.get_or_insert_with(Instant::now).elapsed() >= TIME * times
    }
}

const fn load(
    probe: &'static str,
    what: &'static str,
    tellers: &'static [&'static str],
    run: fn(&mut Clock) -> anyhow::Result<()>,
) -> Load {
    Load { probe, what, tellers, arm: everything, run }
}

/// At least one for each probe.
pub const LOADS: &[Load] = &[
    load("block_io", "reads of a loop device", &["block_rq_complete"], reads),
    load("jbd2", "fsync on ext4", &[], |clock| sync_often(&ext4()?, clock)),
    load("xfs_log", "fsync on XFS", &["xlog_iclog_clean"], |clock| sync_often(&xfs(&[])?, clock)),
    load("xfs_log", "a full log of XFS", &["xfs_log_grant_wake"], full_log),
    load("hardware_error", "an error of hardware", &[], |_| {
        anyhow::bail!(
            "the kernel's injectors of errors are for machines that nobody uses, as the guests of the matrix"
        )
    }),
    load("hardirq", "a disk's interrupts", &[], disk_interrupts),
    load("irqs_off", "interrupts off for 1 ms", &["hrtimer_expire_entry"], interrupts_off),
    load("soft_lockup", "0.6 s in the kernel", &["cpu_clock"], lockups),
    load("softirq", "datagrams on loopback", &["softirq_entry"], network::datagrams),
    load("compaction", "huge pages without free memory", &["mm_compaction_end"], compaction),
    load("direct_reclaim", "a file larger than the memory limit", &["mm_vmscan_memcg_reclaim_end"], reclaim),
    load("kswapd", "a page cache that fills memory", &[], background_reclaim),
    load("oom_kill", "a cgroup over its limit", &["mark_victim"], oom_kills),
    load("packet_drop", "datagrams for a full socket", &["kfree_skb"], network::drops),
    load("qdisc", "datagrams through a token bucket", &[], network::slow_device),
    load("transmit", "datagrams through a token bucket", &[], network::slow_device),
    Load { arm: TO_USER, ..load("receive", "datagrams", &["sys_enter"], network::datagrams) },
    Load { arm: TO_USER, ..load("receive", "a stream", &["skb_copy_datagram_iovec"], network::stream) },
    Load {
        arm: |thresholds| thresholds.receive.min_to_socket = SHORTEST,
        ..load("receive", "a stream to its socket", &["tcp_probe"], network::stream)
    },
    Load {
        arm: |thresholds| thresholds.socket_wait.min_send = SHORTEST,
        ..load("socket_wait", "a stream that is sent", &["sys_exit_sendto"], network::stream)
    },
    Load {
        arm: |thresholds| thresholds.socket_wait.min_receive = SHORTEST,
        ..load("socket_wait", "a stream that is read", &["sys_exit_recvfrom"], network::stream)
    },
    load("tcp_connect", "connections", &["inet_sock_set_state"], network::connections),
    load("tcp_reset", "closing with unread data", &["tcp_send_reset", "tcp_receive_reset"], network::resets),
    load("tcp_retransmit", "a stream with losses", &["tcp_retransmit_skb"], network::losses),
    load("tx_timeout", "a card that hangs", &[], |_| {
        anyhow::bail!("no card of a machine in use is made to hang; those of the matrix's guests are")
    }),
    load("cpu_sample", "a busy thread", &[], |clock| {
        while !clock.is_over() {
            load::spin(TIME / 20);
        }
        Ok(())
    }),
    load("process_life", "short processes", &[], |clock| {
        while !clock.is_over() {
            Command::new("/bin/true").status()?;
        }
        Ok(())
    }),
    load("runqueue_latency", "a byte to and fro", &["sched_switch"], switches),
    Load {
        arm: |thresholds| thresholds.task_state.min_stuck = SHORTEST,
        ..load("task_state", "short sleeps in state D", &["sched_wakeup"], sleeps)
    },
    Load {
        arm: |thresholds| thresholds.task_state.min_memory_stall = SHORTEST,
        ..load("task_state", "more than memory.high", &["sched_wakeup"], stalls)
    },
];

const TO_USER: fn(&mut Thresholds) = |thresholds| thresholds.receive.min_to_user = SHORTEST;

/// Thresholds that nothing reaches.
pub fn out_of_reach() -> Thresholds {
    let mut thresholds = Thresholds::default();
    set_times(&mut thresholds, Duration::from_secs(3600));
    let nothing = "ip and not ip".to_owned();
    thresholds.packet_drop.filter = nothing.try_into().expect("it is an expression");
    thresholds
}

fn everything(thresholds: &mut Thresholds) {
    set_times(thresholds, SHORTEST);
    thresholds.packet_drop.filter = PacketFilter::default();
}

fn set_times(thresholds: &mut Thresholds, time: Duration) {
    for field in [
        &mut thresholds.runqueue_latency.min_wait,
        &mut thresholds.block_io.min_d2c,
        &mut thresholds.block_io.min_q2c,
        &mut thresholds.xfs_log.min_wait,
        &mut thresholds.direct_reclaim.min_duration,
        &mut thresholds.irqs_off.min_duration,
        &mut thresholds.softirq.min_delay,
        &mut thresholds.soft_lockup.min_duration,
        &mut thresholds.compaction.min_duration,
        &mut thresholds.task_state.min_stuck,
        &mut thresholds.task_state.min_memory_stall,
        &mut thresholds.receive.min_to_user,
        &mut thresholds.receive.min_to_socket,
        &mut thresholds.tcp_connect.min_handshake,
        &mut thresholds.socket_wait.min_send,
        &mut thresholds.socket_wait.min_receive,
    ] {
        *field = time;
    }
}

fn reads(clock: &mut Clock) -> anyhow::Result<()> {
    let device = Loop::with_size(16 << 20)?;
    while !clock.is_over() {
        load::read_directly(&device.path(), 64)?;
    }
    Ok(())
}

fn ext4() -> anyhow::Result<FileSystem> {
    FileSystem::ext4(32 << 20).map_err(anyhow::Error::msg)
}

fn xfs(options: &[&str]) -> anyhow::Result<FileSystem> {
    FileSystem::xfs(Loop::with_size(320 << 20), options).map_err(anyhow::Error::msg)
}

fn sync_often(file_system: &FileSystem, clock: &mut Clock) -> anyhow::Result<()> {
    let path = file_system.mount.path().join("file");
    while !clock.is_over() {
        // Appending changes the inode, which fsync must commit.
        let mut file = File::create(&path)?;
        for _ in 0..100 {
            file.write_all(&[1; 4096])?;
            file.sync_all()?;
        }
    }
    Ok(())
}

/// Many threads that make and remove files fill a log of the least size.
fn full_log(clock: &mut Clock) -> anyhow::Result<()> {
    let device = Loop::with_size(64 << 20);
    let file_system =
        FileSystem::xfs(device, &["--unsupported", "-l", "size=4m"]).map_err(anyhow::Error::msg)?;
    let end = {
        clock.is_over();
        Instant::now() + TIME
    };
    let work = |number: u32| -> io::Result<()> {
        let folder = file_system.mount.path().join(number.to_string());
        while Instant::now() < end {
            fs::create_dir(&folder)?;
            (0..400).try_for_each(|file| File::create(folder.join(file.to_string())).map(drop))?;
            fs::remove_dir_all(&folder)?;
        }
        Ok(())
    };
    let joined = thread::scope(|scope| {
        let workers: Vec<_> = (0..16).map(|number| scope.spawn(move || work(number))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
    });
    Ok(joined?)
}

fn disk_interrupts(clock: &mut Clock) -> anyhow::Result<()> {
    let path = temporary("disk");
    let outcome = (|| {
        while !clock.is_over() {
            let file = File::create(&path)?;
            file.write_all_at(&[1; 1 << 20], 0)?;
            file.sync_all()?;
            load::read_directly(&path, 16)?;
        }
        Ok(())
    })();
    fs::remove_file(&path)?;
    outcome
}

/// A file of the load's own.
fn temporary(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("kpulse-bench-{name}-{}", std::process::id()))
}

/// A burner that burns as often as it may.
fn burner(probe: &'static Probe) -> anyhow::Result<ProbeSet> {
    let set = ProbeSet::load(&[probe], &LoadOptions::default());
    let state = set.status().remove(0).state;
    if state == ProbeState::Active { Ok(set) } else { Err(anyhow::anyhow!("{state}")) }
}

fn interrupts_off(clock: &mut Clock) -> anyhow::Result<()> {
    static OFTEN: Probe = Probe {
        globals: || vec![("burn_ns", 1_000_000), ("gap_ns", 4_000_000), ("burns_max", u64::MAX)],
        ..burn::IRQS_OFF
    };
    let _burner = burner(&OFTEN)?;
    load::pin(0)?;
    load::rename(c"burn-irqs");
    // The burn is where this thread leaves the CPU, and so are the timers that come late by it.
    while !clock.is_over() {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn lockups(clock: &mut Clock) -> anyhow::Result<()> {
    static LONG: Probe = Probe {
        globals: || vec![("burn_ns", 600_000_000), ("gap_ns", 700_000_000), ("burns_max", u64::MAX)],
        ..burn::KERNEL
    };
    let _burner = burner(&LONG)?;
    let on_first_cpu = |name: &'static std::ffi::CStr| {
        Worker::start(None, || {
            load::pin(0)?;
            load::rename(name);
            load::spin(Duration::MAX);
            Ok(())
        })
    };
    let _workers = [on_first_cpu(c"waits"), on_first_cpu(c"burn-kernel")];
    while !clock.is_over_after(4) {
        thread::sleep(TIME / 20);
    }
    Ok(())
}

fn compaction(clock: &mut Clock) -> anyhow::Result<()> {
    let container = Cgroup::container("memory", 0xbe9c1)?;
    let passes = vmstat(&["pageoutrun"]);
    let is_enough =
        || vmstat(&["pageoutrun"]) > passes && (!touch_huge_pages(&container, 16) || clock.is_over());
    let is_short = page_cache(is_enough)?;
    anyhow::ensure!(is_short, "this machine has more memory than can be filled in a minute");
    Ok(())
}

fn reclaim(clock: &mut Clock) -> anyhow::Result<()> {
    const LIMIT: usize = 16 << 20;
    let container = limited(0xbe9c2, LIMIT).ok_or_else(|| anyhow::anyhow!("no limit can be set here"))?;
    let path = temporary("reclaim");
    // Without blocks: clean pages, no I/O.
    File::create(&path)?.set_len(4 * LIMIT as u64)?;
    let (_, went_well) = load::in_child(Some(&container), || {
        while !clock.is_over() {
            io::copy(&mut File::open(&path)?, &mut io::sink())?;
        }
        Ok(())
    });
    fs::remove_file(&path)?;
    anyhow::ensure!(went_well, "the file could not be read");
    Ok(())
}

fn background_reclaim(clock: &mut Clock) -> anyhow::Result<()> {
    let passes = vmstat(&["pageoutrun"]);
    let is_short = page_cache(|| vmstat(&["pageoutrun"]) > passes && clock.is_over())?;
    anyhow::ensure!(is_short, "this machine has more memory than can be filled in a minute");
    Ok(())
}

fn oom_kills(clock: &mut Clock) -> anyhow::Result<()> {
    const LIMIT: usize = 4 << 20;
    let container =
        limited_for_good(0xbe9c3, LIMIT).ok_or_else(|| anyhow::anyhow!("no limit can be set here"))?;
    while !clock.is_over() {
        anyhow::ensure!(exhaust(&container, 4 * LIMIT), "the limit was not met");
    }
    Ok(())
}

fn switches(clock: &mut Clock) -> anyhow::Result<()> {
    let ((mut ask, mut to), (mut from, mut answer)) = (io::pipe()?, io::pipe()?);
    let _echo = Worker::start(None, || {
        loop {
            let mut byte = [0];
            ask.read_exact(&mut byte)?;
            answer.write_all(&byte)?;
        }
    });
    while !clock.is_over() {
        for _ in 0..100 {
            to.write_all(&[1])?;
            from.read_exact(&mut [0])?;
        }
    }
    Ok(())
}

fn sleeps(clock: &mut Clock) -> anyhow::Result<()> {
    while !clock.is_over() {
        load::sleep_uninterruptibly(Duration::from_micros(100))?;
    }
    Ok(())
}

fn stalls(clock: &mut Clock) -> anyhow::Result<()> {
    const LIMIT: usize = 8 << 20;
    let container = Cgroup::container("memory", 0xbe9c4)?;
    anyhow::ensure!(!container.is_v1(), "cgroup v1 has no memory.high");
    container.set("memory.high", &LIMIT.to_string())?;
    load::in_child(Some(&container), || {
        let mut memory: Vec<u8> = Vec::new();
        while !clock.is_over() && memory.len() < 4 * LIMIT {
            memory.resize(std::hint::black_box(memory.len() + 4096), 1);
        }
        Ok(())
    });
    Ok(())
}
