//! Every threshold of the product, with its default and the reason for it.
//!
//! A threshold is the value from which an event is told. The doc comment of a field is its help text wherever
//! the configuration is shown.

use crate::packet_filter::PacketFilter;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Thresholds of all probes, the `thresholds:` block of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Run-queue latency.
    pub runqueue_latency: RunqueueLatency,
    /// Block I/O.
    pub block_io: BlockIo,
    /// Waits for the log of XFS.
    pub xfs_log: XfsLog,
    /// Direct reclaim.
    pub direct_reclaim: DirectReclaim,
    /// Interrupts off.
    pub irqs_off: IrqsOff,
    /// Softirqs.
    pub softirq: Softirq,
    /// Soft lockups.
    pub soft_lockup: SoftLockup,
    /// Direct compaction.
    pub compaction: Compaction,
    /// Tasks in uninterruptible sleep.
    pub task_state: TaskState,
    /// Packets on their way to their reader.
    pub receive: Receive,
    /// System calls that send and receive.
    pub socket_wait: SocketWait,
    /// TCP handshakes.
    pub tcp_connect: TcpConnect,
    /// Dropped packets.
    pub packet_drop: PacketDrop,
    /// CPU quotas of containers.
    pub cpu_throttled: CpuThrottled,
    /// How many events of one kind each cgroup may send.
    pub rate_limit: RateLimit,
}

/// Thresholds of the probe `runqueue_latency`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunqueueLatency {
    /// Runnable for this long before it ran: 50 ms is several scheduler slices, so a healthy machine is silent.
    #[serde(with = "humantime_serde")]
    pub min_wait: Duration,
}

impl Default for RunqueueLatency {
    fn default() -> Self {
        Self { min_wait: Duration::from_millis(50) }
    }
}

/// Thresholds of the probe `block_io`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockIo {
    /// Driver to completion: 100 ms is beyond a healthy disk's worst seek.
    #[serde(with = "humantime_serde")]
    pub min_d2c: Duration,
    /// Queue to completion: twice the driver's, since a full queue waits for its turn.
    #[serde(with = "humantime_serde")]
    pub min_q2c: Duration,
}

impl Default for BlockIo {
    fn default() -> Self {
        Self { min_d2c: Duration::from_millis(100), min_q2c: Duration::from_millis(200) }
    }
}

/// Thresholds of the probe `xfs_log`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct XfsLog {
    /// For room in the log, or for the log to reach the disk: 100 ms is felt by whoever called fsync or made a file.
    #[serde(with = "humantime_serde")]
    pub min_wait: Duration,
}

impl Default for XfsLog {
    fn default() -> Self {
        Self { min_wait: Duration::from_millis(100) }
    }
}

/// Thresholds of the probe `direct_reclaim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectReclaim {
    /// One call of direct reclaim: 100 ms is felt by the request that allocates.
    #[serde(with = "humantime_serde")]
    pub min_duration: Duration,
}

impl Default for DirectReclaim {
    fn default() -> Self {
        Self { min_duration: Duration::from_millis(100) }
    }
}

/// Thresholds of the probe `irqs_off`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IrqsOff {
    /// Interrupts kept off: 10 ms is some ticks, in which the CPU served nobody. Less than 0.5 ms is taken as that.
    #[serde(with = "humantime_serde")]
    pub min_duration: Duration,
}

impl Default for IrqsOff {
    fn default() -> Self {
        Self { min_duration: Duration::from_millis(10) }
    }
}

/// Thresholds of the probe `softirq`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Softirq {
    /// From raise to handler: 10 ms is when packets and timers are felt to be late.
    #[serde(with = "humantime_serde")]
    pub min_delay: Duration,
}

impl Default for Softirq {
    fn default() -> Self {
        Self { min_delay: Duration::from_millis(10) }
    }
}

/// Thresholds of the probe `soft_lockup`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftLockup {
    /// A task in the kernel without a switch while others wait: no healthy path of the kernel takes 5 s. The metric counts
    /// by this threshold too.
    #[serde(with = "humantime_serde")]
    pub min_duration: Duration,
}

impl Default for SoftLockup {
    fn default() -> Self {
        Self { min_duration: Duration::from_secs(5) }
    }
}

