//! The machine API: one `garret-vmm` process is one machine.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A machine's complete configuration. The command line names a file that holds it, the VMM builds the devices from it,
/// and `GET /v1/machine` returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Virtual CPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory at boot, in MiB, 64 to 1,048,576.
    pub memory_mib: u32,
    /// Memory in addition to `memory_mib` that can be plugged and unplugged while the machine runs (virtio-mem).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug: Option<HotplugConfig>,
    /// The kernel to boot.
    pub kernel: KernelConfig,
    /// The read-only root image, which the guest sees as `/dev/pmem0`. Its length must be a multiple of 2 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub root: Option<PathBuf>,
    /// Block devices in the order the guest sees them (`/dev/vda`, `/dev/vdb`, …), at most 8.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces in order (`eth0`, …), at most 4.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Folders shared by virtio-fs, at most 4.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// The virtio-vsock device, which connects host and guest by sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Whether the guest reports its free pages, so that the VMM returns them to the host.
    #[serde(default = "yes")]
    pub free_page_reporting: bool,
    /// The serial console and the virtio console.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// Seconds without an API request, 1 to 86,400. After them a paused machine resumes and may plug all of its hotplug
    /// memory. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u32>,
}

/// The kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// An ELF file with a PVH entry note (`vmlinux`).
    #[schema(value_type = String)]
    pub image: PathBuf,
    /// Appended to the command line that the VMM makes. Both together have at most 2,000 bytes.
    #[serde(default)]
    pub cmdline: String,
}

/// One virtio-blk device over a raw file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The device's serial (`/dev/disk/by-id`), 1 to 20 characters of `[a-z0-9-]`.
    pub id: String,
    /// A raw image; its length is the disk's size and a multiple of 512.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Whether writes are rejected.
    #[serde(default)]
    pub read_only: bool,
    /// Limit of operations and bytes. Absent: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// A token bucket for bytes and one for operations. An absent one means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// The bucket for bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Bucket>,
    /// The bucket for operations: requests of a disk, or packets of a network interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Bucket>,
}

/// A token bucket, which gains `per_second` tokens each second and holds at most `burst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Tokens per second, 1 or more.
    pub per_second: u64,
    /// The most tokens that the bucket holds, 1 or more.
    pub burst: u64,
}

/// One virtio-net device on an existing TAP interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The TAP interface's name in the VMM's network namespace.
    pub tap: String,
    /// The guest's hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Limit of each direction. Absent: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// One virtio-fs device over one folder. Folders mounted inside it while the machine runs appear as submounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// The mount tag, 1 to 36 bytes.
    pub tag: String,
    /// The folder on the host.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Request queues, 1 to 8.
    #[serde(default = "one")]
    pub queues: u8,
    /// How long the guest may cache names and attributes, in milliseconds. The guest sees a change on the host within
    /// this time.
    #[serde(default = "default_staleness_ms")]
    pub staleness_ms: u32,
    /// The uid and gid that the guest sees as the owner of all files. On the host they belong to the VMM's uid and gid.
    #[serde(default = "default_guest_id")]
    pub guest_id: u32,
    /// The most files that the guest may have open or cached at a time.
    #[serde(default = "default_fd_limit")]
    pub fd_limit: u64,
}

fn one() -> u8 {
    1
}
fn default_staleness_ms() -> u32 {
    1000
}
fn default_guest_id() -> u32 {
    1000
}
fn default_fd_limit() -> u64 {
    100_000
}

/// The virtio-vsock device and its Unix socket. A client connects, writes `CONNECT <port>\n` and reads `OK <port>\n`.
/// After that the connection is a byte stream to that port of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// The Unix socket that clients connect to.
    pub socket: SocketAt,
}

/// A Unix socket of the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum SocketAt {
    /// An inherited descriptor of a bound stream socket. Guests reach no socket of the host through it.
    Descriptor(i32),
    /// A path, where the VMM creates the socket.
    #[schema(value_type = String)]
    Path(PathBuf),
}

impl SocketAt {
    /// Its path, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Descriptor(_) => None,
        }
    }
}

/// A path, or `fd:N`; [`Display`](fmt::Display) writes the same.
impl FromStr for SocketAt {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.strip_prefix("fd:") {
            Some(number) => number.parse().map(Self::Descriptor).map_err(|_| "the descriptor is not a number"),
            // It would be a socket that has no path.
            None if text.is_empty() => Err("the path is empty"),
            None => Ok(Self::Path(text.into())),
        }
    }
}

impl fmt::Display for SocketAt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(formatter, "{}", path.display()),
            Self::Descriptor(number) => write!(formatter, "fd:{number}"),
        }
    }
}

fn yes() -> bool {
    true
}

/// The virtio-mem device. The guest plugs memory of the device's region up to the requested size, in blocks of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HotplugConfig {
    /// Size of the region, in MiB: a multiple of 128 (the block size of Linux's memory hotplug), up to 1,048,576. It
    /// reserves address space, not memory.
    pub size_mib: u32,
    /// Memory that the guest may plug when it starts, in MiB: a multiple of 2, at most `size_mib`.
    #[serde(default)]
    pub requested_mib: u32,
}

