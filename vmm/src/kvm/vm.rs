//! One virtual machine: memory slots, interrupt routes, event descriptors.

#![allow(unsafe_code, reason = "memory slots hand host memory to the guest")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_PMU_CAPABILITY, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC,
    KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, KVM_X86_QUIRK_SLOT_ZAP_ALL, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{GuestMemory, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Error, failed};
use crate::memory::{GuestRam, GuestRegion, PAGE, SharedPage, layout};

/// The number of I/O APIC pins. Wired interrupts have numbers below it; message-signaled interrupts start at it.
const IO_APIC_PINS: u32 = 24;
/// One past the last interrupt number that is allocated; KVM has 4096.
const GSI_END: u32 = 1024;

/// The write that signals an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Msi {
    /// The address of the write.
    pub address: u64,
    /// The written value.
    pub data: u32,
}

/// A virtual machine. All methods take `&self` and may be called from any thread.
pub(crate) struct Vm {
    fd: VmFd,
    kvm: Kvm,
    next_gsi: AtomicU32,
    routes: Mutex<BTreeMap<u32, Msi>>,
    next_slot: AtomicU32,
    /// Kept alive: the guest reads these pages as long as the machine exists.
    mapped_pages: Mutex<Vec<Arc<SharedPage>>>,
    /// Kept alive: the guest uses this memory as long as the machine exists.
    memory: GuestRam,
    /// The slot of the hotplug region's first granule; the others follow.
    first_granule: u32,
}

impl Vm {
    /// Creates a machine with `memory` and the in-kernel interrupt controllers, but without processors. The guest
    /// cannot access the hotplug region before [`Vm::set_granule_mapped`].
    pub(crate) fn new(kvm: Kvm, memory: GuestRam) -> Result<Self, Error> {
        let fd = kvm.create_vm().map_err(failed("create a virtual machine"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(failed("place the identity map"))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(failed("place the task state segment"))?;
        fd.create_irq_chip().map_err(failed("create the interrupt controllers"))?;
        zap_only_removed_slots(&fd);
        disable_performance_counters(&fd).map_err(failed("switch off the performance counters"))?;
        let mut slots = 0;
        for region in memory.iter().filter(|region| region.plugged().is_none()) {
            let slot = memory_slot(slots, region, &(0..region.len()));
            // SAFETY: the range is one mapping, kept alive by `memory`; the regions of a GuestMemory do not overlap.
            unsafe { fd.set_user_memory_region(slot) }.map_err(failed("give the machine its memory"))?;
            slots += 1;
        }
        let granules = memory.hotplug().and_then(GuestRegion::plugged).map_or(0, |plugged| plugged.granules() as u32);
        let vm = Self {
            fd,
            kvm,
            next_gsi: IO_APIC_PINS.into(),
            routes: Mutex::default(),
            next_slot: AtomicU32::new(slots + granules),
            mapped_pages: Mutex::default(),
            memory,
            first_granule: slots,
        };
        vm.commit_routes(&BTreeMap::new())?;
        Ok(vm)
    }

    /// The handle to this host's KVM.
    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Creates processor `index`.
    pub(crate) fn create_vcpu(&self, index: u8) -> Result<VcpuFd, Error> {
        self.fd.create_vcpu(index.into()).map_err(failed("create a vCPU"))
    }

    /// Allocates an interrupt number for one MSI-X vector.
    pub(crate) fn allocate_gsi(&self) -> Result<u32, Error> {
        self.next_gsi
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |gsi| (gsi < GSI_END).then_some(gsi + 1))
            .map_err(|_| Error::NoGsi(GSI_END - IO_APIC_PINS))
    }

    /// Sets the message of interrupt `gsi`; `None` if it is masked. Makes a system call only if the message changes.
    pub(crate) fn set_msi_route(&self, gsi: u32, msi: Option<Msi>) -> Result<(), Error> {
        let mut routes = self.routes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = match msi {
            Some(msi) => routes.insert(gsi, msi),
            None => routes.remove(&gsi),
        };
        if before == msi {
            return Ok(());
        }
        self.commit_routes(&routes).inspect_err(|_| {
            // KVM rejected the guest's message. It must not stay in the table, or later changes for other devices fail
            // too.
            match before {
                Some(before) => routes.insert(gsi, before),
                None => routes.remove(&gsi),
            };
        })
    }

    /// KVM_SET_GSI_ROUTING replaces the whole table, so every call includes the I/O APIC's pins.
    fn commit_routes(&self, routes: &BTreeMap<u32, Msi>) -> Result<(), Error> {
        let pins = (0..IO_APIC_PINS).map(pin_route);
        let entries: Vec<_> = pins.chain(routes.iter().map(|(gsi, msi)| msi_route(*gsi, *msi))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::NoGsi(GSI_END))?;
        self.fd.set_gsi_routing(&table).map_err(failed("route the interrupts"))
    }

    /// Makes a write to `fd` raise interrupt `gsi`.
    pub(crate) fn register_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd.register_irqfd(fd, gsi).map_err(failed("connect an interrupt"))
    }

