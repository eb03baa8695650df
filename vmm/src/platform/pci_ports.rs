//! The PCI configuration ports, with the address register's writes collected by KVM.
//!
//! A configuration access is a write of the address, then an access of the data; only the second leaves the kernel. What
//! waits in the ring is older than what is being handled, so it goes first.

use std::sync::{Arc, Mutex};

use super::ports;
use crate::bus::BusDevice;
use crate::kvm::{CoalescedRing, Error, Vm};

/// Ports 0xCF8 to 0xCFF in front of the PCI bus.
pub struct PciPorts {
    ring: Mutex<CoalescedRing>,
    bus: Arc<dyn BusDevice>,
}

impl PciPorts {
    /// `ring`: the machine's only ring, in which nothing but the address register's writes lie.
    pub fn new(vm: &Vm, ring: CoalescedRing, bus: Arc<dyn BusDevice>) -> Result<Self, Error> {
        vm.coalesce_port(ports::PCI_CONFIG.start, 4)?;
        Ok(Self { ring: Mutex::new(ring), bus })
    }

    /// Hands over what waits. The lock is held over the whole access, so that two vCPUs cannot swap their order.
    fn catch_up(&self) -> std::sync::MutexGuard<'_, CoalescedRing> {
        let mut ring = self.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while let Some((port, data, len)) = ring.take() {
            self.bus.write(port.saturating_sub(ports::PCI_CONFIG.start.into()), &data[..len]);
        }
        ring
    }
}

impl BusDevice for PciPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let _order = self.catch_up();
        self.bus.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let _order = self.catch_up();
        self.bus.write(offset, data);
    }
}
