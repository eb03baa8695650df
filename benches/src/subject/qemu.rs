//! QEMU, with the fast board (`microvm`, virtio-mmio) and with the usual one (`q35`, virtio-pci).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

use super::qmp::Qmp;
use super::{GuestSocket, MAC, Machine, PMEM_ROOT, Running, Subject, TAG, block_root, virtiofsd};
use crate::clock;
use crate::process::Program;

/// The context id of vhost guests on this host. Other programs use ids from 3 on.
static NEXT_CID: AtomicU32 = AtomicU32::new(0x6700);

/// The board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// virtio-mmio, a minimal firmware, and the root on virtio-blk: this board has no pmem.
    Microvm,
    /// virtio-pci, the default firmware, and the root on virtio-pmem. With a file server the root is on virtio-blk: the
    /// server maps all memory writable, and the root's file is read-only.
    Q35,
    /// As q35, with a part of its memory from virtio-mem.
    VirtioMem,
}

impl Kind {
    /// Whether its devices are on PCI.
    fn has_pci(self) -> bool {
        self != Kind::Microvm
    }
}

pub(super) struct Qemu {
    kind: Kind,
    program: PathBuf,
    virtiofsd: PathBuf,
}

impl Qemu {
    /// Measures QEMU with this board.
    pub(super) fn new(kind: Kind, program: &Path, virtiofsd: &Path) -> Self {
        Self { kind, program: program.to_owned(), virtiofsd: virtiofsd.to_owned() }
    }
}

impl Subject for Qemu {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Microvm => "qemu-microvm",
            Kind::Q35 => "qemu-q35",
            Kind::VirtioMem => "qemu-virtio-mem",
        }
    }

    fn only(&self) -> Option<&'static str> {
        (self.kind == Kind::VirtioMem).then_some("memory") // in other benches it would be the same as q35
    }

    fn start(&self, machine: &Machine, folder: &Path) -> anyhow::Result<Running> {
        let cid = machine.vsock.then(|| NEXT_CID.fetch_add(1, Ordering::Relaxed));
        let root_bytes = fs::metadata(&machine.root).with_context(|| machine.root.display().to_string())?.len();
        let began_ns = clock::now_ns();
        let server =
            machine.share.as_ref().map(|share| virtiofsd::start(&self.virtiofsd, share, folder)).transpose()?;
        let socket = server.as_ref().map(|(_, socket)| socket.as_path());
        let program = Program::new(&self.program, arguments(self.kind, machine, folder, cid, socket, root_bytes));
        let qemu = program.start(folder, None)?;
        let root = if has_pmem(self.kind, machine) {
            "root on virtio-pmem with DAX"
        } else {
            "root on virtio-blk, in the guest's own page cache"
        };
        Ok(Running {
            began_ns,
            processes: [qemu].into_iter().chain(server.map(|(process, _)| process)).collect(),
            console: folder.join("console.log"),
            guest: cid.map(GuestSocket::Vhost),
            control: Box::new(Qmp(folder.join("qmp.sock"))),
            setup: format!("{root}; {}", program.line()),
        })
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone(), self.virtiofsd.clone()]
    }
}

/// A command line under construction.
struct Arguments {
    kind: Kind,
    words: Vec<String>,
}

impl Arguments {
    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.words.extend([option.to_owned(), value.into()]);
    }

    /// Adds a virtio device, in the board's transport.
    fn device(&mut self, name: &str, options: &str) {
        let transport = match self.kind {
            Kind::Microvm => "device",
            Kind::Q35 | Kind::VirtioMem => "pci",
        };
        self.add("-device", format!("{name}-{transport}{options}"));
    }
}