/// Thresholds of the probe `compaction`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compaction {
    /// One call of direct compaction: 100 ms is felt by the request that allocates.
    #[serde(with = "humantime_serde")]
    pub min_duration: Duration,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { min_duration: Duration::from_millis(100) }
    }
}

/// Thresholds of the probe `task_state`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskState {
    /// In uninterruptible sleep: 1 s is beyond what a healthy disk or lock takes.
    #[serde(with = "humantime_serde")]
    pub min_stuck: Duration,
    /// Stopped over a cgroup's `memory.high`: 100 ms is felt by the request that the task serves.
    #[serde(with = "humantime_serde")]
    pub min_memory_stall: Duration,
}

impl Default for TaskState {
    fn default() -> Self {
        Self { min_stuck: Duration::from_secs(1), min_memory_stall: Duration::from_millis(100) }
    }
}

/// Thresholds of the probe `receive`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Receive {
    /// Device to reader: 100 ms is felt by whoever waits for the answer.
    #[serde(with = "humantime_serde")]
    pub min_to_user: Duration,
    /// Device to socket: 10 ms where the kernel needs microseconds, so that somebody kept it from its work.
    #[serde(with = "humantime_serde")]
    pub min_to_socket: Duration,
}

impl Default for Receive {
    fn default() -> Self {
        Self { min_to_user: Duration::from_millis(100), min_to_socket: Duration::from_millis(10) }
    }
}

/// Thresholds of the probe `socket_wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SocketWait {
    /// In a system call that sends: 100 ms is felt by whoever waits for the answer.
    #[serde(with = "humantime_serde")]
    pub min_send: Duration,
    /// Data in the socket's queue before a system call took it: 100 ms is felt likewise.
    #[serde(with = "humantime_serde")]
    pub min_receive: Duration,
}

impl Default for SocketWait {
    fn default() -> Self {
        Self { min_send: Duration::from_millis(100), min_receive: Duration::from_millis(100) }
    }
}

/// Thresholds of the probe `tcp_connect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcpConnect {
    /// SYN to established: after 1 s TCP sends a SYN again, so that something was lost or far too late.
    #[serde(with = "humantime_serde")]
    pub min_handshake: Duration,
}

impl Default for TcpConnect {
    fn default() -> Self {
        Self { min_handshake: Duration::from_secs(1) }
    }
}

/// What the probe `packet_drop` tells of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PacketDrop {
    /// Which packets make events, in the words of pcap-filter(7); none is kept out by default, since a drop that is not
    /// normal life is worth knowing of. It holds for the whole machine.
    pub filter: PacketFilter,
}

/// Thresholds of the probe `cpu_throttled`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuThrottled {
    /// Share of the quota's periods in which the container was stopped: at half of them its requests wait more often than
    /// not. From above 0 to 1.
    pub min_share: f64,
    /// Time over which the share is taken: 10 s are 100 periods of the usual length, so that a start is not told. At least
    /// 1 s.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
}

impl Default for CpuThrottled {
    fn default() -> Self {
        Self { min_share: 0.5, window: Duration::from_secs(10) }
    }
}

impl Thresholds {
    /// What no value of the right type may be: the key, and why.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let throttled = &self.cpu_throttled;
        if !(throttled.min_share > 0.0 && throttled.min_share <= 1.0) {
            return Err(("cpu_throttled.min_share", "must be above 0 and at most 1"));
        }
        if throttled.window < Duration::from_secs(1) {
            return Err(("cpu_throttled.window", "must be at least 1s"));
        }
        Ok(())
    }

    /// What thresholds of a container or cgroup must have as the machine's have it: the key, and why.
    pub fn check_own(&self, machine: &Self) -> Result<(), (&'static str, &'static str)> {
        self.check()?;
        if self.packet_drop != machine.packet_drop {
            return Err(("packet_drop.filter", "holds for the whole machine; set it in thresholds"));
        }
        Ok(())
    }
}

/// The token bucket in front of every event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Events a second for one probe and one cgroup; what exceeds it is counted, not sent.
    pub events_per_second: u32,
    /// Events that may come at once after a quiet time.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { events_per_second: 100, burst: 100 }
    }
}
