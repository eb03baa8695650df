//! Cloud Hypervisor, with virtio-pci, virtio-pmem and a virtiofsd beside it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use hyper::Method;
use serde_json::{Value, json};

use super::{Control, GuestSocket, MAC, Machine, PMEM_ROOT, Running, Subject, TAG, api, virtiofsd};
use crate::clock;
use crate::process::Program;

pub(super) struct CloudHypervisor {
    program: PathBuf,
    virtiofsd: PathBuf,
}

impl CloudHypervisor {
    /// Measures this binary.
    pub(super) fn new(program: &Path, virtiofsd: &Path) -> Self {
        Self { program: program.to_owned(), virtiofsd: virtiofsd.to_owned() }
    }
}

impl Subject for CloudHypervisor {
    fn name(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn start(&self, machine: &Machine, folder: &Path) -> anyhow::Result<Running> {
        let began_ns = clock::now_ns();
        let server =
            machine.share.as_ref().map(|share| virtiofsd::start(&self.virtiofsd, share, folder)).transpose()?;
        let socket = server.as_ref().map(|(_, socket)| socket.as_path());
        let program = Program::new(&self.program, arguments(machine, folder, socket));
        let vmm = program.start(folder, None)?;
        Ok(Running {
            began_ns,
            processes: [vmm].into_iter().chain(server.map(|(process, _)| process)).collect(),
            console: folder.join("console.log"),
            guest: machine.vsock.then(|| GuestSocket::Unix(folder.join("vsock.sock"))),
            control: Box::new(Api { socket: folder.join("api.sock"), memory_mib: machine.memory_mib }),
            setup: format!("root on virtio-pmem with DAX; {}", program.line()),
        })
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone(), self.virtiofsd.clone()]
    }
}

fn arguments(machine: &Machine, folder: &Path, share: Option<&Path>) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut words = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("--api-socket", format!("path={}", file("api.sock")));
    add("--kernel", machine.kernel.display().to_string());
    add("--cmdline", format!("loglevel=4 console=hvc0 panic=-1 {PMEM_ROOT} {}", machine.cmdline));
    add("--cpus", format!("boot={}", machine.vcpus));
    let shared = if share.is_some() { ",shared=on" } else { "" };
    add("--memory", format!("size={}M{shared}", machine.memory_mib));
    add("--pmem", format!("file={},discard_writes=on", machine.root.display()));
    add("--serial", "off".into());
    add("--console", format!("file={}", file("console.log")));
    add("--rng", "src=/dev/urandom".into());
    let reporting = if machine.reporting { "on" } else { "off" };
    add("--balloon", format!("size=0,deflate_on_oom=on,free_page_reporting={reporting}"));
    if machine.vsock {
        add("--vsock", format!("cid=3,socket={}", file("vsock.sock")));
    }
    if let Some(tap) = &machine.tap {
        add("--net", format!("tap={tap},mac={MAC}"));
    }
    if let Some(socket) = share {
        add("--fs", format!("tag={TAG},socket={},num_queues=1,queue_size=1024", socket.display()));
    }
    // One option has all disks as its values.
    if !machine.disks.is_empty() {
        words.push("--disk".into());
        words.extend(machine.disks.iter().map(|disk| {
            let read_only = if disk.read_only { ",readonly=on" } else { "" };
            format!("path={}{read_only}", disk.path.display())
        }));
    }
    words
}

struct Api {
    socket: PathBuf,
    memory_mib: u32,
}

impl Control for Api {
    fn set_balloon(&self, mib: u32) -> anyhow::Result<()> {
        let target = json!({"desired_balloon": u64::from(mib) << 20});
        api::call(&self.socket, async |client| client.send(Method::PUT, "/api/v1/vm.resize", Some(&target)).await)
    }

    fn balloon_mib(&self) -> anyhow::Result<u32> {
        let info: Value = api::call(&self.socket, async |client| client.get("/api/v1/vm.info").await)?;
        let kept = info["memory_actual_size"].as_u64().context("no memory_actual_size")? >> 20;
        Ok(self.memory_mib.saturating_sub(u32::try_from(kept)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;

    #[test]
    fn everything_is_on_the_command_line() {
        let line = arguments(&machine(), Path::new("/w"), Some(Path::new("/w/fs.sock"))).join(" ");
        for part in [
            "--memory size=512M,shared=on",
            "--disk path=/m/data.img path=/m/job.img,readonly=on",
            "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro rootwait quiet init=/x",
            "--fs tag=share,socket=/w/fs.sock",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
