//! The subjects that are measured. A [`Subject`] starts a machine from a neutral description, so that all get the same
//! kernel, root, processors, memory, devices and kernel parameters.

mod api;
mod cloud_hypervisor;
mod firecracker;
mod garret;
mod qemu;
mod qmp;
mod socket;
mod virtiofsd;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use garret_api::vmm::Metrics;

use crate::clock;
use crate::process::{Process, last_line};
pub(crate) use socket::GuestSocket;

/// The description of a machine. Every machine also has a console, a random number generator and a balloon.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB, including virtio-mem.
    pub memory_mib: u32,
    /// How much of it comes by virtio-mem, in MiB. A subject without virtio-mem has all of it from the start.
    pub hotplug_mib: u32,
    /// Whether the balloon takes free pages that the guest reports. A subject without this setting does as it always
    /// does.
    pub reporting: bool,
    /// An ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// The read-only root: erofs, with a length that is a multiple of 2 MiB.
    pub root: PathBuf,
    /// The kernel parameters that all subjects have in common. Each subject adds consoles and the root device.
    pub cmdline: String,
    /// `/dev/vda` and the following.
    pub disks: Vec<Disk>,
    /// A folder shared by virtio-fs with the tag [`TAG`].
    pub share: Option<PathBuf>,
    /// How long the guest may cache the share's names and attributes, in milliseconds. A subject without this setting
    /// uses one second.
    pub staleness_ms: u32,
    /// An existing TAP interface.
    pub tap: Option<String>,
    pub vsock: bool,
}

/// A raw image.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub path: PathBuf,
    pub read_only: bool,
}

/// Poll interval of the agent, and so the resolution of the time until it answers.
const AGENT_EVERY: Duration = Duration::from_millis(10);
/// The share's mount tag.
pub(crate) const TAG: &str = "share";
/// The guest's hardware address.
const MAC: &str = "06:67:62:00:00:02";

impl Machine {
    /// The root device in the guest if it comes after the disks.
    fn root_after_disks(&self) -> String {
        let letter = char::from(b'a' + u8::try_from(self.disks.len()).unwrap_or(0));
        format!("/dev/vd{letter}")
    }
}

/// The root as a block device. The guest caches what it reads.
fn block_root(device: &str) -> String {
    format!("root={device} rootfstype=erofs ro rootwait")
}

/// The root as memory. The guest maps the host's page cache.
const PMEM_ROOT: &str = "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro rootwait";

/// A VMM that can be measured.
pub(crate) trait Subject {
    /// Its name in results.
    fn name(&self) -> &'static str;

    /// Starts a machine whose files are in `folder`.
    ///
    /// # Errors
    /// It cannot be started, or lacks a device.
    fn start(&self, machine: &Machine, folder: &Path) -> anyhow::Result<Running>;

    /// The program files that make up the VMM.
    fn programs(&self) -> Vec<PathBuf>;

    /// The one bench that it takes part in; `None` if it takes part in all.
    fn only(&self) -> Option<&'static str> {
        None
    }

    /// Whether its guests run the agent's reclaim loop.
    fn reclaims(&self) -> bool {
        false
    }
}

pub(crate) trait Control {
    /// Asks the balloon to take this much.
    ///
    /// # Errors
    /// The VMM refuses.
    fn set_balloon(&self, mib: u32) -> anyhow::Result<()>;

    /// How much the balloon has taken.
    ///
    /// # Errors
    /// The VMM does not answer.
    fn balloon_mib(&self) -> anyhow::Result<u32>;

    /// Asks virtio-mem to have this much plugged.
    ///
    /// # Errors
    /// The VMM refuses, or has no virtio-mem.
    fn plug(&self, _mib: u32) -> anyhow::Result<()> {
        bail!("no virtio-mem")
    }

    /// How much virtio-mem has plugged; `None` without virtio-mem.
    ///
    /// # Errors
    /// The VMM does not answer.
    fn plugged_mib(&self) -> anyhow::Result<Option<u32>> {
        Ok(None)
    }

    /// The VMM's own counters of devices. Only garret has them.
    ///
    /// # Errors
    /// The VMM does not answer.
    fn metrics(&self) -> anyhow::Result<Option<Metrics>> {
        Ok(None)
    }
}

/// A running machine. It ends when dropped.
pub(crate) struct Running {
    /// When its first process started, by the monotonic clock.
    pub began_ns: u64,
    /// The VMM first, then its servers.
    pub processes: Vec<Process>,
    /// The log of the guest's console.
    pub console: PathBuf,
    /// The address of the guest's vsock ports.
    pub guest: Option<GuestSocket>,
    /// The VMM's API.
    pub control: Box<dyn Control>,
    /// How it was started.
    pub setup: String,
}

