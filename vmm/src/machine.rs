//! Assembles a machine, in the order in which it boots.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use garret_api::vmm::{
    Landlock, MachineConfig, MachineDescription, MachineInfo, MachineState, MemoryInfo, MemoryTarget, Metrics,
};
use kvm_ioctls::VcpuFd;

use crate::bus::Bus;
use crate::console_log::ConsoleLog;
use crate::control::{Event, Events};
use crate::devices::balloon::Reported;
use crate::devices::mem::{Hotplug, TargetRefused};
use crate::devices::{self, pmem};
use crate::kvm::registers;
use crate::kvm::{self, Vm, cpuid};
use crate::memory::{self, GuestRam, layout};
use crate::pci::{BarWindow, ConfigWindow, PciBus, StillBusy};
use crate::platform::{self, PowerButton};
use crate::vcpu::{Buses, Vcpus};
use crate::{acpi, boot};

/// Why a pause failed; the machine continues to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PauseFailed {
    /// A device cannot stop, because its requests wait for space on the host's disk.
    #[error("device {0} waits for space on the host's disk: make some free first")]
    HostFull(String),
    #[error("{0}; try again")]
    Device(StillBusy),
    #[error("a virtual CPU did not stop in time; try again")]
    Vcpus,
}

/// A machine that is complete. It does not run before [`Machine::start`].
pub(crate) struct Machine {
    config: MachineConfig,
    landlock: Landlock,
    vcpus: Vcpus,
    pci: Arc<PciBus>,
    reported: Reported,
    hotplug: Option<Hotplug>,
    power_button: PowerButton,
    setup: Duration,
}

impl Machine {
    /// Configuration → memory → KVM → kernel → devices → vCPUs. When this returns, all descriptors of the machine are
    /// open and all its threads exist.
    pub(crate) fn assemble(config: &MachineConfig, landlock: Landlock, events: &Events) -> anyhow::Result<Self> {
        let cmdline = boot::cmdline::build(config).map_err(boot::Error::from)?;
        let log = console_log(config, events)?;
        let kvm = kvm::open(config.vcpus)?;

        let (memory, root) = guest_memory(config)?;
        let vm = Arc::new(Vm::new(kvm, memory.clone())?);
        let rsdp = acpi::write(&memory, config.vcpus)?;
        let entry = boot::load(&memory, &config.kernel, &cmdline, rsdp)?;

        let Devices { pci, reported, hotplug } = pci_devices(config, &vm, &memory, root, &log)?;
        let vcpus = vcpus(config.vcpus, &vm, entry)?;
        let power_button = PowerButton::new(&vm)?;
        let buses = buses(&vm, &pci, log, events)?;
        let vcpus = Vcpus::spawn(vcpus, &buses, events)?;
        Ok(Self {
            config: config.clone(),
            landlock,
            vcpus,
            pci,
            reported,
            hotplug,
            power_button,
            setup: Duration::ZERO,
        })
    }

    /// Starts the vCPUs. `since`: when the process began.
    pub(crate) fn start(&mut self, since: Instant) {
        self.setup = since.elapsed();
        self.vcpus.resume();
    }

    /// Stops the vCPUs first, then the devices. So no new request arrives, and the requests in flight are finished.
    /// Each of the two steps may take up to `deadline`.
    pub(crate) fn pause(&self, deadline: Duration) -> Result<(), PauseFailed> {
        // A stopping device serves no request, including reads, until its waiting writes are done.
        if let Some(device) = self.pci.device_waiting_for_space() {
            return Err(PauseFailed::HostFull(device.to_owned()));
        }
        let paused = match self.vcpus.pause(deadline) {
            true => self.pci.pause(deadline).map_err(PauseFailed::Device),
            false => Err(PauseFailed::Vcpus),
        };
        paused.inspect_err(|_| self.vcpus.resume())
    }

    /// Resumes the devices first, then the vCPUs.
    pub(crate) fn resume(&self) {
        self.pci.resume();
        self.vcpus.resume();
    }

    /// Resumes devices that were too busy for a pause. Returns true when none remain.
    pub(crate) fn resume_devices(&self) -> bool {
        self.pci.resume()
    }

    /// Ends the machine. The vCPUs get `deadline` to stop; then the requests in flight get the same time to reach the
    /// disk.
    pub(crate) fn end(self, deadline: Duration) {
        if !self.vcpus.stop(deadline) {
            tracing::warn!("a virtual CPU did not stop in time");
        }
        if let Err(busy) = self.pci.pause(deadline) {
            tracing::warn!("{busy}");
        }
        if let Some(socket) = self.config.vsock.as_ref().and_then(|vsock| vsock.socket.path()) {
            let _ = std::fs::remove_file(socket); // the API server removes its own
        }
    }

    /// The machine's description for the API.
    pub(crate) fn describe(&self, state: MachineState) -> MachineDescription {
        let info = MachineInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state,
            landlock: Some(self.landlock),
        };
        MachineDescription { info, config: self.config.clone() }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics {
            setup_ns: self.setup.as_nanos() as u64,
            exits: self.vcpus.exits(),
            reported_free: self.reported.bytes(),
            devices: self.pci.metrics(),
        }
    }

    /// The state of its memory: the memory that is always present, and the memory that can be plugged.
    pub(crate) fn memory(&self) -> MemoryInfo {
        let hotplug = self.hotplug.as_ref().map(Hotplug::info);
        MemoryInfo { boot_mib: self.config.memory_mib, ..hotplug.unwrap_or_default() }
    }

    /// Presses the power button. A paused guest sees it when it resumes.
    pub(crate) fn press_power_button(&self) -> io::Result<()> {
        self.power_button.press()
    }

    /// How long the API's client may withhold resources from the machine without a request.
    pub(crate) fn lease(&self) -> Option<Duration> {
        self.config.lease_s.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Allows the guest to plug all its pluggable memory.
    pub(crate) fn allow_all_memory(&self) {
        if let Some(hotplug) = &self.hotplug {
            hotplug.allow_all();
        }
    }

    /// Sets how much memory the guest should have plugged.
    pub(crate) fn set_memory(&self, target: MemoryTarget) -> Result<(), TargetRefused> {
        self.hotplug.as_ref().ok_or(TargetRefused::NoDevice)?.set_target(target)
    }
}