fn arguments(
    kind: Kind,
    machine: &Machine,
    folder: &Path,
    cid: Option<u32>,
    share: Option<&Path>,
    root_bytes: u64,
) -> Vec<String> {
    let mut line = Arguments { kind, words: Vec::new() };
    board(&mut line, machine, share.is_some(), root_bytes);
    line.words.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from));
    line.add("-display", "none");
    line.add("-qmp", format!("unix:{},server=on,wait=off", comma(&folder.join("qmp.sock"))));
    line.add("-kernel", machine.kernel.display().to_string());

    for (index, disk) in machine.disks.iter().enumerate() {
        block(&mut line, &format!("disk{index}"), &disk.path, disk.read_only);
    }
    let root = root(&mut line, machine, root_bytes);
    line.add("-append", format!("loglevel=4 console=hvc0 panic=-1 {root} {}", machine.cmdline));
    if let Some(socket) = share {
        line.add("-chardev", format!("socket,id=fs,path={}", comma(socket)));
        line.device("vhost-user-fs", &format!(",chardev=fs,tag={TAG},queue-size=1024"));
    }
    if let Some(tap) = &machine.tap {
        line.add("-netdev", format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=on"));
        let no_rom = if kind.has_pci() { ",romfile=" } else { "" };
        line.device("virtio-net", &format!(",netdev=net,mac={MAC}{no_rom}"));
    }
    if let Some(cid) = cid {
        line.device("vhost-vsock", &format!(",guest-cid={cid}"));
    }
    let reporting = if machine.reporting { "on" } else { "off" };
    line.device("virtio-balloon", &format!(",free-page-reporting={reporting},deflate-on-oom=on"));
    line.add("-object", "rng-random,id=rng,filename=/dev/urandom");
    line.device("virtio-rng", ",rng=rng");
    line.add("-chardev", format!("file,id=console,path={}", comma(&folder.join("console.log"))));
    line.device("virtio-serial", "");
    line.add("-device", "virtconsole,chardev=console");
    line.words
}

/// Board, processors and memory. Memory is private unless a file server needs it.
fn board(line: &mut Arguments, machine: &Machine, shared: bool, root_bytes: u64) {
    let board = match line.kind {
        Kind::Microvm => {
            "microvm,accel=kvm,acpi=on,ioapic2=on,pit=off,pic=off,rtc=off,isa-serial=off,x-option-roms=off"
        }
        Kind::Q35 | Kind::VirtioMem => "q35,accel=kvm,graphics=off,vmport=off",
    };
    let memory = if shared { ",memory-backend=ram" } else { "" };
    line.add("-machine", format!("{board}{memory}"));
    let plugged = if line.kind == Kind::VirtioMem { machine.hotplug_mib } else { 0 };
    let mib = machine.memory_mib - plugged;
    if shared {
        line.add("-object", format!("memory-backend-memfd,id=ram,size={mib}M,share=on"));
    }
    line.add("-cpu", "host");
    line.add("-smp", machine.vcpus.to_string());
    match line.kind {
        Kind::Microvm => {
            // The loader knows PVH and takes the kernel from memory. The devices speak virtio 1 only.
            line.add("-bios", "qboot.rom");
            line.add("-global", "virtio-mmio.force-legacy=false");
            line.add("-m", format!("{mib}M"));
        }
        // Address space for the root, which is mapped as memory.
        Kind::Q35 | Kind::VirtioMem => {
            let most = u64::from(machine.memory_mib) + (root_bytes >> 20) + 1024;
            line.add("-m", format!("{mib}M,slots=1,maxmem={most}M"));
        }
    }
    if plugged > 0 {
        line.add("-object", format!("memory-backend-ram,id=plugged,size={plugged}M"));
        line.add("-device", format!("virtio-mem-pci,id=plug,memdev=plugged,requested-size={plugged}M"));
    }
}

/// Through the host's page cache by io_uring, as garret does it.
fn block(line: &mut Arguments, id: &str, path: &Path, read_only: bool) {
    let read_only = if read_only { "on" } else { "off" };
    line.add(
        "-drive",
        format!(
            "if=none,id={id},format=raw,cache=writeback,aio=io_uring,discard=unmap,readonly={read_only},file={}",
            comma(path)
        ),
    );
    line.device("virtio-blk", &format!(",drive={id}"));
}