    /// Undoes [`Vm::register_irqfd`].
    pub(crate) fn unregister_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd.unregister_irqfd(fd, gsi).map_err(failed("disconnect an interrupt"))
    }

    /// Makes a write of the guest at `address`, of any length, signal `fd` without an exit to user space.
    pub(crate) fn register_ioeventfd(&self, fd: &EventFd, address: u64) -> Result<(), Error> {
        self.fd
            .register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(failed("connect a queue's doorbell"))
    }

    /// Maps `page` read-only at `address`: the guest reads it without an exit. A write there causes an exit and does
    /// not change the page.
    pub(crate) fn map_page(&self, address: u64, page: Arc<SharedPage>) -> Result<(), Error> {
        let slot = kvm_userspace_memory_region {
            slot: self.next_slot.fetch_add(1, Ordering::Relaxed),
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: PAGE as u64,
            userspace_addr: page.address(),
        };
        self.mapped_pages.lock().unwrap_or_else(PoisonError::into_inner).push(page);
        // SAFETY: the page lives as long as this machine, in `mapped_pages`, and is only ever written with atomic
        // stores. KVM refuses an address that another slot has.
        unsafe { self.fd.set_user_memory_region(slot) }.map_err(failed("show the machine a page"))
    }

    /// Maps granule `index` of the hotplug region for the guest, or unmaps it, so that an access causes an exit.
    /// Mapping a mapped granule has no effect; unmapping an unmapped granule is an error.
    pub(crate) fn set_granule_mapped(&self, index: usize, mapped: bool) -> Result<(), Error> {
        let granules = self.memory.hotplug().and_then(|region| Some((region, region.plugged()?)));
        let (region, plugged) =
            granules.filter(|(_, plugged)| index < plugged.granules()).ok_or(Error::NoGranule(index))?;
        let mut slot = memory_slot(self.first_granule + index as u32, region, &plugged.granule_range(index));
        if !mapped {
            slot.memory_size = 0; // removes the slot
        }
        // SAFETY: the range lies in one mapping, kept alive by `memory`; granules and regions do not overlap.
        unsafe { self.fd.set_user_memory_region(slot) }.map_err(failed("switch the machine's plugged memory"))
    }
}

/// Removing a slot unmaps its pages from the guest, and by default also the pages of all other slots: the next access
/// to each page faults. Linux 6.12 and later can unmap the removed slot only. Older versions are slower, but correct.
fn zap_only_removed_slots(fd: &VmFd) {
    let quirks = fd.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into()) as u32;
    if quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL != 0 {
        let args = [KVM_X86_QUIRK_SLOT_ZAP_ALL.into(), 0, 0, 0];
        let _ = fd.enable_cap(&kvm_enable_cap { cap: KVM_CAP_DISABLE_QUIRKS2, args, ..Default::default() });
    }
}

/// AMD's first four counters exist regardless of CPUID. Linux before 5.18 cannot disable them. Must be called before
/// the first vCPU is created.
fn disable_performance_counters(fd: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let possible = fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) as u32;
    if possible & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let args = [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0];
    fd.enable_cap(&kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, args, ..Default::default() })
}

/// `range` is in bytes from the region's beginning.
fn memory_slot(slot: u32, region: &GuestRegion, range: &Range<u64>) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0 + range.start,
        memory_size: range.end - range.start,
        userspace_addr: region.host_address() + range.start,
    }
}

fn pin_route(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
    entry
}

fn msi_route(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_bindings::kvm_irq_routing_msi {
        address_lo: msi.address as u32,
        address_hi: (msi.address >> 32) as u32,
        data: msi.data,
        ..Default::default()
    };
    entry
}