impl Running {
    /// The process ids, the VMM's first.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    /// Calls `again` repeatedly until it returns a value, as long as all processes live.
    ///
    /// # Errors
    /// A process has ended (the error has its last output), `again` fails, or `deadline` has passed. The error has the
    /// console's last line.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        every: Duration,
        mut again: impl FnMut(&mut Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let answer = clock::poll(what, deadline, every, || {
            let answer = again(self)?;
            if answer.is_none() {
                self.processes.iter_mut().try_for_each(Process::check)?;
            }
            Ok(answer)
        });
        answer.map_err(|error| {
            let console = fs::read(&self.console).unwrap_or_default();
            let last = last_line(&String::from_utf8_lossy(&console)).to_owned();
            anyhow::anyhow!("{error:#}; the console's last line: {last}")
        })
    }

    /// Waits until the agent answers. Each attempt is work for guest and VMM, so they are spaced out.
    ///
    /// # Errors
    /// See [`Running::wait`].
    pub(crate) fn wait_for_agent(&mut self, deadline: Duration) -> anyhow::Result<()> {
        self.wait("the agent", deadline, AGENT_EVERY, |running| {
            Ok(running.guest.as_ref().is_some_and(GuestSocket::agent_answers).then_some(()))
        })
    }
}

/// The locations of the programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The folder of garret's programs.
    pub lib: PathBuf,
    pub qemu: PathBuf,
    /// The file server beside QEMU and Cloud Hypervisor.
    pub virtiofsd: PathBuf,
    /// Firecracker, if it is installed.
    pub firecracker: Option<PathBuf>,
    /// Cloud Hypervisor, if it is installed.
    pub cloud_hypervisor: Option<PathBuf>,
}

impl Programs {
    /// garret's programs in `lib`, Debian's, and those that `NAME=PATH` names.
    ///
    /// # Errors
    /// A name is not one of a peer.
    pub(crate) fn new(lib: &Path, peers: &[String]) -> anyhow::Result<Self> {
        let mut programs = Self {
            lib: lib.to_owned(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            virtiofsd: "/usr/libexec/virtiofsd".into(),
            firecracker: None,
            cloud_hypervisor: None,
        };
        for peer in peers {
            match peer.split_once('=') {
                Some(("qemu", path)) => programs.qemu = path.into(),
                Some(("virtiofsd", path)) => programs.virtiofsd = path.into(),
                Some(("firecracker", path)) => programs.firecracker = Some(path.into()),
                Some(("cloud-hypervisor", path)) => programs.cloud_hypervisor = Some(path.into()),
                _ => {
                    bail!("--peer {peer}: say NAME=PATH; NAME is qemu, virtiofsd, firecracker or cloud-hypervisor")
                }
            }
        }
        Ok(programs)
    }

    /// All subjects that can take part, garret first.
    pub(crate) fn subjects(&self) -> Vec<Box<dyn Subject>> {
        let mut all: Vec<Box<dyn Subject>> = vec![Box::new(garret::Garret::new(&self.lib))];
        for kind in [qemu::Kind::Microvm, qemu::Kind::Q35, qemu::Kind::VirtioMem] {
            all.push(Box::new(qemu::Qemu::new(kind, &self.qemu, &self.virtiofsd)));
        }
        if let Some(path) = &self.firecracker {
            all.push(Box::new(firecracker::Firecracker::new(path)));
        }
        if let Some(path) = &self.cloud_hypervisor {
            all.push(Box::new(cloud_hypervisor::CloudHypervisor::new(path, &self.virtiofsd)));
        }
        all
    }

    pub(crate) fn versioned(&self) -> Vec<(&'static str, &Path)> {
        let peers = [("firecracker", &self.firecracker), ("cloud-hypervisor", &self.cloud_hypervisor)];
        let peers = peers.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?)));
        [("qemu", self.qemu.as_path()), ("virtiofsd", self.virtiofsd.as_path())].into_iter().chain(peers).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine with every device.
    pub(crate) fn machine() -> Machine {
        let disk = |path: &str, read_only| Disk { path: path.into(), read_only };
        Machine {
            vcpus: 2,
            memory_mib: 512,
            hotplug_mib: 0,
            reporting: true,
            kernel: "/lib/vmlinux".into(),
            root: "/lib/root.erofs".into(),
            cmdline: "quiet init=/x".into(),
            disks: vec![disk("/m/data.img", false), disk("/m/job.img", true)],
            share: Some("/m/share".into()),
            staleness_ms: 1000,
            tap: Some("gb0".into()),
            vsock: true,
        }
    }

    #[test]
    fn peers_take_part_if_they_are_named() {
        let names = |peers: &[&str]| {
            let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
            let programs = Programs::new(Path::new("/usr/lib/garret"), &peers)?;
            anyhow::Ok(programs.subjects().iter().map(|subject| subject.name()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["garret", "qemu-microvm", "qemu-q35", "qemu-virtio-mem"]);
        let all = names(&["firecracker=/f", "cloud-hypervisor=/c", "qemu=/q"]).unwrap();
        assert_eq!(all[4..], ["firecracker", "cloud-hypervisor"]);
        assert!(names(&["xen=/x"]).is_err());
        assert!(names(&["firecracker"]).is_err());
    }

    #[test]
    fn the_root_comes_after_the_disks() {
        assert_eq!(machine().root_after_disks(), "/dev/vdc");
    }
}
