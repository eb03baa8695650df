//! Starts a jailed VMM from a machine's figures, and removes what it had on the host.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use garret_api::MachineId;
use garret_api::agent::WORKSPACES_TAG;
use garret_api::vmm::{
    ConsoleConfig, DiskConfig, HotplugConfig, KernelConfig, MachineConfig, NetConfig, RateLimit, ShareConfig, SocketAt,
    VsockConfig,
};

use serde::Deserialize;

use super::jail::{self, JailSpec};
use super::network::{self, NetworkConfig, Slot};
use super::share::Identity;
use super::{MachinePaths, cgroup, run_folder, workspaces};

/// The guest's context id. Every machine has its own muxer, so all machines can use the same id.
const GUEST_CID: u32 = 3;
/// The agent is the guest's init. As far as the ratio to the kernel's own memory allows, plugged memory goes to the
/// movable zone. Outside that zone it could not be unplugged again.
const CMDLINE: &str = "init=/usr/lib/garret/garret-agent quiet memory_hotplug.online_policy=auto-movable";
/// The unit in which Linux plugs and unplugs memory, in MiB (a memory section of x86-64).
const SECTION_MIB: u32 = 128;

/// Seconds without a request from the runner after which a paused machine resumes, and after which a machine may use
/// all the memory that it was promised. The memory loop asks every VMM each second. A restart of the runner, which
/// takes a few seconds, must change nothing.
const LEASE_S: u32 = 30;

/// The files from which machines are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifacts {
    /// The static `garret-vmm`.
    pub vmm: PathBuf,
    pub kernel: PathBuf,
    /// The read-only root image.
    pub root: PathBuf,
    /// The formatted, empty data disk that is copied for each machine.
    pub data_template: PathBuf,
}

/// How much of the host's disk and network a machine may use per second; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    /// The data disk, reads and writes together.
    pub disk: Option<RateLimit>,
    /// The network, each direction.
    pub network: Option<RateLimit>,
}

/// One machine, about to start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    pub id: MachineId,
    /// Its place in the address pool.
    pub slot: Slot,
    /// The identity with which the VMM runs.
    pub identity: &'a Identity,
    /// Virtual CPUs, 1 to 32.
    pub vcpus: u8,
    /// The most guest memory, in MiB.
    pub memory_mib: u32,
    /// Guest memory at boot, in MiB; the rest can be plugged.
    pub boot_mib: u32,
    /// Memory that the VMM itself may use beyond guest memory and private pages of the root image, in MiB. It includes
    /// page cache of its disk.
    pub memory_overhead_mib: u32,
    pub rates: Rates,
    /// The files from which it is made.
    pub artifacts: &'a Artifacts,
    pub data_disk: &'a Path,
    /// Its files.
    pub paths: &'a MachinePaths,
    /// The network all machines share.
    pub network: &'a NetworkConfig,
    /// What the VMM and the agent log.
    pub log: &'a str,
}

/// Starts the machine's VMM in a jail of its own and returns its process id on the host.
///
/// The VMM is not the runner's child (it outlives the runner): watch it through a pidfd.
///
/// # Errors
/// A file of the machine is missing, or the host refuses a part. Then nothing is left behind.
pub(crate) fn launch(launch: &Launch<'_>) -> anyhow::Result<u32> {
    for file in [&launch.artifacts.vmm, &launch.artifacts.kernel, &launch.artifacts.root] {
        fs::metadata(file).with_context(|| {
            format!("cannot use {}: run `make install`, or correct [artifacts] in the configuration", file.display())
        })?;
    }
    clean_up(launch.id, launch.slot, launch.paths)?;
    let started = start(launch);
    if started.is_err() {
        clean_up(launch.id, launch.slot, launch.paths)?;
    }
    started
}

fn start(launch: &Launch<'_>) -> anyhow::Result<u32> {
    make_folders(launch)?;
    let memory_mib = u64::from(launch.memory_mib) + u64::from(launch.memory_overhead_mib);
    // A guest may write to all of its root image. The written pages are private then, in addition to its memory.
    let root_bytes = fs::metadata(&launch.artifacts.root)?.len();
    cgroup::create(launch.id, (memory_mib << 20) + root_bytes)?;
    network::create(launch.id, launch.slot, launch.identity.uid, launch.network)?;
    set_owner(launch.data_disk, 0o600, launch.identity)?;
    fs::write(launch.paths.config(), serde_json::to_vec_pretty(&machine_config(launch))?)?;
    spawn(&jail_spec(launch), &launch.paths.vmm_log())
}