fn has_pmem(kind: Kind, machine: &Machine) -> bool {
    kind.has_pci() && machine.share.is_none()
}

/// Adds the root, and returns its kernel parameters.
fn root(line: &mut Arguments, machine: &Machine, bytes: u64) -> String {
    if !has_pmem(line.kind, machine) {
        block(line, "root", &machine.root, true);
        return block_root(&machine.root_after_disks());
    }
    let path = comma(&machine.root);
    let options = format!("id=root,mem-path={path},size={bytes},share=off,readonly=on,rom=off");
    line.add("-object", format!("memory-backend-file,{options}"));
    line.add("-device", "virtio-pmem-pci,memdev=root");
    PMEM_ROOT.to_owned()
}

/// Doubles commas: QEMU reads a doubled comma as one.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;

    fn line(kind: Kind, machine: &Machine) -> String {
        let share = machine.share.as_ref().map(|_| Path::new("/w/fs.sock"));
        arguments(kind, machine, Path::new("/w"), machine.vsock.then_some(77), share, 300 << 20).join(" ")
    }

    #[test]
    fn q35_has_its_root_as_memory_and_its_devices_on_pci() {
        let line = line(Kind::Q35, &machine());
        for part in [
            "-m 512M,slots=1,maxmem=1836M",
            "memory-backend=ram -object memory-backend-memfd,id=ram,size=512M,share=on",
            "root=/dev/vdc rootfstype=erofs ro",
            "virtio-blk-pci,drive=disk1",
            "readonly=on,file=/m/job.img",
            "vhost-user-fs-pci,chardev=fs,tag=share",
            "vhost-vsock-pci,guest-cid=77",
            "virtio-net-pci,netdev=net,mac=06:67:62:00:00:02,romfile=",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("-device,") && !line.contains("virtio-mem"), "{line}");
        let unshared = self::line(Kind::Q35, &Machine { share: None, ..machine() });
        for part in [
            "virtio-pmem-pci,memdev=root",
            "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro rootwait quiet init=/x",
        ] {
            assert!(unshared.contains(part), "{part}: {unshared}");
        }
    }

    #[test]
    fn a_part_of_the_memory_comes_by_virtio_mem_where_there_is_one() {
        let machine = Machine { hotplug_mib: 192, reporting: false, ..machine() };
        let line = line(Kind::VirtioMem, &machine);
        for part in [
            "-m 320M,slots=1,maxmem=1836M",
            "memory-backend-ram,id=plugged,size=192M",
            "virtio-mem-pci,id=plug,memdev=plugged,requested-size=192M",
            "virtio-balloon-pci,free-page-reporting=off",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        for kind in [Kind::Q35, Kind::Microvm] {
            let line = self::line(kind, &machine);
            assert!(line.contains("-m 512M") && !line.contains("virtio-mem"), "{line}");
        }
    }

    #[test]
    fn microvm_has_its_root_last_and_devices_on_mmio() {
        let line = line(Kind::Microvm, &machine());
        for part in
            ["root=/dev/vdc rootfstype=erofs ro", "virtio-blk-device,drive=root", "vhost-vsock-device,guest-cid=77"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("-pci"), "{line}");
        assert!(line.find("drive=disk1").unwrap() < line.find("drive=root").unwrap());
    }

    #[test]
    fn memory_is_private_without_a_file_server() {
        let plain = Machine { share: None, tap: None, vsock: false, ..machine() };
        for kind in [Kind::Q35, Kind::Microvm] {
            let line = line(kind, &plain);
            for part in ["memfd", "vhost", "netdev"] {
                assert!(!line.contains(part), "{part}: {line}");
            }
        }
        assert_eq!(comma(Path::new("/a,b")), "/a,,b");
    }
}