/// `PUT /v1/memory`: the memory that the guest should have plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryTarget {
    /// Requested memory, in MiB: a multiple of 2, at most the region's size.
    pub requested_mib: u32,
}

/// `GET /v1/memory`. The VMM counts plugged memory itself and does not rely on the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryInfo {
    /// Memory at boot, which cannot be unplugged, in MiB.
    pub boot_mib: u32,
    /// Size of the virtio-mem region, in MiB; 0 if the machine has none.
    pub size_mib: u32,
    /// The last requested memory, in MiB.
    pub requested_mib: u32,
    /// Memory that the guest has plugged, in MiB.
    pub plugged_mib: u32,
    /// Whether a driver of the guest serves the device. Without one the guest plugs nothing.
    pub driver: bool,
    /// Plug and unplug requests that the device rejected since the start.
    pub refused: u64,
}

/// Where console output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// The log file; absent: the VMM's standard output. The file has at most [`CONSOLE_LOG_MAX`] bytes: when it is
    /// full, the VMM discards the older half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub log: Option<PathBuf>,
}

/// The largest size of a console log, in bytes.
pub const CONSOLE_LOG_MAX: u64 = 1 << 20;

/// `GET /v1/machine`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineInfo {
    /// The VMM's version.
    pub version: String,
    /// The VMM's process id in its own PID namespace.
    pub pid: u32,
    /// The current state.
    pub state: MachineState,
    /// How far Landlock confines the process; absent from a VMM of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Landlock>,
}

/// The answer to `GET /v1/machine`. Readers parse only [`MachineInfo`]: the configuration of another version may have
/// other fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MachineDescription {
    /// The machine's state.
    #[serde(flatten)]
    pub info: MachineInfo,
    /// The configuration that the machine was built from.
    pub config: MachineConfig,
}

/// How far Landlock confines the VMM's process to the files of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Landlock {
    /// The kernel enforces all rules.
    Enforced,
    /// The kernel is too old to enforce some of the rules.
    Partial,
    /// The kernel has no Landlock, or it is disabled.
    Absent,
}

/// The state of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// The vCPUs run.
    Running,
    /// The vCPUs and the devices are paused.
    Paused,
    /// The machine is ending.
    Stopping,
}

/// `GET /v1/metrics`: counters since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// Nanoseconds from the process's start to the first `KVM_RUN`.
    pub setup_ns: u64,
    /// Exits of all vCPUs to user space, by reason (`io`, `mmio`, `hlt`, …).
    pub exits: std::collections::BTreeMap<String, u64>,
    /// Bytes returned to the host by free page reporting.
    #[serde(default)]
    pub reported_free: u64,
    /// Counters by device (`block0`, `net0`, `fs0`, `vsock`, `mem`, `pmem`, `balloon`, `rng`, `console`).
    pub devices: std::collections::BTreeMap<String, DeviceMetrics>,
}

/// One device's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceMetrics {
    /// Notifications from the driver.
    pub kicks: u64,
    /// Interrupts to the driver.
    pub interrupts: u64,
    /// Descriptor chains served: requests of a disk or share, packets of a network interface.
    pub chains: u64,
    /// Bytes that the driver and the device wrote into these chains, headers included; a VMM of an earlier version does
    /// not count them.
    #[serde(default)]
    pub bytes: u64,
    /// Times that the guest broke the device's rules and the device requested a reset.
    pub faults: u64,
    /// Requests that failed on the host, as when its disk is full; 0 from a VMM of an earlier version.
    #[serde(default)]
    pub host_failures: u64,
}

/// Why the machine ended. The VMM writes this to the file that `--last-words` names just before it exits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastWords {
    /// Why the machine ended.
    pub reason: ExitReason,
    /// One line for a person.
    pub message: String,
}

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off.
    PowerOff,
    /// The guest requested a reboot. The program that started the VMM starts it again.
    Reboot,
    /// The guest's kernel panicked.
    Panic,
    /// `POST /v1/shutdown` or `SIGTERM` ended it.
    Asked,
    /// The machine could not be built or could not continue.
    Failed,
}

impl ExitReason {
    /// The exit status of `garret-vmm`: 0 after a requested end, 3 for a reboot, 4 after a guest panic, else 1.
    pub fn status(self) -> u8 {
        match self {
            ExitReason::PowerOff | ExitReason::Asked => 0,
            ExitReason::Failed => 1,
            ExitReason::Reboot => 3,
            ExitReason::Panic => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_written_as_it_is_read() {
        for (text, socket) in [("fd:100", SocketAt::Descriptor(100)), ("/run/x", SocketAt::Path("/run/x".into()))] {
            assert_eq!(text.parse(), Ok(socket.clone()));
            assert_eq!(socket.to_string(), text);
        }
        for text in ["fd:", "fd:x", ""] {
            assert!(text.parse::<SocketAt>().is_err(), "{text}");
        }
    }
}