fn console_log(config: &MachineConfig, events: &Events) -> anyhow::Result<Arc<ConsoleLog>> {
    let events = events.clone();
    let path = config.console.log.as_deref();
    let log = ConsoleLog::open(path, move || events.send(Event::PanicPrinted))
        .map_err(|error| anyhow::anyhow!("console log {}: {error}", path.unwrap_or("stdout".as_ref()).display()))?;
    Ok(Arc::new(log))
}

/// The root image's location in guest memory: first address and length.
type Root = Option<(u64, u64)>;

/// RAM, the hotplug region above it, and the root image above both. Devices can reach all three, because a program may
/// send from a mapped file to a socket.
fn guest_memory(config: &MachineConfig) -> anyhow::Result<(GuestRam, Root)> {
    let bytes = u64::from(config.memory_mib) << 20;
    let pluggable = config.hotplug.map_or(0, |hotplug| u64::from(hotplug.size_mib) << 20);
    let mut ram = memory::ram(bytes)?;
    if pluggable > 0 {
        ram = memory::with_hotplug(&ram, layout::hotplug_base(bytes), pluggable)?;
    }
    let Some(path) = &config.root else { return Ok((ram, None)) };
    let image = pmem::map(path)?;
    let (base, len) = (layout::pmem_base(bytes, pluggable), image.size() as u64);
    Ok((memory::with_region(&ram, base, image)?, Some((base, len))))
}

/// The devices on the PCI bus, and the handles of those that the control thread speaks to.
struct Devices {
    pci: Arc<PciBus>,
    reported: Reported,
    hotplug: Option<Hotplug>,
}

/// The order here determines the slots' order, and so the order of the device names in the guest.
fn pci_devices(
    config: &MachineConfig,
    vm: &Arc<Vm>,
    memory: &GuestRam,
    root: Root,
    log: &Arc<ConsoleLog>,
) -> anyhow::Result<Devices> {
    let mut bus = PciBus::new(vm.clone(), memory.clone(), layout::PCI_WINDOW, layout::PCI_CONFIG.start);
    if let Some((base, len)) = root {
        bus.add(Box::new(pmem::new(base, len)?))?;
    }
    for (index, disk) in config.disks.iter().enumerate() {
        bus.add(Box::new(devices::block::new(index, disk)?))?;
    }
    for (index, net) in config.nets.iter().enumerate() {
        bus.add(Box::new(devices::net::new(index, net)?))?;
    }
    for (index, share) in config.shares.iter().enumerate() {
        bus.add(Box::new(devices::fs::new(index, share)?))?;
    }
    if let Some(vsock) = &config.vsock {
        bus.add(Box::new(devices::vsock::new(vsock)?))?;
    }
    let (device, reported) = devices::balloon::new(config.free_page_reporting)?;
    bus.add(Box::new(device))?;
    bus.add(Box::new(devices::rng::new()?))?;
    bus.add(Box::new(devices::console::new(log.clone())?))?;
    let hotplug = hotplug(config, vm, memory, &mut bus)?;
    Ok(Devices { pci: Arc::new(bus), reported, hotplug })
}

fn hotplug(
    config: &MachineConfig,
    vm: &Arc<Vm>,
    memory: &GuestRam,
    bus: &mut PciBus,
) -> anyhow::Result<Option<Hotplug>> {
    let (Some(config), Some(region)) = (&config.hotplug, memory.hotplug()) else { return Ok(None) };
    let (device, hotplug) = devices::mem::new(config, region, vm.clone())?;
    bus.add(Box::new(device))?;
    Ok(Some(hotplug))
}

fn vcpus(count: u8, vm: &Vm, entry: u64) -> Result<Vec<VcpuFd>, kvm::Error> {
    let supported = cpuid::supported(vm.kvm())?;
    let vcpus = (0..count).map(|index| {
        let vcpu = vm.create_vcpu(index)?;
        registers::set_common(&vcpu, &cpuid::for_vcpu(&supported, index, count))?;
        Ok(vcpu)
    });
    let vcpus = vcpus.collect::<Result<Vec<_>, kvm::Error>>()?;
    registers::set_entry(&vcpus[0], entry)?; // the others wait for their start-up signal in KVM
    Ok(vcpus)
}

fn buses(vm: &Vm, pci: &Arc<PciBus>, log: Arc<ConsoleLog>, events: &Events) -> anyhow::Result<Buses> {
    let port_bus = platform::port_bus(vm, log, events)?;
    let mut mmio = Bus::default();
    mmio.add(layout::PCI_WINDOW, Arc::new(BarWindow(pci.clone())))?;
    mmio.add(layout::PCI_CONFIG, Arc::new(ConfigWindow(pci.clone())))?;
    Ok(Buses { ports: Arc::new(port_bus), mmio: Arc::new(mmio) })
}
