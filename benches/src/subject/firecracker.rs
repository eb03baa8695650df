//! Firecracker, which has virtio devices, no virtio-fs, and the serial port as its only console.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::{Value, json};

use super::{Control, GuestSocket, MAC, Machine, Running, Subject, api, block_root};
use crate::clock;
use crate::process::Program;

pub(super) struct Firecracker(PathBuf);

impl Firecracker {
    /// Measures this binary.
    pub(super) fn new(program: &Path) -> Self {
        Self(program.to_owned())
    }
}

impl Subject for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn start(&self, machine: &Machine, folder: &Path) -> anyhow::Result<Running> {
        if machine.share.is_some() {
            bail!("Firecracker has no virtio-fs");
        }
        let (config, socket) = (folder.join("machine.json"), folder.join("api.sock"));
        fs::write(&config, configuration(machine, folder).to_string())?;
        let arguments =
            ["--api-sock".into(), socket.clone().into_os_string(), "--config-file".into(), config.into_os_string()];
        let program = Program::new(&self.0, arguments);
        let console = folder.join("console.log");
        let began_ns = clock::now_ns();
        let vmm = program.start(folder, Some(&console))?;
        Ok(Running {
            began_ns,
            processes: vec![vmm],
            console,
            guest: machine.vsock.then(|| GuestSocket::Unix(folder.join("vsock.sock"))),
            control: Box::new(Api(socket)),
            setup: format!("root on virtio-blk, in the guest's own page cache; {}", boot_words(machine)),
        })
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.0.clone()]
    }
}

fn boot_words(machine: &Machine) -> String {
    let root = block_root(&machine.root_after_disks());
    format!("loglevel=4 console=ttyS0 reboot=k panic=-1 {root} {}", machine.cmdline)
}

fn configuration(machine: &Machine, folder: &Path) -> Value {
    let disks = machine.disks.iter().map(|disk| (disk.path.as_path(), disk.read_only));
    let drives = disks.chain([(machine.root.as_path(), true)]).enumerate().map(|(at, (path, read_only))| {
        json!({
            "drive_id": format!("disk{at}"),
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": read_only,
        })
    });
    let mut config = json!({
        "boot-source": {"kernel_image_path": machine.kernel, "boot_args": boot_words(machine)},
        "drives": drives.collect::<Vec<_>>(),
        "machine-config": {"vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib},
        "balloon": {"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1},
        "entropy": {},
    });
    if machine.vsock {
        config["vsock"] = json!({"guest_cid": 3, "uds_path": folder.join("vsock.sock")});
    }
    if let Some(tap) = &machine.tap {
        config["network-interfaces"] = json!([{"iface_id": "eth0", "guest_mac": MAC, "host_dev_name": tap}]);
    }
    config
}

struct Api(PathBuf);

impl Control for Api {
    fn set_balloon(&self, mib: u32) -> anyhow::Result<()> {
        let target = json!({"amount_mib": mib});
        api::call(&self.0, async |client| client.send(Method::PATCH, "/balloon", Some(&target)).await)
    }

    fn balloon_mib(&self) -> anyhow::Result<u32> {
        let statistics: Value = api::call(&self.0, async |client| client.get("/balloon/statistics").await)?;
        Ok(u32::try_from(statistics["actual_mib"].as_u64().context("no actual_mib")?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;

    #[test]
    fn the_root_is_the_last_drive() {
        let config = configuration(&machine(), Path::new("/w"));
        assert_eq!(config["drives"][2]["path_on_host"], "/lib/root.erofs");
        assert_eq!(config["drives"][0]["is_read_only"], false);
        assert!(config["boot-source"]["boot_args"].as_str().unwrap().contains("root=/dev/vdc"));
        assert_eq!(config["vsock"]["uds_path"], "/w/vsock.sock");
        assert_eq!(config["network-interfaces"][0]["host_dev_name"], "gb0");
    }

    #[test]
    fn a_missing_device_is_an_error() {
        let error = Firecracker::new(Path::new("/f")).start(&machine(), Path::new("/w")).err().unwrap();
        assert!(error.to_string().contains("virtio-fs"));
    }
}
