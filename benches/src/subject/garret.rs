//! garret's VMM without its runner, started directly with a configuration, as the runner's jail does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use garret_api::vmm::{MemoryInfo, MemoryTarget, Metrics};
use serde_json::{Value, json};

use super::{Control, GuestSocket, MAC, Machine, Running, Subject, TAG, api};
use crate::clock;
use crate::process::Program;

pub(super) struct Garret {
    vmm: PathBuf,
}

impl Garret {
    /// Measures the programs in `lib`.
    pub(super) fn new(lib: &Path) -> Self {
        Self { vmm: lib.join("garret-vmm") }
    }
}

impl Subject for Garret {
    fn name(&self) -> &'static str {
        "garret"
    }

    fn start(&self, machine: &Machine, folder: &Path) -> anyhow::Result<Running> {
        let config = folder.join("machine.json");
        fs::write(&config, configuration(machine, folder).to_string())?;
        let socket = folder.join("api.sock");
        let arguments = ["--config".into(), config.into_os_string(), "--api".into(), socket.clone().into_os_string()];
        let program = Program::new(&self.vmm, arguments);
        let began_ns = clock::now_ns();
        let vmm = program.start(folder, None)?;
        Ok(Running {
            began_ns,
            processes: vec![vmm],
            console: folder.join("console.log"),
            guest: machine.vsock.then(|| GuestSocket::Unix(folder.join("vsock.sock"))),
            control: Box::new(Api(socket)),
            setup: format!(
                "virtio-pci, virtio-fs in process, root on pmem with DAX; {} vCPUs, {} MiB ({} of them by virtio-mem), \
                 free page reporting {}, kernel {}, root {}, words added: {}",
                machine.vcpus,
                machine.memory_mib,
                machine.hotplug_mib,
                if machine.reporting { "on" } else { "off" },
                machine.kernel.display(),
                machine.root.display(),
                machine.cmdline
            ),
        })
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.vmm.clone()]
    }

    fn reclaims(&self) -> bool {
        true
    }
}

fn configuration(machine: &Machine, folder: &Path) -> Value {
    let disks = machine.disks.iter().enumerate();
    let disks =
        disks.map(|(at, disk)| json!({"id": format!("disk{at}"), "path": disk.path, "read_only": disk.read_only}));
    let shares = machine.share.iter();
    // Owners are shown as on the host, as virtiofsd shows them.
    let (queues, staleness_ms) = (machine.vcpus.min(4), machine.staleness_ms);
    let share = |path| json!({"tag": TAG, "path": path, "guest_id": 0, "queues": queues, "staleness_ms": staleness_ms});
    let mut config = json!({
        "vcpus": machine.vcpus,
        "memory_mib": machine.memory_mib - machine.hotplug_mib,
        "kernel": {"image": machine.kernel, "cmdline": machine.cmdline},
        "root": machine.root,
        "disks": disks.collect::<Vec<_>>(),
        "shares": shares.map(share).collect::<Vec<_>>(),
        "nets": machine.tap.iter().map(|tap| json!({"tap": tap, "mac": MAC})).collect::<Vec<_>>(),
        "free_page_reporting": machine.reporting,
        "console": {"log": folder.join("console.log")},
    });
    if machine.hotplug_mib > 0 {
        config["hotplug"] = json!({"size_mib": machine.hotplug_mib, "requested_mib": machine.hotplug_mib});
    }
    if machine.vsock {
        config["vsock"] = json!({"cid": 3, "socket": folder.join("vsock.sock")});
    }
    config
}

struct Api(PathBuf);

/// Memory can be taken from a machine only by virtio-mem.
const NO_BALLOON: &str = "garret's balloon only reports free pages";

impl Control for Api {
    fn set_balloon(&self, _: u32) -> anyhow::Result<()> {
        bail!(NO_BALLOON)
    }

    fn balloon_mib(&self) -> anyhow::Result<u32> {
        bail!(NO_BALLOON)
    }

    fn plug(&self, mib: u32) -> anyhow::Result<()> {
        let target = MemoryTarget { requested_mib: mib };
        api::call(&self.0, async |client| client.put::<Value>("/v1/memory", &target).await).map(drop)
    }

    fn plugged_mib(&self) -> anyhow::Result<Option<u32>> {
        let info = api::call(&self.0, async |client| client.get::<MemoryInfo>("/v1/memory").await)?;
        Ok((info.size_mib > 0).then_some(info.plugged_mib))
    }

    fn metrics(&self) -> anyhow::Result<Option<Metrics>> {
        api::call(&self.0, async |client| client.get("/v1/metrics").await).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;
    use garret_api::vmm::{HotplugConfig, MachineConfig};

    #[test]
    fn the_vmm_accepts_the_configuration() {
        let machine = machine();
        let config: MachineConfig = serde_json::from_value(configuration(&machine, Path::new("/w"))).unwrap();
        assert_eq!((config.vcpus, config.memory_mib, config.hotplug), (2, 512, None));
        assert!(config.free_page_reporting);
        assert_eq!(config.disks.iter().map(|disk| disk.read_only).collect::<Vec<_>>(), [false, true]);
        assert_eq!((config.shares[0].tag.as_str(), config.shares[0].guest_id), (TAG, 0));
        assert_eq!(config.nets[0].tap, "gb0");
        assert_eq!(config.vsock.unwrap().socket.path(), Some(Path::new("/w/vsock.sock")));
        let plain = Machine { share: None, tap: None, vsock: false, hotplug_mib: 256, reporting: false, ..machine };
        let config: MachineConfig = serde_json::from_value(configuration(&plain, Path::new("/w"))).unwrap();
        assert!(config.shares.is_empty() && config.nets.is_empty() && config.vsock.is_none());
        let hotplug = HotplugConfig { size_mib: 256, requested_mib: 256 };
        assert_eq!((config.memory_mib, config.hotplug), (256, Some(hotplug)));
        assert!(!config.free_page_reporting);
    }
}
