//! The transport's interface to the hypervisor: a trait, so that tests can use the transport without a hypervisor.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub(crate) use crate::kvm::Msi;
use crate::kvm::{Error, Vm};
use crate::memory::SharedPage;

/// Connects event descriptors, which replace exits and injected interrupts.
pub(crate) trait Hypervisor: Send + Sync {
    /// Allocates a number for one message-signaled interrupt.
    fn allocate_gsi(&self) -> io::Result<u32>;
    /// Connects `event`: a write to it sends `msi`. Earlier writes count too.
    fn connect_interrupt(&self, gsi: u32, event: &EventFd, msi: Msi) -> io::Result<()>;
    /// Changes the message of a connected interrupt.
    fn reroute_interrupt(&self, gsi: u32, msi: Msi) -> io::Result<()>;
    /// Disconnects `event`: later writes stay pending in it.
    fn disconnect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()>;
    /// Makes a write of the guest at `address` raise `event`.
    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Lets the guest read `page` at `address` without an exit.
    fn map_page(&self, address: u64, page: &Arc<SharedPage>) -> io::Result<()>;
}

fn other(error: Error) -> io::Error {
    io::Error::other(error)
}

impl Hypervisor for Vm {
    fn allocate_gsi(&self) -> io::Result<u32> {
        self.allocate_gsi().map_err(other)
    }

    fn connect_interrupt(&self, gsi: u32, event: &EventFd, msi: Msi) -> io::Result<()> {
        // The route first: registering an event that has been written to sends the interrupt at once.
        self.set_msi_route(gsi, Some(msi)).map_err(other)?;
        self.register_irqfd(event, gsi).map_err(other)
    }

    fn reroute_interrupt(&self, gsi: u32, msi: Msi) -> io::Result<()> {
        self.set_msi_route(gsi, Some(msi)).map_err(other)
    }

    fn disconnect_interrupt(&self, gsi: u32, event: &EventFd) -> io::Result<()> {
        self.unregister_irqfd(event, gsi).map_err(other)
    }

    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.register_ioeventfd(event, address).map_err(other)
    }

    fn map_page(&self, address: u64, page: &Arc<SharedPage>) -> io::Result<()> {
        self.map_page(address, page.clone()).map_err(other)
    }
}