fn make_folders(launch: &Launch<'_>) -> anyhow::Result<()> {
    let paths = launch.paths;
    run_folder::make(paths)?;
    for folder in [&paths.jail(), &paths.vm()] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    set_owner(&paths.vm(), 0o700, launch.identity)?;
    // The logs of an earlier VMM may have used all the room.
    remove_file(&paths.vmm_log())?;
    clear_vm_folder(paths, launch.identity)?;
    workspaces::prepare(paths)
}

/// Removes everything that an earlier VMM left, except its console log, and assigns that to this VMM. The earlier VMM
/// may have run with another uid.
fn clear_vm_folder(paths: &MachinePaths, identity: &Identity) -> anyhow::Result<()> {
    for entry in fs::read_dir(paths.vm())? {
        let (entry, kept) = (entry?, paths.console_log());
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_file() && path == kept {
            lchown(&path, Some(identity.uid), Some(identity.gid))?;
        } else if kind.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Assigns a file to the VMM alone.
fn set_owner(path: &Path, mode: u32, owner: &Identity) -> anyhow::Result<()> {
    chown(path, Some(owner.uid), Some(owner.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot change the mode of {}", path.display()))
}

/// What Linux does not know itself is in the environment of init.
fn cmdline(log: &str) -> String {
    format!("{CMDLINE} GARRET_LOG={log}")
}

/// The machine's configuration, with paths as the VMM sees them inside the jail.
fn machine_config(launch: &Launch<'_>) -> MachineConfig {
    let (memory_mib, hotplug) = split_memory(launch.memory_mib, launch.boot_mib);
    MachineConfig {
        vcpus: launch.vcpus,
        memory_mib,
        hotplug,
        kernel: KernelConfig { image: "/vmlinux".into(), cmdline: cmdline(launch.log) },
        root: Some("/root.erofs".into()),
        disks: vec![DiskConfig {
            id: "data".into(),
            path: "/data.img".into(),
            read_only: false,
            rate_limit: launch.rates.disk,
        }],
        nets: vec![NetConfig { tap: network::TAP.into(), mac: network::MAC.into(), rate_limit: launch.rates.network }],
        shares: vec![ShareConfig {
            tag: WORKSPACES_TAG.into(),
            path: "/workspaces".into(),
            queues: launch.vcpus.min(4),
            staleness_ms: 1000,
            guest_id: 1000,
            fd_limit: jail::OPEN_FILES_MAX / 2,
        }],
        vsock: Some(VsockConfig { cid: GUEST_CID, socket: SocketAt::Descriptor(jail::VSOCK_FD) }),
        free_page_reporting: true,
        console: ConsoleConfig { log: Some("/run/console.log".into()) },
        lease_s: Some(LEASE_S),
    }
}

/// The settings with which a VMM was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    /// The most guest memory, in MiB.
    pub memory_mib: u32,
    pub guest: Option<Ipv4Addr>,
}

/// Reads the settings with which the machine's last VMM was started. Only root can change the file.
pub(crate) fn started(paths: &MachinePaths) -> Option<Started> {
    // Of another version's configuration only these fields are sure to be there.
    #[derive(Deserialize)]
    struct Config {
        memory_mib: u32,
        hotplug: Option<HotplugConfig>,
        #[serde(default)]
        nets: Vec<NetConfig>,
    }
    let config: Config = serde_json::from_slice(&fs::read(paths.config()).ok()?).ok()?;
    let hotplug_mib = config.hotplug.map_or(0, |hotplug| hotplug.size_mib);
    let guest = config.nets.first().and_then(|net| network::guest_of(&net.mac));
    Some(Started { memory_mib: config.memory_mib.saturating_add(hotplug_mib), guest })
}

/// Memory at boot and pluggable memory. Pluggable memory is whole sections; the remainder is added at boot.
fn split_memory(memory_mib: u32, boot_mib: u32) -> (u32, Option<HotplugConfig>) {
    let size_mib = memory_mib.saturating_sub(boot_mib) / SECTION_MIB * SECTION_MIB;
    let hotplug = (size_mib > 0).then_some(HotplugConfig { size_mib, requested_mib: 0 });
    (memory_mib - size_mib, hotplug)
}

fn jail_spec(launch: &Launch<'_>) -> JailSpec {
    let (artifacts, paths) = (launch.artifacts, launch.paths);
    JailSpec {
        root: paths.jail(),
        cgroup: cgroup::path(launch.id),
        namespace: network::namespace(launch.id),
        api_socket: paths.api_socket(),
        vsock_socket: paths.vsock_socket(),
        identity: launch.identity.clone(),
        read_only: vec![
            (artifacts.vmm.clone(), "garret-vmm".into()),
            (artifacts.kernel.clone(), "vmlinux".into()),
            (artifacts.root.clone(), "root.erofs".into()),
            (paths.config(), "config.json".into()),
        ],
        writable: vec![(launch.data_disk.to_owned(), "data.img".into()), (paths.vm(), "run".into())],
        workspaces: paths.workspaces(),
        log: launch.log.to_owned(),
        command: [
            "/garret-vmm",
            "--config",
            "/config.json",
            "--api",
            &SocketAt::Descriptor(jail::API_FD).to_string(),
            "--last-words",
            "/run/last-words.json",
        ]
        .map(Into::into)
        .into(),
    }
}

/// Runs this program as `garret jail`, which turns its child into the VMM and prints that child's process id.
fn spawn(spec: &JailSpec, log: &Path) -> anyhow::Result<u32> {
    let mut child = Command::new("/proc/self/exe")
        .arg(jail::SUBCOMMAND)
        .arg(serde_json::to_string(spec)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(log)?)
        .spawn()
        .context("cannot start the jail")?;
    let printed = std::io::read_to_string(child.stdout.take().context("no pipe")?)?;
    if !child.wait()?.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        bail!("the jail could not be made: {}", said.trim().replace('\n', "; "));
    }
    printed.trim().parse().with_context(|| format!("the jail printed `{printed}` instead of a process id"))
}

/// Removes what a machine had on the host: processes, control group, network, mounts, sockets. Its data disk and its
/// logs stay.
pub(crate) fn clean_up(machine: MachineId, slot: Slot, paths: &MachinePaths) -> anyhow::Result<()> {
    cgroup::remove(machine)?;
    network::remove(machine, slot)?;
    workspaces::remove_all(paths)?;
    for socket in [paths.api_socket(), paths.vsock_socket()] {
        remove_file(&socket)?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_configuration_of_a_started_machine_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths = MachinePaths::new(dir.path(), "m".parse().unwrap());
        assert_eq!(started(&paths), None);
        let (artifacts, network) = (
            Artifacts { vmm: "/v".into(), kernel: "/k".into(), root: "/r".into(), data_template: "/d".into() },
            NetworkConfig {
                pool: (Ipv4Addr::new(100, 96, 0, 0), 16),
                resolvers: Vec::new(),
                allow: Vec::new(),
                connections_max: 8192,
            },
        );
        let launch = Launch {
            id: "m".parse().unwrap(),
            slot: Slot(3),
            identity: &Identity { uid: 1, gid: 1, groups: Vec::new() },
            vcpus: 1,
            memory_mib: 4000,
            boot_mib: 512,
            memory_overhead_mib: 0,
            rates: Rates::default(),
            artifacts: &artifacts,
            data_disk: Path::new("/d"),
            paths: &paths,
            network: &network,
            log: "info",
        };
        fs::create_dir_all(paths.config().parent().unwrap()).unwrap();
        fs::write(paths.config(), serde_json::to_vec(&machine_config(&launch)).unwrap()).unwrap();
        let guest = Some(Ipv4Addr::new(192, 0, 0, 2));
        assert_eq!(started(&paths), Some(Started { memory_mib: 4000, guest }));
    }

    #[test]
    fn only_the_console_log_of_an_earlier_vmm_stays() {
        let dir = tempfile::tempdir().unwrap();
        let paths = MachinePaths::new(dir.path(), "m".parse().unwrap());
        fs::create_dir_all(paths.last_words().join("a folder in its place")).unwrap();
        fs::write(paths.console_log(), "log").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", paths.vm().join("link")).unwrap();
        clear_vm_folder(&paths, &Identity { uid: 77, gid: 78, groups: Vec::new() }).unwrap();
        let left: Vec<_> = fs::read_dir(paths.vm()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [paths.console_log()]);
        let log = fs::metadata(paths.console_log()).unwrap();
        assert_eq!((log.uid(), log.gid()), (77, 78));
    }

    #[test]
    fn a_machine_starts_small_and_can_have_all_it_was_promised() {
        for (memory, boot, at_boot, pluggable) in [
            (256, 512, 256, 0),
            (512, 512, 512, 0),
            (600, 512, 600, 0),
            (640, 512, 512, 128),
            (1000, 512, 616, 384),
            (8192, 512, 512, 7680),
            (1 << 20, 256, 256, (1 << 20) - 256),
        ] {
            let (there, hotplug) = split_memory(memory, boot);
            assert_eq!((there, hotplug.map_or(0, |hotplug| hotplug.size_mib)), (at_boot, pluggable), "{memory} {boot}");
            assert_eq!(there + pluggable, memory);
        }
    }
}
